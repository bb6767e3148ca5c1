"""Features in parts: the same as in one go, whoever makes which of them, and nothing is made twice."""

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.corpus_factory import truncate, write_utterance
from tests.tasks.conftest import Prepared, is_up_to_date, run

PARTS = ["dev-00000", "test-00000", "train-00000", "train-00001", "train-00002", "unlabelled-00000", "unlabelled-00001"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2vbert.data.features.CUTS_PER_FILE", 3)


def read(out: Path) -> dict[str, bytes]:
    """What trainings read of a folder of features."""
    found = {path.name: gzip.decompress(path.read_bytes()) for path in out.glob("*.jsonl.gz")}
    return found | {path.name: path.read_bytes() for path in (out / "storage").iterdir()}


def make(prepared: Prepared, out: Path, *more: object) -> None:
    run("features", prepared.manifests, out, *more)


def test_parts_of_several_calls_give_what_one_call_gives(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, parts = tmp_path / "out", tmp_path / "out.parts"
    make(prepared, out)
    whole = read(out)
    assert len(whole) == len(PARTS) + 4 and os.listdir(tmp_path) == ["out"]
    shutil.rmtree(out)
    for shard in ("3/3", "1/3", "2/3"):
        make(prepared, out, "--shard", shard)
    assert sorted(os.listdir(parts)) == PARTS and not out.exists()
    files = {path.name: path.stat().st_ino for path in parts.glob("*/*.lca")}
    make(prepared, out)
    assert read(out) == whole and os.listdir(tmp_path) == ["out"]
    assert {path.name: path.stat().st_ino for path in (out / "storage").iterdir()} == files
    assert is_up_to_date(caplog, "features", prepared.manifests, out, "--shard", "1/3") and not parts.exists()
    assert is_up_to_date(caplog, "features", prepared.manifests, out)
    shutil.rmtree(out)
    make(prepared, out, "--nj", 2)
    assert read(out) == whole


def test_what_is_missing_doubled_or_of_other_settings_is_made_by_the_last_call(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, parts = tmp_path / "out", tmp_path / "out.parts"
    make(prepared, out)
    whole = read(out)
    shutil.rmtree(out)
    make(prepared, out, "--shard", "1/1", "--set", "num_mel_bins=40")
    make(prepared, out, "--shard", "1/2")  # of PARTS in the order of the splits: train-0, train-2, test, unlabelled-1
    shutil.rmtree(parts / "train-00002")
    shutil.rmtree(parts / "unlabelled-00001")
    shutil.copytree(parts / "train-00000", parts / "unlabelled-00001")
    truncate(parts / "test-00000" / "test-00000.lca", 0.9)
    kept = (parts / "train-00000" / "train-00000.lca").stat().st_ino
    caplog.clear()
    make(prepared, out)
    assert "1 of 7 parts are there already" in caplog.text
    assert read(out) == whole and os.listdir(tmp_path) == ["out"]
    assert (out / "storage" / "train-00000.lca").stat().st_ino == kept


def test_a_part_that_fails_is_done_again_alone(tmp_path: Path, fails: Callable[..., str]) -> None:
    for number in range(4):
        write_utterance(tmp_path / "corpus" / "a", f"11-7-000{number}", "WORD")
    run("prepare", "corpus", tmp_path / "corpus", tmp_path / "manifests", "--train", "a")
    last = tmp_path / "corpus" / "a" / "11" / "7" / "11-7-0003.flac"
    sound = last.read_bytes()
    truncate(last, 0.5)
    command = ("features", tmp_path / "manifests", tmp_path / "out")
    message = fails(*command)
    assert "11-7-0003.flac cannot be decoded (any more): prepare the corpus again" in message
    assert os.listdir(tmp_path / "out.parts") == ["train-00000"] and not (tmp_path / "out").exists()
    run(*command, "--shard", "1/2")
    assert fails(*command, "--shard", "2/2") == message
    file = tmp_path / "out.parts" / "train-00000" / "train-00000.lca"
    inode = file.stat().st_ino
    last.write_bytes(sound)
    run(*command)
    assert (tmp_path / "out" / "storage" / file.name).stat().st_ino == inode
    assert not (tmp_path / "out.parts").exists()


def test_a_shard_must_be_one(prepared: Prepared, tmp_path: Path, fails: Callable[..., str]) -> None:
    command = ("features", prepared.manifests, tmp_path / "out", "--shard")
    for shard in ("4/3", "0/3", "3", "a/b"):
        assert fails(*command, shard) == f"error: --shard {shard}: write I/N with 1 <= I <= N, such as 3/16"
    assert os.listdir(tmp_path) == []
