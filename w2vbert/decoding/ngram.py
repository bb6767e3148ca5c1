"""N-gram language models over pieces: modified Kneser-Ney, written as ARPA, by KenLM's `lmplz` or by our own estimator.

Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling", 1998, section 3 and
equation 26, in the form of Heafield et al., "Scalable modified Kneser-Ney language model estimation", ACL 2013. The
result is that of `lmplz` without pruning.
"""

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from w2vbert.errors import UserError
from w2vbert.files import atomic_file

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
SPECIALS = (UNKNOWN, BEGIN, END)  # ids 0, 1, 2 here
MAX_ORDER = 6  # of KenLM's Python module as it is distributed
MAX_NATIVE_TOKENS = 20_000_000
LINES_AT_ONCE = 100_000

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NgramConfig:
    """How the n-gram model is estimated.

    Attributes:
        order: pieces that an n-gram spans, 1 to 6.
        estimator: auto: `lmplz` when it is on the path, otherwise native, which takes up to 20 million pieces.
        discount_fallback: discounts of counts 1, 2 and above where the text is too small to estimate them (the default
            of lmplz).
    """

    order: int = 5
    estimator: Literal["auto", "lmplz", "native"] = "auto"
    discount_fallback: tuple[float, float, float] = (0.5, 1.0, 1.5)

    def __post_init__(self) -> None:
        if not 1 <= self.order <= MAX_ORDER:
            raise ValueError(f"order: {self.order} is not allowed: 1 to {MAX_ORDER}")
        if any(not 0 <= value <= count + 1 for count, value in enumerate(self.discount_fallback)):
            raise ValueError(f"discount_fallback: {self.discount_fallback} is not allowed: 0 to 1, 0 to 2, 0 to 3")


def piece_word(piece: str) -> str:
    """The word that stands for a piece in ARPA files: the piece itself, but for what would break the format.

    White space, backslashes and unprintable characters become `\\uXXXX`, KenLM's own words (`<s>` ...) get a backslash.
    Different pieces have different words.
    """
    if piece in SPECIALS or not piece:
        return "\\" + piece
    return "".join(f"\\u{ord(c):04x}" if c == "\\" or c.isspace() or not c.isprintable() else c for c in piece)


def find_lmplz() -> str | None:
    """Path of KenLM's estimator, if it is installed."""
    return shutil.which("lmplz")


def choose_estimator(config: NgramConfig, tokens: int) -> Literal["lmplz", "native"]:
    """What `config` means for a text of so many tokens here.

    Raises:
        UserError: `lmplz` is wanted or needed but not on the path.
    """
    found = find_lmplz() is not None
    if config.estimator == "lmplz" and not found:
        raise UserError("estimator: lmplz is not on the path: install KenLM's programs or set estimator=native")
    if config.estimator == "lmplz" or (config.estimator == "auto" and found):
        return "lmplz"
    if tokens > MAX_NATIVE_TOKENS:
        raise UserError(
            f"the text has {tokens} pieces, more than the {MAX_NATIVE_TOKENS} of the built-in estimator: put KenLM's "
            "lmplz on the path (see `w2vbert doctor`), or give less text"
        )
    return "native"


def run_lmplz(sentences: Iterable[Sequence[int]], words: Sequence[str], config: NgramConfig, arpa: Path) -> None:
    """Let `lmplz` write the ARPA file; its text and scratch files stand beside it meanwhile.

    `sentences` are gone through twice, and need not fit into memory.

    Raises:
        UserError: lmplz failed; with its last words.
    """
    program = find_lmplz()
    assert program is not None
    text = arpa.with_suffix(".pieces.txt")
    try:
        with text.open("w", encoding="utf-8") as file:
            file.writelines(" ".join([words[token] for token in sentence]) + "\n" for sentence in sentences)
        with atomic_file(arpa) as partial:
            memory = "1G" if sum(map(len, sentences)) < MAX_NATIVE_TOKENS else "50%"
            command = [program, "--order", str(config.order), "--text", str(text), "--arpa", str(partial)]
            command += ["--temp_prefix", str(arpa.parent / "lmplz"), "--memory", memory, "--discount_fallback"]
            command += [f"{value:g}" for value in config.discount_fallback]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                last = done.stderr.strip().splitlines()[-1:] or ["no message"]
                raise UserError(f"{program} failed ({done.returncode}): {last[0]}; estimator=native does without it")
    finally:
        text.unlink(missing_ok=True)


