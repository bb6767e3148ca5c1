"""Utterances that follow one another as if they were one."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

Integers = np.ndarray[Any, np.dtype[np.int64]]


class Groups(Sequence[list[int]]):
    """Groups of utterances, a list of indices for each; in memory two numbers for each, since there may be millions.

    Attributes:
        order: int64 (N,), indices of utterances, group after group.
        begins: int64 (G,), where in it each group begins; none is empty.
    """

    def __init__(self, order: Integers, begins: Integers) -> None:
        self.order = order
        self.begins = begins
        self._ends = np.append(begins[1:], len(order))

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: int) -> list[int]:  # type: ignore[override]  # no slices
        found: list[int] = self.order[self.begins[index] : self._ends[index]].tolist()
        return found

    def __iter__(self) -> Iterator[list[int]]:
        return (self[index] for index in range(len(self)))

    def sum(self, frames: Integers) -> Integers:
        """Frames of each group, int64 (G,), from those of each utterance."""
        return np.add.reduceat(frames[self.order], self.begins)

    def of(self, drawn: Sequence[int]) -> "Groups":
        """The same groups of other utterances: of `drawn[i]` where there is i."""
        return Groups(np.asarray(drawn, dtype=np.int64)[self.order], self.begins)


def join_utterances(count: int, most: int, seed: int, epoch: int) -> Groups:
    """Puts each of `count` utterances into one group of 1 to `most`, at random: they will follow one another."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator).numpy()
    ends = torch.randint(1, most + 1, (count,), generator=generator).cumsum(0).numpy()
    begins = np.concatenate([[0], ends[ends < count]])
    return Groups(order, begins)
