"""benchmarks.decoding runs; its figures are for a quiet machine."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_quick_benchmark_has_a_row_for_each_claim() -> None:
    command = [sys.executable, "-m", "benchmarks.decoding", "--quick", "--rounds", "1", "--json"]
    done = subprocess.run([*command, "--predictor", "stateless"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(rows) == {f"decoding/{name}" for name in ("greedy-share", "beam", "torchaudio", "ngram", "neural")}
    assert all(row["value"] > 0 for row in rows.values())
