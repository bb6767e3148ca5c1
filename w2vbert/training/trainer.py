"""One loop for every task."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from w2vbert.errors import UserError
from w2vbert.log import logger, progress
from w2vbert.training.checkpoint import load_newest, save_checkpoint, save_weights
from w2vbert.training.metrics import MetricsWriter, Panel, draw_curves
from w2vbert.training.optim import WeightAverage, make_optimizer, scale_and_clip, set_learning_rates
from w2vbert.training.task import BatchSource, Task


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Attributes:
        seed: of initialisation, order of the data, masks, dropout and augmentation.
        max_steps: updates in the whole run.
        accumulate: batches added up for one update.
        clip_norm: cap of the gradient norm (20: family).
        average_decay: of the running average of the weights, which is what is validated and kept; 0: none.
        log_every_steps, validate_every_steps, save_every_steps: intervals; a validation also ends the run.
        keep_last: checkpoints that stay.
        precision: of the matrix products; auto is bfloat16 where the hardware has it.
        threads: CPU threads; 0: all cores.
        max_bad_steps: updates in a row with a loss or gradient that is not finite, after which the run stops.
    """

    seed: int = 1
    max_steps: int = 400_000
    accumulate: int = 1
    clip_norm: float = 20.0
    average_decay: float = 0.0
    log_every_steps: int = 100
    validate_every_steps: int = 5000
    save_every_steps: int = 1000
    keep_last: int = 2
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 0
    max_bad_steps: int = 10

    def __post_init__(self) -> None:
        intervals = (self.log_every_steps, self.validate_every_steps, self.save_every_steps, self.keep_last)
        if min(self.max_steps, self.accumulate, *intervals) < 1:
            raise ValueError("max_steps, accumulate, keep_last and the intervals must be at least 1")
        if self.clip_norm <= 0.0:
            raise ValueError(f"clip_norm must be positive, not {self.clip_norm}")
        if self.threads < 0:
            raise ValueError(f"threads must be at least 0, not {self.threads}")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"average_decay must lie in [0, 1), not {self.average_decay}")


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves, for its card.

    Attributes:
        steps: updates done.
        audio_hours: hours of audio seen, repetitions counted.
        minutes: wall time of training, over all starts of the run.
        best: validation metrics of the model that was kept.
    """

    steps: int
    audio_hours: float
    minutes: float
    best: dict[str, float]


def choose_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The data type of the matrix products; see `TrainConfig.precision`."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


class Trainer:
    """Trains a task in a run's folder, goes on where a killed run stopped, and keeps the best model."""

    def __init__(self, task: Task, batches: BatchSource, config: TrainConfig, run: Path, panels: Sequence[Panel]):
        self.task = task
        self.batches = batches
        self.config = config
        self.run = run
        self.panels = panels
        self.device = choose_device()
        self.dtype = choose_precision(config.precision, self.device)
        task.model.to(self.device)
        self.groups = task.param_groups()
        self.params = [p for group in self.groups for module in group.modules for p in module.parameters()]
        self.optimizer = make_optimizer(self.groups)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.average = WeightAverage(task.model, config.average_decay) if config.average_decay else None
        self.step = 0
        self.audio_seconds = 0.0
        self.train_seconds = 0.0
        self.bad_steps = 0
        self.skipped_steps = 0
        self.sums: dict[str, Tensor] = {}
        self.best: dict[str, float] = {}

    def fit(self) -> TrainResult:
        """Trains until `max_steps`; the model that was kept lies in `run/model.safetensors`."""
        self._resume()
        writer = MetricsWriter(self.run, self.step)
        bar = progress(total=self.config.max_steps, initial=self.step, desc=self.run.name, unit="step")
        try:
            while self.step < self.config.max_steps:
                started = time.perf_counter()
                metrics = self._update()
                self.train_seconds += time.perf_counter() - started
                self.step += 1
                bar.update(1)
                if self.step % self.config.log_every_steps == 0 or self.step == self.config.max_steps:
                    self._log(writer, bar, metrics)
                if self.step % self.config.validate_every_steps == 0 or self.step == self.config.max_steps:
                    self._validate(writer)
                if self.step % self.config.save_every_steps == 0 or self.step == self.config.max_steps:
                    self._save()
        finally:
            bar.close()
            writer.close()
        return TrainResult(self.step, self.audio_seconds / 3600, self.train_seconds / 60, self.best)

    def _update(self) -> dict[str, Any]:
        """One update from `accumulate` batches. Returns what a log line says of it, still as tensors."""
        self.task.model.train()
        rates = set_learning_rates(self.optimizer, self.groups, self.step, self.config.max_steps)
        buffers = [buffer.clone() for buffer in self.task.model.buffers()]
        count = torch.zeros((), device=self.device)
        ids: list[str] = []
        for _ in range(self.config.accumulate):
            batch = self.batches.next_batch()
            self.audio_seconds += batch.seconds
            ids.extend(batch.ids)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                output = self.task.train_step(batch.to(self.device), self.step, self.generator)
            output.loss.backward()
            count += output.count
            for name, value in output.sums.items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value
        norm = scale_and_clip(self.params, count, self.config.clip_norm)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self.bad_steps = 0
            if self.average is not None:
                self.average.update(self.task.model)
        else:
            for buffer, before in zip(self.task.model.buffers(), buffers, strict=True):
                buffer.copy_(before)  # BatchNorm has seen what is not finite
            self._skip(ids, count)
        self.optimizer.zero_grad(set_to_none=True)
        return {"gradient_norm": norm, **{f"lr_{name}": rate for name, rate in rates.items()}}

    def _skip(self, ids: list[str], count: Tensor) -> None:
        """Counts an update that was left out because a gradient was not finite, or nothing was there to learn from."""
        self.bad_steps += 1
        self.skipped_steps += 1
        reason = "gradient is not finite" if bool(count) else "there is nothing to learn from"
        logger.warning(f"step {self.step}: {reason}; update skipped; utterances {', '.join(ids[:5])} ...")
        if self.bad_steps >= self.config.max_bad_steps:
            raise UserError(
                f"{self.run}: {self.bad_steps} updates in a row were skipped, the last because {reason}: "
                f"lower the learning rate, or look at its utterances {', '.join(ids)}"
            )

    def _log(self, writer: MetricsWriter, bar: Any, extra: dict[str, Any]) -> None:
        metrics = self.task.summarize(self.sums)
        metrics |= {name: float(value) for name, value in extra.items()}
        metrics |= {"audio_hours": self.audio_seconds / 3600, "skipped_steps": self.skipped_steps}
        metrics["hours_per_hour"] = self.audio_seconds / max(self.train_seconds, 1e-9)
        self.sums = {}
        writer.write(self.step, "train", metrics)
        shown = ", ".join(f"{name} {metrics[name]:.3g}" for name in list(metrics)[:4])
        bar.set_postfix_str(shown, refresh=False)

    def _validate(self, writer: MetricsWriter) -> None:
        model = (self.average.model if self.average is not None else self.task.model).eval()
        metrics = self.task.validate(model)
        writer.write(self.step, "dev", metrics)
        logger.info(f"step {self.step}: dev " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        key = self.task.best_metric
        if key in metrics and (not self.best or metrics[key] <= self.best[key]):
            save_weights(model, self.run / "model.safetensors")
            self.best = {"step": self.step, **metrics}
        if self.panels:
            draw_curves(self.run, self.panels, self.run / "curves.png")

    def _weights(self) -> dict[str, torch.nn.Module]:
        weights = {"model": self.task.model}
        return weights if self.average is None else {**weights, "average": self.average.model}

    def _save(self) -> None:
        state = {
            "step": self.step,
            "audio_seconds": self.audio_seconds,
            "train_seconds": self.train_seconds,
            "bad_steps": self.bad_steps,
            "skipped_steps": self.skipped_steps,
            "average_updates": 0 if self.average is None else self.average.updates,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "sums": self.sums,
            "best": self.best,
        }
        save_checkpoint(self.run, self.step, self._weights(), state, self.config.keep_last)

    def _resume(self) -> None:
        state = load_newest(self.run, self._weights())
        if state is not None and state["best"] and not (self.run / "model.safetensors").is_file():
            raise UserError(f"{self.run}: the best model so far, model.safetensors, is gone: start again with --force")
        if state is None:
            torch.manual_seed(self.config.seed)
            return
        self.step = state["step"]
        self.audio_seconds = state["audio_seconds"]
        self.train_seconds = state["train_seconds"]
        self.bad_steps = state["bad_steps"]
        self.skipped_steps = state["skipped_steps"]
        if self.average is not None:
            self.average.updates = state["average_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda" and state["device_rng"] is not None:
            torch.cuda.set_rng_state(state["device_rng"], self.device)
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.best = state["best"]
        logger.info(f"{self.run}: resumed at step {self.step} of {self.config.max_steps}")
