"""The engine's own cost: what a training step of `small` does beside forward, backward and optimizer.

    python -m benchmarks.engine [--steps N]

Trains a preset on made features, one thread, and counts the processor time of the whole process (batches made in the
thread beside the training, log and all) and that of the three. Processor time does not depend on other programs much.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from w2vbert.config import load_config
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.loaders import BatchStream
from w2vbert.tasks.pretrain import PretrainConfig, PretrainTask
from w2vbert.training.trainer import Trainer

BATCH_SECONDS = 60.0
WARM_UP = 2


class MadeDataset(SpeechDataset):
    """Utterances of 5 to 15 s, in memory as those of a corpus would be after the first epoch."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.frames = torch.randint(500, 1500, (count,), generator=generator).tolist()
        self.spare = [0] * count
        self.ids = [str(number) for number in range(count)]
        self.texts = self.speakers = [""] * count
        self._kept = [torch.randn(n, 80, generator=generator).bfloat16() for n in self.frames]

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int, start: int = 0) -> torch.Tensor:
        """Features of one utterance."""
        return self._kept[index].float()


class Clock:
    """Adds up the processor time of calls in the training's thread."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.thread_time() - began

        return timed


class UnvalidatedTask(PretrainTask):
    """Pre-training without its validation, which comes after what is measured."""

    def validate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        """Nothing."""
        return {self.best_metric: 0.0}


def measure(config: PretrainConfig, steps: int, folder: Path) -> tuple[float, float]:
    """Processor seconds of a step: all of it, and its forward, backward and optimizer."""
    data = MadeDataset(100)
    train = replace(config.train, max_steps=steps, update_seconds=0.0, threads=1, log_every_steps=10)
    train = replace(train, validate_every_steps=10 * steps, save_every_steps=10 * steps, precision="float32")
    config = replace(config, train=train)
    trainer = Trainer(UnvalidatedTask(config, data), BatchStream(data, BATCH_SECONDS, 1), train, folder, ())
    clock, update, times = Clock(), trainer._update, []

    def timed(*arguments: Any) -> Any:
        times.append((time.process_time(), clock.seconds))
        return update(*arguments)

    trainer._backward = clock.around(trainer._backward)  # type: ignore[method-assign]
    trainer.optimizer.step = clock.around(trainer.optimizer.step)  # type: ignore[method-assign]
    trainer._update = timed  # type: ignore[method-assign]
    trainer.fit()
    (began, core_began), (ended, core_ended) = times[WARM_UP], times[-1]
    count = len(times) - 1 - WARM_UP
    return (ended - began) / count, (core_ended - core_began) / count


def main() -> None:
    """Measures, and prints one line."""
    parser = argparse.ArgumentParser(description="The training engine's own cost.")
    parser.add_argument("--config", type=Path, default=Path("recipes/librispeech/conf/pretrain/small.yaml"))
    parser.add_argument("--steps", type=int, default=33)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        whole, core = measure(load_config(PretrainConfig, arguments.config), arguments.steps, Path(folder))
    own = (whole - core) / whole
    print(f"{whole:.3f} s a step, {core:.3f} s of them forward, backward and optimizer: the engine takes {own:.1%}")


if __name__ == "__main__":
    main()