@dataclass(frozen=True)
class NgramLevel:
    """All n-grams of one order."""

    position: Ints
    """For each n-gram the place of its last word in one of its occurrences in the stream."""
    log10_prob: Floats
    log10_backoff: Floats


@dataclass(frozen=True)
class NgramModel:
    """A language model of our own estimator, fit to be written."""

    vocabulary: tuple[str, ...]
    stream: Ints
    """The text as ids of the vocabulary, with <s> and </s>; <unk> in front."""
    levels: tuple[NgramLevel, ...]

    def write_arpa(self, path: Path) -> None:
        """Write the ARPA file, atomically."""
        with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={len(level.position)}\n" for n, level in enumerate(self.levels, 1))
            for n, level in enumerate(self.levels, 1):
                file.write(f"\n\\{n}-grams:\n")
                file.writelines(self._lines(n, level))
            file.write("\n\\end\\\n")

    def _lines(self, n: int, level: NgramLevel) -> Iterator[str]:
        vocabulary = np.array(self.vocabulary, dtype=object)
        for start in range(0, len(level.position), LINES_AT_ONCE):
            part = slice(start, start + LINES_AT_ONCE)
            places = level.position[part, None] + np.arange(1 - n, 1)  # (lines, n)
            texts = map(" ".join, vocabulary[self.stream[places]].tolist())
            probs = level.log10_prob[part].tolist()
            if n == len(self.levels):
                yield from (f"{prob:.7g}\t{text}\n" for prob, text in zip(probs, texts, strict=True))
            else:
                backoffs = level.log10_backoff[part].tolist()
                lines = zip(probs, texts, backoffs, strict=True)
                yield from (f"{prob:.7g}\t{text}\t{backoff:.7g}\n" for prob, text, backoff in lines)


def estimate(sentences: Sequence[Sequence[int]], words: Sequence[str], config: NgramConfig) -> NgramModel:
    """Estimate an interpolated modified Kneser-Ney model.

    Args:
        sentences: token ids of each sentence, without marks of begin and end.
        words: the ARPA word of each token id (`piece_word`). Tokens that never occur stay out, as in lmplz.

    Raises:
        UserError: there is no sentence.
    """
    if not any(len(sentence) for sentence in sentences):
        raise UserError("there is no text to estimate a language model from")
    stream, place = _stream(sentences)
    counts = _count(stream, place, len(SPECIALS) + len(words), config.order)
    return _smooth(stream, counts, (*SPECIALS, *words), config)


@dataclass(frozen=True)
class _Counts:
    """The n-grams of one order, each array (n-grams,). The unigrams are all words of the vocabulary."""

    position: Ints
    raw: Ints
    begins: NDArray[np.bool_]
    """Starts with <s>."""
    prefix: Ints
    """Number of its first n - 1 words in the order below."""
    suffix: Ints
    """Number of its last n - 1 words in the order below."""


