"""Commands as jobs of a real Slurm: arrays, failures, requeueing, two nodes."""

import json
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster, end, wait_until
from tests.tasks.conftest import Prepared
from tests.tasks.test_pretrain import CONFIG
from w2vbert.config import save_config
from w2vbert.files import read_json
from w2vbert.tasks.slurm import BEGIN
from w2vbert.training.metrics import TIMINGS

pytestmark = pytest.mark.slow

STEPS = 80  # of a training that is broken off twice


def read_metrics(run: Path) -> list[dict[str, object]]:
    """What a training has noted, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def test_a_part_of_an_array_that_fails_is_done_again_alone(cluster: Cluster, tmp_path: Path) -> None:
    first_time_fails = "echo part {part}; [ {part} != 3 ] || [ -e seen ] || { touch seen; exit 1; }; touch done-{part}"
    log = cluster.run(
        "submit", "--log", "log", "--name", "a b", "--parts", 5, "--", "sh", "-c", first_time_fails, cwd=tmp_path
    )
    assert "part 3 of 5 of a b ended with exit code 1: begun again (2 of 3)" in log
    assert sorted(path.name for path in tmp_path.glob("done-*")) == [f"done-{part}" for part in range(1, 6)]
    turns = {part: (tmp_path / "log" / f"a b.{part}.log").read_text().count(BEGIN) for part in range(1, 6)}
    assert turns == {1: 1, 2: 1, 3: 2, 4: 1, 5: 1}


def test_what_goes_wrong_is_one_line_with_the_log(cluster: Cluster, tmp_path: Path) -> None:
    def fail(*arguments: object) -> str:
        return cluster.fail("submit", "--log", "log", *arguments, cwd=tmp_path)

    assert "invalid partition specified: nowhere" in fail("--option=--partition=nowhere", "--", "true")
    message = fail("--name", "pre", "--", "w2vbert", "pretrain", "nowhere", "out")
    assert message == "pre failed: data: no such file or folder: nowhere; its log: log/pre.log"
    big = "import time; x = bytearray(400 * 2**20); time.sleep(20)"
    message = fail("--name", "big", "--option=--mem=100", "--", "python3", "-c", big)
    assert message.startswith("big was killed for memory: ask for more (sbatch's --mem)")
    message = fail("--name", "bad", "--parts", 2, "--", "false")
    assert "of 2 of bad has failed 3 times, the last time it ended with exit code 1; its log: log/bad." in message


def test_a_cancelled_job_is_not_begun_again(cluster: Cluster, tmp_path: Path) -> None:
    process = cluster.start("submit", "--log", "log", "--name", "long", "--", "sleep", "60", cwd=tmp_path)
    wait_until(lambda: "R" in cluster.ask("squeue", "-h", "-o", "%t").split())
    cluster.ask("scancel", cluster.ask("squeue", "-h", "-o", "%A").strip())
    code, errors = end(process)
    assert code == 2 and "error: long was cancelled; its log: log/long.log" in errors


def test_a_call_that_was_killed_finds_its_job_again_and_one_that_ends_takes_it_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    command = ("submit", "--log", "log", "--name", "wait", "--", "sh", "-c", "while ! [ -e go ]; do sleep 0.1; done")
    first = cluster.start(*command, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "log" / "wait.log").exists())
    first.kill()
    first.communicate()
    second = cluster.start(*command, cwd=tmp_path)
    time.sleep(2)
    assert len(cluster.ask("squeue", "-h", "-o", "%A").split()) == 1
    (tmp_path / "go").touch()
    code, errors = end(second)
    assert code == 0 and "1 of 1 are in the queue already" in errors
    assert (tmp_path / "log" / "wait.log").read_text().count(BEGIN) == 1
    (tmp_path / "go").unlink()
    third = cluster.start(*command, cwd=tmp_path)
    wait_until(lambda: "R" in cluster.ask("squeue", "-h", "-o", "%t").split())
    third.terminate()
    assert end(third)[0] == 143
    wait_until(lambda: not cluster.ask("squeue", "-h", "-o", "%A").split())


def test_a_training_that_is_requeued_goes_on_exactly(cluster: Cluster, prepared: Prepared, tmp_path: Path) -> None:
    save_config(CONFIG, tmp_path / "pretrain.yaml")

    def submit(out: str) -> tuple[object, ...]:
        changes = {"max_steps": STEPS, "log_every_steps": 1, "save_every_steps": 40, "validate_every_steps": 40}
        settings = ("--config", "pretrain.yaml", *(f"--set=train.{key}={value}" for key, value in changes.items()))
        return "submit", "--log", "log", "--name", out, "--", "w2vbert", "pretrain", prepared.data, out, *settings

    def steps(out: str) -> int:
        metrics = tmp_path / out / "metrics.jsonl"
        return metrics.read_text().count('"train"') if metrics.exists() else 0

    broken = cluster.start(*submit("broken"), cwd=tmp_path)
    wait_until(lambda: steps("broken") >= 10)
    cluster.ask(
        "scancel", "--signal=USR1", "--batch", cluster.ask("squeue", "-h", "-o", "%A").strip()
    )  # as before a time limit
    wait_until(lambda: (tmp_path / "log" / "broken.log").read_text().count(BEGIN) == 2)
    stopped = steps("broken")
    assert 10 <= stopped < STEPS
    wait_until(lambda: steps("broken") >= stopped + 5)
    cluster.ask("scontrol", "requeue", cluster.ask("squeue", "-h", "-o", "%A").strip())  # as a preemption does
    code, errors = end(broken)
    assert code == 0, errors
    log = (tmp_path / "log" / "broken.log").read_text()
    assert log.count(BEGIN) == 3 and log.count("stopped after step") == 2
    cluster.run(*submit("whole"), cwd=tmp_path)
    names = ("broken", "whole")
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in names}
    assert len(weights) == 1 and read_metrics(tmp_path / "broken") == read_metrics(tmp_path / "whole")


def test_features_and_labels_are_made_by_arrays(cluster: Cluster, prepared: Prepared, tmp_path: Path) -> None:
    def array(name: str, *command: object) -> None:
        options = ("submit", "--log", "log", "--name", name, "--parts", 2, "--", "w2vbert")
        cluster.run(*options, *command, "--shard", "{part}/2", cwd=tmp_path)

    features = ("features", prepared.manifests, "data")
    array("features", *features)
    assert len(list((tmp_path / "data.parts").iterdir())) == 4 and not (tmp_path / "data").exists()
    cluster.run(*features, cwd=tmp_path)
    for file in (prepared.data / "storage").iterdir():
        assert (tmp_path / "data" / "storage" / file.name).read_bytes() == file.read_bytes()
    keep_all = [
        f"--set={key}" for key in ("max_words_per_second=100", "min_words=0", "rate_quantile=0", "dev_quantile=0")
    ]
    label = ("pseudo-label", "data", "labels", "--model", prepared.model, "--set", "batch_seconds=0.5", *keep_all)
    array("label", *label)
    log = cluster.run(*label, cwd=tmp_path)
    assert "4 of 4 utterances of unlabelled have been labelled in parts" in log
    assert len((tmp_path / "labels" / "labels.jsonl").read_text().splitlines()) == 4
    assert not list(tmp_path.glob("*.parts"))


def test_two_nodes_train_one_model(cluster: Cluster, prepared: Prepared, tmp_path: Path) -> None:
    save_config(CONFIG, tmp_path / "pretrain.yaml")
    train = ("w2vbert-launch", "--nproc-per-node", 1, "pretrain", prepared.data, "out", "--config", "pretrain.yaml")
    cluster.run("submit", "--log", "log", "--name", "two", "--nodes", 2, "--", *train, cwd=tmp_path)
    assert read_json(tmp_path / "out" / "run.json")["processes"] == 2
    assert read_json(tmp_path / "out" / "model.json")["steps"] == 9
    assert "on n[1-2], turn 1" in (tmp_path / "log" / "two.log").read_text()
