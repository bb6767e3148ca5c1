"""Plans and streams of batches."""

import multiprocessing
import os
import random

import pytest
import torch

from w2vbert.data.datasets import Change, SpeechDataset
from w2vbert.data.joining import join_utterances
from w2vbert.data.loaders import BatchStream, draw_crops, group_by_seconds, in_order, plan_epoch
from w2vbert.errors import UserError

LIMIT_SECONDS = 40.0


class ToyDataset(SpeechDataset):
    """Utterances whose features tell their index and their frames, without files; the text is the index."""

    def __init__(self, count: int = 200, spare: int = 0) -> None:
        lengths = random.Random(0)
        self.frames = [lengths.randint(10, 1600) for _ in range(count)]
        self.spare = [spare] * count
        self.ids = self.texts = [str(index) for index in range(count)]
        self._free_bytes = 0

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int, start: int = 0) -> torch.Tensor:
        frames = self.frames[index]
        return torch.stack([torch.full((frames,), float(index)), torch.arange(start, start + frames)], dim=1)

    def load_changed(self, index: int, change: Change, start: int = 0) -> torch.Tensor:
        return change(self.load(index, start))


def stream(join: int = 1) -> BatchStream:
    return BatchStream(ToyDataset(), LIMIT_SECONDS, 1, join=join)


def epoch(batches: BatchStream) -> list[str]:
    """Utterances that come until one epoch is over."""
    found: list[str] = []
    while len(found) < len(batches.dataset):
        found += [id for ids in batches.next_batch().ids for id in ids.split("+")]
    return found


@pytest.mark.parametrize("join", [1, 3])
def test_every_utterance_comes_exactly_once_in_each_epoch(join: int) -> None:
    batches = stream(join)
    orders = [epoch(batches) for _ in range(3)]
    assert [sorted(order) for order in orders] == [sorted(ToyDataset().ids)] * 3
    assert orders[0] != orders[1] != orders[2]


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


@pytest.mark.parametrize("join", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 17, 58, 59, 60, 130])
def test_a_saved_position_goes_on_at_the_very_next_batch(done: int, join: int) -> None:
    first = stream(join)
    for _ in range(done):
        first.next_batch()
    state = dict(first.state_dict())
    expected = [first.next_batch().ids for _ in range(70)]
    second = stream(join)
    for _ in range(5):  # wherever it stood before
        second.next_batch()
    second.load_state_dict(state)
    assert [second.next_batch().ids for _ in range(70)] == expected


def crops(batches: BatchStream, count: int) -> dict[str, int]:
    """First frame of each utterance of the next `count` batches."""
    found = {}
    for _ in range(count):
        batch = batches.next_batch()
        found.update(zip(batch.ids, batch.features[:, 0, 1].int().tolist(), strict=True))
    return found


def test_crops_are_drawn_anew_in_each_epoch_and_go_on_after_a_stop() -> None:
    batches = BatchStream(ToyDataset(spare=500), LIMIT_SECONDS, 1)
    length = len(batches._plan(0).batches)
    first = crops(batches, length)
    assert len(first) == 200 and set(first.values()) <= set(range(501)) and len(set(first.values())) > 100
    crops(batches, 20)
    state = dict(batches.state_dict())
    second = BatchStream(ToyDataset(spare=500), LIMIT_SECONDS, 1)
    second.load_state_dict(state)
    expected = crops(batches, 20)
    assert crops(second, 20) == expected
    assert sum(first[id] == begin for id, begin in expected.items()) < len(expected) / 10
    assert draw_crops([0] * 50, 1, 0) == [0] * 50
    drawn = draw_crops([9] * 2000, 1, 0)
    assert {drawn.count(begin) > 120 for begin in range(10)} == {True}


class Shift:
    """Takes the place of a noise mixer: adds what it draws."""

    def changes(self, generator: torch.Generator) -> Change:
        return lambda features: features + torch.rand(1, generator=generator)


def test_noise_is_drawn_anew_in_each_epoch_and_goes_on_after_a_stop() -> None:
    def drawn(batches: BatchStream, count: int) -> dict[str, float]:
        found = {}
        for _ in range(count):
            batch = batches.next_batch()
            found.update(zip(batch.ids, batch.features[:, 0, 1].tolist(), strict=True))
        return found

    batches = BatchStream(ToyDataset(), LIMIT_SECONDS, 1, noise=Shift())  # type: ignore[arg-type]
    length = len(batches._plan(0).batches)
    first = drawn(batches, length)
    assert len(set(first.values())) == 200
    crops(batches, 3)
    second = BatchStream(ToyDataset(), LIMIT_SECONDS, 1, noise=Shift())  # type: ignore[arg-type]
    second.load_state_dict(dict(batches.state_dict()))
    expected = drawn(batches, 20)
    assert drawn(second, 20) == expected and not any(first[id] == value for id, value in expected.items())


def test_tokens_come_from_the_texts() -> None:
    dataset = ToyDataset()
    batches = BatchStream(dataset, LIMIT_SECONDS, 1, lambda text: [int(text), 7])
    batch = batches.next_batch()
    assert batch.tokens is not None
    assert batch.tokens.tolist() == [[int(id), 7] for id in batch.ids]


def test_joined_utterances_follow_one_another_in_features_and_text() -> None:
    dataset = ToyDataset()
    batch = dataset.joined([[4, 1], [7]], lambda text: [int(word) for word in text.split()])
    assert batch.ids == ("4+1", "7") and batch.lengths.tolist() == [
        dataset.frames[4] + dataset.frames[1],
        dataset.frames[7],
    ]
    assert torch.equal(batch.features[0, : batch.lengths[0]], torch.cat([dataset.load(4), dataset.load(1)]))
    assert batch.tokens is not None and batch.tokens.tolist() == [[4, 1], [7, 0]]


