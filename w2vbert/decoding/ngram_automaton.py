"""An n-gram model with back-off as an automaton of tensors: many contexts are asked at once, on any device.

Letters: R rows, A arcs (the n-grams of the model), Q states (the n-grams that are contexts), W words of the model.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from w2vbert.decoding.ngram import BEGIN, END, UNKNOWN
from w2vbert.errors import UserError

LINES_AT_ONCE = 200_000
MISSING_LOG10_PROB = -100.0  # KenLM's, of <unk> where the file has none

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NgramAutomaton:
    """States are contexts, 0 the empty one; arcs are n-grams, sorted by state and word.

    Attributes:
        order: longest n-gram.
        begin: state of the begin of a sentence.
        label_words: int64 (V + 1,), word of each label, and of the end of the sentence.
        keys: int64 (A,), state * W + word of each arc, rising.
        log_prob: float32 (A,), natural logarithm of each arc.
        following: int64 (A,), state behind each arc.
        backoff: float32 (Q,), weight of a state for what it has no arc for.
        shorter: int64 (Q,), state of the next shorter context; 0 of itself.
        first_arc: int64 (Q + 1,), where the arcs of each state begin.
    """

    order: int
    begin: int
    label_words: Tensor
    keys: Tensor
    log_prob: Tensor
    following: Tensor
    backoff: Tensor
    shorter: Tensor
    first_arc: Tensor

    @property
    def words(self) -> int:
        """W: labels, end and begin of the sentence, the unknown word."""
        return len(self.label_words) + 2

    def to(self, device: torch.device) -> NgramAutomaton:
        """A copy on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("order", "begin")}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def follow(self, states: Tensor, labels: Tensor) -> Tensor:
        """States after `labels` int64 (R,) read in `states` int64 (R,)."""
        words = self.label_words[labels]
        result = torch.full_like(states, -1)
        for _ in range(self.order):
            wanted = states * self.words + words
            place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
            found = (self.keys[place] == wanted) & (result < 0)
            result = torch.where(found, self.following[place], result)
            states = self.shorter[states]
        return result.clamp(min=0)

    def scores(self, states: Tensor) -> Tensor:
        """Log-probabilities of all labels, and of the end, in `states` int64 (R,) -> float32 (R, V + 1)."""
        chain = [states]
        for _ in range(self.order - 1):
            chain.append(self.shorter[chain[-1]])
        table = torch.full((1, self.words), MISSING_LOG10_PROB * math.log(10), device=states.device)
        self._write_arcs(table, torch.zeros(1, dtype=torch.long, device=states.device))
        table = table.repeat(len(states), 1)
        for contexts in reversed(chain):  # from short contexts to long ones, which overwrite
            table += self.backoff[contexts].unsqueeze(1)
            self._write_arcs(table, contexts, contexts > 0)
        return table[:, self.label_words]

    def _write_arcs(self, table: Tensor, states: Tensor, where: Tensor | None = None) -> None:
        """Put the log-probabilities of the arcs of `states` (R,), `where` (R,), into table (R, W)."""
        counts = self.first_arc[states + 1] - self.first_arc[states]  # (R,)
        counts = counts if where is None else counts * where
        rows = torch.repeat_interleave(counts)  # one for each arc
        within = torch.arange(len(rows), device=states.device) - (counts.cumsum(0) - counts)[rows]
        arcs = self.first_arc[states][rows] + within
        table[rows, self.keys[arcs] % self.words] = self.log_prob[arcs]


