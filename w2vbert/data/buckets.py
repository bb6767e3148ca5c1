"""Batches of few fixed shapes, with little padding: what CUDA graphs and compiled models want.

Lengths fall into buckets, and every batch of a bucket is padded to its upper end. The ends are those that waste least
of all that could be chosen, found by dynamic programming.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from w2vbert.data.batches import FRAMES_PER_SECOND
from w2vbert.data.joining import Integers

MULTIPLE_FRAMES = 4
"""Ends of buckets are multiples of it: the subsampling of the encoder, in frames."""


@dataclass(frozen=True)
class FixedPlan:
    """All batches of an epoch.

    Attributes:
        batches: indices of the utterances of each.
        padded: frames that each is padded to.
    """

    batches: list[list[int]]
    padded: list[int]


def check_length_buckets(buckets: int, join: int) -> None:
    """Refuses settings that cannot give fixed shapes.

    Raises:
        ValueError: says which.
    """
    if buckets < 0:
        raise ValueError(f"length_buckets must be at least 0, not {buckets}")
    if buckets and join > 1:
        raise ValueError("length_buckets needs join_utterances 1: joined utterances have other lengths in each epoch")


def find_buckets(frames: Sequence[int], count: int) -> list[int]:
    """Upper ends, in frames, of at most `count` buckets: those that make the padding of all utterances least."""
    rounded = -(-np.asarray(frames, dtype=np.int64) // MULTIPLE_FRAMES) * MULTIPLE_FRAMES
    ends, utterances = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(utterances)])  # utterances in the first i lengths
    places = np.concatenate([[0.0], np.full(len(ends), np.inf)])  # of the first i lengths in the buckets so far
    choices = []
    for _ in range(min(count, len(ends))):
        # Row i, column j: the bucket holds lengths j to i - 1.
        held = np.where(below[1:, None] > below[None, :-1], below[1:, None] - below[None, :-1], np.inf)
        total = places[None, :-1] + held * ends[:, None]
        choice = total.argmin(1)
        choices.append(choice)
        places = np.concatenate([[0.0], total[np.arange(len(ends)), choice]])
    found, last = [], len(ends)
    for choice in reversed(choices):
        if last:
            found.append(int(ends[last - 1]))
            last = int(choice[last - 1])
    return found[::-1]


def plan_fixed_shapes(
    frames: Sequence[int] | Integers, batch_seconds: float, seed: int, epoch: int, ends: Sequence[int]
) -> FixedPlan:
    """Puts each utterance into one batch of its bucket, at random, and the batches into random order.

    What does not fill a batch goes up into the next bucket; so all batches of a bucket have the same shape, and at
    most one of all batches is not full.

    Args:
        frames: filterbank frames of each utterance, none longer than the last bucket.
        batch_seconds: most audio in a batch, padding counted; a longer utterance is a batch of its own.
        seed, epoch: decide the order.
        ends: of `find_buckets`.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = np.asarray(torch.randperm(len(frames), generator=generator))
    bucket = np.searchsorted(np.asarray(ends), np.asarray(frames))[order]
    batches: list[list[int]] = []
    padded: list[int] = []
    left: list[int] = []
    for number, end in enumerate(ends):
        members = left + order[bucket == number].tolist()
        rows = max(int(batch_seconds * FRAMES_PER_SECOND) // end, 1)
        full = len(members) // rows * rows
        batches += [members[begin : begin + rows] for begin in range(0, full, rows)]
        left = members[full:]
        padded += [end] * (len(batches) - len(padded))
    if left:
        batches.append(left)
        padded.append(ends[-1])
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return FixedPlan([batches[i] for i in shuffled], [padded[i] for i in shuffled])
