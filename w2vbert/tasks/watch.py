"""`w2vbert decode --watch`: decodes what appears in a folder, each recording once, until it is stopped.

The result of a recording is a JSON file of its own, written aside and renamed. That file is also the note that the
recording is done, so no crash can part the one from the other: what has no result is decoded, what has one is not.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from w2vbert.errors import UserError
from w2vbert.files import check_writable, list_files, lock_folder, read_json, write_json
from w2vbert.log import logger
from w2vbert.tasks.audio_sources import LISTED_SUFFIXES, source_of_file
from w2vbert.tasks.recognize_files import Recognizer, transcribe
from w2vbert.tasks.transcript_formats import describe

POLL_SECONDS = 1.0
SETTLED_SECONDS = 3.0
"""A file that has not changed for this long is complete. One that goes on growing later is decoded again."""


@dataclass(frozen=True)
class State:
    """What tells one version of a file from another.

    Attributes:
        size: bytes.
        changed: time of the last change, nanoseconds.
    """

    size: int
    changed: int


class Watcher:
    """A folder in which recordings appear, and the folder of their results.

    Attributes:
        folder, out: the two.
        noted: results written so far.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out = folder, out
        self.noted = 0
        self._seen: dict[Path, tuple[State, float]] = {}  # when a file was first seen in this state
        self._done: dict[Path, State] = {}
        self._is_listed = True

    def result_of(self, path: Path) -> Path:
        """Where the result of a recording lies: `a/b.wav` gives `OUT/a/b.wav.json`."""
        relative = path.relative_to(self.folder)
        return self.out / relative.with_name(f"{relative.name}.json")

    def find_ready(self) -> dict[Path, State]:
        """Recordings that are complete and have no result yet, sorted by name."""
        now = time.monotonic()
        seen, ready = {}, {}
        for path in self._list():
            try:
                stat = path.stat()
            except FileNotFoundError:  # taken away meanwhile
                continue
            state = State(stat.st_size, stat.st_mtime_ns)
            before, since = self._seen.get(path, (state, now))
            seen[path] = (state, since if before == state else now)
            is_settled = now - seen[path][1] >= SETTLED_SECONDS or time.time() - stat.st_mtime >= 60.0
            if is_settled and not self._is_done(path, state):
                ready[path] = state
        self._seen = seen
        self._done = {path: state for path, state in self._done.items() if path in seen}
        return ready

    def note(self, path: Path, state: State, result: dict[str, object]) -> None:
        """Writes the result of a recording, whole or not at all."""
        write_json(self.result_of(path), result | {"size": state.size, "changed": state.changed})
        self._done[path] = state
        self.noted += 1

    def _list(self) -> list[Path]:
        try:
            files = list_files(self.folder)
        except OSError as error:
            if self._is_listed:
                logger.warning(f"{self.folder} cannot be read ({error.strerror}): waiting until it can")
            self._is_listed = False
            return []
        self._is_listed = True
        return [p for p in files if p.suffix.lower() in LISTED_SUFFIXES and not p.name.startswith(".")]

    def _is_done(self, path: Path, state: State) -> bool:
        if path not in self._done and self.result_of(path).is_file():
            try:
                result = read_json(self.result_of(path))
                self._done[path] = State(result["size"], result["changed"])
            except (UserError, KeyError, TypeError):
                raise UserError(f"{self.result_of(path)} is no result of `w2vbert decode --watch`") from None
        return self._done.get(path) == state


def watch_folder(folder: Path, out: Path, channel: int | None, load: Callable[[], Recognizer]) -> None:
    """Decodes the recordings of a folder and those that appear in it, until SIGTERM or Ctrl-C.

    Args:
        folder: looked through with its subfolders every second.
        out: folder of the results; may lie in `folder`.
        channel: which channel is read, from 0; None: the mean of all.
        load: loads the model.

    Raises:
        UserError: a folder is missing or cannot be written, or another process watches for `out`.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} to watch")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but --watch writes a folder of results there")
    check_writable(out / "a.json")
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(out, out)
    try:
        _watch(Watcher(folder, out), channel, load())
    finally:
        os.close(lock)


def _watch(watcher: Watcher, channel: int | None, recognizer: Recognizer) -> None:
    logger.info(f"watching {watcher.folder}: results go to {watcher.out}; stop with Ctrl-C")
    try:
        while True:
            _decode_ready(watcher, channel, recognizer)
            time.sleep(POLL_SECONDS)
    except (KeyboardInterrupt, SystemExit):  # the way to end it: no failure
        logger.info(f"stopped after {watcher.noted} recordings; what has no result yet is decoded at the next start")


def _decode_ready(watcher: Watcher, channel: int | None, recognizer: Recognizer) -> None:
    ready = watcher.find_ready()
    sources = [source_of_file(path, channel) for path in ready]
    transcripts = transcribe(sources, recognizer, lambda seconds: None)
    for (path, state), transcript in zip(ready.items(), transcripts, strict=True):
        if transcript.error is not None and not path.exists():  # taken away meanwhile
            continue
        watcher.note(path, state, describe(transcript))
        if transcript.error is None:
            logger.info(f"{path}: {transcript.text}")
