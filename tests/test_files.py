"""Files and folders: all or nothing on disk, and one clear line where they cannot be written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from w2vbert.errors import UserError
from w2vbert.files import atomic_dir, atomic_file, check_space, check_writable, read_json, write_json


@dataclass(frozen=True)
class Config:
    size: int = 1
    folder: Path = Path("a")
    pair: tuple[int, int] = (1, 2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def quota_used_up() -> OSError:
    return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def make(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("abc")


def test_atomic_file_keeps_suffixes_and_makes_parents(tmp_path: Path) -> None:
    target = tmp_path / "new" / "cuts.jsonl.gz"
    with atomic_file(target) as partial:
        assert partial.name.endswith(".jsonl.gz") and partial.parent == target.parent
        partial.write_text("x")
        assert not target.exists()
    assert target.read_text() == "x" and names(target.parent) == ["cuts.jsonl.gz"]


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    message = f"^cannot write {target}: no space left on device"
    with pytest.raises(UserError, match=message), atomic_file(target) as partial:
        partial.write_text("half")
        raise disk_full()
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_quota_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/out: disk quota exceeded$"):
        with atomic_dir(tmp_path / "out") as folder:
            (folder / "half").write_text("half")
            raise quota_used_up()
    assert names(tmp_path) == []


def test_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_dir(target) as folder:
        make(folder)
    message = f"^cannot write {target}: no space left on device"
    with pytest.raises(UserError, match=message), atomic_dir(target) as folder:
        (folder / "half").write_text("half")
        raise disk_full()
    assert names(target) == ["sub"] and names(tmp_path) == ["out"]


def test_atomic_dir_replaces_the_older_folder_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_dir(tmp_path / "link") as folder:
        make(folder)
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "real") == ["sub"]
    assert names(tmp_path) == ["link", "real"]


def test_atomic_dir_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="is a file"), atomic_dir(tmp_path / "out"):
        pass


def test_leftovers_of_a_killed_process_go_at_the_next_try(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from w2vbert.files import atomic_dir\n"
        "with atomic_dir(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "out").exists() and names(tmp_path) != []
    with atomic_dir(tmp_path / "out") as folder:
        make(folder)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["sub"]


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"config": Config(), "é": [1.5, None]})
    assert read_json(tmp_path / "a.json") == {"config": {"size": 1, "folder": "a", "pair": [1, 2]}, "é": [1.5, None]}
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_a_kill_between_the_renamings_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".old.out").mkdir()
    (tmp_path / ".old.out" / "a.txt").write_text("old")
    with pytest.raises(UserError, match="no luck"), atomic_dir(tmp_path / "out"):
        raise UserError("no luck")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a.txt"]


def test_messages_name_the_path_that_the_user_knows(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, atomic_dir(tmp_path / "out") as folder:
        read_json(folder / "a.json")
    assert str(caught.value) == f"no such file: {tmp_path}/out/a.json"
    with pytest.raises(UserError) as caught, atomic_dir(tmp_path / "out") as folder:
        (folder / "a" / "b").write_text("x")
    assert str(caught.value) == f"cannot write {tmp_path}/out: no such file or directory"
    with pytest.raises(FileNotFoundError) as missing, atomic_dir(tmp_path / "out"):
        (tmp_path / "input").read_text()
    assert missing.value.filename == str(tmp_path / "input") and names(tmp_path) == []


def test_a_file_that_grows_too_large_is_told_with_its_path(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=f"^cannot write {tmp_path}/a.txt: file too large"):
            with atomic_file(tmp_path / "a.txt") as partial:
                partial.write_bytes(bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(tmp_path) == []


def test_what_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "a.txt")
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write .*/file/a.txt: not a directory"):
        check_writable(tmp_path / "file" / "a.txt")
    with pytest.raises(UserError, match="file name too long"):
        check_writable(tmp_path / ("n" * 250))
    with pytest.raises(UserError, match="cannot write /proc/a.txt"):
        check_writable(Path("/proc/a.txt"))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((UserError, OSError)), atomic_file(tmp_path / "loop" / "a.txt") as partial:
        partial.write_text("x")


def test_space_is_asked_for_before_the_work(tmp_path: Path) -> None:
    check_space(tmp_path / "new", 1.0)
    with pytest.raises(UserError, match=r"out will need about 9\d+ MiB, but [\d.]+ MiB are free there"):
        check_space(tmp_path / "out", 1e18)
