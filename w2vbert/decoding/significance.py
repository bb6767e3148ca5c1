"""What is chance: intervals of an error rate, and tests between two systems on the same speech.

Errors of one speaker hang together, so speakers are what is drawn at random, not words. Jackknife: the rate without
one speaker, for each of them, tells how far another choice of speakers could have moved it (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 11). Student's t allows for few speakers, and the logarithm for the skew
of a rate. Deviation: most tools take percentiles of a bootstrap (Bisani and Ney, ICASSP 2004), which for 3 to 8
speakers hold the true rate in 70 to 88 % of cases instead of 95 %; docs/scoring.md has the simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
MANY = 500
"""Degrees of freedom from which Student's distribution is taken for a normal one."""
BUFFER_WORDS = 2
"""Words right in both systems that part two segments (Gillick and Cox 1989)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How a system's error rate differs from that of the first on the same references.

    Attributes:
        percent: rate less that of the first, in percent of the words; below 0: fewer errors.
        interval: its 95 % interval; None where there is only one unit.
        p: probability of a difference as large as this if the systems were equally good, by units; None as above.
        p_segments: the same by segments (matched-pairs test), which holds for these speakers; None below two segments.
        segments: stretches with an error of either system, parted by words that both have right.
    """

    percent: float
    interval: tuple[float, float] | None
    p: float | None
    p_segments: float | None
    segments: int

    @property
    def is_chance(self) -> bool:
        """Whether the difference may be chance (5 % level): by units, or by segments where there is one unit."""
        p = self.p if self.p is not None else self.p_segments
        return p is None or p >= 1 - LEVEL


def group_sums(groups: Sequence[str], values: ArrayLike) -> Floats:
    """Sums of `values`, (N,), within each group (N names) -> (U,), by the order of names."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums: Floats = np.bincount(index, weights=np.asarray(values, np.float64)).astype(np.float64)
    return sums


def rate_interval(errors: ArrayLike, lengths: ArrayLike) -> tuple[float, float]:
    """95 % interval of 100 * sum(errors) / sum(lengths).

    errors, lengths: (U,), of each unit that was drawn. With one unit, words are taken for independent.
    """
    errors, lengths = np.asarray(errors, np.float64), np.asarray(lengths, np.float64)
    rate, total = errors.sum() / lengths.sum(), lengths.sum()
    if rate == 0:
        return 0.0, 100.0 * float(1 - ((1 - LEVEL) / 2) ** (1 / total))
    error, freedom = _jackknife(errors, lengths) or (math.sqrt(rate / total), math.inf)
    factor = math.exp(min(t_quantile(LEVEL, freedom) * error / rate, 50.0))
    return 100.0 * float(rate / factor), 100.0 * float(rate * factor)


def compare(errors: ArrayLike, first_errors: ArrayLike, lengths: ArrayLike, segments: Sequence[int]) -> Difference:
    """Compares a system with the first.

    errors, first_errors, lengths: (U,), of each unit. segments: errors of the system less those of the first in each
    segment (`segment_differences`).
    """
    more = np.asarray(errors, np.float64) - np.asarray(first_errors, np.float64)
    lengths = np.asarray(lengths, np.float64)
    difference = float(more.sum() / lengths.sum())
    spread = _jackknife(more, lengths)
    interval, p = None, None
    if spread is not None:
        error, freedom = spread
        reach = t_quantile(LEVEL, freedom) * error
        interval = 100.0 * (difference - reach), 100.0 * (difference + reach)
        p = 1 - t_within(abs(difference) / error, freedom) if error > 0 else float(difference == 0)
    return Difference(100.0 * difference, interval, p, _matched_pairs(segments), len(segments))


def segment_differences(first: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]]) -> list[int]:
    """Errors of `other` less those of `first` in each segment of an utterance.

    first, other: alignments with the same reference, as in `UtteranceScore.pairs`. Segments are parted by at least
    `BUFFER_WORDS` words that both systems have right.
    """
    errors = zip(_errors_by_place(first), _errors_by_place(other), strict=True)
    found: list[int] = []
    difference, right, is_open = 0, 0, False
    for place, (ours, theirs) in enumerate(errors):
        if ours or theirs:
            difference, right, is_open = difference + theirs - ours, 0, True
        elif place % 2:  # a word
            right += 1
            if right == BUFFER_WORDS and is_open:
                found.append(difference)
                difference, is_open = 0, False
    return [*found, difference] if is_open else found


def _errors_by_place(pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Errors before the first word (insertions), at it, before the second word, at it and so on, and at the end."""
    places = [0]
    for ref, hyp in pairs:
        if ref:
            places += [int(ref != hyp), 0]
        else:
            places[-1] += 1
    return places


def _matched_pairs(differences: Sequence[int]) -> float | None:
    """Two-sided p of the matched-pairs sentence-segment word error test.

    Source: Gillick and Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989.
    """
    if len(differences) < 2:
        return None
    values = np.asarray(differences, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values))
    if error == 0:
        return float(values[0] == 0)
    return 2 * (1 - NormalDist().cdf(abs(values.mean()) / error))


def _jackknife(values: Floats, lengths: Floats) -> tuple[float, float] | None:
    """Standard error of sum(values) / sum(lengths), and degrees of freedom; None where one unit holds all.

    The degrees of freedom are those of as many equal units as weigh the same as the unequal ones (Kish 1965).
    """
    units, total = len(lengths), lengths.sum()
    rest = total - lengths
    if units < 2 or (rest <= 0).any():
        return None
    without = (values.sum() - values) / rest
    error = math.sqrt((units - 1) / units * float(((without - values.sum() / total) ** 2).sum()))
    return error, max(1, round(total**2 / float((lengths**2).sum()) - 1))


def t_within(t: float, freedom: float) -> float:
    """Probability that Student's t with `freedom` (a whole number) degrees of freedom lies within -t and t.

    Source: Abramowitz and Stegun 26.7.3 and 26.7.4.
    """
    if freedom > MANY:
        return 2 * NormalDist().cdf(t) - 1
    angle = math.atan(t / math.sqrt(freedom))
    odd = int(freedom) % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, int(freedom) + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def t_quantile(level: float, freedom: float) -> float:
    """The t that `t_within` gives `level`."""
    low, high = 0.0, 1.0
    while t_within(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < level else (low, middle)
    return high
