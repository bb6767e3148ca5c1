"""Manifests of Libri-Light."""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.data.corpus_factory import noise, truncate, write_corpus, write_subset
from tests.data.librilight_factory import arrange, write_long
from w2vbert import cli
from w2vbert.data.features import ExtractionConfig
from w2vbert.data.segments import CutConfig
from w2vbert.errors import UserError
from w2vbert.tasks import prepare_librilight as task
from w2vbert.tasks.prepare import extract_features
from w2vbert.tasks.prepare_librilight import prepare_librilight

CUT = CutConfig(max_seconds=4.0, min_seconds=0.2)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """small: three recordings of about 10 s; labels, dev and test in LibriSpeech's layout."""
    corpus = tmp_path / "corpus"
    for speaker in ("71", "72", "73"):
        parts = [(noise(1.0 + number % 3, seed=number), 16000) for number in range(5)]
        write_long(corpus / "small" / speaker / "a_book" / f"{speaker}_one.flac", speaker, parts)
    for number, name in enumerate(task.LIMITED["10h"]):
        write_subset(corpus / name, (str(100 + number),), 1)
    write_corpus(corpus / "LibriSpeech")
    return corpus


def load(folder: Path, name: str) -> list:
    from lhotse import load_manifest

    return list(load_manifest(folder / f"{name}.jsonl.gz"))


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_long_recordings_become_pieces_between_their_pauses(corpus: Path, tmp_path: Path) -> None:
    assert prepare_librilight(corpus, tmp_path / "out", {"unlabelled": ["small"]}, CUT)
    assert not prepare_librilight(corpus, tmp_path / "out", {"unlabelled": ["small"]}, CUT)
    cuts = load(tmp_path / "out", "cuts_unlabelled")
    assert len(load(tmp_path / "out", "recordings_unlabelled")) == 3
    assert cuts[0].id == "small-71-a_book-71_one-0000" and cuts[0].supervisions[0].speaker == "71"
    assert all(cut.duration <= 4.0 for cut in cuts) and len({cut.id for cut in cuts}) == len(cuts)
    assert all(a.end <= b.start for a, b in pairwise(cuts) if a.recording_id == b.recording_id)
    row = report_of(tmp_path / "out")["splits"]["unlabelled"]
    assert row["cut_by"] == {"published segments": 3, "energy": 0, "in one piece": 0} and row["recordings"] == 3
    assert sum(cut.duration for cut in cuts) / 3600 == pytest.approx(row["hours"], abs=1e-4)
    assert not (tmp_path / "out.parts").exists()


def test_pieces_hold_the_samples_of_their_place(corpus: Path, tmp_path: Path) -> None:
    prepare_librilight(corpus, tmp_path / "out", {"unlabelled": ["small"]}, CUT)
    extract_features(tmp_path / "out", tmp_path / "fbank", ExtractionConfig())
    for cut in load(tmp_path / "fbank", "cuts_unlabelled")[:3]:
        whole, _ = soundfile.read(cut.recording.sources[0].source, dtype="float32")
        first = round(cut.start * 16000)
        np.testing.assert_array_equal(cut.load_audio()[0], whole[first : first + cut.num_samples])
        assert len(cut.load_features()) == cut.num_frames


def test_without_published_segments_energy_tells(corpus: Path, tmp_path: Path) -> None:
    published, energy = tmp_path / "published", tmp_path / "energy"
    prepare_librilight(corpus, published, {"unlabelled": ["small"]}, CUT)
    jsons = sorted((corpus / "small").rglob("*.json"))
    jsons[0].unlink()
    jsons[1].write_text("{broken")
    jsons[2].write_text('{"speaker": "99"}')
    prepare_librilight(corpus, energy, {"unlabelled": ["small"]}, CUT)
    assert report_of(energy)["splits"]["unlabelled"]["cut_by"] == {
        "published segments": 0,
        "energy": 3,
        "in one piece": 0,
    }
    cuts = {cut.id: cut for cut in load(published, "cuts_unlabelled")}
    others = load(energy, "cuts_unlabelled")
    assert cuts.keys() == {cut.id for cut in others}
    assert all(abs(cut.start - cuts[cut.id].start) < 0.05 and abs(cut.end - cuts[cut.id].end) < 0.05 for cut in others)
    assert {cut.supervisions[0].speaker for cut in others} == {"71", "72", "99"}


