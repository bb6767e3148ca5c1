"""recipes/mini/run.sh with --cmd slurm, tiny, on two nodes: from made speech to the table."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import Cluster
from tests.recipes.test_mini_recipe import CONF, DECODINGS, SCRIPT, STEPS
from w2vbert.files import read_json
from w2vbert.stages import STAMP

pytestmark = pytest.mark.slow


def test_all_stages_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    for name, settings in CONF.items():
        (tmp_path / "conf" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    options = "--cmd slurm --num-nodes 2 --nj 2 --data-dir data --expdir exp --conf conf".split()

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        command = [str(SCRIPT), *options, *more]
        return subprocess.run(
            command, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, check=False, timeout=580
        )

    done = call()
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / step / STAMP).is_file() for step in STEPS)
    assert all("wer" in str(read_json(tmp_path / folder / "wer.json")) for folder in DECODINGS)
    assert (tmp_path / "exp" / "RESULTS.md").is_file()
    assert read_json(tmp_path / "exp" / "pretrain" / "run.json")["processes"] == 2
    logs = {path.name for path in (tmp_path / "exp" / "log").glob("*.log")}
    assert {
        "1-prepare.log",
        "2-features-parts.2.log",
        "2-features.log",
        "3-pretrain.log",
        "4-scratch.log",
        "6-student+lm.log",
    } <= logs
    refused = call("--stage", "3", "--stop-stage", "3", "--ngpu", "1", "--expdir", "other")
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("error: Slurm refuses it (sbatch): ")
