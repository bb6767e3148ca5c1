"""Batches by seconds of audio, as a pure function of seed, epoch and position: resuming costs nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from w2vbert.data.batches import FRAMES_PER_SECOND, SpeechBatch
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.noise import NoiseMixer


def plan_epoch(frames: Sequence[int], batch_seconds: float, seed: int, epoch: int) -> list[list[int]]:
    """Puts each utterance into one batch of similar lengths, and the batches into random order.

    Args:
        frames: filterbank frames of each utterance.
        batch_seconds: most audio in a batch, padding counted; a longer utterance is a batch of its own.
        seed, epoch: decide the order.

    Returns:
        Indices of the utterances of each batch.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    lengths = torch.tensor(frames, dtype=torch.float32)
    jitter = 1.0 + 0.1 * (torch.rand(len(frames), generator=generator) - 0.5)  # neighbours change between epochs
    order = torch.argsort(lengths * jitter).tolist()
    batches = group_by_seconds(order, frames, batch_seconds)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def group_by_seconds(order: Sequence[int], frames: Sequence[int], batch_seconds: float) -> list[list[int]]:
    """Cuts `order` into batches whose padded size stays within `batch_seconds`."""
    limit = batch_seconds * FRAMES_PER_SECOND
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, frames[index])
        if not batches or longest * (len(batches[-1]) + 1) > limit:
            batches.append([])
            longest = frames[index]
        batches[-1].append(index)
    return batches


def join_utterances(count: int, most: int, seed: int, epoch: int) -> list[list[int]]:
    """Puts each of `count` utterances into one group of 1 to `most`, at random: they will follow one another."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    sizes = torch.randint(1, most + 1, (count,), generator=generator)
    groups = int(torch.searchsorted(sizes.cumsum(0), count)) + 1
    ends = sizes.cumsum(0)[: groups - 1].tolist()
    return [group.tolist() for group in order.tensor_split(ends) if len(group)]


def draw_crops(spare: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Where the crop of each utterance begins, uniform over 0 to its `spare` frames."""
    generator = _generator(seed, epoch)
    drawn = torch.rand(len(spare), generator=generator, dtype=torch.float64)
    return (drawn * (torch.tensor(spare) + 1)).long().tolist()


def _generator(*numbers: int) -> torch.Generator:
    """A generator that stands apart from those of all other numbers, and of `plan_epoch`."""
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


class BatchStream:
    """Endless training batches of a dataset; `state_dict` is its position."""

    def __init__(
        self,
        dataset: SpeechDataset,
        batch_seconds: float,
        seed: int,
        encode: Callable[[str], list[int]] | None = None,
        join: int = 1,
        noise: NoiseMixer | None = None,
    ) -> None:
        """Begins at the first batch of the first epoch.

        Args:
            dataset: utterances.
            batch_seconds: most audio in a batch, padding counted.
            seed: decides the order.
            encode: text to tokens; None for batches without.
            join: up to so many utterances, drawn anew in each epoch, follow one another as if they were one.
            noise: mixed into utterances, drawn anew in each epoch.
        """
        self.join = join
        self.noise = noise
        self.dataset = dataset
        self.batch_seconds = batch_seconds
        self.seed = seed
        self.encode = encode
        self.epoch = 0
        self.position = 0
        self._plan, self._starts = self._plan_epoch()

    def _plan_epoch(self) -> tuple[list[list[list[int]]], list[int]]:
        """Groups of utterances of each batch, and the first frame of each utterance."""
        groups = join_utterances(len(self.dataset), self.join, self.seed, self.epoch)
        frames = [sum(self.dataset.frames[i] for i in group) for group in groups]
        batches = plan_epoch(frames, self.batch_seconds, self.seed, self.epoch)
        starts = draw_crops(self.dataset.spare, self.seed, self.epoch)
        return [[groups[i] for i in batch] for batch in batches], starts

    def next_batch(self) -> SpeechBatch:
        """The next batch; after the last of an epoch comes the first of the next."""
        if self.position == len(self._plan):
            self.epoch, self.position = self.epoch + 1, 0
            self._plan, self._starts = self._plan_epoch()
        groups = self._plan[self.position]
        change = None
        if self.noise is not None:
            change = self.noise.changes(_generator(self.seed, self.epoch, self.position))
        self.position += 1
        return self.dataset.joined(groups, self.encode, self._starts, change)

    def state_dict(self) -> dict[str, int]:
        """Epoch and position in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues at a position."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._plan, self._starts = self._plan_epoch()


def in_order(
    dataset: SpeechDataset, batch_seconds: float, encode: Callable[[str], list[int]] | None = None
) -> Iterator[SpeechBatch]:
    """Every utterance once, longest first, in batches of similar lengths."""
    order = sorted(range(len(dataset)), key=lambda i: -dataset.frames[i])
    for indices in group_by_seconds(order, dataset.frames, batch_seconds):
        yield dataset.batch(indices, encode)
