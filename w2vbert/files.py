"""Files and folders that appear whole or not at all, and what keeps them from being written, told in one line."""

from __future__ import annotations

import codecs
import dataclasses
import enum
import errno
import fcntl
import json
import locale
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from w2vbert.errors import UserError

PARTIAL = ".partial."
OLD = ".old."
CHECKPOINTS = "checkpoints"  # folder of a run's state; a finished run needs it no more, but to average
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def use_utf8() -> None:
    """Begins this program anew in Python's UTF-8 mode, unless the locale says UTF-8 or the user has chosen the mode.

    Lhotse opens its files in the encoding of the locale. In the locale C Python takes that mode by itself.
    """
    if sys.flags.utf8_mode or "PYTHONUTF8" in os.environ or codecs.lookup(locale.getencoding()).name == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, sys.orig_argv)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields a path in the folder of `target` (same suffix); the file written there becomes `target` if no error comes.

    An error, such as a full disk, leaves the old `target` as it was and nothing beside it.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    target = real_path(target)
    partial = target.with_name(f"{PARTIAL}{target.name}")
    try:
        with naming(target, partial):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _flush_to_disk(partial)
            os.replace(partial, target)
            _flush_to_disk(target.parent)
    finally:
        with suppress(OSError):  # the folder, too, may be what could not be made
            partial.unlink()


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; it replaces `target`, and all that is in it, if no error comes.

    An error, such as a full disk, leaves the old `target` as it was and nothing beside it.

    Raises:
        UserError: `target` is a file, another process is writing it, the disk is full, or it cannot be written.
    """
    target = real_path(target)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, but a folder is to be written there")
    partial, old = (target.with_name(f"{prefix}{target.name}") for prefix in (PARTIAL, OLD))
    if partial.is_dir():
        os.close(lock_folder(partial, target))
    hold = None
    try:
        with naming(target, partial):
            target.parent.mkdir(parents=True, exist_ok=True)
            if old.exists() and not target.exists():  # killed between the two renamings below
                os.replace(old, target)
            for leftover in (partial, old):
                remove_tree(leftover)
            partial.mkdir()
            hold = lock_folder(partial, target)
            yield partial
            if target.exists():
                os.replace(target, old)
            os.replace(partial, target)
            _flush_to_disk(target.parent)
    finally:
        remove_tree(partial)
        if target.exists():
            remove_tree(old)
        if hold is not None:
            os.close(hold)


def lock_folder(folder: Path, name: Path) -> int:
    """Locks a folder against other processes until the descriptor that it returns is closed, or this process ends.

    Args:
        folder: what to lock.
        name: what the user calls it.

    Raises:
        UserError: it is locked already.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"another process is writing {name}: wait for its end, or end it") from error
    except OSError:  # a file system without locks
        pass
    return descriptor


def real_path(path: Path) -> Path:
    """The absolute path without symbolic links; a link that leads to itself stays (`Path.resolve` would fail)."""
    return Path(os.path.realpath(path))


def list_files(folder: Path) -> list[Path]:
    """Every file under a folder, sorted; links are followed, each folder is entered once.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found, seen = [], set()
    for current, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        identity = os.stat(current)
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders.sort()
        found += [path for path in (Path(current, name) for name in files) if path.is_file()]  # no dangling links
    return sorted(found)


def check_writable(target: Path) -> None:
    """Refuses a file or folder that could not be written, before the work for it is done.

    Raises:
        UserError: no permission, no such place, or a full disk.
    """
    folder = _nearest_folder(real_path(target).parent)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=PARTIAL, suffix=target.name):
            pass
    except OSError as error:
        raise UserError(f"cannot write {target}: {_tell_reason(error, folder)}") from error


def check_space(folder: Path, needed_bytes: float) -> None:
    """Refuses to begin what cannot end.

    Args:
        folder: where it will be written; need not exist yet.
        needed_bytes: estimate of what will be written.

    Raises:
        UserError: less is free.
    """
    free_bytes = shutil.disk_usage(_nearest_folder(real_path(folder))).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{folder} will need about {needed_bytes / 2**20:.0f} MiB, but {free_bytes / 2**20:.1f} MiB are free there"
        )


def write_json(path: Path, value: object) -> None:
    """Writes `value` (dataclasses and paths allowed) as indented JSON, atomically."""
    text = json.dumps(value, indent=1, default=encode, ensure_ascii=False) + "\n"
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names need not be UTF-8


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


def encode(value: object) -> object:
    """Dataclasses, enums and paths for `json.dumps(default=encode)`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


@contextmanager
def naming(target: Path, partial: Path | None = None) -> Iterator[None]:
    """Errors of writing name `target`, which the user knows, and a full disk is told as one.

    Args:
        target: file or folder.
        partial: what is written first, whose name means nothing to the user.

    Raises:
        UserError: the disk is full, a quota is used up, or something at `partial` or below cannot be written.
    """
    try:
        yield
    except UserError as error:
        if partial is None or str(partial) not in str(error):
            raise
        raise UserError(str(error).replace(str(partial), str(target))) from error
    except OSError as error:
        ours = partial and error.filename is not None and os.fsdecode(error.filename).startswith(str(partial))
        if error.errno not in FULL_DISK and not ours:
            raise
        raise UserError(f"cannot write {target}: {_tell_reason(error, target.parent)}") from error


def remove_tree(path: Path) -> None:
    """Removes a folder with all that is in it, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _tell_reason(error: OSError, folder: Path) -> str:
    reason = error.strerror or str(error)
    reason = f"{reason[:1].lower()}{reason[1:]}"
    if error.errno != errno.ENOSPC:  # a quota may be used up on a disk with room
        return reason
    return f"{reason} ({shutil.disk_usage(_nearest_folder(folder)).free / 2**20:.1f} MiB are free)"


def _nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
