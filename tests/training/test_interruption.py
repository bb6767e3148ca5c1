"""Signals and time limits end a run cleanly, and it goes on as if it had not been stopped."""

import signal
import time
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.training.test_trainer import outcome
from tests.training.toys import CONFIG
from tests.training.workers import run, start, train
from w2vbert.errors import REQUEUE_EXIT_CODE
from w2vbert.training.checkpoint import list_checkpoints
from w2vbert.training.interruption import Interrupted, StopRequest


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, processes: ForkServerContext) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(processes, 1, train, folder, CONFIG) == [0]
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("when", ["training", "validating"])
def test_a_signal_ends_the_step_and_saves_all(
    tmp_path: Path, processes: ForkServerContext, undisturbed: Path, number: signal.Signals, when: str
) -> None:
    """Checkpoints are written at the end only, if nothing happens; a validation is broken off and done again."""
    config = replace(CONFIG, save_every_steps=100)
    (process,) = start(processes, 1, train, tmp_path, config, (), (), 0.05)
    while not (tmp_path / when).exists():
        time.sleep(0.01)
    assert process.pid is not None
    signalled = time.monotonic()
    process._popen._send_signal(number)  # type: ignore[attr-defined]
    process.join(60)
    assert process.exitcode == REQUEUE_EXIT_CODE and time.monotonic() - signalled < 5.0
    (saved,) = list_checkpoints(tmp_path / "run")
    assert saved.name < "step-00000012" and (when == "training" or saved.name == "step-00000004")
    assert run(processes, 1, train, tmp_path, replace(CONFIG)) == [0]
    assert_same(tmp_path / "run", undisturbed)


def assert_same(run_folder: Path, other: Path) -> None:
    assert outcome(run_folder) == outcome(other)


def test_a_time_limit_ends_the_run_and_it_goes_on(
    tmp_path: Path, processes: ForkServerContext, undisturbed: Path
) -> None:
    limits = [0.0, 0.3 / 3600, None]
    codes = [run(processes, 1, train, tmp_path, CONFIG, (), (), 0.05, limit) for limit in limits]
    assert codes == [[REQUEUE_EXIT_CODE], [REQUEUE_EXIT_CODE], [0]]
    assert_same(tmp_path / "run", undisturbed)


def test_what_can_be_done_again_is_broken_off_at_once() -> None:
    with StopRequest(None) as stop:
        with pytest.raises(Interrupted, match="SIGUSR1 came"), stop.breaking_off("sleep"):
            signal.raise_signal(signal.SIGUSR1)
            raise AssertionError("not reached")
        assert stop.is_set()
        with pytest.raises(Interrupted), stop.breaking_off("sleep"):
            raise AssertionError("not reached")
        signal.raise_signal(signal.SIGTERM)  # noted only, outside
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_the_time_limit_is_named() -> None:
    stop = StopRequest(0.0)
    assert stop.is_set() and stop.reason == "--max-hours 0 are over"
    assert not StopRequest(1.0).is_set() and not StopRequest(None).is_set()
