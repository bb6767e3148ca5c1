"""Batches by seconds of audio, as a pure function of seed, epoch and position: resuming costs nothing."""

import gc
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from w2vbert.data.batches import FRAMES_PER_SECOND, SpeechBatch
from w2vbert.data.buckets import find_buckets, plan_fixed_shapes
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.joining import Groups, Integers, join_utterances
from w2vbert.data.mixing import Mixture
from w2vbert.data.noise import NoiseMixer
from w2vbert.data.shards import plan_shards
from w2vbert.errors import UserError
from w2vbert.log import logger


def plan_epoch(frames: Sequence[int] | Integers, batch_seconds: float, seed: int, epoch: int) -> list[list[int]]:
    """Puts each utterance into one batch of similar lengths, and the batches into random order.

    Args:
        frames: filterbank frames of each utterance.
        batch_seconds: most audio in a batch, padding counted; a longer utterance is a batch of its own.
        seed, epoch: decide the order.

    Returns:
        Indices of the utterances of each batch.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    lengths = torch.from_numpy(np.asarray(frames, dtype=np.float32))
    jitter = 1.0 + 0.1 * (torch.rand(len(frames), generator=generator) - 0.5)  # neighbours change between epochs
    order = torch.argsort(lengths * jitter).tolist()
    batches = group_by_seconds(order, frames, batch_seconds)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def group_by_seconds(order: list[int], frames: Sequence[int] | Integers, batch_seconds: float) -> list[list[int]]:
    """Cuts `order` into batches whose padded size stays within `batch_seconds`."""
    limit = batch_seconds * FRAMES_PER_SECOND
    lengths: list[int] = np.asarray(frames, dtype=np.int64)[order].tolist()
    begins, begin, longest = [], 0, 0
    for place, length in enumerate(lengths):
        if length > longest:
            longest = length
        if place > begin and longest * (place - begin + 1) > limit:
            begins.append(begin)
            begin, longest = place, length
    return [order[begin:end] for begin, end in pairwise([*begins, begin, len(order)])] if order else []


def draw_crops(spare: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Where the crop of each utterance begins, uniform over 0 to its `spare` frames."""
    generator = _generator(seed, epoch)
    drawn = torch.rand(len(spare), generator=generator, dtype=torch.float64)
    return (drawn * (torch.tensor(spare) + 1)).long().tolist()


def _generator(*numbers: int) -> torch.Generator:
    """A generator that stands apart from those of all other numbers, and of `plan_epoch`."""
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Pauses Python's search for cycles: among millions of new lists it takes ten times as long as making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class EpochPlan:
    """All batches of an epoch.

    Attributes:
        groups: utterances that follow one another.
        batches: indices of the groups of each batch.
        padded: frames that each batch is padded to; None: those of its longest.
    """

    groups: Groups
    batches: list[list[int]]
    padded: list[int] | None = None