def test_empty_transcripts_leave_no_gap_in_joined_text() -> None:
    dataset = ToyDataset()
    dataset.texts = ["", "one", "", "two", ""]
    heard: list[str] = []

    def encode(text: str) -> list[int]:
        heard.append(text)
        return [1]

    dataset.joined([[0, 1, 2, 3, 4], [0, 2], [1]], encode)
    assert heard == ["one two", "", "one"]


@pytest.mark.parametrize(("count", "most"), [(1, 1), (1, 5), (7, 3), (500, 4), (500, 1)])
def test_groups_hold_each_utterance_once_and_no_more_than_allowed(count: int, most: int) -> None:
    groups = list(join_utterances(count, most, seed=1, epoch=0))
    assert sorted(index for group in groups for index in group) == list(range(count))
    assert {len(group) for group in groups} <= set(range(1, most + 1))
    assert groups == list(join_utterances(count, most, 1, 0))
    if count == 500:
        assert {len(group) for group in groups} == set(range(1, most + 1))
        assert groups != list(join_utterances(count, most, 1, 1)) and groups != list(join_utterances(count, most, 2, 0))


def test_in_order_gives_every_utterance_once_longest_first() -> None:
    dataset = ToyDataset()
    batches = list(in_order(dataset, LIMIT_SECONDS))
    lengths = [n for batch in batches for n in batch.lengths.tolist()]
    assert sorted(id for batch in batches for id in batch.ids) == sorted(dataset.texts)
    assert lengths == sorted(dataset.frames, reverse=True)
    assert all(batch.features[..., 0].numel() <= LIMIT_SECONDS * 100 for batch in batches)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("done", [0, 7, 59])
def test_those_that_share_take_each_batch_once_in_order(count: int, done: int) -> None:
    alone = stream()
    expected = [alone.next_batch().ids for _ in range(done + 91)][done:]
    found: list[tuple[str, ...]] = [()] * 90
    for index in range(count):
        batches = stream()
        for _ in range(done):
            batches.next_batch()
        batches.share(index, count)
        for number in range(index, 90, count):
            found[number] = batches.next_batch().ids
        alone = stream()
        alone.load_state_dict(batches.state_dict())
        assert alone.next_batch().ids == expected[90]
    assert found == expected[:90]


def test_the_largest_batch_of_an_epoch() -> None:
    batches = stream()
    largest = batches.largest()
    assert batches.state_dict() == {"epoch": 0, "position": 0}
    sizes = [batches.next_batch().features[..., 0].numel() for _ in range(len(batches._plan(0).batches))]
    assert largest.features[..., 0].numel() == max(sizes)


def test_processes_make_the_same_batches_in_the_same_order() -> None:
    """Also after a stop, with two that share, at another number of processes."""
    alone = stream()
    expected = [alone.next_batch() for _ in range(80)]
    batches = BatchStream(ToyDataset(), LIMIT_SECONDS, 1, workers=2)
    batches.share(0, 1)
    found = [batches.next_batch() for _ in range(5)]
    position = batches.state_dict()
    batches.load_state_dict(position)
    batches = BatchStream(ToyDataset(), LIMIT_SECONDS, 1, workers=1)
    batches.load_state_dict(position)
    batches.share(0, 1)
    found += [batches.next_batch() for _ in range(75)]
    for one, other in zip(expected, found, strict=True):
        assert one.ids == other.ids and torch.equal(one.features, other.features)
    batches.load_state_dict(position)
    assert batches.next_batch().ids == expected[5].ids


def test_processes_take_nothing_of_the_training_s_randomness() -> None:
    """Else a run with them would draw other masks after each start."""
    before = torch.get_rng_state()
    batches = BatchStream(ToyDataset(), LIMIT_SECONDS, 1, workers=1)
    batches.share(0, 1)
    batches.next_batch()
    assert torch.equal(torch.get_rng_state(), before)


def with_one_worker() -> tuple[BatchStream, multiprocessing.process.BaseProcess]:
    """A stream that has given its first batch, and the process that makes them."""
    batches = BatchStream(ToyDataset(), LIMIT_SECONDS, 1, workers=1)
    others = multiprocessing.active_children()
    batches.share(0, 1)
    batches.next_batch()
    (worker,) = set(multiprocessing.active_children()) - set(others)
    return batches, worker


def test_signals_to_the_trainers_group_do_not_reach_its_workers() -> None:
    """torchrun and a terminal signal all processes of a group; an update needs its batches to the end."""
    batches, worker = with_one_worker()
    assert worker.pid is not None and os.getpgid(worker.pid) != os.getpgid(0)
    batches.next_batch()


def test_a_killed_process_that_makes_batches_is_an_error() -> None:
    batches, worker = with_one_worker()
    worker.kill()
    with pytest.raises(UserError, match="a process that makes batches is gone .*Lower train.loader_workers"):
        for _ in range(10):
            batches.next_batch()


def test_an_error_in_a_process_that_makes_batches_comes_as_it_is() -> None:
    class Broken(ToyDataset):
        def load(self, index: int, start: int = 0) -> torch.Tensor:
            raise UserError("features of 7 are gone")

    batches = BatchStream(Broken(), LIMIT_SECONDS, 1, workers=1)
    batches.share(0, 1)
    with pytest.raises(UserError, match="^features of 7 are gone$"):
        batches.next_batch()
