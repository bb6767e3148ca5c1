"""Pseudo-labels as a step: what is written, refused and skipped."""

import gzip
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from tests.tasks.conftest import Prepared, is_up_to_date, kill, run
from w2vbert.config import load_config
from w2vbert.data.batches import SpeechBatch, collate
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.decoding.search import SearchConfig
from w2vbert.errors import Unfinished, UserError
from w2vbert.files import read_json
from w2vbert.stages import Step
from w2vbert.tasks.fusion import FusionConfig, load_scorers
from w2vbert.tasks.labels import LABELS_FILE, Teacher, read_label_file
from w2vbert.tasks.pseudo_labels import PseudoLabelConfig, run_together
from w2vbert.tasks.recognize import load_transducer, recognize
from w2vbert.training.distributed import World
from w2vbert.training.interruption import StopRequest

KEEP_ALL = tuple(
    part
    for setting in ("max_words_per_second=100", "min_words=0", "rate_quantile=0", "dev_quantile=0")
    for part in ("--set", setting)
)


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
    labels = read_label_file(out / LABELS_FILE)
    assert {label.id: label.text for label in labels} == {id: cut.supervisions[0].text for id, cut in cuts.items()}
    assert not is_up_to_date(caplog, *base, "--set", "keep_share=0.5")
    kept = read_cuts(out / "cuts_pseudo.jsonl.gz")
    assert 1 <= len(kept) < 4
    lines = [json.loads(line) for line in (out / LABELS_FILE).read_text().splitlines()]
    assert {line["id"]: line["dropped"] for line in lines} == {
        id: None if id in kept else "confidence" for id in source
    }
    assert not is_up_to_date(caplog, *base[:5], *KEEP_ALL)


def test_the_text_of_a_label_is_that_of_decoding(prepared: Prepared, tmp_path: Path) -> None:
    run("pseudo-label", prepared.data, tmp_path / "labels", "--model", prepared.model, *KEEP_ALL)
    out = tmp_path / "decoded.jsonl"
    manifest = prepared.data / "cuts_unlabelled.jsonl.gz"
    run("decode", "--model", prepared.model, manifest, "-o", out, "--set", "search.method=beam")
    decoded = {line["id"]: line["text"] for line in map(json.loads, out.read_text().splitlines())}
    labels = read_cuts(tmp_path / "labels" / "cuts_pseudo.jsonl.gz")
    assert {id: cut.supervisions[0].text for id, cut in labels.items()} == decoded


def load_teacher(prepared: Prepared, search: SearchConfig, fusion: FusionConfig) -> Teacher:
    model, tokenizer = load_transducer(prepared.model)
    return Teacher(model, tokenizer, search, load_scorers([prepared.lm], None, fusion, search, tokenizer, model))


def noise_batch() -> SpeechBatch:
    generator = torch.Generator().manual_seed(3)
    return collate("abcd", [torch.randn(frames, 80, generator=generator) for frames in (120, 90, 150, 60)], None)


def test_a_second_pass_labels_as_it_decodes(prepared: Prepared) -> None:
    search = SearchConfig(method="beam", beam_size=4, nbest=4)
    first = load_teacher(prepared, search, FusionConfig(ngram=2.0))
    second = load_teacher(prepared, search, FusionConfig(ngram=2.0, second_pass=("ngram",)))
    labels = second.label(noise_batch())
    (decoded,) = recognize(second.model, second.tokenizer, [noise_batch()], search, second.scorers)
    assert [label.text for label in labels] == [r.text for r in decoded]
    assert [label.confidence for label in labels] == [r.confidence for r in decoded]
    assert [label.text for label in labels] != [label.text for label in first.label(noise_batch())]


def test_what_differs_by_the_language_model_is_nothing_where_it_has_no_weight(prepared: Prepared) -> None:
    """Whatever the other settings of the search are."""
    search = SearchConfig(method="beam", beam_size=1, blank_penalty=-2.0, max_symbols_per_frame=2)
    labels = load_teacher(prepared, search, FusionConfig(ngram=0.0)).label(noise_batch())
    usual = load_teacher(prepared, SearchConfig(method="beam", beam_size=1), FusionConfig(ngram=0.0)).label(
        noise_batch()
    )
    assert [label.lm_difference for label in labels + usual] == [0.0] * 8
    assert [label.text for label in labels] != [label.text for label in usual]


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
    assert "dev_quantile in [0, 1)" in fails(*base, "--set", "dev_quantile=1")
    data = Path(shutil.copytree(prepared.data, tmp_path / "data", ignore=shutil.ignore_patterns("storage")))
    for split in ("train", "dev"):
        (data / f"cuts_{split}.jsonl.gz").unlink()
        assert f"has no {split} split to compare labels with" in fails(base[0], data, *base[2:])
        shutil.copyfile(prepared.data / f"cuts_{split}.jsonl.gz", data / f"cuts_{split}.jsonl.gz")
    shutil.rmtree(data)
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


