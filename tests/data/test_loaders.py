"""Plans and streams of batches."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch

from w2vbert.data.batches import SpeechBatch, collate
from w2vbert.data.loaders import BatchStream, group_by_seconds, in_order, plan_epoch

LIMIT_SECONDS = 40.0


class ToyDataset:
    """What a stream asks of a `SpeechDataset`."""

    def __init__(self, count: int = 200, seed: int = 0) -> None:
        lengths = random.Random(seed)
        self.frames = [lengths.randint(10, 1600) for _ in range(count)]
        self.texts = [str(index) for index in range(count)]

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, indices: Sequence[int], encode: Callable[[str], list[int]] | None = None) -> SpeechBatch:
        tokens = None if encode is None else [encode(self.texts[i]) for i in indices]
        return collate([self.texts[i] for i in indices], [torch.zeros(self.frames[i], 1) for i in indices], tokens)


def stream(seed: int = 1, dataset: ToyDataset | None = None) -> BatchStream:
    return BatchStream(dataset or ToyDataset(), LIMIT_SECONDS, seed)  # type: ignore[arg-type]


def epoch(batches: BatchStream, count: int = 200) -> list[tuple[str, ...]]:
    """Batches until `count` utterances have come."""
    found: list[tuple[str, ...]] = []
    while sum(map(len, found)) < count:
        found.append(batches.next_batch().ids)
    return found


def test_every_utterance_comes_exactly_once_in_each_epoch() -> None:
    batches = stream()
    for _ in range(3):
        assert sorted(id for ids in epoch(batches) for id in ids) == sorted(ToyDataset().texts)


def test_batches_keep_their_limit_with_padding_counted() -> None:
    batches = stream()
    for _ in range(100):
        assert batches.next_batch().features[..., 0].numel() <= LIMIT_SECONDS * 100


def test_batches_hold_similar_lengths() -> None:
    batches = stream()
    filled = []
    for _ in range(60):
        batch = batches.next_batch()
        filled.append(batch.seconds * 100 / batch.features[..., 0].numel())
    assert sum(filled) / len(filled) > 0.85


def test_an_utterance_over_the_limit_is_a_batch_of_its_own() -> None:
    groups = group_by_seconds([0, 1, 2, 3], [900, 100, 5000, 100], 10.0)
    assert groups == [[0], [1], [2], [3]]
    assert group_by_seconds([1, 3, 0, 2], [400, 100, 5000, 100], 10.0) == [[1, 3], [0], [2]]
    assert group_by_seconds([], [], 10.0) == []


def test_plans_differ_between_epochs_and_seeds_and_equal_themselves() -> None:
    frames = ToyDataset().frames
    plans = {(seed, number): plan_epoch(frames, LIMIT_SECONDS, seed, number) for seed in (1, 2) for number in (0, 1)}
    for (seed, number), plan in plans.items():
        assert plan == plan_epoch(frames, LIMIT_SECONDS, seed, number)
        assert sum(plan == other for other in plans.values()) == 1
    groups = [{frozenset(batch) for batch in plans[1, number]} for number in (0, 1)]
    assert len(groups[0] & groups[1]) < len(groups[0]) / 2  # neighbours change, not just the order of batches


def test_lengths_come_in_random_order() -> None:
    batches = stream()
    lengths = [int(batches.next_batch().lengths.max()) for _ in range(40)]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)


@pytest.mark.parametrize("done", [0, 1, 17, 58, 59, 60, 130])
def test_a_saved_position_goes_on_at_the_very_next_batch(done: int) -> None:
    first = stream()
    for _ in range(done):
        first.next_batch()
    state = dict(first.state_dict())
    expected = [first.next_batch().ids for _ in range(70)]
    second = stream()
    for _ in range(5):  # wherever it stood before
        second.next_batch()
    second.load_state_dict(state)
    assert [second.next_batch().ids for _ in range(70)] == expected


def test_tokens_come_from_the_texts() -> None:
    dataset = ToyDataset()
    batches = BatchStream(dataset, LIMIT_SECONDS, 1, lambda text: [int(text), 7])  # type: ignore[arg-type]
    batch = batches.next_batch()
    assert batch.tokens is not None
    assert batch.tokens.tolist() == [[int(id), 7] for id in batch.ids]


def test_in_order_gives_every_utterance_once_longest_first() -> None:
    dataset = ToyDataset()
    batches = list(in_order(dataset, LIMIT_SECONDS))  # type: ignore[arg-type]
    lengths = [n for batch in batches for n in batch.lengths.tolist()]
    assert sorted(id for batch in batches for id in batch.ids) == sorted(dataset.texts)
    assert lengths == sorted(dataset.frames, reverse=True)
    assert all(batch.features[..., 0].numel() <= LIMIT_SECONDS * 100 for batch in batches)
