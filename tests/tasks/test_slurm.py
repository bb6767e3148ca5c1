"""What is made of Slurm's words; `tests/cluster` asks a real one."""

from pathlib import Path

import pytest

from tests.tasks.conftest import run
from w2vbert import cli
from w2vbert.tasks.slurm import BEGIN, Entry, explain


@pytest.mark.parametrize(
    ("state", "code", "warned", "log", "why", "again", "free"),
    [
        ("COMPLETED", 0, False, "", "", False, False),
        (None, 0, False, "", "", False, False),
        ("FAILED", 2, False, "error: no such file: x\n", "failed: no such file: x", False, False),
        ("FAILED", 1, False, "Traceback\n", "ended with exit code 1", True, False),
        ("FAILED", 75, False, "", "", True, True),
        ("TIMEOUT", 75, True, "", "", True, True),
        ("CANCELLED", 75, False, "", "was cancelled", False, False),
        ("TIMEOUT", None, False, "", "has reached its time limit", False, False),
        ("FAILED", 138, True, "", "has reached its time limit", False, False),
        (
            "FAILED",
            None,
            False,
            "*** JOB 1 CANCELLED AT NOW DUE TO TIME LIMIT ***",
            "has reached its time",
            False,
            False,
        ),
        ("OUT_OF_MEMORY", 137, False, "", "was killed for memory", False, False),
        (
            "FAILED",
            None,
            False,
            "slurmstepd: error: Exceeded job memory limit\n",
            "was killed for memory",
            False,
            False,
        ),
        ("FAILED", 137, False, f"oom-kill\n{BEGIN}later\n", "ended with exit code 137", True, False),
        ("NODE_FAIL", None, False, "", "was lost (NODE_FAIL, NodeDown on n2)", True, False),
        (None, None, False, "", "was lost (Slurm has forgotten it)", True, False),
    ],
)
def test_ends_are_told_apart(
    state: str | None, code: int | None, warned: bool, log: str, why: str, again: bool, free: bool, tmp_path: Path
) -> None:
    (tmp_path / "job.log").write_text(log)
    entry = None if state is None else Entry(7, state, "NodeDown", "n2")
    end = explain(entry, code, warned, tmp_path / "job.log")
    assert end.why.startswith(why) and (end.why == "") == (why == "") and (end.again, end.free) == (again, free)


def test_without_slurm_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["submit", "--log", str(tmp_path / "log"), "--", "true"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: there is no Slurm here (no squeue on PATH)")


@pytest.mark.parametrize(
    "said",
    [
        ["invalid partition specified: nowhere", "Batch job submission failed: Invalid partition name specified"],
        ["Batch job submission failed: Job violates accounting/QOS policy (job submit limit, size or time limits)"],
    ],
)
def test_what_slurm_refuses_is_one_line(
    said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "said").write_text("".join(f"sbatch: error: {line}\n" for line in said))
    for name, script in (("sbatch", f"cat {tmp_path}/said >&2; exit 1"), ("squeue", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert cli.main(["submit", "--log", str(tmp_path / "log"), "--", "true"]) == 2
    assert capsys.readouterr().err == f"error: Slurm refuses it (sbatch): {'; '.join(said)}\n"


FAKE = """#!/bin/sh
here=$(dirname "$0")
case ${0##*/} in
  sbatch)
    n=$(($(cat "$here/jobs" 2>/dev/null || echo 0) + 1))
    [ "$n" -gt 1 ] || { echo 1 >"$here/jobs"; echo "sbatch: error: Unable to contact slurm controller" >&2; exit 1; }
    echo "$n" >"$here/jobs"
    echo "$*" >>"$here/calls"
    echo "$n" ;;
  squeue)
    [ ! -e "$here/jobs" ] || [ "$(cat "$here/jobs")" -lt 2 ] || echo "2|N/A|COMPLETED|None|n1" ;;
esac
"""


def test_a_controller_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sbatch", "squeue"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    run("submit", "--log", tmp_path / "log", "--name", "x", "--cpus", 3, "--gpus", 2, "--option=--time=5", "--", "true")
    (call,) = (tmp_path / "calls").read_text().splitlines()
    for option in ("--requeue", "--signal=B:USR1@120", "--cpus-per-task=3", "--gpus-per-node=2", "--time=5"):
        assert option in call.split()
