"""Signals and time limits that end a run before its last step, with all of it saved."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from w2vbert.log import logger

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What Slurm sends before a job's time is over, or when a job is to make room."""


class Interrupted(Exception):
    """Breaks off work that can be done again."""


class StopRequest:
    """Notes the first of: a signal of `SIGNALS`, the end of the time allowed. A context manager.

    Attributes:
        reason: why the run is to stop; "" while it is not.
    """

    def __init__(self, max_hours: float | None) -> None:
        """Begins to count.

        Args:
            max_hours: hours allowed; None: no limit.
        """
        self.reason = ""
        self._end = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._max_hours = max_hours
        self._may_break = False
        self._handlers: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"{signal.Signals(number).name} came"
        if self._may_break:
            self._may_break = False
            raise Interrupted(self.reason)

    def is_set(self) -> bool:
        """Whether the run is to stop; looks at the clock."""
        if not self.reason and self._end is not None and time.monotonic() >= self._end:
            self.reason = f"--max-hours {self._max_hours:g} are over"
        return bool(self.reason)

    @contextmanager
    def breaking_off(self, what: str) -> Iterator[None]:
        """A signal ends the work inside at once.

        Raises:
            Interrupted: at the end of `with`, so that it can be told from work that was finished.
        """
        if self.reason:
            raise Interrupted(self.reason)
        self._may_break = True
        try:
            yield
        except Interrupted:
            logger.info(f"{what} broken off: {self.reason}")
            raise
        finally:
            self._may_break = False
