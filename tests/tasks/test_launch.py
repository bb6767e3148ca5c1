"""Several processes of one command, as `bin/launch` starts them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.tasks.conftest import Prepared, run
from tests.tasks.test_pretrain import CONFIG
from w2vbert import cli
from w2vbert.config import save_config
from w2vbert.errors import REQUEUE_EXIT_CODE
from w2vbert.files import read_json


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "w2vbert.tasks.launch", *map(str, arguments)]
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
