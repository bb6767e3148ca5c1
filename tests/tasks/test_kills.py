"""Real trainings killed at random instants: they end with the weights of an undisturbed run."""

import multiprocessing
import random
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from tests.tasks import test_finetune, test_pretrain
from tests.tasks.conftest import Prepared
from w2vbert import cli
from w2vbert.config import load_config, save_config
from w2vbert.training.checkpoint import read_weights

KILLS = 10
TRAIN = {"max_steps": 40, "save_every_steps": 2, "validate_every_steps": 3, "log_every_steps": 5}


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # What a run imports, so that each child begins with it loaded.
    tasks = ["tests.tasks.test_kills", "w2vbert.tasks.pretrain", "w2vbert.tasks.finetune"]
    context.set_forkserver_preload([*tasks, "tensorboardX", "torch._dynamo", "matplotlib.pyplot"])
    return context


def run_command(arguments: list[str]) -> None:
    """What a child does."""
    torch.set_num_threads(1)
    raise SystemExit(cli.main(arguments))


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

    def start(run: str) -> "multiprocessing.context.ForkServerProcess":
        process = processes.Process(
            target=run_command, args=([command, str(prepared.data), str(tmp_path / run), *options],)
        )
        process.start()
        return process

    began = time.monotonic()
    undisturbed = start("undisturbed")
    undisturbed.join(120)
    seconds = time.monotonic() - began
    assert undisturbed.exitcode == 0
    instants, killed, last = random.Random(time.time_ns()), 0, None
    while killed < KILLS and last is None:
        process = start("killed")
        process.join(instants.uniform(0.02, 0.2) * seconds)
        if process.exitcode is None:
            process.kill()
            process.join(60)
            killed += 1
        else:  # the machine has become faster since the undisturbed run
            last = process
    assert killed > KILLS // 2
    last = last or start("killed")
    last.join(120)
    assert last.exitcode == 0
    for name in ("model.safetensors", f"checkpoints/step-{TRAIN['max_steps']:08}/model.safetensors"):
        expected, found = read_weights(tmp_path / "undisturbed" / name), read_weights(tmp_path / "killed" / name)
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    assert load_config(type(config), tmp_path / "killed" / "config.yaml").train.max_steps == TRAIN["max_steps"]
