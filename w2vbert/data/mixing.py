"""Labelled and pseudo-labelled utterances in one stream, by a given ratio."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """An epoch holds all pseudo-labelled utterances once, and of the labelled ones as much as the ratio asks for.

    Labelled utterances are taken in rounds, each in another order, and an epoch goes on where the one before stopped:
    over the epochs all are heard equally often, whether there are too few of them or too many.

    Attributes:
        labelled: the first so many utterances of a dataset are labelled, the others pseudo-labelled.
        share: of the audio that is pseudo-labelled, between 0 and 1 (0.9: Zhang et al. 2020, section 3.3).
    """

    labelled: int
    share: float

    def draw(self, frames: Sequence[int], seed: int, epoch: int) -> list[int]:
        """Indices of an epoch's utterances, some more than once; a function of its arguments alone.

        Args:
            frames: of each utterance of the dataset.
            seed, epoch: decide what is drawn.
        """
        own = np.asarray(frames[: self.labelled], dtype=np.int64)
        rest = range(self.labelled, len(frames))
        whole = int(own.sum())
        wanted = sum(frames[self.labelled :]) * (1.0 - self.share) / self.share
        begin, end = epoch * wanted, (epoch + 1) * wanted
        drawn: list[int] = []
        for number in range(int(begin // whole), int(end // whole) + 1):
            order = np.random.default_rng((seed, number)).permutation(self.labelled)
            starts = number * whole + np.cumsum(own[order]) - own[order]
            drawn += order[(starts >= begin) & (starts < end)].tolist()
        return drawn + list(rest)