def load_automaton(path: Path, labels: Sequence[str]) -> NgramAutomaton:
    """The automaton of an ARPA file (or `.gz`).

    Args:
        path: of the file.
        labels: the model's word for each label; one that the model does not know is its unknown word.

    Raises:
        UserError: the file is missing or no ARPA file, or it knows none of the labels.
    """
    numbers = {word: number for number, word in enumerate([*labels, END, BEGIN, UNKNOWN])}
    levels = list(_read_arpa(path, numbers))
    known = np.zeros(len(numbers), np.bool_)
    known[levels[0].words[:, 0]] = True
    if not known[: len(labels)].any():
        raise UserError(f"{path} knows none of the tokenizer's pieces: it was trained for another one")
    label_words = np.where(known[: len(labels)], np.arange(len(labels)), numbers[UNKNOWN])
    return _build(levels, np.append(label_words, numbers[END]), len(numbers))


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order: words (A, n), log10 probability and back-off weight (A,)."""

    words: Ints
    log10_prob: Floats
    log10_backoff: Floats


def _read_arpa(path: Path, numbers: Mapping[str, int]) -> Iterator[_Level]:
    """The n-grams of each order; those with words that have no number are left out."""
    try:
        with _open(path) as file:
            counts = _read_counts(file)
            for order, count in enumerate(counts, 1):
                yield _read_level(file, order, count, numbers)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a language model in ARPA format: {reason}") from error


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _read_counts(file: IO[str]) -> list[int]:
    counts: list[int] = []
    if not any(line.strip() == "\\data\\" for line in islice(file, 100)):
        raise ValueError("it has no \\data\\ section")
    for line in file:
        if line.startswith("ngram "):
            counts.append(int(line.split("=")[1]))
        elif line.strip() == "\\1-grams:":
            break
    if not counts:
        raise ValueError("it has no n-grams")
    return counts


def _read_level(file: IO[str], order: int, count: int, numbers: Mapping[str, int]) -> _Level:
    if order > 1:
        heading = next((line.strip() for line in file if line.strip()), "")
        if heading != f"\\{order}-grams:":
            raise ValueError(f"\\{order}-grams: is expected, not {heading!r}")
    parts = []
    while count > 0:
        lines = list(islice(file, min(count, LINES_AT_ONCE)))
        if not lines:
            raise ValueError("it ends too early")
        parts.append(_parse(lines, order, numbers))
        count -= len(lines)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return _Level(*columns)


def _parse(lines: Sequence[str], order: int, numbers: Mapping[str, int]) -> tuple[Ints, Floats, Floats]:
    """Words (lines, order), log10 probability and back-off weight of n-grams, but of those with other words."""
    flat = " ".join(lines).split()
    width = order + 2
    if len(flat) == len(lines) * (order + 1):
        width = order + 1
    elif len(flat) != len(lines) * width:  # some lines have a back-off weight, others have none
        rows = [line.split() for line in lines]
        flat = [entry for row in rows for entry in (row if len(row) == width else [*row, "0"])]
    if len(flat) != len(lines) * width:
        raise ValueError(f"a line among its {order}-grams has another number of words")
    columns = [
        np.fromiter((numbers.get(w, -1) for w in flat[n::width]), np.int64, len(lines)) for n in range(1, order + 1)
    ]
    words = np.stack(columns, 1)
    prob = np.fromiter(map(float, flat[::width]), np.float32, len(lines))
    backoff = np.zeros(len(lines), np.float32)
    if width == order + 2:
        backoff = np.fromiter(map(float, flat[width - 1 :: width]), np.float32, len(lines))
    inside = (words >= 0).all(1)
    return words[inside], prob[inside], backoff[inside]


def _build(levels: Sequence[_Level], label_words: Ints, words: int) -> NgramAutomaton:
    """States are numbered as the arcs that lead to them, from 1: arc a of an order below the highest leads to a + 1."""
    keys: list[Ints] = []
    probs, backoffs = [], [np.zeros(1, np.float32)]
    first = [0]  # number of arcs before each order
    for level in levels:
        state = np.zeros(len(level.words), np.int64)
        for order in range(level.words.shape[1] - 1):
            state = _lookup(keys[order], state * words + level.words[:, order], first[order])
        key = np.where(state >= 0, state * words + level.words[:, -1], -1)
        ranks = np.argsort(key, kind="stable")
        ranks = ranks[np.searchsorted(key[ranks], 0) :]  # without n-grams whose begin is missing
        keys.append(key[ranks])
        probs.append(level.log10_prob[ranks])
        backoffs.append(level.log10_backoff[ranks])
        first.append(first[-1] + len(ranks))
    all_keys, states = np.concatenate(keys), first[-2] + 1
    backoff = np.concatenate(backoffs)[:states]
    shorter = _shorter_contexts(keys, first, words, states)
    first_arc = np.searchsorted(all_keys, np.arange(states + 1) * words)
    same = _same_as(shorter, backoff, first_arc, first)
    following = np.arange(1, len(all_keys) + 1)
    longest = slice(first[-2], first[-1])
    last = all_keys[longest]
    following[longest] = (
        _suffix(all_keys, shorter[last // words], last % words, shorter, words) if len(levels) > 1 else 0
    )
    begin = _lookup(keys[0], np.array([len(label_words)]), 0).clip(min=0, max=states - 1)
    log = np.float32(math.log(10))
    return NgramAutomaton(
        order=len(levels),
        begin=int(same[begin][0]),
        label_words=torch.from_numpy(label_words),
        keys=torch.from_numpy(all_keys),
        log_prob=torch.from_numpy(np.concatenate(probs) * log),
        following=torch.from_numpy(same[following]),
        backoff=torch.from_numpy(backoff * log),
        shorter=torch.from_numpy(same[shorter]),
        first_arc=torch.from_numpy(first_arc),
    )


def _lookup(keys: Ints, wanted: Ints, before: int) -> Ints:
    """States that the arcs `wanted` lead to; -1 where there is none. before: number of arcs before `keys`."""
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place + before + 1, -1)


def _suffix(keys: Ints, contexts: Ints, last: Ints, shorter: Ints, words: int) -> Ints:
    """States of the longest n-grams of the model that are a context, or an end of it, with one word more."""
    result = np.full_like(contexts, -1)
    while True:
        open_places = (result < 0).nonzero()[0]
        result[open_places] = _lookup(keys, contexts[open_places] * words + last[open_places], 0)
        done = (result >= 0) | (contexts == 0)
        if done.all():
            return result.clip(min=0)
        contexts = np.where(done, contexts, shorter[contexts])


def _shorter_contexts(keys: Sequence[Ints], first: Sequence[int], words: int, states: int) -> Ints:
    """For each state that of its n-gram without the first word, or the longest end of it that the model has."""
    shorter = np.zeros(states, np.int64)
    all_keys = np.concatenate(keys)
    for order in range(1, len(keys) - 1):  # of a unigram it is the empty one
        key = keys[order]
        here = slice(first[order] + 1, first[order + 1] + 1)
        shorter[here] = _suffix(all_keys, shorter[key // words], key % words, shorter, words)
    return shorter


def _same_as(shorter: Ints, backoff: Floats, first_arc: Ints, first: Sequence[int]) -> Ints:
    """For each state the shortest one that gives the same scores: a context without arcs and weight tells nothing."""
    same = np.arange(len(shorter))
    idle = (first_arc[1:] == first_arc[:-1]) & (backoff == 0.0)
    for begin, end in zip(first[:-2], first[1:-1], strict=True):
        own = np.arange(begin + 1, end + 1)
        own = own[idle[own]]
        same[own] = same[shorter[own]]
    return same
