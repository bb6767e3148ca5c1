"""Stages: stamps that notice every change of config, inputs and outputs, and runs that are not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from w2vbert.config import HOW_ONLY
from w2vbert.errors import UserError
from w2vbert.files import read_json, remove_tree
from w2vbert.stages import STAMP, Call, Step, fingerprint, run_step


@dataclass(frozen=True)
class Config:
    size: int = 1
    folder: Path = Path("a")
    pair: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Nested:
    inner: Config = Config()
    threads: int = field(default=1, metadata=HOW_ONLY)


def test_what_says_only_how_a_step_runs_makes_no_other_step(tmp_path: Path) -> None:
    def value(config: object) -> str:
        return Step("train", tmp_path / "out", {"of": config}, {}).fingerprint

    assert value(Nested(threads=2)) == value(Nested()) != value(Nested(Config(2)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("abc")


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


def test_parts_stay_until_the_whole_is_done_and_nothing_else_of_their_folder_goes(tmp_path: Path) -> None:
    whole = Step("test", tmp_path / "out", Config(), {})
    part = whole.part("a")

    def work(folder: Path) -> None:
        run_step(part, make)
        assert part.is_whole() and not whole.part("b").is_whole()
        assert not Step("test", tmp_path / "out", Config(2), {}).part("a").is_whole(), "of other settings"
        make(folder)
        if not (tmp_path / "mended").exists():
            raise UserError("no luck")

    for _ in range(2):
        with pytest.raises(UserError, match="no luck"), whole.keeping_parts():
            run_step(whole, work)
        assert names(tmp_path) == ["out.parts"] and names(tmp_path / "out.parts") == ["a"]
    for name in ("mended", "out.parts/of the user"):
        (tmp_path / name).touch()
    with whole.keeping_parts():
        assert run_step(whole, work)
    assert names(tmp_path / "out.parts") == ["of the user"] and names(tmp_path / "out") == [STAMP, "sub"]


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


def test_a_link_to_another_step_counts_with_its_outputs(tmp_path: Path) -> None:
    step, inner = Step("all", tmp_path / "out", None, {}), Step("one", tmp_path / "out" / "one", None, {})

    def link(target: str) -> None:
        (step.out / "best").unlink(missing_ok=True)
        (step.out / "best").symlink_to(target)

    run_step(inner, make)
    link("one")
    step.finish()
    assert step.is_done() and read_json(step.out / STAMP)["outputs"] == {}
    link("../out/one")
    assert not step.is_done(), "another target"
    link("one")
    (inner.out / "sub" / "a.txt").unlink()
    assert not step.is_done(), "an output is missing there"
    run_step(inner, make)
    assert step.is_done()
    remove_tree(inner.out)
    assert not step.is_done(), "nothing is there"


def test_long_steps_resume_only_the_same_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not Step("train", out, Config(1), {}).start()
    (out / "checkpoint").mkdir()
    assert Step("train", out, Config(1), {}).start() and (out / "checkpoint").exists()
    assert not Step("train", out, Config(2), {}).start() and not (out / "checkpoint").exists()
    (out / "checkpoint").mkdir()
    assert not Step("train", out, Config(2), {}).start(force=True) and not (out / "checkpoint").exists()


def train(out: Path, size: int, finish: bool = True, force: bool = False) -> bool:
    """A long step whose model tells the settings; whether it went on."""
    step = Step("train", out, size, {})
    went_on = step.start(force)
    (out / "model").write_text(f"model {size}")
    if finish:
        step.finish()
    return went_on


def test_the_run_before_is_kept_until_the_new_one_is_finished(tmp_path: Path) -> None:
    out, old = tmp_path / "out", tmp_path / "out.old"
    train(out, 1)
    run_step(Step("decode", out / "decode", None, {}), make)
    assert not train(out, 2, finish=False)
    assert (old / "model").read_text() == "model 1" and names(old / "decode") == [STAMP, "sub"]
    assert not train(out, 3, finish=False)
    assert (old / "model").read_text() == "model 1" and (out / "model").read_text() == "model 3"
    (out / "checkpoints" / "step-1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out holds an unfinished run of other settings, .*--force"):
        train(out, 2)
    with pytest.raises(UserError, match=r"out holds an unfinished run of other settings, .*--force"):
        train(out, 1)
    assert train(out, 3) and names(tmp_path) == ["out"] and (out / "model").read_text() == "model 3"
    remove_tree(out / "checkpoints")
    assert Step("train", out, 3, {}).is_done()
    assert not train(out, 3, finish=False, force=True) and (old / "model").read_text() == "model 3"


def test_the_run_before_comes_back_with_its_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(out, 1)
    train(out, 2, finish=False)
    assert Step("train", out, 1, {}).start()
    assert (out / "model").read_text() == "model 1" and names(tmp_path) == ["out"]
    train(out, 4, finish=False)
    assert not train(out, 1, finish=False, force=True) and (tmp_path / "out.old" / "model").read_text() == "model 1"


def test_old_folders_of_others_are_never_removed(tmp_path: Path) -> None:
    train(tmp_path / "out", 1)
    (tmp_path / "out.old").mkdir()
    (tmp_path / "out.old" / "home.txt").write_text("precious")
    with pytest.raises(UserError, match="out.old is not empty and was not made by train"):
        train(tmp_path / "out", 2)
    assert names(tmp_path / "out.old") == ["home.txt"] and (tmp_path / "out" / "model").read_text() == "model 1"


DYING = """
import os, signal, sys
from pathlib import Path
from w2vbert.stages import Step
left = int(sys.argv[2])
def dying(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
for name in ("replace", "unlink", "rmdir", "mkdir"):
    setattr(os, name, dying(getattr(os, name)))
step = Step("train", Path(sys.argv[1]), 2, {})
step.start()
(step.out / "model").write_text("model 2")
step.finish()
"""


def test_a_kill_at_any_moment_leaves_a_finished_run(tmp_path: Path) -> None:
    def whole(folder: Path) -> bool:
        outputs = read_json(folder / STAMP)["outputs"] if (folder / STAMP).exists() else {}
        return bool(outputs) and all((folder / name).stat().st_size == size for name, size in outputs.items())

    for moment in range(1, 40):
        folder = tmp_path / str(moment)
        out = folder / "out"
        train(out, 1)
        (out / "checkpoints").mkdir()
        done = subprocess.run([sys.executable, "-c", DYING, str(out), str(moment)], check=False)
        assert whole(out) or whole(folder / "out.old"), f"kill {moment}"
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        train(out, 2)
        assert whole(out) and (out / "model").read_text() == "model 2"
    assert moment > 5 and names(folder) == ["out"]


WAITING = """
import sys, time
from pathlib import Path
from w2vbert.stages import Step, run_step
def work(folder):
    print("ready", flush=True)
    sys.stdin.read()
if sys.argv[2] == "long":
    Step("train", Path(sys.argv[1]), 1, {}).start()
    work(None)
else:
    run_step(Step("train", Path(sys.argv[1]), 1, {}), work)
"""


@pytest.mark.parametrize("kind", ["long", "short"])
def test_two_processes_do_not_write_the_same_folder(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", WAITING, str(out), kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    before = sorted(tmp_path.rglob("*"))
    for size in (1, 2):
        with pytest.raises(UserError, match=f"another process is writing {out}"):
            train(out, size) if kind == "long" else run_step(Step("train", out, size, {}), make)
    assert sorted(tmp_path.rglob("*")) == before
    process.communicate()
    train(out, 2) if kind == "long" else run_step(Step("train", out, 2, {}), make)
    assert names(tmp_path) == ["out"]


FORKING = """
import os, sys, time
from pathlib import Path
from w2vbert.stages import Step
Step("train", Path(sys.argv[1]), 1, {}).start()
if os.fork() == 0:
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
    os._exit(0)
sys.stdin.read()
"""


def test_what_a_killed_process_has_forked_does_not_hold_its_folder(tmp_path: Path) -> None:
    """As the processes that make batches, which see a little later that they are alone."""
    command = [sys.executable, "-c", FORKING, str(tmp_path / "out"), "5"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with pytest.raises(UserError, match="another process is writing"):
        train(tmp_path / "out", 1)
    process.kill()
    process.wait()
    assert train(tmp_path / "out", 1)


def test_a_call_is_known_again_until_something_changes(tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("1")
    step = Step("test", out, None, {"in": source, "none": None})
    assert not Call(out, ["a"]).is_done()
    run_step(step, make)
    assert not Call(out, ["a"]).is_done(), "made by another call, perhaps with other settings"
    Call(out, ["a"]).note()
    assert Call(out, ["a"]).is_done() and not Call(out, ["b"]).is_done() and step.is_done()
    source.write_text("2")
    assert not Call(out, ["a"]).is_done(), "input"
    source.unlink()
    assert not Call(out, ["a"]).is_done(), "input missing"
    source.write_text("1")
    assert Call(out, ["a"]).is_done()
    (out / "sub" / "a.txt").write_text("ab")
    assert not Call(out, ["a"]).is_done(), "output"
    run_step(step, make)
    assert not Call(out, ["a"]).is_done(), "the note went with the folder"
    Call(tmp_path / "absent", ["a"]).note()
    assert names(tmp_path) == ["in.txt", "out"]


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
