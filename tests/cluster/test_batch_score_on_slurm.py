"""Batch scoring on a real Slurm, of which a node dies."""

import json
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster, end, wait_until
from tests.data.corpus_factory import noise, write_utterance
from tests.tasks.conftest import Prepared, run
from w2vbert.files import read_json

pytestmark = pytest.mark.slow

UTTERANCES, PARTS = 1000, 16


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many short utterances."""
    root = tmp_path_factory.mktemp("thousand")
    for number in range(UTTERANCES):
        samples = noise(0.2 + 0.001 * number, seed=number)
        write_utterance(root / "corpus" / "test", f"{10 + number // 100}-7-{number:04d}", "SPEAKER SAYS", samples)
    run("prepare", "corpus", root / "corpus", root / "manifests", "--test", "test")
    return root / "manifests" / "cuts_test.jsonl.gz"


def test_a_node_and_the_caller_die_and_every_utterance_is_there_once(
    cluster: Cluster, prepared: Prepared, manifest: Path, tmp_path: Path
) -> None:
    command = (
        "batch-score",
        "--model",
        prepared.model,
        "--manifest",
        manifest,
        "--nj",
        PARTS,
        "--cmd",
        "slurm",
        "-o",
        "out",
    )

    def whole() -> int:
        return len(list(tmp_path.glob("out.parts-*/hyps.*.jsonl")))

    def busy_nodes() -> list[str]:
        return cluster.ask("squeue", "-h", "-t", "running", "-o", "%N").split()

    first = cluster.start(*command, cwd=tmp_path)
    wait_until(lambda: whole() >= 2 and {"n1", "n2"} <= set(busy_nodes()))
    first.kill()  # its jobs stay in the queue
    first.communicate()
    second = cluster.start(*command, cwd=tmp_path)
    wait_until(lambda: "n2" in busy_nodes())
    cluster.kill_node("n2")
    left = PARTS - whole()
    assert left > 0
    try:
        code, errors = end(second, 300)
        assert code == 0, errors
    finally:
        cluster.start_node("n2")
    assert "are in the queue already" in errors
    lines = [json.loads(line) for line in (tmp_path / "out" / "hyps.jsonl").read_text().splitlines()]
    ids = [line["id"] for line in lines]
    assert len(ids) == len(set(ids)) == UTTERANCES and all(line["text"] is not None for line in lines)
    run("decode", "--model", prepared.model, manifest, "-o", tmp_path / "at_once.jsonl")
    at_once = [json.loads(line) for line in (tmp_path / "at_once.jsonl").read_text().splitlines()]
    assert [line["id"] for line in at_once] == ids
    assert sum(a["text"] == b["text"] for a, b in zip(lines, at_once, strict=True)) > 0.99 * UTTERANCES
    assert read_json(tmp_path / "out" / "wer.json")["splits"]["test"]["utterances"] == UTTERANCES
    assert not list(tmp_path.glob("out.parts-*"))
    assert "up to date" in cluster.run(*command, cwd=tmp_path)
