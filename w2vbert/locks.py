"""Folders in which this process works, and no other may."""

import os
from pathlib import Path

from w2vbert.files import lock_folder, real_path

_held: dict[Path, tuple[int, int]] = {}
"""Inode of each folder, and the descriptor that holds the lock."""


def hold(folder: Path) -> None:
    """Keeps other processes out of a folder until it is let go or this one ends; the first of a run acts for all.

    Raises:
        UserError: another process works there.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    key, inode = real_path(folder), os.stat(folder).st_ino
    if key in _held and _held[key][0] == inode:
        return
    descriptor = lock_folder(key, folder)
    if key in _held:
        os.close(_held[key][1])
    _held[key] = inode, descriptor


def let_go(folder: Path) -> None:
    """Lets others into a folder that is held, or was not."""
    _, descriptor = _held.pop(real_path(folder), (0, None))
    if descriptor is not None:
        os.close(descriptor)


def _forget() -> None:
    """In a forked process, which may live a little longer than this one: the lock must end with this one."""
    for _, descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
