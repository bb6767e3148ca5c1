import gzip
import json
from pathlib import Path

import pytest
import torch

from w2vbert.config import load_config
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.decoding import ngram
from w2vbert.decoding.ngram import NgramConfig
from w2vbert.decoding.scorers import NgramScorer
from w2vbert.errors import UserError
from w2vbert.files import read_json
from w2vbert.tasks.ngram_lm import NgramLmConfig, train_ngram

NUMBERS = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN".split()
TRAIN = [f"SET THE {thing} TO {number}" for thing in ("LAMP", "HEATER", "CLOCK") for number in NUMBERS]
DEV = ["SET THE LAMP TO TEN", "SET THE CLOCK TO ONE"]


def write_supervisions(path: Path, texts: list[str | None]) -> None:
    entries = [
        {
            "id": f"u{n}",
            "recording_id": f"u{n}",
            "start": 0.0,
            "duration": 1.0,
            **({"text": t} if t is not None else {}),
        }
        for n, t in enumerate(texts)
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(entry) + "\n" for entry in entries).encode()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Manifests and a tokenizer; no lmplz."""
    monkeypatch.setattr(ngram, "find_lmplz", lambda: None)
    (tmp_path / "manifests").mkdir()
    (tmp_path / "tokenizer").mkdir()
    write_supervisions(tmp_path / "manifests" / "supervisions_train.jsonl.gz", [*TRAIN, None, ""])
    write_supervisions(tmp_path / "manifests" / "supervisions_dev.jsonl.gz", [*DEV])
    Tokenizer.train(TRAIN, TokenizerConfig(vocab_size=40)).save(tmp_path / "tokenizer")
    return tmp_path


def train(folder: Path, texts: list[Path] | None = None, *overrides: str) -> Path:
    train_ngram(folder / "manifests", folder / "lm", folder / "tokenizer", texts or [], None, overrides)
    return folder / "lm"


def test_the_model_prefers_what_it_has_read(folder: Path) -> None:
    out = train(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    scorer = NgramScorer.load(out, tokenizer.pieces(range(tokenizer.vocab_size)))

    def score(text: str) -> float:
        state, total = scorer.start(1, torch.device("cpu")), 0.0
        for token in tokenizer.encode(text):
            total += float(scorer.scores(state)[0, token])
            state = scorer.advance(state, torch.tensor([0]), torch.tensor([token]), torch.tensor([True]))
        return total + float(scorer.final(state))

    assert score("SET THE LAMP TO TEN") > score("LAMP THE SET TEN TO") + 5
    assert load_config(NgramLmConfig, out / "config.yaml").ngram == NgramConfig(estimator="native")
    report = read_json(out / "model.json")
    assert (report["estimator"], report["sentences"], report["dev"]["sentences"]) == ("native", len(TRAIN), 2)
    assert 1.0 < report["dev"]["perplexity_per_piece"] < report["dev"]["perplexity_per_word"] < 20.0


def test_more_text_is_read_plain_and_gzipped(folder: Path) -> None:
    (folder / "a.txt").write_text("SET ONE\n\nSET TWO\n")
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"SET THREE\n"))
    texts = [folder / "a.txt", folder / "b.txt.gz"]
    assert read_json(train(folder, texts) / "model.json")["sentences"] == len(TRAIN) + 3
    assert read_json(train(folder, texts, "transcripts=false") / "model.json")["sentences"] == 3


def test_an_empty_text_is_mentioned(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "empty.txt").write_text("\n")
    train(folder, [folder / "empty.txt"])
    assert any("empty.txt is empty" in record.getMessage() for record in caplog.records)


def test_it_is_done_again_only_when_something_changed(folder: Path) -> None:
    (folder / "a.txt").write_text("SET ONE\n")
    stamp = train(folder, [folder / "a.txt"]) / ".stamp.json"
    before = stamp.stat().st_mtime_ns
    train(folder, [folder / "a.txt"])
    assert stamp.stat().st_mtime_ns == before
    (folder / "a.txt").write_text("SET TWO\n")
    train(folder, [folder / "a.txt"])
    assert stamp.stat().st_mtime_ns != before


def test_errors_leave_nothing_half_written(folder: Path) -> None:
    (folder / "bad.gz").write_bytes(b"not gzip")
    (folder / "latin.txt").write_bytes(b"SET\nCAF\xc9\n")
    (folder / "empty.txt").write_text("\n")
    for texts, overrides, message in (
        ([folder / "absent.txt"], [], "absent.txt"),
        ([folder / "bad.gz"], [], "not gzip"),
        ([folder / "latin.txt"], [], "latin.txt:2: not UTF-8"),
        ([folder / "empty.txt"], ["transcripts=false"], "no text"),
        ([], ["transcripts=false"], "needs text"),
        ([], ["ngram.order=9"], "order: 9"),
        ([], ["ngram.estimator=lmplz"], "lmplz is not on the path"),
    ):
        with pytest.raises(UserError, match=message):
            train(folder, texts, *overrides)
        assert not (folder / "lm").exists()
    write_supervisions(folder / "manifests" / "supervisions_train.jsonl.gz", [])
    with pytest.raises(UserError, match="no text"):
        train(folder)


def test_works_without_a_dev_split(folder: Path) -> None:
    (folder / "manifests" / "supervisions_dev.jsonl.gz").unlink()
    assert "dev" not in read_json(train(folder) / "model.json")
