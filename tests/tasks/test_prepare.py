import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.corpus_factory import truncate, write_corpus, write_utterance
from w2vbert.config import load_config
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.features import FEATURES_FILE, ExtractionConfig, FeatureConfig
from w2vbert.data.synthesis import SPLITS, SynthConfig
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.errors import UserError
from w2vbert.tasks import feature_parts, prepare

NAMES = {"train": ["a-train", "b-train"], "dev": ["a-dev"], "test": ["a-test"], "unlabelled": ["a-more"]}
TINY = SynthConfig(
    **{f"{split}_hours": 0.0005 for split in SPLITS}, **{f"{split}_speakers": 1 for split in SPLITS}, lm_sentences=5
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def load_cuts(folder: Path, split: str) -> list:
    from lhotse import load_manifest

    return list(load_manifest(folder / f"cuts_{split}.jsonl.gz"))


def test_each_step_is_done_once_and_again_when_its_input_has_changed(corpus: Path, tmp_path: Path) -> None:
    manifests, fbank, tokenizer = tmp_path / "manifests", tmp_path / "fbank", tmp_path / "tokenizer"

    def run() -> tuple[bool, bool, bool]:
        return (
            prepare.prepare_corpus(corpus, manifests, NAMES),
            prepare.extract_features(manifests, fbank, ExtractionConfig()),
            prepare.train_tokenizer(manifests, tokenizer, TokenizerConfig(vocab_size=30)),
        )

    assert run() == (True, True, True)
    assert run() == (False, False, False)
    write_utterance(corpus / "a-dev", "21-7-0009", "ONE MORE")
    assert run() == (True, True, True)
    write_utterance(corpus / "a-train", "11-7-0009", "ONE MORE")
    assert run() == (True, True, True)
    assert prepare.extract_features(manifests, fbank, ExtractionConfig(num_mel_bins=40))
    assert len(load_cuts(fbank, "train")) == 9 and load_cuts(fbank, "dev")[0].num_features == 40
    assert Tokenizer.load(tokenizer).vocab_size == 30


def test_manifests_and_features_are_found_from_any_folder(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare.prepare_corpus(Path("corpus"), Path("manifests"), NAMES)
    prepare.extract_features(Path("manifests"), Path("fbank"), ExtractionConfig())
    monkeypatch.chdir("/")
    for split, count in {"train": 8, "dev": 2, "test": 2, "unlabelled": 4}.items():
        cuts = load_cuts(tmp_path / "fbank", split)
        assert len(cuts) == count and all(cut.supervisions[0].speaker for cut in cuts)
        assert cuts[0].load_audio().shape[0] == 1 and cuts[0].load_features().shape[1] == 80
        for kind in ("recordings", "supervisions", "cuts"):
            assert (tmp_path / "manifests" / f"{kind}_{split}.jsonl.gz").is_file()


def test_features_of_noise_and_of_copies_at_other_speeds_are_stored_too(corpus: Path, tmp_path: Path) -> None:
    manifests, fbank, noise = tmp_path / "manifests", tmp_path / "fbank", tmp_path / "noise"
    prepare.prepare_corpus(corpus, manifests, NAMES)
    write_utterance(noise, "1-1-0000", None)
    config = ExtractionConfig(speeds=(0.9, 1.1), noise=noise)
    assert prepare.extract_features(manifests, fbank, config)
    assert not prepare.extract_features(manifests, fbank, config)
    counts = {"train": 24, "dev": 2, "test": 2, "unlabelled": 4, "noise": 1}
    assert {split: len(load_cuts(fbank, split)) for split in counts} == counts
    assert load_cuts(fbank, "noise")[0].load_features().shape == (50, 80)
    assert load_config(FeatureConfig, fbank / FEATURES_FILE) == FeatureConfig()
    write_utterance(noise, "1-1-0001", None)
    assert prepare.extract_features(manifests, fbank, config) and len(load_cuts(fbank, "noise")) == 2


def test_the_report_counts_everything(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truncate(corpus / "a-train" / "11" / "7" / "11-7-0000.flac", 0.5)
    write_utterance(corpus / "a-dev", "11-9-0000", "SPEAKER OF TRAIN")
    prepare.prepare_corpus(corpus, tmp_path / "out", NAMES)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    train = report["splits"]["train"]
    assert (train["utterances"], train["speakers"], train["words"], train["distinct_words"]) == (7, 3, 21, 5)
    assert train["dropped"] == {"damaged or truncated": ["11-7-0000"]}
    assert train["hours"] == pytest.approx((0.4 + 0.5 + 0.3 + 0.4 + 0.5 + 0.3 + 0.4) / 3600, abs=1e-4)
    assert report["splits"]["unlabelled"]["words"] == 0
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "train: damaged or truncated: 11-7-0000" in text and "1 damaged or truncated" in text
    assert report["warnings"] == ["1 speakers are in both train and dev: 11"]
    assert report["warnings"][0] in caplog.text


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["nowhere"]}, "no subset nowhere"),
        ({"dev": ["a-more"]}, "a-more has no transcripts"),
        ({"train": ["a-train", "a-train"]}, "each only once"),
        ({}, "at least one split"),
        ({"train": ["broken"]}, "no utterance is left in train"),
    ],
)
def test_fatal_errors_leave_nothing_behind(corpus: Path, tmp_path: Path, splits: dict, message: str) -> None:
    truncate(write_utterance(corpus / "broken", "1-1-0000", "TEXT"), 0.5)
    with pytest.raises(UserError, match=message):
        prepare.prepare_corpus(corpus, tmp_path / "out", splits)
    assert os.listdir(tmp_path) == ["corpus"]


