"""A toy task for the trainer: a small regression with BatchNorm, dropout and noise, so every kind of state counts."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2vbert.training import checkpoint
from w2vbert.training.config import TrainConfig
from w2vbert.training.optim import OptimConfig, ParamGroup
from w2vbert.training.task import StepOutput
from w2vbert.training.trainer import Trainer, TrainResult

INPUTS = 4
CONFIG = TrainConfig(
    max_steps=12,
    average_decay=0.5,
    log_every_steps=3,
    validate_every_steps=4,
    save_every_steps=2,
    precision="float32",
    threads=1,
)
TARGET = torch.tensor([1.0, -2.0, 0.5, 0.0])


@dataclass(frozen=True)
class ToyBatch:
    """Rows of a regression; `ids` name batch and row."""

    ids: tuple[str, ...]
    x: Tensor
    y: Tensor

    @property
    def seconds(self) -> float:
        return float(len(self.ids))

    @property
    def size(self) -> str:
        return f"{len(self.ids)} rows"

    def to(self, device: torch.device) -> "ToyBatch":
        return ToyBatch(self.ids, self.x.to(device), self.y.to(device))


class ToyStream:
    """Batches as a function of their number, of different sizes; `broken` ones hold a NaN, `empty` ones no row."""

    batch_seconds = 5.0

    def __init__(self, broken: Sequence[int] = (), empty: Sequence[int] = ()) -> None:
        self.broken = broken
        self.empty = empty
        self.position = 0
        self.index, self.count = 0, 1

    def share(self, index: int, count: int) -> None:
        self.index, self.count = index, count

    def largest(self) -> ToyBatch:
        return self.batch(2)

    def next_batch(self) -> ToyBatch:
        number = self.position + self.index
        self.position += self.count
        return self.batch(number)

    def batch(self, number: int) -> ToyBatch:
        rows = 0 if number in self.empty else 3 + number % 3
        x = torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(number))
        if number in self.broken:
            x[0, 0] = torch.nan
        return ToyBatch(tuple(f"{number}-{row}" for row in range(rows)), x, x @ TARGET)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.position = state["position"]


class ToyLayer(nn.Linear):
    """Of our own code: PyTorch compiles none of its modules alone."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@dataclass
class ToyTask:
    """A task that raises `Interruption` before the steps in `fail_at`, once each."""

    seed: int = 1
    plain: bool = False  # without BatchNorm, dropout and noise
    noise: bool = True
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(0.05, 3))
    fail_at: list[int] = field(default_factory=list)
    best_metric: str = "loss"
    validations: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        between = [] if self.plain else [nn.BatchNorm1d(8), nn.Dropout(0.2 if self.noise else 0.0)]
        self.first, self.last = ToyLayer(INPUTS, 8), ToyLayer(8, 1)
        self.model = nn.Sequential(self.first, *between, self.last)

    def param_groups(self) -> Sequence[ParamGroup]:
        return [
            ParamGroup("first", [self.first], self.optim),
            ParamGroup("rest", list(self.model)[1:], OptimConfig(0.1, 0, "cosine")),
        ]

    def blocks(self) -> Sequence[nn.Module]:
        return [self.first, self.last]

    def train_step(self, batch: ToyBatch, step: int, generator: torch.Generator) -> StepOutput:
        if step in self.fail_at:
            self.fail_at.remove(step)
            raise Interruption(step)
        if not batch.ids:
            return StepOutput(self.last.bias.sum() * 0.0, torch.tensor(0), {"count": torch.tensor(0)})
        noise = 0.0 if self.plain or not self.noise else 0.1 * torch.randn(len(batch.ids), generator=generator)
        errors = (self.model(batch.x).squeeze(1) - batch.y + noise).square()
        sums = {"loss": errors.sum().detach(), "count": torch.tensor(len(batch.ids)), "mean_x": batch.x.sum(0)}
        return StepOutput(errors.sum(), torch.tensor(len(batch.ids)), sums)

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: float(value.sum() / sums["count"]) for name, value in sums.items()}

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        self.validations += 1
        x = torch.randn(50, INPUTS, generator=torch.Generator().manual_seed(999))
        with torch.inference_mode():
            return {"loss": float((model(x).squeeze(1) - x @ TARGET).square().mean())}


class Interruption(Exception):
    """Something that stops a run."""


def make_trainer(run: Path, config: TrainConfig = CONFIG, task: ToyTask | None = None, **stream: Any) -> Trainer:
    """A trainer of the toy task in `run`; `stream` holds arguments of `ToyStream`."""
    return Trainer(task or ToyTask(config.seed), ToyStream(**stream), config, run, ())


def fit(run: Path, config: TrainConfig = CONFIG, task: ToyTask | None = None, **stream: Any) -> TrainResult:
    return make_trainer(run, config, task, **stream).fit()


def fit_and_kill(run: Path, config: TrainConfig, where: str, count: int) -> None:
    """Trains, and kills its own process before the `count`-th call of `where`, a function that checkpoints use."""
    torch.set_num_threads(1)
    owner, name = {
        "torch.save": (checkpoint.torch, "save"),
        "rename": (os, "replace"),
        "remove": (os, "unlink"),
        "rmtree": (checkpoint.shutil, "rmtree"),
        "never": (signal, "alarm"),
    }[where]
    original, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
    fit(run, config)
