"""The index of a manifest says what Lhotse's cuts say, and is made anew when the manifest changes."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from lhotse import CutSet, MonoCut

from tests.tasks.conftest import Prepared, prepared  # noqa: F401
from w2vbert.data import cut_index
from w2vbert.data.cut_index import CutIndex, open_index
from w2vbert.errors import UserError
from w2vbert.stages import fingerprint


@pytest.fixture
def manifest(prepared: Prepared, tmp_path: Path) -> Path:  # noqa: F811
    """Two cuts, the second without supervision."""
    cuts = list(CutSet.from_file(prepared.data / "cuts_train.jsonl.gz"))[:2]
    cuts[1] = cuts[1].drop_supervisions()
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts_train.jsonl.gz")
    return tmp_path / "cuts_train.jsonl.gz"


def assert_equal_to_lhotse(index: CutIndex, manifest: Path) -> None:
    cuts = list(CutSet.from_file(manifest))
    assert list(index.ids) == [cut.id for cut in cuts]
    assert list(index.frames) == [cut.num_frames for cut in cuts]
    for name in ("text", "speaker"):
        said = [getattr(cut.supervisions[0], name) if cut.supervisions else "" for cut in cuts]
        column = getattr(index, f"{name}s")
        assert list(column) == said == [column[row] for row in range(len(column))]
    for row, cut in enumerate(cuts):
        assert (MonoCut.from_dict(index.record(row)).load_features() == cut.load_features()).all()


def test_a_small_manifest_is_read_anew(manifest: Path) -> None:
    assert_equal_to_lhotse(open_index(manifest), manifest)
    assert os.listdir(manifest.parent) == [manifest.name]


def test_the_index_of_a_large_one_stays_beside_it(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_index, "KEPT_BYTES", 1)
    before = fingerprint({}, {"data": manifest.parent})
    assert_equal_to_lhotse(open_index(manifest), manifest)

    def fail(path: Path) -> Any:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(cut_index, "_build", fail)
        assert_equal_to_lhotse(open_index(manifest), manifest)
    assert fingerprint({}, {"data": manifest.parent}) == before
    CutSet.from_cuts(list(CutSet.from_file(manifest))[:1]).to_file(manifest)
    assert len(open_index(manifest).ids) == 1


def test_a_zero_byte_in_a_transcript_moves_no_other(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_index, "KEPT_BYTES", 1)
    first, second = (json.loads(line) for line in gzip.decompress(manifest.read_bytes()).splitlines())
    second["supervisions"] = [first["supervisions"][0] | {"text": "AFTER"}]
    first["supervisions"][0]["text"] = "A\0B"
    manifest.write_bytes(gzip.compress("".join(f"{json.dumps(cut)}\n" for cut in (first, second)).encode()))
    for _ in ("made", "read"):
        assert list(open_index(manifest).texts) == ["A B", "AFTER"]


def test_what_cannot_be_written_beside_is_kept_in_memory(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cut_index, "KEPT_BYTES", 1)
    (manifest.parent / ".index").write_text("in the way")
    with caplog.at_level("INFO", "w2vbert"):
        assert_equal_to_lhotse(open_index(manifest), manifest)
    assert "no index is kept beside" in caplog.text


def test_damage_is_told(manifest: Path) -> None:
    lines = gzip.decompress(manifest.read_bytes()).decode().splitlines()
    bare = {key: value for key, value in json.loads(lines[1]).items() if key != "features"}
    manifest.write_bytes(gzip.compress(f"{lines[0]}\n{json.dumps(bare)}\n".encode()))
    with pytest.raises(UserError, match=f"holds {bare['id']} without features"):
        open_index(manifest)
    manifest.write_bytes(gzip.compress("\n".join(lines).encode())[:-20])
    with pytest.raises(UserError, match="is damaged"):
        open_index(manifest)
