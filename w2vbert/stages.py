"""Finished steps: outputs that appear whole or not at all, and stamps that say from what they were made."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from w2vbert.errors import UserError
from w2vbert.log import logger

STAMP = ".stamp.json"
STARTED = ".started.json"
PARTIAL = ".partial."
HASHED_BYTES = 64 * 2**20  # larger input files are known by size and time of change, not by content


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields a path in the folder of `target` (same suffix); the file written there becomes `target` if no error comes.

    An error, such as a full disk, leaves the old `target` as it was and nothing beside it.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{PARTIAL}{target.name}")
    try:
        yield partial
        _flush_to_disk(partial)
        os.replace(partial, target)
        _flush_to_disk(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; it replaces `target`, and all that is in it, if no error comes.

    An error, such as a full disk, leaves the old `target` as it was and nothing beside it.

    Raises:
        UserError: `target` is a file.
    """
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, but a folder is to be written there")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{PARTIAL}{target.name}")
    old = target.with_name(f".old.{target.name}")
    for leftover in (partial, old):  # of a killed process
        _remove_tree(leftover)
    try:
        partial.mkdir()
        yield partial
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
        _flush_to_disk(target.parent)
    finally:
        _remove_tree(partial)
        _remove_tree(old)


def write_json(path: Path, value: object) -> None:
    """Writes `value` (dataclasses and paths allowed) as indented JSON, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1, default=_encode, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"no such file: {path}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: not valid JSON") from error


def fingerprint(config: object, inputs: Mapping[str, Path | None]) -> str:
    """A hash (SHA-256, hexadecimal) that changes when the config or any input changes.

    Files count by content (by size and time of change above 64 MiB), folders with a stamp by the stamp's fingerprint,
    other folders by names, sizes and times of change of all that is in them. None: an optional input is absent.

    Raises:
        UserError: an input does not exist.
    """
    known = {name: None if path is None else _hash_path(name, path) for name, path in inputs.items()}
    return _hash_json({"config": config, "inputs": known})


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that makes the folder `out` from a config and named inputs, and the stamp that says it is finished."""

    name: str
    out: Path
    config: object
    inputs: Mapping[str, Path | None]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the step's name, config and inputs, as they were when first asked for."""
        return fingerprint({"step": self.name, "config": self.config}, self.inputs)

    def is_done(self) -> bool:
        """Whether `out` was finished from the same config and inputs and its outputs still have their sizes."""
        wanted = self.fingerprint
        stamp = _read_stamp(self.out)
        if stamp is None:
            return False
        if stamp["fingerprint"] != wanted:
            logger.info("%s: config or inputs have changed since %s was made", self.name, self.out)
            return False
        for name, size in stamp["outputs"].items():
            path = self.out / name
            if not path.is_file() or path.stat().st_size != size:
                logger.info("%s: %s has changed or is missing", self.name, path)
                return False
        logger.info("%s: up to date (%s)", self.name, self.out)
        return True

    def start(self, force: bool = False) -> bool:
        """For long steps that write into `out` as they go: True if the same run, unfinished, goes on there.

        Otherwise an older run is removed and `out` is made anew, with a mark (`.started.json`) of this fingerprint.

        Raises:
            UserError: `out` holds something that no step has made.
        """
        self.check_out()
        started = self.out / STARTED
        if not force and started.is_file() and _read_mark(started) == self.fingerprint:
            (self.out / STAMP).unlink(missing_ok=True)
            return True
        if self.out.exists():
            # The mark goes last, so that a kill in between leaves a folder that is still known as ours.
            for path in sorted(self.out.iterdir(), key=lambda path: path.name in (STAMP, STARTED)):
                _remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        write_json(started, {"step": self.name, "fingerprint": self.fingerprint})
        return False

    def finish(self, folder: Path | None = None) -> None:
        """Writes the stamp into `folder` (default: `out`): fingerprint, every output with its size, config and time.

        Hidden files, logs (`*.log`, which may grow) and folders with a stamp of their own are not counted as outputs.
        """
        folder = folder or self.out
        outputs = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(_own_files(folder))}
        stamp = {
            "step": self.name,
            "fingerprint": self.fingerprint,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "outputs": outputs,
            "inputs": dict(self.inputs),
            "config": self.config,
        }
        write_json(folder / STAMP, stamp)

    def check_out(self) -> None:
        """Refuses an `out` that would be lost: a file, a folder of another step or of no step, or one of the inputs."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file, but {self.name} writes a folder there")
        for name, path in self.inputs.items():
            if path is not None and path.resolve().is_relative_to(self.out.resolve()):
                raise UserError(f"{self.out} holds the input {name} of {self.name}: name another folder to write")
        makers = {_read_maker(self.out / mark) for mark in (STAMP, STARTED) if (self.out / mark).exists()}
        others = sorted(maker for maker in makers if maker not in (self.name, None))
        if others:
            raise UserError(f"{self.out} was made by {others[0]}, not by {self.name}: name another folder")
        if not makers and self.out.is_dir() and any(not path.name.startswith(PARTIAL) for path in self.out.iterdir()):
            raise UserError(f"{self.out} is not empty and was not made by {self.name}: name another folder or empty it")


def run_step(step: Step, work: Callable[[Path], None], force: bool = False) -> bool:
    """Lets `work` fill a folder that becomes `step.out` when it returns; False if the step was up to date already."""
    if not force and step.is_done():
        return False
    step.check_out()
    with atomic_dir(step.out) as folder:
        work(folder)
        step.finish(folder)
    return True


def _encode(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _hash_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_encode).encode()).hexdigest()


def _hash_path(name: str, path: Path) -> str:
    if path.is_dir():
        stamp = _read_stamp(path)
        return stamp["fingerprint"] if stamp is not None else _hash_json(_list_tree(path))
    if not path.is_file():
        raise UserError(f"{name}: no such file or folder: {path}")
    stat = path.stat()
    if stat.st_size > HASHED_BYTES:
        return f"{stat.st_size} {stat.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _list_tree(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file under a folder, links followed, each folder once."""
    found, seen = [], set()
    for current, folders, files in os.walk(folder, followlinks=True):
        identity = os.stat(current)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders.sort()
        for name in sorted(files):
            path = Path(current, name)
            if path.is_file():  # no dangling links
                stat = path.stat()
                found.append((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return found


def _own_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.suffix == ".log":
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not (path / STAMP).exists():
            yield from _own_files(path)


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    """The stamp in a folder; None if there is none, or a damaged one."""
    if not (folder / STAMP).is_file():
        return None
    try:
        stamp = read_json(folder / STAMP)
    except UserError as error:
        logger.warning("%s", error)
        return None
    return stamp if isinstance(stamp, dict) and {"fingerprint", "outputs"} <= stamp.keys() else None


def _read_maker(mark: Path) -> str | None:
    """Name of the step that wrote a stamp or a mark; None if it cannot be read."""
    try:
        content = read_json(mark)
    except UserError:
        return None
    return content.get("step") if isinstance(content, dict) else None


def _read_mark(started: Path) -> str | None:
    try:
        mark = read_json(started)
    except UserError as error:
        logger.warning("%s", error)
        return None
    return mark.get("fingerprint") if isinstance(mark, dict) else None


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
