"""`w2vbert decode` of a data set's splits."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.corpus_factory import noise
from tests.tasks.conftest import ENCODER, Prepared, is_up_to_date, kill, run, write_model
from tests.tasks.recordings import write
from w2vbert.config import load_config
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.files import read_json
from w2vbert.models.subsampling import SubsamplingConfig
from w2vbert.tasks.decode import DecodeConfig


def test_what_the_user_can_mend_is_one_line(fails: Callable[..., str], prepared: Prepared, tmp_path: Path) -> None:
    audio = write(tmp_path / "a.wav", noise(0.5))
    Tokenizer.train(["OTHER LETTERS"], TokenizerConfig("char")).save(tmp_path)
    run("lm", "ngram", prepared.manifests, tmp_path / "other-lm", "--tokenizer", tmp_path, "--set", "ngram.order=2")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    start = ("decode", "--model", prepared.model)
    splits = (*start, "--data", prepared.data, "--out", tmp_path / "out", "--split", "dev")
    beam = ("--set", "search.method=beam", "--lm")
    for kind in ((*start, audio, "-o", tmp_path / "out.jsonl"), splits):
        assert "language model needs a beam search: --set search.method=beam" in fails(*kind, "--lm", prepared.lm)
        assert "was made for another tokenizer" in fails(*kind, *beam, tmp_path / "other-lm")
        assert "is not a model folder" in fails(*kind, *beam, tmp_path / "folder")
        assert "unknown key serach, did you mean search?" in fails(*kind, "--set", "serach.method=beam")
        assert "batch_seconds and max_seconds must be at least 1" in fails(*kind, "--set", "max_seconds=0.05")
        assert "no such config file" in fails(*kind, "--config", tmp_path / "absent.yaml")
    assert "does not exist" in fails(*start, tmp_path / "absent.wav")
    assert "does not exist" in fails(*start, tmp_path / "absent.jsonl.gz")
    assert "no audio in" in fails(*start, tmp_path / "folder")
    assert "does not tell its format" in fails(*start, audio, "-o", tmp_path / "folder")
    assert "is a folder" in fails(*start, audio, "-o", tmp_path / "folder", "--format", "jsonl")
    assert "no such file or folder" in fails(
        *start, "--data", tmp_path / "no", "--split", "dev", "-o", tmp_path / "out"
    )
    assert "cuts_dve.jsonl.gz does not exist" in fails(*splits, "--split", "dve")
    assert "unlabelled split of" in fails(*splits, "--split", "unlabelled")
    assert "holds cuts without features" in fails(
        *start, "--data", prepared.manifests, "--split", "dev", "-o", tmp_path / "out"
    )
    assert sorted(os.listdir(tmp_path)) == before


def test_features_of_another_kind_are_refused(fails: Callable[..., str], prepared: Prepared, tmp_path: Path) -> None:
    run("features", prepared.manifests, tmp_path / "mel40", "--set", "num_mel_bins=40")
    arguments = ("--data", tmp_path / "mel40", "--split", "dev", "-o", tmp_path / "out")
    assert "the model needs other features" in fails("decode", "--model", prepared.model, *arguments)
    assert os.listdir(tmp_path) == ["mel40"]


def test_splits_are_decoded_scored_and_done_once(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, model = tmp_path / "out", Path(shutil.copytree(prepared.model, tmp_path / "model"))
    base = ("decode", "--model", model, "--data", prepared.data, "--split", "dev", "--split", "test", "--out", out)
    assert not is_up_to_date(caplog, *base)
    wer = read_json(out / "wer.json")
    assert list(wer["splits"]) == ["dev", "test"] and wer["history"] == read_json(model / "model.json")["history"]
    for split, score in wer["splits"].items():
        lines = [json.loads(line) for line in (out / f"hyps-{split}.jsonl").read_text().splitlines()]
        assert len(lines) == score["utterances"] == 2 and score["words"] == 6
        assert (out / f"wer-summary-{split}.txt").read_text().splitlines()[1].startswith("greedy\t")
        assert (out / f"recogs-{split}.txt").is_file() and (out / f"errs-{split}.txt").is_file()
        parts = score["insertions"] + score["deletions"] + score["substitutions"]
        assert parts == score["errors"] and score["wer"] == pytest.approx(100 * parts / 6)
    assert load_config(DecodeConfig, out / "config.yaml") == DecodeConfig()
    assert is_up_to_date(caplog, *base)
    assert not is_up_to_date(caplog, *base, "--set", "batch_seconds=30")
    assert not is_up_to_date(caplog, *base, "--set", "batch_seconds=30", "--force")
    (model / "model.safetensors").touch()
    assert not is_up_to_date(caplog, *base, "--set", "batch_seconds=30")
    (out / "wer.json").unlink()
    assert not is_up_to_date(caplog, *base, "--set", "batch_seconds=30")


def test_killed_and_started_again_gives_the_same_results(prepared: Prepared, tmp_path: Path) -> None:
    base = ("decode", "--model", prepared.model, "--data", prepared.data, "--split", "dev", "--split", "test", "--out")
    run(*base, tmp_path / "whole")
    kill("hyps-test.jsonl", 1, *base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(*base, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]
    for path in (tmp_path / "whole").iterdir():
        if not path.name.startswith("."):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("subsampling", [ENCODER.subsampling, SubsamplingConfig(kind="stack", stacked_frames=2)])
def test_the_times_of_words_lie_in_their_recording_whatever_the_stride_of_the_model(
    subsampling: SubsamplingConfig, prepared: Prepared, tmp_path: Path
) -> None:
    encoder = replace(ENCODER, subsampling=subsampling)
    model = write_model(tmp_path / "model", prepared.tokenizer, seed=1, encoder=encoder)  # this one babbles to the end
    run("decode", "--model", model, "--data", prepared.data, "--split", "dev", "--out", tmp_path / "out")
    dataset = SpeechDataset([prepared.data / "cuts_dev.jsonl.gz"], 32.0)
    seconds = dict(zip(dataset.ids, (frames / 100 for frames in dataset.frames), strict=True))
    for line in map(json.loads, (tmp_path / "out" / "hyps-dev.jsonl").read_text().splitlines()):
        last = line["words"][-1]["end"]
        assert seconds[line["id"]] - 0.3 < last <= seconds[line["id"]] + 0.04
