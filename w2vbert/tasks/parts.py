"""Work in parts, here or on a cluster: what has failed is done again, and what cannot succeed ends all of it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from w2vbert.errors import UserError
from w2vbert.log import logger

TRIES = 3
"""How often a part is begun that ends in a way that may not come again."""

QUICK_SECONDS, SLOW_SECONDS = 0.2, 10.0  # between two looks at the queue: after news, and after long silence


@dataclass(frozen=True)
class Work:
    """A command, or an array of them that differ in the number of their part.

    Attributes:
        name: for logs and queues.
        command: words; `{part}` in a word becomes the number of the part.
        folder: where logs go (`NAME.log`, or `NAME.PART.log`).
        parts: how many; None: a single command that is no array.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    parts: int | None = None

    @property
    def numbers(self) -> range:
        """Numbers of the parts, from 1."""
        return range(1, (self.parts or 1) + 1)

    def log(self, part: int) -> Path:
        """The log of a part; a part that is done again goes on writing there."""
        return self.folder / (f"{self.name}.log" if self.parts is None else f"{self.name}.{part}.log")

    def describe(self, part: int) -> str:
        """What messages call a part."""
        return self.name if self.parts is None else f"part {part} of {self.parts} of {self.name}"


@dataclass(frozen=True)
class Ended:
    """How a part has ended.

    Attributes:
        code: exit code; None where it is not known.
        why: what went wrong, for messages; "" if nothing did.
        again: whether it may succeed when it is begun again.
        free: whether beginning again does not count as one of the tries: it has saved its state and wants to go on.
    """

    code: int | None
    why: str = ""
    again: bool = False
    free: bool = False


class Queue(Protocol):
    """Where parts run."""

    work: Work

    def attach(self) -> set[int]:
        """Parts that an earlier call has submitted and that have not ended: they are not to be submitted again."""

    def submit(self, parts: Sequence[int]) -> None:
        """Begins parts, or has them wait for their turn."""

    def poll(self) -> Mapping[int, Ended | None]:
        """How each part that was submitted or attached has ended; None while it has not."""

    def cancel(self) -> None:
        """Ends all that were submitted or attached."""


def run_parts(queue: Queue, parts: Sequence[int], done: Callable[[int], bool] = lambda part: True) -> None:
    """Runs parts until all have succeeded.

    Args:
        queue: where.
        parts: numbers of those to run.
        done: called with each part that ended well; False if what it should have written is not there.

    Raises:
        UserError: a part ended in a way that will come again, or failed `TRIES` times. The others are ended.
    """
    tries = dict.fromkeys(parts, 1)
    attached = queue.attach() & tries.keys()
    if attached:
        logger.info(f"{queue.work.name}: {len(attached)} of {len(tries)} are in the queue already")
    pause = QUICK_SECONDS
    try:
        queue.submit([part for part in parts if part not in attached])
        while tries:
            time.sleep(pause)
            ended = {part: end for part, end in queue.poll().items() if end is not None and part in tries}
            again = []
            for part, end in ended.items():
                if end.code == 0 and done(part):
                    del tries[part]
                    continue
                again.append(part)
                _count_try(queue.work, part, end, tries)
            queue.submit(again)
            pause = QUICK_SECONDS if ended else min(1.2 * pause, SLOW_SECONDS)
    except (KeyboardInterrupt, SystemExit, UserError):
        queue.cancel()
        raise


def _count_try(work: Work, part: int, end: Ended, tries: dict[int, int]) -> None:
    """Notes that a part has to be done again; raises where that would be in vain."""
    if end.free:
        return
    why = end.why or "ended well but has not written what it should"
    what, log = work.describe(part), work.log(part)
    if end.code != 0 and not end.again:
        raise UserError(f"{what} {why}; its log: {log}")
    if tries[part] >= TRIES:
        raise UserError(f"{what} has failed {TRIES} times, the last time it {why}; its log: {log}")
    tries[part] += 1
    logger.warning(f"{what} {why}: begun again ({tries[part]} of {TRIES}); its log: {log}")


class LocalQueue:
    """Parts as processes of this machine, a few at a time; they end with this process, however it ends."""

    def __init__(self, work: Work, at_once: int) -> None:
        """Nothing begins yet.

        Args:
            at_once: processes at the same time.
        """
        self.work = work
        self._at_once = at_once
        self._waiting: list[int] = []
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def attach(self) -> set[int]:
        """None: parts end with the call that began them."""
        return set()

    def submit(self, parts: Sequence[int]) -> None:
        """Parts wait for their turn."""
        self._waiting += parts

    def poll(self) -> Mapping[int, Ended | None]:
        """How each part has ended; begins others in its place."""
        found: dict[int, Ended | None] = {}
        for part, process in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[part]
                found[part] = _tell_end(code, self.work.log(part))
        while self._waiting and len(self._running) < self._at_once:
            part = self._waiting.pop(0)
            self._running[part] = self._begin(part)
        return found | dict.fromkeys([*self._running, *self._waiting])

    def cancel(self) -> None:
        """Ends the processes, those that do not listen after 10 s by force."""
        self._waiting.clear()
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()

    def _begin(self, part: int) -> "subprocess.Popen[bytes]":
        command = [word.replace("{part}", str(part)) for word in self.work.command]
        tie = shutil.which("setpriv")  # of util-linux
        if tie is not None and sys.platform == "linux":
            command = [tie, "--pdeathsig", "KILL", *command]
        self.work.folder.mkdir(parents=True, exist_ok=True)
        with self.work.log(part).open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _tell_end(code: int, log: Path) -> Ended:
    if code == 0:
        return Ended(0)
    if code == 2:
        return Ended(2, tell_error(log))
    if code < 0:
        return Ended(code, f"was killed by signal {-code}", again=True)
    return Ended(code, f"ended with exit code {code}", again=True)


def tell_error(log: Path) -> str:
    """What the last line `error: ...` of a log says."""
    lines = [line for line in tail(log) if line.startswith("error: ")]
    return f"failed: {lines[-1].removeprefix('error: ')}" if lines else "failed with exit code 2"


def tail(log: Path, count: int = 65536) -> list[str]:
    """The last lines of a file, at most `count` bytes; none if it is not there."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - count))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