def test_parts_give_what_one_call_gives(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is missing, doubled or of other settings among them."""
    out, parts = tmp_path / "out", tmp_path / "out.parts"
    bounds = ("--set", "dev_quantile=0.01", "--set", "min_passing_share=0", "--set", "batch_seconds=0.5")
    base = ("pseudo-label", prepared.data, out, "--model", prepared.model, "--lm", prepared.lm, *KEEP_ALL, *bounds)

    def result() -> list[object]:
        return [
            (out / LABELS_FILE).read_text(),
            read_cuts(out / "cuts_pseudo.jsonl.gz"),
            read_json(out / "report.json"),
        ]

    run(*base)
    whole = result()
    shutil.rmtree(out)
    run(*base, "--set", "fusion.ngram=0.9", "--shard", "1/3")
    run(*base, "--shard", "2/2")
    run(*base, "--shard", "2/4")  # its batches are in 2/2, too
    assert sorted(os.listdir(parts)) == ["1-of-3", "2-of-2", "2-of-4"] and not out.exists()
    labelled = []
    label = Teacher.label
    monkeypatch.setattr(Teacher, "label", lambda teacher, batch: labelled.extend(batch.ids) or label(teacher, batch))
    caplog.clear()
    run(*base)
    assert result() == whole and os.listdir(tmp_path) == ["out"]
    assert len(labelled) == len(set(labelled)) == 3, "each other batch of 4 and of 2"
    assert "1-of-3 is damaged, or was made with other settings" in caplog.text
    assert "2 of 4 utterances of unlabelled have been labelled in parts" in caplog.text
    assert is_up_to_date(caplog, *base, "--shard", "1/2") and os.listdir(tmp_path) == ["out"]


def test_dev_is_the_measure(prepared: Prepared, tmp_path: Path, fails: Callable[..., str]) -> None:
    """The numbers for dev are those of decoding, and labels that are all worse than dev's are none."""
    base = ("pseudo-label", prepared.data, tmp_path / "out", "--model", prepared.model, "--lm", prepared.lm, *KEEP_ALL)
    decode = ("--data", prepared.data, "--split", "dev", "--lm", prepared.lm, "--set", "search.method=beam")
    run("decode", "--model", prepared.model, *decode, "--out", tmp_path / "decoded")
    run(*base, "--set", "dev_quantile=0.01", "--set", "min_passing_share=0")
    report = read_json(tmp_path / "out" / "report.json")
    wer = read_json(tmp_path / "decoded" / "wer.json")["splits"]["dev"]["wer"]
    assert report["measured"]["dev"]["wer"] == pytest.approx(wer)
    assert set(report["bounds"]["least"]) == {"confidence", "lm_score", "lm_difference"}
    assert (tmp_path / "out" / "filter.png").read_bytes().startswith(b"\x89PNG")
    error = fails(*base, "--set", "dev_quantile=0.99", "--set", "min_passing_share=1")
    assert "labelled none of 4 utterances well enough" in error
    assert read_json(tmp_path / "out" / "report.json") == report


def test_transcripts_beside_the_audio_are_for_judging_only(prepared: Prepared, tmp_path: Path) -> None:
    """The test split, taken as unlabelled: its WER is known, and its text is not what the student learns."""
    data = Path(shutil.copytree(prepared.data, tmp_path / "data", ignore=shutil.ignore_patterns("storage", ".*")))
    shutil.copyfile(data / "cuts_test.jsonl.gz", data / "cuts_unlabelled.jsonl.gz")
    run("pseudo-label", data, tmp_path / "out", "--model", prepared.model, *KEEP_ALL)
    beam = ("--set", "search.method=beam")
    run("decode", "--model", prepared.model, "--data", data, "--split", "test", *beam, "--out", tmp_path / "decoded")
    wer = read_json(tmp_path / "decoded" / "wer.json")["splits"]["test"]["wer"]
    measured = read_json(tmp_path / "out" / "report.json")["measured"]["unlabelled"]
    assert measured["wer"] == measured["kept_wer"] == pytest.approx(wer) and measured["dropped_wer"] is None
    source = read_cuts(data / "cuts_test.jsonl.gz")
    for id, cut in read_cuts(tmp_path / "out" / "cuts_pseudo.jsonl.gz").items():
        assert cut.supervisions[0].text != source[id].supervisions[0].text


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Unfinished), (signal.SIGUSR1, UserError)])
def test_labelling_that_is_told_to_stop_keeps_nothing(
    tmp_path: Path, number: signal.Signals, error: type[Exception]
) -> None:
    """After SIGUSR1, the end of a job's time, a second start would end alike: that is for the user to mend."""
    step = Step("pseudo-label", tmp_path / "out", {}, {})

    def work(world: World) -> Callable[[Path], None]:
        signal.raise_signal(number)
        raise AssertionError("it goes on")

    with pytest.raises(error, match=f"{tmp_path}/out: pseudo-label stopped .{number.name} came"):
        run_together(step, work, False, StopRequest(None))
    assert not (tmp_path / "out").exists()