def _stream(sentences: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """All sentences as <s> words </s> in one array, and the place of each word in its sentence (0 for <s>).

    One <unk> stands before them all, so that every word of the model has a place in the stream.
    """
    filled = [sentence for sentence in sentences if len(sentence)]
    lengths = np.fromiter((len(sentence) + 2 for sentence in filled), np.int64, len(filled))
    starts = np.cumsum(lengths) - lengths
    place = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    stream = np.empty(len(place), np.int64)
    stream[starts] = SPECIALS.index(BEGIN)
    stream[starts + lengths - 1] = SPECIALS.index(END)
    inner = np.ones(len(place), np.bool_)
    inner[starts] = inner[starts + lengths - 1] = False
    stream[inner] = np.fromiter(chain.from_iterable(filled), np.int64) + len(SPECIALS)
    return np.insert(stream, 0, SPECIALS.index(UNKNOWN)), np.insert(place, 0, 0)


def _count(stream: Ints, place: Ints, vocab_size: int, order: int) -> list[_Counts]:
    """Number the n-grams of each order; an n-gram is the number of its prefix and its last word."""
    first = np.zeros(vocab_size, np.int64)
    first[stream[::-1]] = np.arange(len(stream))[::-1]
    raw = np.bincount(stream, minlength=vocab_size)
    none = np.zeros(vocab_size, np.int64)
    counts = [_Counts(first, raw, none > 0, none, none)]
    number = stream  # of the n-gram that ends at each position
    for n in range(2, order + 1):
        ends = np.flatnonzero(place >= n - 1)
        keys = number[ends - 1] * vocab_size + stream[ends]
        _, index, inverse, raw = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        at = ends[index]
        counts.append(_Counts(at, raw, place[at] == n - 1, number[at - 1], number[at]))
        number = np.full(len(stream), -1, np.int64)
        number[ends] = inverse
    return counts


def _adjusted(counts: list[_Counts], n: int) -> Ints:
    """Counts that the order n is estimated from: occurrences in the highest order and after <s>, otherwise the number
    of different words in front (Heafield et al. 2013, section 3.1). Never seen: 0."""
    own = counts[n - 1]
    if n == len(counts):
        adjusted = own.raw.copy()
    else:
        adjusted = np.where(own.begins, own.raw, np.bincount(counts[n].suffix, minlength=len(own.raw)))
    if n == 1:
        adjusted[[SPECIALS.index(UNKNOWN), SPECIALS.index(BEGIN)]] = 0
    return adjusted


def _discounts(adjusted: Ints, fallback: tuple[float, float, float]) -> Floats:
    """What is taken off the counts 0, 1, 2 and above 2 (Chen and Goodman 1998, equation 26)."""
    n = np.bincount(np.minimum(adjusted, 5), minlength=6).astype(np.float64)
    discounts = np.zeros(4)
    if n[1:4].all():
        y = n[1] / (n[1] + 2 * n[2])
        discounts[1:] = [j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3)]
        if (discounts >= 0).all() and (discounts <= np.arange(4)).all():
            return discounts
    discounts[1:] = fallback
    return discounts


def _smooth(stream: Ints, counts: list[_Counts], vocabulary: tuple[str, ...], config: NgramConfig) -> NgramModel:
    """Interpolate each order with the one below, the unigrams with the uniform distribution."""
    seen = counts[0].raw > 0
    lower = np.full(1, 1.0 / (seen.sum() - 1))  # <s> is never predicted
    probs: list[Floats] = []
    gammas: list[Floats] = []
    for n, level in enumerate(counts, 1):
        adjusted = _adjusted(counts, n)
        discount = _discounts(adjusted, config.discount_fallback)[np.minimum(adjusted, 3)]
        total = np.bincount(level.prefix, weights=adjusted, minlength=len(lower))
        taken = np.bincount(level.prefix, weights=discount, minlength=len(lower))
        gamma = np.divide(taken, total, out=np.ones_like(total), where=total > 0)
        prob = (adjusted - discount) / total[level.prefix] + gamma[level.prefix] * lower[level.suffix]
        if n == 1:
            prob[SPECIALS.index(BEGIN)] = 1.0
        probs.append(prob)
        gammas.append(gamma)
        lower = prob
    gammas.append(np.ones_like(lower))
    levels = []
    for n, level in enumerate(counts, 1):
        keep = seen if n == 1 else np.ones(len(level.raw), np.bool_)
        levels.append(NgramLevel(level.position[keep], _log10(probs[n - 1][keep]), _log10(gammas[n][keep])))
    return NgramModel(vocabulary, stream, tuple(levels))


def _log10(values: Floats) -> Floats:
    return np.log10(np.maximum(values, 1e-99))
