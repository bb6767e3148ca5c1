"""Datasets of stored features."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet

from tests.data.corpus_factory import noise, store, truncate, write_utterance
from w2vbert.data import cut_index
from w2vbert.data.corpora import CorpusConfig, read_split
from w2vbert.data.datasets import SpeechDataset, check_manifest, read_frames
from w2vbert.data.features import FeatureConfig, features_of_waveform, normalize
from w2vbert.errors import UserError

SECONDS = {"11-7-0000": 1.0, "11-7-0001": 0.3, "12-7-0000": 2.5, "12-7-0001": 0.06}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of two splits, one of them without transcripts."""
    folder = tmp_path_factory.mktemp("features")
    for number, (name, seconds) in enumerate(SECONDS.items()):
        write_utterance(folder / "a", name, f"WORD {number}", noise(seconds, seed=number))
        write_utterance(folder / "u", f"9{name}", None, noise(seconds, seed=number))
    for name, subset in (("train", "a"), ("unlabelled", "u")):
        config = CorpusConfig(folder, {name: (subset,)}, min_seconds=0.0)
        cuts = store(read_split(config, name, jobs=1).cuts(), folder, name=name)
        CutSet.from_cuts(cuts).to_file(folder / f"cuts_{name}.jsonl.gz")
    return folder


def dataset(folder: Path, *names: str, max_seconds: float = 30.0, **options: Any) -> SpeechDataset:
    return SpeechDataset([folder / f"cuts_{name}.jsonl.gz" for name in names], max_seconds, **options)


def lines_of(manifest: Path) -> list[str]:
    with gzip.open(manifest, "rt") as file:
        return file.readlines()


def test_utterances_know_their_length_text_and_speaker(folder: Path) -> None:
    data = dataset(folder, "train")
    assert data.ids == ["11-7-0000", "11-7-0001", "12-7-0000"] and len(data) == 3
    assert data.frames == [100, 30, 250] and data.hours == pytest.approx(3.8 / 3600)
    assert data.texts == ["WORD 0", "WORD 1", "WORD 2"] and data.speakers == ["11", "11", "12"]


def test_too_short_and_too_long_ones_are_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = dataset(folder, "train", max_seconds=1.0)
    assert data.ids == ["11-7-0000", "11-7-0001"]
    assert "left out 2 utterances under 0.1 s or over 1 s" in caplog.text
    with pytest.raises(UserError, match="no utterance between 0.1 and 0.2 s"):
        dataset(folder, "train", max_seconds=0.2)


def test_longer_ones_can_be_cropped_and_only_the_crop_is_read(folder: Path) -> None:
    data = dataset(folder, "train", max_seconds=1.0, crop=True)
    assert data.ids == ["11-7-0000", "11-7-0001", "12-7-0000"] and data.hours == pytest.approx(2.3 / 3600)
    assert data.frames == [100, 30, 100] and data.spare == [0, 0, 150]
    whole = dataset(folder, "train").load_changed(2, lambda features: features.clone())
    raw = read_frames(dataset(folder, "train").cut(2), 0, 250)
    torch.testing.assert_close(normalize(raw), whole, atol=0.01, rtol=0.0)
    for start in range(0, 151):
        assert torch.equal(read_frames(data.cut(2), start, 100), raw[start : start + 100]), start
    torch.testing.assert_close(data.load(2, 70), normalize(raw[70:170]), atol=0.03, rtol=0.01)  # bfloat16
    assert not torch.equal(data.load(2, 70), data.load(2, 71))
    batch = data.joined([[0, 2]], starts=[0, 0, 33])
    assert torch.equal(batch.features[0, 100:], data.load(2, 33)) and batch.lengths.tolist() == [200]


