"""`lm train`: it learns, goes on where it was killed, and refuses what is not fit for it."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.conftest import is_up_to_date, kill, run
from tests.tasks.test_ngram_lm import DEV, TRAIN, write_supervisions
from w2vbert.config import save_config
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.models.language_model import CausalLmConfig
from w2vbert.tasks.language_models import load_neural_lm, score_sentences
from w2vbert.tasks.train_lm import LmTrainConfig
from w2vbert.training.checkpoint import read_weights
from w2vbert.training.config import TrainConfig
from w2vbert.training.metrics import TIMINGS
from w2vbert.training.optim import OptimConfig

KINDS = pytest.mark.parametrize("kind", ["transformer", "lstm"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Manifests, a tokenizer, a text and a config."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "tokenizer").mkdir()
    write_supervisions(tmp_path / "manifests" / "supervisions_train.jsonl.gz", [*TRAIN, None, ""])
    write_supervisions(tmp_path / "manifests" / "supervisions_dev.jsonl.gz", [*DEV])
    Tokenizer.train(TRAIN, TokenizerConfig(vocab_size=40)).save(tmp_path / "tokenizer")
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress("\n".join(TRAIN[::2]).encode()))
    train = TrainConfig(max_steps=50, log_every_steps=5, validate_every_steps=25, save_every_steps=50, threads=1)
    config = LmTrainConfig(
        CausalLmConfig(layers=1, dim=32, heads=2, feed_forward_dim=64),
        train,
        OptimConfig(1e-2, 5, "constant"),
        batch_pieces=200,
        max_pieces=60,
    )
    save_config(config, tmp_path / "lm.yaml")
    return tmp_path


def command(folder: Path, name: str = "lm", *settings: str) -> list[Any]:
    options = ["--tokenizer", folder / "tokenizer", "--text", folder / "text.txt.gz", "--config", folder / "lm.yaml"]
    return ["lm", "train", folder / "manifests", folder / name, *options, *(p for s in settings for p in ("--set", s))]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


@KINDS
def test_it_learns_the_grammar_of_its_text(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(*command(folder, "lm", f"lm.kind={kind}"))
    begin = read_metrics(folder / "lm")[0]["perplexity_per_piece"]
    dev = [line["perplexity_per_piece"] for line in read_metrics(folder / "lm") if line["split"] == "dev"]
    assert dev[-1] < 0.3 * begin and dev[-1] < 2.5, "an even guess of pieces gives 40"
    model, tokenizer = load_neural_lm(folder / "lm")
    good, bad = (tokenizer.encode(text) for text in ("SET THE LAMP TO TEN", "LAMP THE SET TEN TO"))
    assert score_sentences(model, [good])[0] > score_sentences(model, [bad])[0] + 5
    capsys.readouterr()
    run("info", folder / "lm", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["step"], facts["kind"], facts["text"]["sentences"]) == ("lm train", "neural", 45)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert "audio_hours" not in read_metrics(folder / "lm")[0] and not (folder / "lm.text").exists()
    assert is_up_to_date(caplog, *command(folder, "lm", f"lm.kind={kind}"))
    (folder / "dev.txt").write_text("\n".join(DEV))
    run("lm", "perplexity", folder / "lm", folder / "dev.txt", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity_per_piece"] == pytest.approx(min(dev), rel=1e-4) and found["oov"] == 0


def test_killed_and_started_again_gives_the_same_weights(folder: Path) -> None:
    few = ("train.max_steps=9", "train.save_every_steps=3", "train.validate_every_steps=4", "train.log_every_steps=2")
    run(*command(folder, "whole", *few))
    kill("step-00000006/checkpoint.json", 1, *command(folder, "out", *few))  # while it is written
    assert (folder / "out" / "checkpoints" / "step-00000003").is_dir() and (folder / "out.text").is_dir()
    run(*command(folder, "out", *few))
    assert not (folder / "out.text").exists()
    for name in ("model.safetensors", "checkpoints/step-00000009/model.safetensors"):
        expected, found = read_weights(folder / "whole" / name), read_weights(folder / "out" / name)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert read_metrics(folder / "whole") == read_metrics(folder / "out")


def test_errors_leave_nothing(folder: Path, fails: Callable[..., str]) -> None:
    base = command(folder)
    before = sorted(os.listdir(folder))
    for settings, message in (
        (("lm.layrs=3",), "unknown key layrs in lm, did you mean layers?"),
        (("lm.heads=5",), "dim must be a multiple of twice the heads, 10, not 32"),
        (("max_pieces=400",), "batch_pieces more than that"),
        (("train.loader_workers=2",), "are for audio"),
        (("max_pieces=2",), "all 45 sentences have more than 2 pieces (max_pieces)"),
    ):
        assert message in fails(*command(folder, "lm", *settings))
    (folder / "text.txt.gz").write_bytes(gzip.compress(b"SET ONE\n" * 9)[:-9])
    assert "text.txt.gz: damaged after line" in fails(*base)
    (folder / "text.txt.gz").write_bytes(gzip.compress(b"SET ONE\nCAF\xc9\n"))
    assert "text.txt.gz:2: not UTF-8 text" in fails(*base)
    (folder / "text.txt.gz").write_bytes(gzip.compress(b"\n"))
    assert "there is no text" in fails(*base, "--set", "transcripts=false")
    assert sorted(os.listdir(folder)) == before
    (folder / "manifests" / "supervisions_dev.jsonl.gz").unlink()
    assert "no transcripts in its dev split" in fails(*base)
    assert sorted(os.listdir(folder)) == before


def test_another_tokenizer_in_the_folder_is_noticed(folder: Path, fails: Callable[..., str]) -> None:
    run(*command(folder, "lm", "train.max_steps=1"))
    Tokenizer.train(TRAIN, TokenizerConfig(vocab_size=35)).save(folder / "lm" / "tokenizer")
    (folder / "dev.txt").write_text("SET ONE\n")
    assert "tokenizer is not the one that the model was trained with" in fails(
        "lm", "perplexity", folder / "lm", folder / "dev.txt"
    )
