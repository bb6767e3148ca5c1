"""Cheapest alignments of symbol sequences, the same ones that sclite finds.

A substitution costs 4, an insertion or a deletion 3 (sclite's weights). Where several alignments cost the same, the
last pair of symbols decides: two symbols side by side go before an insertion, and an insertion goes before a deletion;
then the pair before it, and so on. Counts therefore equal those of sclite, which decides so too.

Many pairs of sequences are aligned at once, a row of all their tables at a time. Pairs of long sequences are aligned
one by one in a band around the diagonal, which is widened until no alignment that leaves it can be as cheap as the best
one inside (Ukkonen, "Algorithms for approximate string matching", Information and Control, 1985), and no more than some
rows of the table are kept at a time.

Letters: N pairs, R and H symbols of the longest reference and hypothesis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.int32]
SUBSTITUTION, GAP = 4, 3
NO_PARTNER = -1
NEVER = np.int32(2**29)

DELETED, INSERTED, BESIDE = 0, 1, 2
"""Directions: the last pair of a best alignment."""

BATCH_CELLS = 2**20
"""Cells of the tables that are filled together."""
BLOCK_CELLS = 2**25
"""Cells of which the directions are kept at a time: a byte for each."""
FIRST_BAND = 64
"""Columns on either side of the diagonal that are tried first for a long pair."""


@dataclass(frozen=True)
class Counts:
    """What an alignment holds."""

    correct: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def length(self) -> int:
        """Symbols of the reference."""
        return self.correct + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def percent(self) -> float:
        """Error rate: 100 * errors / length; the reference must not be empty."""
        return 100.0 * self.errors / self.length

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.correct + other.correct,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


def align(refs: Sequence[Symbols], hyps: Sequence[Symbols]) -> list[NDArray[np.int32]]:
    """Aligns each reference with the hypothesis at the same place.

    refs, hyps: int32 (R,) and (H,) of each pair; symbols are numbers from 0.
    Returns for each pair int32 (K, 2): places in the reference and in the hypothesis that stand side by side, in
    order; -1 where there is no partner.
    """
    found: list[NDArray[np.int32]] = [np.empty((0, 2), np.int32)] * len(refs)
    rest = []
    for index, (ref, hyp) in enumerate(zip(refs, hyps, strict=True)):
        if np.array_equal(ref, hyp):
            places = np.arange(len(ref), dtype=np.int32)
            found[index] = np.stack([places, places], axis=1)
        else:
            rest.append(index)
    for group in _group(rest, refs, hyps):
        for index, path in zip(group, _align_group([refs[i] for i in group], [hyps[i] for i in group]), strict=True):
            found[index] = path
    return found


def count_pairs(ref: Symbols, hyp: Symbols, path: NDArray[np.int32]) -> Counts:
    """Counts of an alignment that `align` has found."""
    in_ref, in_hyp = path[:, 0], path[:, 1]
    both = (in_ref != NO_PARTNER) & (in_hyp != NO_PARTNER)
    correct = int((ref[in_ref[both]] == hyp[in_hyp[both]]).sum())
    together = int(both.sum())
    return Counts(correct, together - correct, len(ref) - together, len(hyp) - together)


def count_characters(refs: Sequence[str], hyps: Sequence[str]) -> list[Counts]:
    """Counts over characters, white space left out, as `sclite -c` counts."""
    ref_codes, hyp_codes = ([_codes("".join(text.split())) for text in texts] for texts in (refs, hyps))
    return [count_pairs(*pair) for pair in zip(ref_codes, hyp_codes, align(ref_codes, hyp_codes), strict=True)]


def number_words(texts: Sequence[Sequence[str]], numbers: dict[str, int]) -> list[Symbols]:
    """Words as numbers; `numbers` (word -> number) learns those that it does not know yet."""
    return [np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int32) for words in texts]


def _codes(text: str) -> Symbols:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.int32)


def _group(indices: list[int], refs: Sequence[Symbols], hyps: Sequence[Symbols]) -> Iterator[list[int]]:
    """Pairs of similar lengths, as many as fill `BATCH_CELLS`, or a single longer one."""
    group: list[int] = []
    longest = 0
    for index in sorted(indices, key=lambda i: (len(refs[i]), len(hyps[i]))):
        most = max(longest, len(hyps[index]))
        if group and (len(group) + 1) * (len(refs[index]) + 1) * (most + 1) > BATCH_CELLS:
            yield group
            group, most = [], len(hyps[index])
        group.append(index)
        longest = most
    if group:
        yield group


def _align_group(refs: list[Symbols], hyps: list[Symbols]) -> list[NDArray[np.int32]]:
    ref_lengths, hyp_lengths = (np.array([len(one) for one in some]) for some in (refs, hyps))
    ref, hyp = _pad(refs, -1), _pad(hyps, -2)
    rows, columns = ref.shape[1], hyp.shape[1]
    if len(refs) * (rows + 1) * (columns + 1) <= BATCH_CELLS:
        steps = _Table(ref, hyp, max(rows, columns)).trace(ref_lengths, hyp_lengths)
    else:
        steps = _trace_long(ref, hyp)
    return [one[one.max(1) != NO_PARTNER][::-1] for one in steps]


def _trace_long(ref: Symbols, hyp: Symbols) -> NDArray[np.int32]:
    """ref (1, R), hyp (1, H) -> (1, K, 2), as `_Table.trace`."""
    rows, columns = ref.shape[1], hyp.shape[1]
    band = FIRST_BAND
    while True:
        table = _Table(ref, hyp, band)
        # An alignment that leaves the band has this many gaps at least.
        gaps = abs(rows - columns) + 2 * (band + 1)
        if band >= max(rows, columns) or table.cost < GAP * gaps:
            return table.trace(np.array([rows]), np.array([columns]))
        band = min(max(2 * band, (table.cost // GAP - abs(rows - columns)) // 2), max(rows, columns))


def _pad(sequences: list[Symbols], value: int) -> Symbols:
    """(N, longest), filled with `value` at the end."""
    padded = np.full((len(sequences), max(map(len, sequences))), value, np.int32)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded


class _Table:
    """Costs of aligning the first i symbols of a reference with the first j of a hypothesis, for N pairs.

    A cell holds this cost less GAP * (i + j), which makes a gap free of cost: an insertion then takes over the value
    on its left, so that the best of any number of insertions is a running minimum.

    ref: (N, R), hyp: (N, H), padded with numbers that differ. band: column j of row i is filled only where j - i is
    at most `band` away from what lies between 0 and H - R.
    """

    def __init__(self, ref: Symbols, hyp: Symbols, band: int) -> None:
        self.ref, self.hyp = ref, hyp
        self.rows, self.columns = ref.shape[1], hyp.shape[1]
        self.low, self.high = min(0, self.columns - self.rows) - band, max(0, self.columns - self.rows) + band
        self.width = min(self.high - self.low + 1, self.columns + 1)
        height = max(1, BLOCK_CELLS // (len(ref) * self.width))
        self.blocks = [(row, min(row + height, self.rows)) for row in range(0, self.rows, height)]
        costs = np.full((len(ref), self.columns + 1), NEVER, np.int32)
        costs[:, : self._window(0)[1]] = 0
        self.kept: list[NDArray[np.int32]] = []
        """Costs of the row before each block, (N, H + 1)."""
        self.directions = np.empty((0, 0, 0), np.uint8)
        """Of the rows of the block filled last, (rows, N, width)."""
        for block in self.blocks:
            self.kept.append(costs.copy())
            self._fill(costs, block, keep=block == self.blocks[-1])
        self.cost = int(costs[0, self.columns]) + GAP * (self.rows + self.columns)
        """Of the first pair, where no other is longer."""

    def _window(self, row: int) -> tuple[int, int]:
        """The first column of a row and the one behind its last."""
        return max(0, row + self.low), min(self.columns, row + self.high) + 1

    def _fill(self, costs: NDArray[np.int32], block: tuple[int, int], keep: bool) -> None:
        """Turns the costs (N, H + 1) of the row before a block into those of its last row; may keep the directions."""
        start, end = block
        if keep:
            self.directions = np.zeros((end - start, len(costs), self.width), np.uint8)
        for row in range(start + 1, end + 1):
            left, right = self._window(row)
            first = max(left, 1)  # no symbol of the hypothesis belongs to column 0
            equal = self.ref[:, row - 1 : row] == self.hyp[:, first - 1 : right - 1]
            beside = np.where(equal, np.int32(-2 * GAP), np.int32(SUBSTITUTION - 2 * GAP))
            beside += costs[:, first - 1 : right - 1]
            best = costs[:, left:right].copy()  # a deletion
            np.minimum(best[:, first - left :], beside, out=best[:, first - left :])
            np.minimum.accumulate(best, axis=1, out=best)
            costs[:, :left] = NEVER
            costs[:, left:right] = best
            if keep:
                kept = self.directions[row - start - 1]
                kept[:, 1 : right - left] = best[:, 1:] == best[:, :-1]
                np.copyto(kept[:, first - left : right - left], BESIDE, where=best[:, first - left :] == beside)

    def trace(self, ref_lengths: NDArray[np.int64], hyp_lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        """The best alignments from the end to the begin, (N, K, 2) as in `align`; (-1, -1) after a begin.

        ref_lengths, hyp_lengths: (N,).
        """
        i, j, pairs = ref_lengths.copy(), hyp_lengths.copy(), np.arange(len(ref_lengths))
        steps: list[NDArray[np.int32]] = []

        def step(takes_ref: NDArray[np.bool_], takes_hyp: NDArray[np.bool_]) -> None:
            nonlocal i, j
            i, j = i - takes_ref, j - takes_hyp
            places = [np.where(takes_ref, i, NO_PARTNER), np.where(takes_hyp, j, NO_PARTNER)]
            steps.append(np.stack(places, axis=1).astype(np.int32))

        for (start, end), costs in zip(reversed(self.blocks), reversed(self.kept), strict=True):
            if end < self.rows:
                self._fill(costs, (start, end), keep=True)
            lefts = np.array([self._window(row)[0] for row in range(start + 1, end + 1)])
            while (inside := i > start).any():
                row = np.where(inside, i - 1 - start, 0)
                direction = self.directions[row, pairs, np.where(inside, j - lefts[row], 0)]
                step(inside & (direction != INSERTED), inside & (direction != DELETED))
        while (j > 0).any():
            step(np.zeros(len(j), np.bool_), j > 0)
        return np.stack(steps, axis=1) if steps else np.empty((len(i), 0, 2), np.int32)
