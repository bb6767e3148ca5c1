"""Weights of language models, found on n-best lists: no list is decoded again.

The word errors of every text in a list are counted once. Each choice of weights then picks a text from each list, and
the errors of these add up: thousands of choices are tried in a second.

Letters: W choices of weights, U utterances, K texts in the longest list, F weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
GRID_CHOICES = 20_000
"""Choices of weights on the first grid, at most."""
GRID_POINTS = (3, 21)
"""Fewest and most values of each weight on the first grid."""
ROUNDS = 5
"""Finer grids around the best choice; the distance of their values halves each time."""
DECIMALS = 3
CELLS = 4_000_000
"""Scores that are computed together: bounds the memory."""


@dataclass(frozen=True)
class NbestTable:
    """The n-best lists of a set.

    Attributes:
        names: of the weights.
        scores: (U, K), the model's; -inf where a list is shorter.
        features: (U, K, F), what each weight multiplies.
        errors: (U, K) int64, words that are wrong in each text.
    """

    names: tuple[str, ...]
    scores: Floats
    features: Floats
    errors: NDArray[np.int64]

    @property
    def oracle_errors(self) -> int:
        """Errors of the best choice from each list."""
        return int(np.where(np.isneginf(self.scores), np.iinfo(np.int64).max, self.errors).min(1).sum())

    def choose(self, weights: Floats) -> NDArray[np.int64]:
        """weights (W, F) -> (W, U), the place in each list of the text with the highest score; the first of equals."""
        chosen = np.empty((len(weights), len(self.scores)), np.int64)
        step = max(1, CELLS // max(self.scores.size, 1))
        for start in range(0, len(weights), step):
            part = self.features @ weights[start : start + step].T  # (U, K, w)
            part += self.scores[..., None]
            chosen[start : start + step] = part.argmax(1).T
        return chosen

    def count_errors(self, weights: Floats) -> NDArray[np.int64]:
        """weights (W, F) -> (W,), word errors of the texts that they choose."""
        chosen = self.choose(weights)
        errors: NDArray[np.int64] = self.errors[np.arange(len(self.errors)), chosen].sum(1)
        return errors

    def split(self) -> tuple[NbestTable, int]:
        """The lists in which it matters what is chosen, and the errors in all others together."""
        errors = np.where(np.isneginf(self.scores), self.errors[:, :1], self.errors)
        varied = errors.min(1) < errors.max(1)
        return self._take(varied), int(errors[~varied, 0].sum())

    def _take(self, rows: NDArray[np.bool_]) -> NbestTable:
        return NbestTable(self.names, self.scores[rows], self.features[rows], self.errors[rows])


@dataclass(frozen=True)
class Tuning:
    """The best weights of a search."""

    weights: Floats
    """(F,)"""
    errors: int
    tried: int
    """Choices of weights."""
    border: tuple[str, ...]
    """Names of the weights that lie on the border of what was searched, within half a step of the first grid."""


def tune(table: NbestTable, ranges: Sequence[tuple[float, float]]) -> Tuning:
    """Looks for the weights with the fewest word errors: a grid over all of them, then finer ones around its best.

    Of several choices with equally few errors the one nearest to their middle is taken. The same lists give the same
    weights.

    Args:
        table: the lists.
        ranges: lowest and highest value of each weight.
    """
    low, high = np.array(ranges, np.float64).T
    count = len(ranges)
    table, fixed_errors = table.split()
    points = int(np.clip(GRID_CHOICES ** (1 / count), *GRID_POINTS))
    grid = _product([np.linspace(*bounds, points) for bounds in ranges])
    best, errors = _find_best(table, grid)
    step = (high - low) / (points - 1)
    around = _product([np.linspace(-1.0, 1.0, 5 if count <= 3 else 3)] * count)  # (W, F)
    for _ in range(ROUNDS):
        found, found_errors = _find_best(table, np.clip(best + around * step, low, high))
        if found_errors < errors:
            best, errors = found, found_errors
        step = step / 2
    near = (high - low) / (points - 1) / 2
    on_border = (best <= low + near) | (best >= high - near)
    border = tuple(name for name, is_there in zip(table.names, on_border, strict=True) if is_there)
    return Tuning(best, errors + fixed_errors, len(grid) + ROUNDS * len(around), border)


def _product(values: Sequence[Floats]) -> Floats:
    """Every combination of the values of F weights, (W, F)."""
    return np.array(list(itertools.product(*values)))


def _find_best(table: NbestTable, choices: Floats) -> tuple[Floats, int]:
    choices = choices.round(DECIMALS)
    errors = table.count_errors(choices)
    ties = choices[errors == errors.min()]
    distances = ((ties - ties.mean(0)) ** 2).sum(1)
    return ties[distances.argmin()], int(errors.min())