def test_an_interrupted_step_leaves_nothing_behind(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = tmp_path / "manifests"
    prepare.prepare_corpus(corpus, manifests, NAMES)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lhotse.LilcomChunkyWriter.write", interrupt)
    monkeypatch.setattr("w2vbert.data.tokenizer.save_config", interrupt)
    monkeypatch.setattr("w2vbert.tasks.manifests.write_json", interrupt)
    for step in (
        lambda: prepare.extract_features(manifests, tmp_path / "out", ExtractionConfig()),
        lambda: prepare.train_tokenizer(manifests, tmp_path / "out", TokenizerConfig(vocab_size=30)),
        lambda: prepare.prepare_corpus(corpus, tmp_path / "out", NAMES),
    ):
        with pytest.raises(KeyboardInterrupt):
            step()
        assert sorted(os.listdir(tmp_path)) == ["corpus", "manifests"]


def test_a_synthetic_corpus_goes_through_all_steps(tmp_path: Path) -> None:
    assert prepare.prepare_synth(tmp_path / "synth", TINY, jobs=1)
    assert not prepare.prepare_synth(tmp_path / "synth", TINY, jobs=2)
    splits = {split: [split] for split in SPLITS}
    assert prepare.prepare_corpus(tmp_path / "synth", tmp_path / "manifests", splits)
    report = json.loads((tmp_path / "manifests" / "report.json").read_text())
    assert not report["warnings"] and not any(row["dropped"] for row in report["splits"].values())
    assert prepare.extract_features(tmp_path / "manifests", tmp_path / "fbank", ExtractionConfig())
    assert prepare.prepare_synth(tmp_path / "synth", SynthConfig(**{**vars(TINY), "seed": 2}), jobs=1)


def test_missing_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cuts_"):
        prepare.extract_features(tmp_path, tmp_path / "out", ExtractionConfig())
    with pytest.raises(UserError, match="needs the text of a train split"):
        prepare.train_tokenizer(tmp_path, tmp_path / "out", TokenizerConfig())
    with pytest.raises(UserError, match="no corpus folder"):
        prepare.prepare_corpus(tmp_path / "nowhere", tmp_path / "out", NAMES)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: gzip.compress(b'{"id": "half a li')])
def test_a_damaged_manifest_is_named(corpus: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    prepare.prepare_corpus(corpus, tmp_path / "manifests", {"train": ["a-train"]})
    manifest = tmp_path / "manifests" / "cuts_train.jsonl.gz"
    manifest.write_bytes(damage(manifest.read_bytes()))
    with pytest.raises(UserError, match=r"cuts_train.jsonl.gz is damaged \(.*make it anew"):
        prepare.extract_features(tmp_path / "manifests", tmp_path / "fbank", ExtractionConfig())
    with pytest.raises(UserError, match=r"cuts_train.jsonl.gz is damaged"):
        prepare.train_tokenizer(tmp_path / "manifests", tmp_path / "tokenizer", TokenizerConfig(vocab_size=20))
    assert not (tmp_path / "fbank").exists() and not (tmp_path / "tokenizer").exists()


def test_a_disk_that_is_too_small_is_told_before_the_work(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.prepare_corpus(corpus, tmp_path / "manifests", NAMES)
    monkeypatch.setattr(feature_parts, "BYTES_PER_VALUE", 1e18)
    monkeypatch.setattr(prepare, "BYTES_PER_SECOND", 1e18)
    with pytest.raises(UserError, match="fbank will need about .* MiB, but .* are free there"):
        prepare.extract_features(tmp_path / "manifests", tmp_path / "fbank", ExtractionConfig())
    with pytest.raises(UserError, match="synth will need about"):
        prepare.prepare_synth(tmp_path / "synth", TINY)
    assert sorted(os.listdir(tmp_path)) == ["corpus", "manifests"]


def test_what_makes_scores_doubtful_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_utterance(tmp_path / "c" / "a", "1-1-0000", "Turn it on")
    write_utterance(tmp_path / "c" / "a", "1-1-0001", "TURN IT OFF")
    prepare.prepare_corpus(tmp_path / "c", tmp_path / "out", {"train": ["a"], "test": ["a"]})
    report = (tmp_path / "out" / "report.txt").read_text()
    for line in (
        "1 speakers are in both train and test: 1",
        "2 utterances are in both train and test: 1-1-0000, 1-1-0001",
        "2 of 4 transcripts have small letters, and there are capitals, too",
    ):
        assert line in report and any(line in record.getMessage() for record in caplog.records)


def test_features_that_are_not_stored_take_no_disk_and_train_alike(corpus: Path, tmp_path: Path) -> None:
    prepare.prepare_corpus(corpus, tmp_path / "manifests", NAMES)
    stored, computed = tmp_path / "stored", tmp_path / "computed"
    prepare.extract_features(tmp_path / "manifests", stored, ExtractionConfig(speeds=(0.9,)))
    prepare.extract_features(tmp_path / "manifests", computed, ExtractionConfig(speeds=(0.9,), stored=False))
    assert not list(computed.glob("storage/*"))
    for split in ("train", "dev", "unlabelled"):
        a, b = (SpeechDataset([folder / f"cuts_{split}.jsonl.gz"], 30.0) for folder in (stored, computed))
        assert (a.ids, a.frames, a.texts, a.speakers) == (b.ids, b.frames, b.texts, b.speakers)
        for index in range(len(a)):
            assert (a.load(index) - b.load(index)).abs().max() < 0.1  # stored ones are exact to 1/64 before scaling
