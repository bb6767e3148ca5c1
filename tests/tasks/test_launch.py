"""Several processes of one command, as `bin/launch` starts them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.tasks.conftest import Prepared, run
from tests.tasks.test_pretrain import CONFIG
from w2vbert import cli
from w2vbert.cli.entry import has_nothing_to_do
from w2vbert.config import save_config
from w2vbert.errors import REQUEUE_EXIT_CODE
from w2vbert.files import read_json


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "w2vbert.cli.launch", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def test_two_processes_stop_and_one_goes_on(prepared: Prepared, tmp_path: Path) -> None:
    save_config(CONFIG, tmp_path / "pretrain.yaml")
    out = tmp_path / "out"
    base = ("pretrain", prepared.data, out, "--config", tmp_path / "pretrain.yaml")
    stopped = launch("--nproc-per-node", "2", *base, "--max-hours", "0")
    assert stopped.returncode == REQUEUE_EXIT_CODE, stopped.stderr
    assert "stopped after step 1, all is saved: start it again to go on" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert read_json(out / "run.json")["processes"] == 2
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000001"]
    run(*base)
    assert read_json(out / "model.json")["steps"] == 9 and read_json(out / "run.json")["processes"] == 1


def test_a_time_limit_has_its_own_exit_code_and_changes_nothing(prepared: Prepared, tmp_path: Path) -> None:
    save_config(CONFIG, tmp_path / "pretrain.yaml")
    base = [str(a) for a in ("pretrain", prepared.data, tmp_path / "out", "--config", tmp_path / "pretrain.yaml")]
    assert [cli.main([*base, "--max-hours", "0"]) for _ in range(2)] == [REQUEUE_EXIT_CODE] * 2
    run(*base)
    run(*base[:2], tmp_path / "whole", *base[3:])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert cli.main([*base, "--max-hours", "0"]) == 0  # up to date, whatever the limit


def test_errors_of_the_user_keep_their_exit_code(prepared: Prepared, tmp_path: Path) -> None:
    failed = launch("--nproc-per-node", "1", "pretrain", tmp_path / "nowhere", tmp_path / "out")
    assert failed.returncode == 2 and "error: " in failed.stderr and "Traceback" not in failed.stderr


LAUNCH_AND_TELL = """
import sys
from w2vbert.cli.launch import launch
print(launch(sys.argv[1:]), "torch" in sys.modules)
"""


def test_what_is_up_to_date_starts_no_process_and_loads_nothing(prepared: Prepared, tmp_path: Path) -> None:
    save_config(CONFIG, tmp_path / "pretrain.yaml")
    out = tmp_path / "out"
    base = [str(a) for a in ("pretrain", prepared.data, out, "--config", tmp_path / "pretrain.yaml")]
    options = ["--nproc-per-node", "2", "--rdzv-id", "score"]
    assert not has_nothing_to_do([*options, *base]) and not out.exists()
    run(*base)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    command = [sys.executable, "-c", LAUNCH_AND_TELL, *options[:2], *base, "--max-hours", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0 False\n" and f"pretrain: up to date ({out})" in done.stderr
    assert has_nothing_to_do([*options[:2], *base])
    for changed in ([*base, "--force"], [*base, "--set", "train.max_steps=5"], base[:2], [*base, "--nonsense"]):
        assert not has_nothing_to_do(changed)
    assert not has_nothing_to_do([]) and not has_nothing_to_do(["score", "a", "b"]) and not has_nothing_to_do(["info"])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_killed_process_is_named_and_ends_the_run(prepared: Prepared, tmp_path: Path) -> None:
    """Within a minute, though the other one waits for it."""
    save_config(CONFIG, tmp_path / "pretrain.yaml")
    command = [sys.executable, "-m", "w2vbert.cli.launch", "--nproc-per-node", "2", "pretrain", prepared.data]
    command += [tmp_path / "out", "--config", tmp_path / "pretrain.yaml", "--set", "train.max_steps=100000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("w") as file:
        launcher = subprocess.Popen([str(word) for word in command], stdout=file, stderr=file, env=environment)
    try:
        wait_for(lambda: (tmp_path / "out" / "checkpoints" / "step-00000003").is_dir(), 120)
        (second,) = [process for process in children(launcher.pid) if rank_of(process) == "1"]
        os.kill(second, signal.SIGKILL)
        assert launcher.wait(60) == 1
    finally:
        launcher.kill()
    assert "error: process 1 was killed by SIGKILL, so the run ends: start it again to go on" in log.read_text()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    stats = [path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/stat")]
    return [int(stat.split()[0]) for stat in stats if int(stat.rpartition(")")[2].split()[1]) == parent]


def rank_of(process: int) -> str:
    found = re.search(rb"\0RANK=(\d+)\0", b"\0" + Path(f"/proc/{process}/environ").read_bytes() + b"\0")
    return found[1].decode() if found else ""
