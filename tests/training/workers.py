"""Real processes for the tests: what they do, and how several of them meet."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.training.toys import CONFIG, ToyBatch, ToyStream, ToyTask, make_trainer
from w2vbert.errors import REQUEUE_EXIT_CODE, Unfinished
from w2vbert.log import setup_logging
from w2vbert.training import compilation
from w2vbert.training.config import TrainConfig
from w2vbert.training.sharding import whole
from w2vbert.training.task import StepOutput
from w2vbert.training.trainer import Trainer


def start(context: ForkServerContext, size: int, work: Callable[..., None], *arguments: object) -> list[BaseProcess]:
    """Starts `size` processes of one run as a launcher would, each of which does `work`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(size):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in world.items()} if size > 1 else {}
        processes.append(context.Process(target=enter, args=(environment, work, *arguments)))
        processes[-1].start()
    return processes


def run(context: ForkServerContext, size: int, work: Callable[..., None], *arguments: object) -> list[int | None]:
    """Exit codes of `size` processes."""
    processes = start(context, size, work, *arguments)
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def enter(environment: dict[str, str], work: Callable[..., None], *arguments: object) -> None:
    """A process: told by the environment which of how many it is."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        work(*arguments)
    except Unfinished:
        sys.exit(REQUEUE_EXIT_CODE)


def leave_gradients(folder: Path, accumulate: int, shard: bool = False) -> None:
    """Leaves the first moments of Adam after one update: the gradient, times 1 - beta."""
    config = replace(CONFIG, max_steps=1, accumulate=accumulate, average_decay=0.0, clip_norm=1e6, shard_weights=shard)
    trainer = make_trainer(folder, config, ToyTask(noise=False))
    trainer.fit()
    moments = [whole(trainer.optimizer.state[p]["exp_avg"]) for p in trainer.params]
    if trainer.world.is_first:
        torch.save(moments, folder / "moments.pt")


def train(
    folder: Path,
    config: TrainConfig,
    broken: tuple[int, ...] = (),
    empty: tuple[int, ...] = (),
    slow_seconds: float = 0.0,
    max_hours: float | None = None,
) -> None:
    """Trains, and tells what became of it in each process."""
    folder.mkdir(exist_ok=True)
    stream = ToyStream(broken, empty)
    trainer = Trainer(SlowTask(folder, slow_seconds), stream, config, folder / "run", (), max_hours)
    result = trainer.fit()
    tensors = [*map(whole, trainer.task.model.parameters()), *trainer.task.model.buffers()]
    report = {"sums": [t.double().sum().item() for t in tensors], "rows": trainer.audio_seconds, "steps": result.steps}
    (folder / f"report-{trainer.world.rank}.json").write_text(json.dumps(report))


def train_compiled(folder: Path, config: TrainConfig, compiled: bool) -> None:
    """Trains with blocks that are compiled, if so, and leaves the number of graphs of each process."""
    graphs = 0

    def backend(graph: Callable[..., Any], inputs: Any) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph

    compilation.BACKEND = backend  # type: ignore[assignment]
    train(folder, replace(config, compile="on" if compiled else "off"))
    (folder / f"graphs-{os.environ['RANK']}").write_text(str(graphs))


class SlowTask(ToyTask):
    """A toy task that leaves a file when it trains and when it validates, and takes its time."""

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__()
        self.folder = folder
        self.seconds = seconds

    def train_step(self, batch: ToyBatch, step: int, generator: torch.Generator) -> StepOutput:
        (self.folder / "training").touch()
        time.sleep(self.seconds)
        return super().train_step(batch, step, generator)

    def validate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        (self.folder / "validating").touch()
        time.sleep(10 * self.seconds)
        return super().validate(model, step)


def stop_for_ever(folder: Path, how: str) -> None:
    """The second process stops after some steps: `how` is a signal to itself, or sleep."""
    setup_logging(folder / f"{os.environ['RANK']}.log")
    config = replace(CONFIG, max_steps=100_000, save_every_steps=100_000, validate_every_steps=100_000, hang_seconds=10)
    trainer = make_trainer(folder, config)
    next_batch = trainer.batches.next_batch

    def stop() -> object:
        if trainer.world.rank == 1 and trainer.step >= 5:
            if how == "sleep":
                time.sleep(1000)
            os.kill(os.getpid(), signal.Signals[how])
        return next_batch()

    trainer.batches.next_batch = stop  # type: ignore[method-assign,assignment]
    trainer.fit()