@dataclass(frozen=True)
class Place:
    """One batch: where it stands, the groups of utterances in it, and the frames that it is padded to at least."""

    epoch: int
    position: int
    groups: list[list[int]]
    padded: int = 0


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
        workers: int = 0,
        mixture: Mixture | None = None,
    ) -> None:
        """Begins at the first batch of the first epoch.

        Args:
            dataset: utterances.
            batch_seconds: most audio in a batch, padding counted.
            seed: decides the order.
            encode: text to tokens; None for batches without.
            join: up to so many utterances, drawn anew in each epoch, follow one another as if they were one.
            noise: mixed into utterances, drawn anew in each epoch.
            workers: processes that make the batches, ahead of their use; 0: this one does.
            mixture: how often an epoch takes which utterances; None: each once.
        """
        self.mixture = mixture
        self.join = join
        self.noise = noise
        self.dataset = dataset
        self.batch_seconds = batch_seconds
        self.seed = seed
        self.encode = encode
        self.workers = workers
        self.epoch = 0
        self.position = 0
        self._ends: list[int] = []
        self._index, self._count = 0, 1
        self._loader: Iterator[SpeechBatch | UserError] | None = None
        self._plan = lru_cache(2)(self._plan_epoch)
        if dataset.shards is not None and join > 1:
            logger.warning("joined utterances come from all shards, which are not read in order: set join_utterances=1")
        self._frames = np.asarray(dataset.frames, dtype=np.int64)
        self._is_cropped = any(dataset.spare)
        self._starts = lru_cache(2)(lambda epoch: draw_crops(dataset.spare, seed, epoch) if self._is_cropped else None)

    def _plan_epoch(self, epoch: int) -> EpochPlan:
        with _no_collections():
            return self._plan_groups(self._draw_groups(epoch), epoch)

    def _draw_groups(self, epoch: int) -> Groups:
        if self.mixture is None:
            return join_utterances(len(self._frames), self.join, self.seed, epoch)
        drawn = self.mixture.draw(self.dataset.frames, self.seed, epoch)
        return join_utterances(len(drawn), self.join, self.seed, epoch).of(drawn)

    def _plan_groups(self, groups: Groups, epoch: int) -> EpochPlan:
        lengths = groups.sum(self._frames)
        shards = self.dataset.shards
        if shards is not None and self.join == 1:
            owners = np.asarray(shards)[groups.order]
            plan = plan_shards(lengths, owners, self.batch_seconds, (self.seed, epoch), self._ends)
            return EpochPlan(groups, plan.batches, plan.padded if self._ends else None)
        if self._ends:
            plan = plan_fixed_shapes(lengths, self.batch_seconds, self.seed, epoch, self._ends)
            return EpochPlan(groups, plan.batches, plan.padded)
        return EpochPlan(groups, plan_epoch(lengths, self.batch_seconds, self.seed, epoch))

    def fix_shapes(self, buckets: int) -> None:
        """Gives batches of few shapes from now on: at most one for each bucket of lengths, and one more.

        Before the first batch. Utterances must not be joined: an epoch would have other lengths than the last.
        """
        assert self.join == 1
        self._ends = find_buckets(self.dataset.frames, buckets)
        self._plan.cache_clear()
        plan = self._plan(self.epoch)
        assert plan.padded is not None
        rows = [len(batch) for batch in plan.batches]
        places = sum(count * frames for count, frames in zip(rows, plan.padded, strict=True))
        share = 1.0 - int(plan.groups.sum(self._frames).sum()) / places
        shapes = len(set(zip(rows, plan.padded, strict=True)))
        logger.info(f"{len(self._ends)} buckets of length: {shapes} shapes of batches, {share:.2%} of them padding")

    def _advance(self, epoch: int, position: int, count: int) -> tuple[int, int]:
        """The place `count` batches on: within its epoch, or at its end."""
        position += count
        while position > len(self._plan(epoch).batches):
            epoch, position = epoch + 1, position - len(self._plan(epoch).batches)
        return epoch, position

    def _place(self, epoch: int, position: int) -> Place:
        """What stands at a place."""
        if position == len(self._plan(epoch).batches):
            epoch, position = epoch + 1, 0
        plan = self._plan(epoch)
        padded = plan.padded[position] if plan.padded else 0
        return Place(epoch, position, [plan.groups[i] for i in plan.batches[position]], padded)

    def places(self) -> Iterator[Place]:
        """The batches of this one of those that share, from the present position on, without end."""
        epoch, position = self.epoch, self.position
        while True:
            yield self._place(*self._advance(epoch, position, self._index))
            epoch, position = self._advance(epoch, position, self._count)

    def make(self, place: Place) -> SpeechBatch:
        """The batch of a place: a function of seed, place and data only."""
        change = None
        if self.noise is not None:
            change = self.noise.changes(_generator(self.seed, place.epoch, place.position))
        return self.dataset.joined(place.groups, self.encode, self._starts(place.epoch), change, place.padded)

    def share(self, index: int, count: int) -> None:
        """Gives batch `index` of every `count` from now on, and passes all; starts the workers.

        To be called in the main thread: processes that are forked elsewhere may never wake up.
        """
        self._index, self._count = index, count
        self._loader = _start_workers(self) if self.workers else None

    def next_batch(self) -> SpeechBatch:
        """The next batch; after the last of an epoch comes the first of the next.

        Raises:
            UserError: features cannot be read, or a worker is gone.
        """
        if self._loader is None:
            batch: SpeechBatch | UserError = self.make(next(self.places()))
        else:
            try:
                batch = next(self._loader)
            except (RuntimeError, OSError, EOFError) as error:  # the last two: it took batches with it
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"a process that makes batches is gone ({reason}): is memory short? Lower train.loader_workers"
                ) from error
        if isinstance(batch, UserError):
            raise batch
        self.epoch, self.position = self._advance(self.epoch, self.position, self._count)
        return batch

    def largest(self) -> SpeechBatch:
        """The batch of this epoch with most frames, padding counted, and among these that of the longest utterance."""
        plan = self._plan(self.epoch)
        frames = plan.groups.sum(self._frames)
        longest = plan.padded or [int(frames[batch].max()) for batch in plan.batches]
        position = max(range(len(longest)), key=lambda i: (longest[i] * len(plan.batches[i]), longest[i]))
        return self.make(self._place(self.epoch, position))

    def state_dict(self) -> dict[str, int]:
        """Epoch and position in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues at a position; workers end."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._loader = None


class _Maker(Dataset[SpeechBatch | UserError]):
    """A stream's batches by their places, for the loader's processes."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __getitem__(self, place: Place) -> SpeechBatch | UserError:
        try:
            return self.stream.make(place)
        except UserError as error:  # as a value: the loader would add its traceback to the message
            return error


class _Places(Sampler[Place]):
    """The places of a stream, from its position on."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Place]:
        return self.stream.places()


def _leave_the_group(worker: int) -> None:
    """A launcher or a terminal signals the trainer's whole group, and the trainer needs batches to its update's end."""
    os.setpgid(0, 0)


def _start_workers(stream: BatchStream) -> Iterator[SpeechBatch | UserError]:
    """Batches in order, made by processes; these share what memory the dataset may keep features in."""
    stream.dataset.divide_cache(stream.workers)
    loader = DataLoader(
        _Maker(stream),
        batch_size=None,
        sampler=_Places(stream),
        num_workers=stream.workers,
        multiprocessing_context="fork",  # not Python's default, which may be another: they share the dataset's memory
        worker_init_fn=_leave_the_group,
        generator=torch.Generator(),  # else a number of the training's own randomness would be drawn at each start
    )
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    # The loader's own handler would raise wherever this process happens to be when a worker dies. Without it, the
    # death is found when the next batch is asked for.
    signal.signal(signal.SIGCHLD, before)
    return batches


def in_order(
    dataset: SpeechDataset, batch_seconds: float, encode: Callable[[str], list[int]] | None = None
) -> Iterator[SpeechBatch]:
    """Every utterance once, longest first, in batches of similar lengths."""
    order = sorted(range(len(dataset)), key=lambda i: -dataset.frames[i])
    for indices in group_by_seconds(order, dataset.frames, batch_seconds):
        yield dataset.batch(indices, encode)