def test_what_is_said_of_many_stays_on_disk_until_it_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with and without an index beside the manifest, for all utterances and for some."""
    shutil.copytree(folder, tmp_path / "data")
    names, plain = ("unlabelled", "train"), dataset(folder, "unlabelled", "train")
    monkeypatch.setattr(cut_index, "KEPT_BYTES", 1)
    for _ in range(2):
        data = dataset(tmp_path / "data", *names)
    assert isinstance(plain.ids, list) and not isinstance(data.ids, list)
    for left_out in ([], [0, 3]):
        plain.leave_out(left_out)
        data.leave_out(left_out)
        for one, other in ((plain.ids, data.ids), (plain.texts, data.texts), (plain.speakers, data.speakers)):
            assert len(one) == len(other) == len(data) and one == list(other) == [other[i] for i in range(len(data))]
        assert [data.record(i)["id"] for i in range(len(data))] == plain.ids and data.frames == plain.frames


def test_utterances_can_be_left_out(folder: Path) -> None:
    data = dataset(folder, "train")
    expected = data_of(data, 2)
    data = dataset(folder, "train")
    data.leave_out([1])
    assert data.ids == ["11-7-0000", "12-7-0000"] and len(data) == 2 and data_of(data, 1) == expected


def data_of(data: SpeechDataset, index: int) -> tuple[object, ...]:
    """All that a dataset tells of an utterance."""
    known = (data.ids, data.frames, data.spare, data.texts, data.speakers)
    return (*(values[index] for values in known), data.load(index).sum().item())


@pytest.mark.parametrize("processes", [1, 3])
def test_memory_has_a_bound_that_the_processes_of_a_machine_share(
    processes: int, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    caplog.set_level("INFO")
    reads: list[str] = []
    monkeypatch.setattr(
        "w2vbert.data.datasets.read_frames", lambda cut, *rest: reads.append(cut.id) or read_frames(cut, *rest)
    )
    data, plain = dataset(folder, "train", cache_bytes=processes * 150 * 80 * 2), dataset(folder, "train")
    for _ in range(3):
        for index in range(3):
            assert torch.equal(data.load(index), plain.load(index))
    assert [reads.count(id) for id in data.ids] == [2, 2, 4]  # once for each dataset, the last one always
    lines = [line for line in caplog.messages if "fit in memory" in line]
    assert lines == ["features of 0.0 of 0.0 h fit in memory; the rest is read from disk"]


def test_augmentation_works_on_raw_features(folder: Path) -> None:
    data = dataset(folder, "train")
    for _ in range(2):  # from disk, and again
        assert torch.equal(data.load_changed(0, lambda features: features), data.load_changed(0, torch.clone))
        torch.testing.assert_close(data.load_changed(0, lambda x: 2 * x + 1), data.load(0), atol=0.03, rtol=0.01)
        assert not torch.allclose(data.load_changed(0, torch.exp), data.load(0), atol=0.1)


def test_manifests_are_joined_and_texts_may_be_absent(folder: Path) -> None:
    data = dataset(folder, "unlabelled", "train")
    assert data.ids[:3] == ["911-7-0000", "911-7-0001", "912-7-0000"] and data.ids[3] == "11-7-0000"
    assert data.texts == ["", "", "", "WORD 0", "WORD 1", "WORD 2"]


def test_features_are_normalised_and_those_of_the_waveform(folder: Path) -> None:
    data = dataset(folder, "train")
    samples = torch.from_numpy(noise(2.5, seed=2)).clamp(-1, 1)
    expected = normalize(features_of_waveform((samples * 32768).round() / 32768, FeatureConfig()))
    for _ in range(2):  # from disk, and again
        loaded = data.load(2)
        assert loaded.dtype == torch.float32 and loaded.shape == (250, 80)
        torch.testing.assert_close(loaded, expected, atol=0.03, rtol=0.01)  # bfloat16
    loaded.zero_()  # what is given away can be changed
    assert data.load(2).any()


def test_batches_hold_the_chosen_utterances(folder: Path) -> None:
    data = dataset(folder, "train")
    batch = data.batch([2, 0], lambda text: [int(text[-1])])
    assert batch.ids == ("12-7-0000", "11-7-0000") and batch.lengths.tolist() == [250, 100]
    assert batch.tokens is not None and batch.tokens.tolist() == [[2], [0]]
    assert torch.equal(batch.features[1, :100], data.load(0)) and data.batch([0]).tokens is None


def test_manifests_that_cannot_be_used_say_why(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "cuts_train.jsonl.gz"
    with pytest.raises(UserError, match="does not exist: run `w2vbert features`"):
        check_manifest(manifest)
    manifest.write_bytes(b"hello world")
    with pytest.raises(UserError, match="no gzipped manifest"):
        check_manifest(manifest)
    for text, message in (("", "is empty"), ('{"id": "a"}\n', "without features"), ("{", "no gzipped manifest")):
        manifest.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(UserError, match=message):
            check_manifest(manifest)


def test_a_manifest_cut_off_in_the_middle_is_named(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "cuts_train.jsonl.gz"
    shutil.copyfile(folder / "cuts_train.jsonl.gz", manifest)
    for share in (0.95, 0.7):
        truncate(manifest, share)
        with pytest.raises(UserError, match=f"{manifest}"):
            SpeechDataset([manifest], 30.0)
    lines = lines_of(folder / "cuts_train.jsonl.gz")
    manifest.write_bytes(gzip.compress((lines[0] + lines[1][:50]).encode()))
    with pytest.raises(UserError, match=f"{manifest}"):
        SpeechDataset([manifest], 30.0)


def test_a_cut_without_features_among_others_is_named(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "cuts_train.jsonl.gz"
    lines = lines_of(folder / "cuts_train.jsonl.gz")
    bare = json.loads(lines[1])
    del bare["features"]
    manifest.write_bytes(gzip.compress((lines[0] + json.dumps(bare) + "\n").encode()))
    with pytest.raises(UserError, match="holds 11-7-0001 without features"):
        SpeechDataset([manifest], 30.0)


def test_features_that_are_gone_or_damaged_are_named(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "cuts_train.jsonl.gz"
    stored = next(folder.glob("train*.lca"))
    text = "".join(lines_of(folder / "cuts_train.jsonl.gz")).replace(str(stored), str(tmp_path / "x.lca"))
    manifest.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(UserError, match="11-7-0000: .*x.lca"):
        SpeechDataset([manifest], 30.0).load(0)
    shutil.copyfile(stored, tmp_path / "x.lca")
    truncate(tmp_path / "x.lca", 0.3)
    with pytest.raises(UserError, match="12-7-0000: .*x.lca"):
        SpeechDataset([manifest], 30.0).load(2)
