"""Perplexity of texts by a language model of any kind."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.ngram import piece_word
from w2vbert.errors import UserError
from w2vbert.tasks.language_models import (
    NEURAL,
    NGRAM,
    load_neural_lm,
    load_ngram,
    read_lm_card,
    score_sentences,
    split_words,
)
from w2vbert.tasks.text_files import read_lines

LINES_AT_ONCE = 4096


@dataclass(frozen=True)
class Tally:
    """What is added up over sentences.

    Attributes:
        sentences: that are not empty.
        words: between white space.
        pieces: of the tokenizer; 0 where there is none.
        oov: words (of a word-level model) or pieces that the model does not know.
        log10_prob: of everything, ends of sentences included.
        oov_log10_prob: the part of it that falls to what the model does not know; 0 for a neural model, which has a
            piece for it.
    """

    sentences: int = 0
    words: int = 0
    pieces: int = 0
    oov: int = 0
    log10_prob: float = 0.0
    oov_log10_prob: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def perplexity(folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Perplexity of texts (one sentence a line) by the language model in a folder.

    Each end of a sentence counts as a piece and as a word, as in KenLM's `query`. What the model does not know is
    counted and scored as its unknown word; `perplexity_excluding_oov` is per word of a word-level model, otherwise per
    piece.

    Raises:
        UserError: the folder holds no language model, or a file is missing, not UTF-8 or empty.
    """
    for path in files:
        if next(read_lines(path), None) is None:
            raise UserError(f"{path} is empty: there is nothing to score")
    return measure(folder, (line for path in files for _, line in read_lines(path)))


def measure(folder: Path, lines: Iterable[str]) -> dict[str, Any]:
    """As `perplexity`, of lines that are not empty."""
    card = read_lm_card(folder)
    score = _make_scorer(folder, card)
    total, source = Tally(), iter(lines)
    while some := list(islice(source, LINES_AT_ONCE)):
        total += score(some)
    units = total.words if card["kind"] not in (NEURAL, NGRAM) else total.pieces
    known = units + total.sentences - total.oov
    excluding = None
    if card["kind"] != NEURAL and known:
        excluding = _perplexity(total.log10_prob - total.oov_log10_prob, known)
    return {
        "kind": card["kind"],
        "sentences": total.sentences,
        "words": total.words,
        "pieces": total.pieces or None,
        "oov": total.oov,
        "log10_prob": total.log10_prob,
        "perplexity_per_piece": _perplexity(total.log10_prob, total.pieces and total.pieces + total.sentences),
        "perplexity_per_word": _perplexity(total.log10_prob, total.words + total.sentences),
        "perplexity_excluding_oov": excluding,
    }


def _perplexity(log10_prob: float, count: int) -> float | None:
    return 10.0 ** min(-log10_prob / count, 300.0) if count else None


def _make_scorer(folder: Path, card: dict[str, Any]) -> Callable[[list[str]], Tally]:
    """What turns some lines into their tally."""
    if card["kind"] == NEURAL:
        model, pieces = load_neural_lm(folder)

        def score_neural(lines: list[str]) -> Tally:
            encoded = pieces.encode_all(lines)
            unknown = sum(row.count(pieces.unknown_id) for row in encoded)
            log10_prob = math.fsum(score_sentences(model, encoded)) / math.log(10)
            return Tally(len(lines), _count_words(lines), sum(map(len, encoded)), unknown, log10_prob)

        return score_neural
    ngram = load_ngram(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    if card["kind"] != NGRAM:

        def score_words(lines: list[str]) -> Tally:
            tally = _score_ngram(ngram, [split_words(line, card["case"]) for line in lines])
            count = 0 if tokenizer is None else sum(map(len, tokenizer.encode_all(lines)))
            return tally + Tally(words=_count_words(lines), pieces=count)

        return score_words
    if tokenizer is None:
        raise UserError(f"{folder} is not whole: its copy of the tokenizer is missing")
    words = [piece_word(piece) for piece in tokenizer.pieces(range(tokenizer.vocab_size))]

    def score_pieces(lines: list[str]) -> Tally:
        encoded = tokenizer.encode_all(lines)
        tally = _score_ngram(ngram, [[words[token] for token in row] for row in encoded])
        return tally + Tally(words=_count_words(lines), pieces=sum(map(len, encoded)))

    return score_pieces


def _count_words(lines: Iterable[str]) -> int:
    return sum(len(line.split()) for line in lines)


def _score_ngram(model: Any, sentences: Sequence[Sequence[str]]) -> Tally:
    """Sentences, unknown words and scores."""
    total, of_unknown, unknown = 0.0, 0.0, 0
    for sentence in sentences:
        for log10_prob, _, is_unknown in model.full_scores(" ".join(sentence), bos=True, eos=True):
            total += log10_prob
            if is_unknown:
                unknown += 1
                of_unknown += log10_prob
    return Tally(len(sentences), oov=unknown, log10_prob=total, oov_log10_prob=of_unknown)
