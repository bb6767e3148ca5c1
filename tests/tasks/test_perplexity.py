"""`lm perplexity` and `lm import`: what KenLM says itself, and published files as they are."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kenlm
import pytest

from tests.tasks.conftest import Prepared, run
from tests.tasks.test_ngram_lm import DEV, TRAIN, write_supervisions
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.decoding.ngram import NgramConfig, estimate, piece_word
from w2vbert.files import read_json

WORDS = sorted({word for line in TRAIN for word in line.split()})
TEXT = [*DEV, "SET THE KETTLE TO ELEVEN", "TEN"]  # with two words that no model knows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "tokenizer").mkdir()
    write_supervisions(tmp_path / "manifests" / "supervisions_train.jsonl.gz", [*TRAIN])
    write_supervisions(tmp_path / "manifests" / "supervisions_dev.jsonl.gz", [*DEV])
    Tokenizer.train(TRAIN, TokenizerConfig(vocab_size=40)).save(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("\n".join(TEXT) + "\n\n")
    return tmp_path


def write_arpa(path: Path, lower: bool = False) -> bytes:
    """A published model over words: 3-gram, <UNK> as LibriSpeech's has it."""
    sentences = [[WORDS.index(word) for word in line.split()] for line in TRAIN]
    words = [word.lower() if lower else word for word in WORDS]
    estimate(sentences, words, NgramConfig(order=3)).write_arpa(path.with_name("plain.arpa"))
    content = path.with_name("plain.arpa").read_bytes().replace(b"<unk>", b"<UNK>")
    path.with_name("plain.arpa").unlink()
    content = b"made by a toolkit\n\n" + content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return content


