"""Pseudo-labels: which are kept, and what is written."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from lhotse import CutSet

from tests.tasks.conftest import Prepared, is_up_to_date, kill, run
from w2vbert.config import load_config
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.files import read_json
from w2vbert.tasks.recognize import Recognition
from w2vbert.tasks.self_train import PseudoLabelConfig, filter_labels

KEEP_ALL = ("--set", "keep_share=1", "--set", "max_words_per_second=100", "--set", "min_words=0")


@dataclass
class Lengths:
    """All that the filter asks of a data set."""

    ids: list[str]
    frames: list[int]


def label(id: str, words: int, log_prob: float) -> Recognition:
    text = " ".join(["WORD"] * words)
    return Recognition(id, text, [Hypothesis((2,) * words, (0,) * words, (log_prob,) * words, 0.0, 0.0)])


def kept_and_report(
    labels: Sequence[Recognition], config: PseudoLabelConfig, frames: Sequence[int] | None = None
) -> tuple[list[str], dict]:
    lengths = Lengths([r.id for r in labels], list(frames or [100] * len(labels)))
    kept, report = filter_labels(labels, cast(SpeechDataset, lengths), config)
    assert report["labelled"] == len(labels) and report["kept"] == len(kept)
    assert report["labelled"] == report["kept"] + sum(report["dropped"].values())
    assert report["kept_hours"] * 360000 == pytest.approx(
        sum(f for i, f in zip(lengths.ids, lengths.frames, strict=True) if i in kept)
    )
    if kept:
        assert report["confidence_threshold"] == min(r.confidence for r in kept.values())
    return sorted(kept), report


@pytest.mark.parametrize(("share", "expected"), [(1.0, 10), (0.9, 9), (0.5, 5), (0.41, 5), (0.01, 1)])
def test_the_most_confident_share_is_kept(share: float, expected: int) -> None:
    labels = [label(f"u{i}", 2, -0.1 * (i + 1)) for i in range(10)]
    kept, report = kept_and_report(labels[::-1], PseudoLabelConfig(keep_share=share))
    assert kept == [f"u{i}" for i in range(expected)]
    assert report["dropped"] == {
        "too few words": 0,
        "too many words a second": 0,
        "confidence": 10 - expected,
    }


def test_the_share_is_of_audio_not_of_utterances() -> None:
    labels = [label("long", 2, -0.1), label("short1", 1, -0.2), label("short2", 1, -0.3)]
    assert kept_and_report(labels, PseudoLabelConfig(keep_share=0.5), [400, 50, 50])[0] == ["long"]
    assert kept_and_report(labels[::-1], PseudoLabelConfig(keep_share=0.85), [50, 50, 400])[0] == ["long", "short1"]


def test_thresholds() -> None:
    labels = [label("none", 0, 0.0), label("one", 1, -0.1), label("fine", 3, -0.2), label("doubtful", 3, -2.0)]
    labels += [label("babble", 9, -0.1)]
    kept, report = kept_and_report(labels, PseudoLabelConfig(keep_share=1.0, min_confidence=0.5, min_words=2))
    assert kept == ["fine"]
    assert report["dropped"] == {"too few words": 2, "too many words a second": 1, "confidence": 1}
    kept, report = kept_and_report(labels, PseudoLabelConfig(keep_share=1.0, max_words_per_second=9))
    assert kept == ["babble", "doubtful", "fine", "one"] and report["confidence_threshold"] == pytest.approx(
        0.1353, abs=1e-4
    )


def test_equal_confidence_is_decided_by_id_whatever_the_order() -> None:
    labels = [label(id, 1, -0.1) for id in "abcd"]
    for order in (labels, labels[::-1]):
        assert kept_and_report(order, PseudoLabelConfig(keep_share=0.5))[0] == ["a", "b"]


def test_nothing_to_keep() -> None:
    kept, report = kept_and_report([label("a", 0, 0.0)], PseudoLabelConfig())
    assert kept == [] and report["confidence_threshold"] is None


def read_cuts(path: Path) -> dict:
    return {cut.id: cut for cut in CutSet.from_file(path)}


def test_cuts_with_labels_are_written_once(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "labels"
    base = ("pseudo-label", prepared.data, out, "--model", prepared.model, "--lm", prepared.lm, *KEEP_ALL)
    assert not is_up_to_date(caplog, *base)
    cuts, source = read_cuts(out / "cuts_pseudo.jsonl.gz"), read_cuts(prepared.data / "cuts_unlabelled.jsonl.gz")
    assert cuts.keys() == source.keys() and len(cuts) == 4
    for id, cut in cuts.items():
        assert cut.supervisions[0].text is not None and source[id].supervisions[0].text is None
        assert cut.supervisions[0].speaker == source[id].supervisions[0].speaker and cut.features == source[id].features
    report = read_json(out / "report.json")
    assert report["labelled"] == report["kept"] == 4
    assert report["history"] == read_json(prepared.model / "model.json")["history"]
    assert load_config(PseudoLabelConfig, out / "config.yaml").keep_share == 1.0
    assert is_up_to_date(caplog, *base)
    assert not is_up_to_date(caplog, *base, "--set", "keep_share=0.5")
    assert 1 <= len(read_cuts(out / "cuts_pseudo.jsonl.gz")) < 4
    assert not is_up_to_date(caplog, *base[:5], *KEEP_ALL)


def test_the_text_of_a_label_is_that_of_decoding(prepared: Prepared, tmp_path: Path) -> None:
    run("pseudo-label", prepared.data, tmp_path / "labels", "--model", prepared.model, *KEEP_ALL)
    out = tmp_path / "decoded.jsonl"
    manifest = prepared.data / "cuts_unlabelled.jsonl.gz"
    run("decode", "--model", prepared.model, manifest, "-o", out, "--set", "search.method=beam")
    decoded = {line["id"]: line["text"] for line in map(json.loads, out.read_text().splitlines())}
    labels = read_cuts(tmp_path / "labels" / "cuts_pseudo.jsonl.gz")
    assert {id: cut.supervisions[0].text for id, cut in labels.items()} == decoded


def test_cuts_without_any_supervision_get_one(prepared: Prepared, tmp_path: Path) -> None:
    data = Path(shutil.copytree(prepared.data, tmp_path / "data", ignore=shutil.ignore_patterns("storage")))
    manifest = data / "cuts_unlabelled.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(manifest.read_bytes()).splitlines()]
    bare = [{key: value for key, value in line.items() if key != "supervisions"} for line in lines]
    manifest.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in bare).encode()))
    run("pseudo-label", data, tmp_path / "labels", "--model", prepared.model, *KEEP_ALL)
    for cut in read_cuts(tmp_path / "labels" / "cuts_pseudo.jsonl.gz").values():
        assert len(cut.supervisions) == 1 and cut.supervisions[0].duration == cut.duration


def test_errors_leave_nothing(prepared: Prepared, tmp_path: Path, fails: Callable[..., str]) -> None:
    Tokenizer.train(["OTHER LETTERS"], TokenizerConfig("char")).save(tmp_path)
    run("lm", "ngram", prepared.manifests, tmp_path / "other-lm", "--tokenizer", tmp_path, "--set", "ngram.order=2")
    before = sorted(os.listdir(tmp_path))
    base = ("pseudo-label", prepared.data, tmp_path / "out", "--model", prepared.model)
    greedy = ("--set", "search.method=greedy")
    assert "language model needs a beam search" in fails(*base, "--lm", prepared.lm, *greedy)
    assert "was made for another tokenizer" in fails(*base, "--lm", tmp_path / "other-lm")
    assert "no such file or folder" in fails(*base, "--lm", tmp_path / "nowhere")
    assert "unknown key keep_shar, did you mean keep_share?" in fails(*base, "--set", "keep_shar=1")
    assert "keep_share must lie in (0, 1]" in fails(*base, "--set", "keep_share=0")
    assert "labelled none of 4 utterances well enough" in fails(*base, "--set", "min_words=1000")
    assert "no utterance between" in fails(*base, "--set", "max_seconds=0.2")
    assert "holds cuts without features" in fails(base[0], prepared.manifests, *base[2:])
    assert "no such file or folder" in fails(base[0], tmp_path / "nowhere", *base[2:])
    assert sorted(os.listdir(tmp_path)) == before


def test_killed_and_started_again_gives_the_same_labels(prepared: Prepared, tmp_path: Path) -> None:
    base = ("pseudo-label", prepared.data, tmp_path / "out", "--model", prepared.model, *KEEP_ALL)
    kill("report.json", 1, *base)
    assert not (tmp_path / "out").exists()
    run(*base)
    run(*base[:2], tmp_path / "whole", *base[3:])
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]
    labels = [read_cuts(tmp_path / name / "cuts_pseudo.jsonl.gz") for name in ("out", "whole")]
    assert labels[0] == labels[1]
