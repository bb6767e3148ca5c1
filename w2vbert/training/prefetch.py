"""Batches that are made while the model computes."""

import queue
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from w2vbert.log import logger
from w2vbert.training.task import BatchSource

DEPTH = 2
"""Batches that lie ready at most."""

SLOW_SHARE = 0.2
"""Share of the time spent waiting for data, above which the log says so."""

JUDGED_SECONDS = 20.0
"""Least time of training over which that share is judged."""


class Prefetcher:
    """Takes batches from a source in a thread, ahead of their use, in the same order. A context manager.

    Attributes:
        wait_seconds: time that `next_batch` has spent waiting.
    """

    def __init__(self, source: BatchSource) -> None:
        self.wait_seconds = 0.0
        self._source = source
        self._state: Mapping[str, int] = source.state_dict()
        self._ready: queue.Queue[tuple[Any, Mapping[str, int], BaseException | None]] = queue.Queue(DEPTH)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread and puts the source back behind the last batch that was used."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                pass
        self._source.load_state_dict(self._state)

    def next_batch(self) -> Any:
        """The source's next batch, or the error that it met there."""
        started = time.perf_counter()
        batch, state, error = self._ready.get()
        self.wait_seconds += time.perf_counter() - started
        if error is not None:
            raise error
        self._state = state
        return batch

    def state_dict(self) -> Mapping[str, int]:
        """The source's position after the last batch given."""
        return self._state

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                batch, error = self._source.next_batch(), None
            except Exception as caught:  # told to whoever takes the batch
                batch, error = None, caught
            self._ready.put((batch, dict(self._source.state_dict()), error))
            if error is not None:
                return


class DataWaits:
    """Which share of the time since the last line of the log was spent waiting for data."""

    def __init__(self) -> None:
        self._waited = self._seconds = 0.0
        self._judged_waited = self._judged_seconds = 0.0
        self._has_warned = False

    def add(self, waited_seconds: float, seconds: float) -> None:
        """Adds a step that took `seconds`."""
        self._waited += waited_seconds
        self._seconds += seconds

    def take(self, step: int) -> float:
        """The share (0 to 1), said in one line, once, where it is large; begins anew."""
        share = self._waited / max(self._seconds, 1e-9)
        self._judged_waited += self._waited
        self._judged_seconds += self._seconds
        self._waited = self._seconds = 0.0
        if self._judged_seconds > JUDGED_SECONDS:
            judged = self._judged_waited / self._judged_seconds
            self._judged_waited = self._judged_seconds = 0.0
            if judged > SLOW_SHARE and not self._has_warned:
                self._has_warned = True
                logger.warning(
                    f"step {step}: {judged:.0%} of the time went into waiting for data: "
                    "raise train.loader_workers, or put the features on a faster disk"
                )
        return share
