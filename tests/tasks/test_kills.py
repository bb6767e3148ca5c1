"""Real trainings killed at random instants: they end with the weights and best models of an undisturbed run."""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.tasks import test_finetune, test_pretrain
from tests.tasks.conftest import Prepared
from w2vbert import cli
from w2vbert.config import load_config, save_config
from w2vbert.training.best_models import list_best
from w2vbert.training.checkpoint import read_weights

KILLS = ["clock", "checkpoint", "clock", "validation"] * 2 + ["clock"] * 2
"""What decides the instant: the clock, or a checkpoint that is being written, or dev that is read for a validation."""

TRAIN = {"max_steps": 50, "save_every_steps": 2, "validate_every_steps": 3, "log_every_steps": 5, "keep_best": 3}


def run_command(arguments: list[str], when: str = "clock", count: int = 0) -> None:
    """What a child does; it kills itself at the `count`-th checkpoint or validation, somewhere in the midst of it."""
    torch.set_num_threads(1)
    if when == "checkpoint":
        die_in(safetensors.torch, "save_file", count, lambda tensors, path: Path(path).write_bytes(b"half"))
    elif when == "validation":
        task = sys.modules[f"w2vbert.tasks.{arguments[0]}"]
        in_order = vars(task)["in_order"]
        die_in(task, "in_order", count, lambda *values: next(iter(in_order(*values))))
    raise SystemExit(cli.main(arguments))


def kill_at(process: "multiprocessing.context.ForkServerProcess", run: Path, instants: random.Random) -> None:
    """Kills a run while it starts, or some moments after its next checkpoint or the one after that."""

    def newest() -> str:
        return max((path.name for path in run.glob("checkpoints/step-*")), default="")

    more, seen = instants.choice([0, 1, 2]), newest()
    seconds = instants.uniform(0.0, 0.1 if more else 1.0)
    while more and process.is_alive():
        if newest() > seen:
            more, seen = more - 1, newest()
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()


def die_in(module: ModuleType, name: str, count: int, begin: Callable[..., object]) -> None:
    """Lets the `count`-th call of a function begin and then kill its process."""
    original, calls = getattr(module, name), itertools.count(1)

    def dying(*values: Any) -> Any:
        if next(calls) == count:
            begin(*values)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*values)

    setattr(module, name, dying)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_kills_at_random_instants_change_no_weight(
    command: str, prepared: Prepared, tmp_path: Path, processes: ForkServerContext
) -> None:
    config = test_pretrain.CONFIG if command == "pretrain" else test_finetune.CONFIG
    save_config(config, tmp_path / "config.yaml")
    changes = [word for key, value in TRAIN.items() for word in ("--set", f"train.{key}={value}")]
    options = ["--config", str(tmp_path / "config.yaml"), *changes]
    if command == "finetune":
        options += ["--tokenizer", str(prepared.tokenizer), "--init", "scratch"]

    def start(run: str, *kill: object) -> "multiprocessing.context.ForkServerProcess":
        arguments = [command, str(prepared.data), str(tmp_path / run), *options]
        if command == "finetune" and run == "killed":  # with batches made by others, who must change nothing
            arguments += ["--set", "train.loader_workers=2"]
        process = processes.Process(target=run_command, args=(arguments, *kill))
        process.start()
        return process

    undisturbed = start("undisturbed")
    undisturbed.join(300)
    assert undisturbed.exitcode == 0
    instants, killed = random.Random(time.time_ns()), Counter[str]()
    for when in KILLS:
        process = start("killed", when, instants.randint(1, 2))
        if when == "clock":
            kill_at(process, tmp_path / "killed", instants)
        process.join(300)
        killed[when] += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
    assert killed.total() > len(KILLS) // 2 and killed["checkpoint"] and killed["validation"], killed
    last = start("killed")
    last.join(300)
    assert last.exitcode == 0
    runs = [tmp_path / "undisturbed", tmp_path / "killed"]
    assert list(list_best(runs[0])) == list(list_best(runs[1]))
    names = ["model.safetensors", f"checkpoints/step-{TRAIN['max_steps']:08}/model.safetensors"]
    names += [f"best/{folder.name}/model.safetensors" for folder in list_best(runs[0]).values()]
    for name in names:
        expected, found = (read_weights(folder / name) for folder in runs)
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    assert load_config(type(config), tmp_path / "killed" / "config.yaml").train.max_steps == TRAIN["max_steps"]
