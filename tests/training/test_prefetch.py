"""Batches are made ahead, in order, not too many, and what was not used comes again."""

import time

import pytest

from tests.training.toys import ToyStream
from w2vbert.errors import UserError
from w2vbert.training.prefetch import DEPTH, JUDGED_SECONDS, DataWaits, Prefetcher


class CountingStream(ToyStream):
    """Counts what it makes; fails at one number."""

    made = 0
    fail_at = -1

    def next_batch(self):  # type: ignore[no-untyped-def]
        if self.position == self.fail_at:
            raise UserError("features are gone")
        self.made += 1
        return super().next_batch()


def test_batches_come_in_order_and_few_are_made_ahead() -> None:
    stream, plain = CountingStream(), ToyStream()
    with Prefetcher(stream) as source:
        for number in range(7):
            assert source.state_dict() == {"position": number}
            assert source.next_batch().ids == plain.next_batch().ids
            time.sleep(0.02)
            assert stream.made <= number + 1 + DEPTH + 1  # one more waits for room
        assert stream.made > 7
    assert stream.position == 7
    assert stream.next_batch().ids == plain.next_batch().ids


def test_an_error_comes_where_the_batch_would_have_come() -> None:
    stream = CountingStream()
    stream.fail_at = 3
    with Prefetcher(stream) as source:
        for _ in range(3):
            source.next_batch()
        with pytest.raises(UserError, match="features are gone"):
            source.next_batch()
    assert stream.position == 3


def test_waiting_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    class SlowStream(ToyStream):
        def next_batch(self):  # type: ignore[no-untyped-def]
            time.sleep(0.05)
            return super().next_batch()

    with Prefetcher(SlowStream()) as source:
        for _ in range(6):
            source.next_batch()
        assert 0.15 < source.wait_seconds < 3.0
    waits = DataWaits()
    waits.add(0.1 * JUDGED_SECONDS, 2 * JUDGED_SECONDS)
    assert waits.take(1) == 0.05 and not caplog.text
    for _ in range(3):
        waits.add(JUDGED_SECONDS, 2 * JUDGED_SECONDS)
        assert waits.take(9) == 0.5
    assert caplog.text.count("step 9: 50% of the time went into waiting for data: raise train.loader_workers") == 1
