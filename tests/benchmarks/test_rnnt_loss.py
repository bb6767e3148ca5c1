"""benchmarks.rnnt_loss runs, and tests.make_rnnt_golden says what it lacks; their figures are for a quiet machine."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_quick_benchmark_has_a_row_for_each_claim() -> None:
    done = run("benchmarks.rnnt_loss", "--quick", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert {"rnnt-loss/full-lattice-time", "rnnt-loss/recursions-share"} <= set(rows)
    assert all(row["value"] > 0 for row in rows.values())


def test_full_lattice_in_equal_parts_only() -> None:
    done = run("benchmarks.rnnt_loss", "--quick", "--full-utterances", "3")
    assert done.returncode == 2 and "must divide the batch of 2, not be 3" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("k2") is not None, reason="k2 is installed")
def test_golden_values_are_not_made_without_k2(tmp_path: Path) -> None:
    done = run("tests.make_rnnt_golden", str(tmp_path / "golden"))
    assert done.returncode == 2 and "k2 cannot be imported" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("k2") is None, reason="k2 cannot be imported")
def test_golden_values_are_made_again(tmp_path: Path) -> None:
    done = run("tests.make_rnnt_golden", str(tmp_path), "--only", "simple-base")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "golden.json").read_text())["cases"] and (tmp_path / "golden.safetensors").is_file()
