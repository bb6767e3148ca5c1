"""Stages: all or nothing on disk, and stamps that notice every change of config, inputs and outputs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from w2vbert.errors import UserError
from w2vbert.stages import STAMP, Step, atomic_dir, atomic_file, fingerprint, read_json, run_step, write_json


@dataclass(frozen=True)
class Config:
    size: int = 1
    folder: Path = Path("a")
    pair: tuple[int, int] = (1, 2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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
    with pytest.raises(OSError, match="No space left"), atomic_file(target) as partial:
        partial.write_text("half")
        raise disk_full()
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_dir(target) as folder:
        make(folder)
    with pytest.raises(OSError, match="No space left"), atomic_dir(target) as folder:
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
        "import os, signal, sys; from pathlib import Path; from w2vbert.stages import atomic_dir\n"
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


def test_fingerprint_follows_config_and_content(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "data" / "sub"
    folder.mkdir(parents=True)
    file.write_text("abc")
    (folder / "x").write_text("x")

    def value(config: object = Config(), **extra: Path | None) -> str:
        return fingerprint(config, {"file": file, "folder": tmp_path / "data", **extra})

    first = value()
    assert value() == first and value({"size": 1, "folder": "a", "pair": [1, 2]}) == first
    assert value(Config(2)) != first and value(lm=None) != first and value(lm=file) != value(lm=None)
    os.utime(file, (1, 1))
    assert value() == first, "the content of a small file counts, not its time"
    (folder / "y").write_text("")
    assert value() != first
    (folder / "y").unlink()
    file.write_text("abd")
    assert value() != first
    with pytest.raises(UserError, match="lm: no such file or folder"):
        value(lm=tmp_path / "none")


def test_run_step_works_once_and_again_after_each_kind_of_change(tmp_path: Path) -> None:
    source, out, runs = tmp_path / "in.txt", tmp_path / "out", []
    source.write_text("1")

    def work(folder: Path) -> None:
        runs.append(1)
        make(folder)

    def run(size: int = 1, force: bool = False) -> bool:
        return run_step(Step("test", out, Config(size), {"in": source}), work, force)

    assert run() and not run() and len(runs) == 1
    assert run(2) and not run(2), "config"
    source.write_text("2")
    assert run(2) and not run(2), "input"
    (out / "sub" / "a.txt").write_text("ab")
    assert run(2) and not run(2), "output of another size"
    (out / "sub" / "a.txt").unlink()
    assert run(2) and not run(2), "output missing"
    (out / STAMP).write_text("{")
    assert run(2) and not run(2), "damaged stamp"
    assert run(2, force=True)
    assert names(out) == [STAMP, "sub"] and read_json(out / STAMP)["outputs"] == {"sub/a.txt": 3}


def test_a_stamped_folder_counts_by_its_stamp(tmp_path: Path) -> None:
    def chain(size: int) -> str:
        run_step(Step("one", tmp_path / "one", Config(size), {}), make)
        return Step("two", tmp_path / "two", None, {"one": tmp_path / "one"}).fingerprint

    first = chain(1)
    (tmp_path / "one" / "sub" / "notes").write_text("not an output")
    assert chain(1) == first and chain(2) != first


def test_logs_and_folders_with_their_own_stamp_are_no_outputs(tmp_path: Path) -> None:
    step = Step("train", tmp_path / "out", None, {})
    assert not step.start()
    (step.out / "model").write_text("m")
    (step.out / "train.log").write_text("1")
    step.finish()
    run_step(Step("decode", step.out / "decode", None, {}), make)
    (step.out / "train.log").write_text("12")
    assert step.is_done() and read_json(step.out / STAMP)["outputs"] == {"model": 1}


def test_long_steps_resume_only_the_same_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not Step("train", out, Config(1), {}).start()
    (out / "checkpoint").mkdir()
    assert Step("train", out, Config(1), {}).start() and (out / "checkpoint").exists()
    assert not Step("train", out, Config(2), {}).start() and not (out / "checkpoint").exists()
    (out / "checkpoint").mkdir()
    assert not Step("train", out, Config(2), {}).start(force=True) and not (out / "checkpoint").exists()


def test_folders_of_others_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "home.txt").write_text("precious")
    step = Step("train", tmp_path, None, {})
    for attempt in (lambda: run_step(step, make, force=True), lambda: step.start(force=True)):
        with pytest.raises(UserError, match="was not made by train"):
            attempt()
    assert names(tmp_path) == ["home.txt"]


def test_folders_of_other_steps_and_inputs_are_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "source"
    run_step(Step("one", source, 1, {}), make)
    before = names(source)
    for step in (
        Step("two", source, 1, {}),
        Step("one", source, 2, {"data": source}),
        Step("one", tmp_path, 2, {"data": source}),
    ):
        for attempt in (lambda step=step: run_step(step, make, force=True), lambda step=step: step.start(True)):
            with pytest.raises(UserError, match="name another folder"):
                attempt()
    assert names(source) == before