def perplexity(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    run("lm", "perplexity", *arguments, "--json")
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("unit", ["piece", "word"])
def test_figures_are_those_of_kenlm(folder: Path, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("lm", "ngram", folder / "manifests", folder / "lm", "--tokenizer", folder / "tokenizer")
    run(*base, "--unit", unit, "--set", "ngram.order=3")
    found = perplexity(capsys, folder / "lm", folder / "text.txt")
    model, tokenizer = kenlm.Model(str(folder / "lm" / "lm.arpa")), Tokenizer.load(folder / "tokenizer")
    sentences = TEXT
    if unit == "piece":
        sentences = [" ".join(map(piece_word, tokenizer.pieces(tokenizer.encode(line)))) for line in TEXT]
    log10_prob = sum(model.score(sentence) for sentence in sentences)
    assert found["log10_prob"] == pytest.approx(log10_prob, rel=1e-5)
    words, pieces = sum(len(line.split()) for line in TEXT), sum(len(tokenizer.encode(line)) for line in TEXT)
    assert (found["sentences"], found["words"], found["pieces"]) == (4, words, pieces)
    assert found["perplexity_per_word"] == pytest.approx(10 ** (-log10_prob / (words + 4)), rel=1e-5)
    assert found["perplexity_per_piece"] == pytest.approx(10 ** (-log10_prob / (pieces + 4)), rel=1e-5)
    scores = [score for sentence in sentences for score in model.full_scores(sentence)]
    known = [log10 for log10, _, is_unknown in scores if not is_unknown]
    assert found["oov"] == len(scores) - len(known) > 0
    assert found["perplexity_excluding_oov"] == pytest.approx(10 ** (-sum(known) / len(known)), rel=1e-5)
    if unit == "word":
        assert found["oov"] == 2 and found["kind"] == "word_ngram"
    card = read_json(folder / "lm" / "model.json")
    assert card["dev"]["oov"] == 0 and card["dev"]["perplexity_per_word"] < found["perplexity_per_word"]


@pytest.mark.parametrize(("name", "lower"), [("3-gram.arpa", False), ("3-gram.arpa.gz", True)])
def test_a_published_model_over_words(folder: Path, name: str, lower: bool, capsys: pytest.CaptureFixture[str]) -> None:
    content = write_arpa(folder / name, lower)
    run("lm", "import", folder / name, folder / "lm")
    card = read_json(folder / "lm" / "model.json")
    assert (card["kind"], card["order"], card["case"]) == ("word_ngram", 3, "lower" if lower else "upper")
    assert card["vocabulary"] == len(WORDS)
    (folder / "source.arpa").write_bytes(content[content.index(b"\\data") :])  # KenLM takes no preamble
    model = kenlm.Model(str(folder / "source.arpa"))
    found = perplexity(capsys, folder / "lm", folder / "text.txt")  # which is in upper case
    expected = sum(model.score(line.lower() if lower else line) for line in TEXT)
    assert found["log10_prob"] == pytest.approx(expected, rel=1e-5)
    assert (found["oov"], found["pieces"], found["perplexity_per_piece"]) == (2, None, None)
    run("info", folder / "lm")
    assert "kind: word_ngram" in capsys.readouterr().out


def test_a_published_model_over_pieces(
    folder: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = ("--tokenizer", folder / "tokenizer")
    run("lm", "ngram", folder / "manifests", folder / "own", *tokenizer, "--set", "ngram.order=2")
    arpa = folder / "own" / "lm.arpa"
    assert "is over word pieces: name their tokenizer with --tokenizer" in fails("lm", "import", arpa, folder / "lm")
    run("lm", "import", arpa, folder / "lm", *tokenizer)
    assert read_json(folder / "lm" / "model.json")["kind"] == "ngram"
    assert (folder / "lm" / "words.txt").read_bytes() == (folder / "own" / "words.txt").read_bytes()
    one, other = (perplexity(capsys, folder / name, folder / "text.txt") for name in ("own", "lm"))
    assert one == other
    (folder / "other").mkdir()
    Tokenizer.train(["JUMP OVER"], TokenizerConfig(vocab_size=12)).save(folder / "other")
    message = fails("lm", "import", arpa, folder / "new", "--tokenizer", folder / "other")
    assert "was made for another tokenizer" in message and not (folder / "new").exists()


def test_damaged_arpa_files_leave_nothing(folder: Path, fails: Callable[..., str]) -> None:
    content = write_arpa(folder / "good.arpa")
    path = folder / "bad.arpa"
    lines = content.splitlines(keepends=True)
    third = lines.index(b"\\3-grams:\n")
    for damaged, message in (
        (content[: len(content) // 2], "is truncated: it ends at line"),
        (b"".join(lines[:third]) + b"\\end\\\n", "this line stands at a wrong place"),
        (b"".join(lines[: third - 3] + lines[third - 2 :]), "2-grams stand before this line, but"),
        (content.replace(b"ngram 2=", b"ngram 7="), "a line such as `ngram 2=1000` is needed here"),
        (content.replace(b"\tLAMP\t", b"\tL\xc9MP\t"), "not UTF-8"),
        (content.replace(b"\tLAMP\t", b"\tLAMP LAMP LAMP\t", 1), "a unigram has a probability, a word"),
        (b"hello\n", "is no ARPA file"),
        (b"", "is no ARPA file"),
    ):
        path.write_bytes(damaged)
        assert message in fails("lm", "import", path, folder / "lm"), message
        assert not (folder / "lm").exists()
    (folder / "bad.arpa.gz").write_bytes(gzip.compress(content)[:-20])
    assert "bad.arpa.gz: damaged after line" in fails("lm", "import", folder / "bad.arpa.gz", folder / "lm")
    assert "no such file" in fails("lm", "import", folder / "absent.arpa", folder / "lm")
    path.write_bytes(content.replace(b"\tSET THE LAMP", b"\tSET THE KETTLE", 1))
    assert "cannot be read as a language model" in fails("lm", "import", path, folder / "lm")
    assert not [name for name in os.listdir(folder) if name.startswith((".", "lm"))]


def test_texts_and_folders_that_cannot_be_scored(prepared: Prepared, tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"SET\nCAF\xc9\n")
    (tmp_path / "good.txt").write_text("SET\n")
    assert "empty.txt is empty" in fails("lm", "perplexity", prepared.lm, tmp_path / "empty.txt")
    assert "latin.txt:2: not UTF-8" in fails("lm", "perplexity", prepared.lm, tmp_path / "latin.txt")
    assert "no such file" in fails("lm", "perplexity", prepared.lm, tmp_path / "absent.txt")
    for target, message in (
        (prepared.model, "holds a transducer model, but a ngram or word_ngram or neural model is needed"),
        (prepared.tokenizer, "is not a model folder"),
        (tmp_path / "absent", "does not exist"),
    ):
        assert message in fails("lm", "perplexity", target, tmp_path / "good.txt")