def test_labels_of_limited_size_and_librispeech_for_the_rest(corpus: Path, tmp_path: Path) -> None:
    for train, utterances in {"10min": 2, "1h": 12, "10h": 14}.items():
        arguments = ["--train", train, "--dev", "a-dev", "--test", "a-test", "--unlabelled", "small", "--nj", "1"]
        settings = ["--set", "max_seconds=4", "--set", "min_seconds=0.2"]
        assert cli.main(["prepare", "librilight", str(corpus), str(tmp_path / train), *arguments, *settings]) == 0
        rows = report_of(tmp_path / train)["splits"]
        assert rows["dev"]["subsets"] == ["LibriSpeech/a-dev"]
        assert len(load(tmp_path / train, "cuts_dev")) == 2
        assert rows["train"]["utterances"] == utterances and not rows["train"]["dropped"]


def test_a_part_that_fails_is_done_again_alone(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "FILES_OF_A_PART", 1)
    begun: list[str] = []

    def work(job: task.PartJob, folder: Path) -> None:
        begun.append(job.folder.name)
        if len(begun) == 2:
            raise OSError(28, "No space left on device", str(folder / "cuts.jsonl.gz"))
        write(job, folder)

    write = task._write_part
    monkeypatch.setattr(task, "_write_part", work)
    with pytest.raises(UserError, match=r"1 of 3 parts have failed; the others are kept in .*out\.parts"):
        prepare_librilight(corpus, tmp_path / "out", {"unlabelled": ["small"]}, CUT)
    assert begun == ["1-of-3", "2-of-3", "3-of-3"] and not (tmp_path / "out").exists()
    prepare_librilight(corpus, tmp_path / "out", {"unlabelled": ["small"]}, CUT)
    assert begun[3:] == ["2-of-3"] and not (tmp_path / "out.parts").exists()
    prepare_librilight(corpus, tmp_path / "whole", {"unlabelled": ["small"]}, CUT)
    assert load(tmp_path / "out", "cuts_unlabelled") == load(tmp_path / "whole", "cuts_unlabelled")


def test_what_cannot_be_used_is_named(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, stereo, silent = sorted((corpus / "small").rglob("*.flac"))
    truncate(broken, 0.5)
    soundfile.write(stereo, np.zeros((16000, 2)), 16000)
    soundfile.write(silent, noise(0.1), 16000)
    with pytest.raises(UserError, match="no piece of speech is left in unlabelled"):
        prepare_librilight(corpus, tmp_path / "out", {"unlabelled": ["small"]}, CUT)
    write_long(corpus / "small" / "31" / "b" / "good.flac", "31", [(noise(2.0), 16000)])
    prepare_librilight(corpus, tmp_path / "out", {"unlabelled": ["small"], "test": ["a-test"]}, CUT)
    report = report_of(tmp_path / "out")
    dropped = report["splits"]["unlabelled"]["dropped"]
    assert dropped == {
        "damaged or truncated": ["small-71-a_book-71_one"],
        "more than one channel": ["small-72-a_book-72_one"],
        "no speech of 0.2 s": ["small-73-a_book-73_one"],
    }
    assert report["warnings"] == ["1 speakers are in both test and unlabelled: 31"]
    assert "damaged or truncated: small-71-a_book-71_one" in (tmp_path / "out" / "report.txt").read_text()


def test_missing_subsets_are_refused_before_the_work(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no subset medium in .* \(there are: LibriSpeech, librispeech_finetuning, small"
    ):
        prepare_librilight(corpus, tmp_path / "out", {"unlabelled": ["small", "medium"]}, CUT)
    (corpus / "large" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="no audio in .*large"):
        prepare_librilight(corpus, tmp_path / "out", {"unlabelled": ["large"]}, CUT)
    assert os.listdir(tmp_path) == ["corpus"]


def test_chapters_of_librispeech_make_such_a_corpus(tmp_path: Path) -> None:
    write_subset(tmp_path / "c" / "a-more", ("41", "42"), 3, labelled=False)
    small = arrange(tmp_path / "c", tmp_path / "l" / "small", ["a-more"])
    assert sorted(str(path.relative_to(small)) for path in small.rglob("*.flac")) == [
        "41/7_a_more/01_chapter.flac",
        "42/7_a_more/01_chapter.flac",
    ]
    prepare_librilight(tmp_path / "l", tmp_path / "out", {"unlabelled": ["small"]}, CUT)
    assert {cut.supervisions[0].speaker for cut in load(tmp_path / "out", "cuts_unlabelled")} == {"41", "42"}
