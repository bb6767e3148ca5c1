"""Batches of few fixed shapes."""

from itertools import combinations

import pytest
import torch

from tests.data.test_loaders import LIMIT_SECONDS, ToyDataset
from w2vbert.data.buckets import find_buckets, plan_fixed_shapes
from w2vbert.data.loaders import BatchStream

LENGTHS = torch.randint(20, 400, (500,), generator=torch.Generator().manual_seed(1)).tolist()


def test_the_ends_waste_least_of_all_that_could_be_chosen() -> None:
    lengths = [12, 16, 16, 24, 40, 44, 80]

    def places(ends: tuple[int, ...]) -> int:
        return sum(min(end for end in ends if end >= length) for length in lengths)

    for count in (1, 2, 3):
        best = min(places((*ends, 80)) for ends in combinations((12, 16, 24, 40, 44), count - 1))
        found = find_buckets(lengths, count)
        assert len(found) == count and found == sorted(found) and places(tuple(found)) == best
    assert find_buckets(lengths, 100) == [12, 16, 24, 40, 44, 80]
    assert find_buckets([13], 3) == [16]


def test_each_utterance_once_in_few_shapes_that_stay() -> None:
    ends = find_buckets(LENGTHS, 6)
    shapes = []
    for epoch in range(3):
        plan = plan_fixed_shapes(LENGTHS, 20.0, 1, epoch, ends)
        assert sorted(i for batch in plan.batches for i in batch) == list(range(len(LENGTHS)))
        for batch, padded in zip(plan.batches, plan.padded, strict=True):
            assert padded in ends and max(LENGTHS[i] for i in batch) <= padded
            assert len(batch) * padded <= 2000
        shapes.append({(len(batch), padded) for batch, padded in zip(plan.batches, plan.padded, strict=True)})
    assert len(shapes[0]) <= 7 and shapes[0] == shapes[1] == shapes[2]


def test_the_order_follows_from_seed_and_epoch() -> None:
    ends = find_buckets(LENGTHS, 6)
    plans = [plan_fixed_shapes(LENGTHS, 20.0, seed, epoch, ends) for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert plans[0] == plans[1] and plans[0] != plans[2] and plans[0] != plans[3]
    assert {frozenset(batch) for batch in plans[0].batches} != {frozenset(batch) for batch in plans[2].batches}


def test_a_stream_has_these_shapes_and_resumes_exactly(caplog: pytest.LogCaptureFixture) -> None:
    def stream() -> BatchStream:
        batches = BatchStream(ToyDataset(), LIMIT_SECONDS, 1)
        batches.fix_shapes(3)
        return batches

    caplog.set_level("INFO", "w2vbert")
    first = stream()
    assert "3 buckets of length: " in caplog.text
    seen = [first.next_batch() for _ in range(20)]
    assert len({tuple(batch.features.shape) for batch in seen}) <= 4
    assert all(batch.features.shape[1] >= int(batch.lengths.max()) for batch in seen)
    assert all(not batch.features[row, length:].any() for batch in seen for row, length in enumerate(batch.lengths))
    largest = first.largest().features
    assert largest.shape[0] * largest.shape[1] >= max(b.features.shape[0] * b.features.shape[1] for b in seen)
    second = stream()
    for _ in range(7):
        second.next_batch()
    third = stream()
    third.load_state_dict(second.state_dict())
    for before in seen[7:]:
        after = third.next_batch()
        assert after.ids == before.ids and torch.equal(after.features, before.features)


def test_processes_share_one_plan() -> None:
    whole = BatchStream(ToyDataset(), LIMIT_SECONDS, 1)
    whole.fix_shapes(3)
    expected = [whole.next_batch().ids for _ in range(12)]
    parts = []
    for rank in range(3):
        part = BatchStream(ToyDataset(), LIMIT_SECONDS, 1)
        part.fix_shapes(3)
        part.share(rank, 3)
        parts.append([part.next_batch().ids for _ in range(4)])
    assert [ids for ranks in zip(*parts, strict=True) for ids in ranks] == expected
