"""Several real processes (gloo): equal gradients, uneven data, other numbers of processes, lost ones."""

import json
import time
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from tests.training.toys import CONFIG
from tests.training.workers import leave_gradients, run, start, stop_for_ever, train
from w2vbert.errors import REQUEUE_EXIT_CODE
from w2vbert.training.checkpoint import read_weights
from w2vbert.training.metrics import TIMINGS, read_metrics
from w2vbert.training.trouble import SKIPPED_FILE


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("a", "b", "c")]
    for folder in found:
        folder.mkdir()
    return found


def reports(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("report-*.json"))]


@pytest.mark.parametrize("shard", [False, True])
def test_processes_and_accumulated_batches_give_the_same_gradient(
    folders: list[Path], processes: ForkServerContext, shard: bool
) -> None:
    """The batches are of 3, 4, 5 and 3 rows."""
    for folder, size in zip(folders, (1, 2, 4), strict=True):
        assert run(processes, size, leave_gradients, folder, 4 // size, shard) == [0] * size
    moments = [torch.load(folder / "moments.pt", weights_only=True) for folder in folders]
    for one, two, four in zip(*moments, strict=True):
        torch.testing.assert_close(one, two, atol=1e-7, rtol=0.0)
        torch.testing.assert_close(one, four, atol=1e-7, rtol=0.0)
    assert max(float(moment.abs().max()) for moment in moments[0]) > 0.1


def test_a_checkpoint_of_two_processes_goes_on_in_one_and_in_four(
    folders: list[Path], processes: ForkServerContext
) -> None:
    """With uneven data: batch 5 is empty, batches 8 and 9 are broken."""
    config = replace(CONFIG, max_steps=6, accumulate=2)
    for folder, size in zip(folders, (2, 1, 4), strict=True):
        assert run(processes, 2, train, folder, config, (8, 9), (5,)) == [0, 0]
        assert run(processes, size, train, folder, replace(config, max_steps=8), (8, 9), (5,)) == [0] * size
        found = reports(folder)
        assert all(report["sums"] == found[0]["sums"] and report["steps"] == 8 for report in found[:size])
        rows = sum(3 + number % 3 for number in range(24 + 4 * size) if number != 5)
        assert found[0]["rows"] == rows
        metrics = [line for line in read_metrics(folder / "run") if line["split"] == "train"]
        assert [(line["step"], line["skipped_steps"]) for line in metrics] == [(3, 1), (6, 1), (8, 1)]
        skipped = [json.loads(line) for line in (folder / "run" / SKIPPED_FILE).read_text().splitlines()]
        assert [line["step"] for line in skipped] == [2] and {"8-0", "9-0"} <= set(skipped[0]["ids"])


def test_shared_out_weights_take_the_same_way_and_their_checkpoints_are_whole(
    folders: list[Path], processes: ForkServerContext
) -> None:
    """Two processes with DDP; two with FSDP2; FSDP2 in two, then in four, then one process alone."""
    config = replace(CONFIG, max_steps=8, average_decay=0.5)
    sharded = replace(config, shard_weights=True)
    replicated, shared_out, changed = folders
    assert run(processes, 2, train, replicated, config, (8,)) == [0, 0]
    assert run(processes, 2, train, shared_out, sharded, (8,)) == [0, 0]
    for name in ("model", "average"):
        paths = [f / "run" / "checkpoints" / "step-00000008" / f"{name}.safetensors" for f in (replicated, shared_out)]
        one, other = map(read_weights, paths)
        assert one.keys() == other.keys()
        for key in one.keys() - {"0.bias", "1.running_mean"}:  # BatchNorm leaves the bias before it no gradient
            torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=1e-4)
    assert run(processes, 2, train, changed, replace(sharded, max_steps=4), (8,)) == [0, 0]
    assert run(processes, 4, train, changed, replace(sharded, max_steps=6), (8,)) == [0] * 4
    assert run(processes, 1, train, changed, config, (8,)) == [0]
    assert reports(changed)[0]["steps"] == 8


def test_two_processes_told_to_stop_go_on_as_if_never_stopped(
    folders: list[Path], processes: ForkServerContext
) -> None:
    """The signal comes while the first process validates; dropout and noise draw as if nothing had happened."""
    whole, parts, _ = folders
    config = replace(CONFIG, max_steps=8)
    assert run(processes, 2, train, whole, config) == [0, 0]
    started = start(processes, 2, train, parts, config, (), (), 0.05)
    while not (parts / "validating").exists():
        time.sleep(0.02)
    for process in started:
        process.terminate()
    for process in started:
        process.join(60)
        assert process.exitcode == REQUEUE_EXIT_CODE
    assert [line["split"] for line in read_metrics(parts / "run")] == ["train"]
    assert run(processes, 2, train, parts, config) == [0, 0]
    assert reports(whole) == reports(parts)
    for one, other in zip(*(read_metrics(folder / "run") for folder in (whole, parts)), strict=True):
        assert {k: v for k, v in one.items() if k not in TIMINGS} == {
            k: v for k, v in other.items() if k not in TIMINGS
        }


@pytest.mark.parametrize(
    ("how", "complaint", "most_seconds"),
    [
        ("SIGKILL", "", 30),
        ("SIGSTOP", "process 1 has not been heard of for 1", 30),
        ("sleep", "process 1 hangs: 1", 30),
    ],
)
def test_a_lost_process_ends_the_others_with_its_name(
    tmp_path: Path, processes: ForkServerContext, how: str, complaint: str, most_seconds: float
) -> None:
    first, second = start(processes, 2, stop_for_ever, tmp_path, how)
    began = time.monotonic()
    first.join(60)
    assert first.exitcode == 1
    assert time.monotonic() - began < most_seconds
    if second.is_alive():
        second.kill()
    second.join(10)
    log = (tmp_path / "0.log").read_text()
    assert complaint in log
