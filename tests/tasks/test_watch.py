"""`w2vbert decode --watch`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.corpus_factory import noise
from tests.tasks.conftest import Prepared
from tests.tasks.recordings import write
from w2vbert.tasks import watch
from w2vbert.tasks.fusion import LanguageModels
from w2vbert.tasks.recognize_files import Recognizer


@pytest.fixture
def look(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Watches `in` for some looks, before each of which something happens; returns what was decoded."""
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(watch, "SETTLED_SECONDS", 0.0)
    recognizer = Recognizer.load(prepared.model, LanguageModels(), None, [])
    decoded: list[str] = []
    real = watch.Watcher.note

    def note(self: watch.Watcher, path: Path, state: watch.State, result: dict[str, object]) -> None:
        real(self, path, state, result)
        decoded.append(path.name)

    monkeypatch.setattr(watch.Watcher, "note", note)

    def run_looks(*happenings: Callable[[], object]) -> list[str]:
        decoded.clear()
        left = list(happenings)

        def sleep(seconds: float) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        monkeypatch.setattr(time, "sleep", sleep)
        watch.watch_folder(tmp_path / "in", tmp_path / "out", None, lambda: recognizer)
        return list(decoded)

    (tmp_path / "in").mkdir()
    return run_looks


def read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def test_each_recording_is_decoded_once_and_after_a_restart_only_what_is_new(
    look: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write(folder / "a.wav", noise(0.5))
    (folder / "notes.txt").write_text("no audio")
    write(folder / ".hidden.wav", noise(0.5))
    assert look(lambda: write(folder / "sub" / "b.flac", noise(0.7)), lambda: None) == ["a.wav", "b.flac"]
    result = read(tmp_path / "out" / "sub" / "b.flac.json")
    assert result["id"] == str(folder / "sub" / "b.flac") and result["text"]
    assert look(lambda: None) == []
    assert look(lambda: write(folder / "c.wav", noise(0.5)), lambda: (folder / "a.wav").unlink()) == ["c.wav"]
    (tmp_path / "out" / "c.wav.json").unlink()
    assert look() == ["c.wav"]
    assert not [name for name in os.listdir(tmp_path / "out") if "partial" in name]


def test_a_file_that_is_no_audio_is_noted_until_it_changes(look: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "in" / "a.wav").write_bytes(b"")
    assert look(lambda: None) == ["a.wav"]
    assert read(tmp_path / "out" / "a.wav.json")["error"] == f"{tmp_path / 'in' / 'a.wav'} is an empty file"
    assert look(lambda: write(tmp_path / "in" / "a.wav", noise(0.5))) == ["a.wav"]
    assert read(tmp_path / "out" / "a.wav.json")["text"]


def test_a_file_is_not_read_while_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watcher = watch.Watcher(tmp_path, tmp_path / "out")
    path = tmp_path / "a.wav"
    for size in range(1, 4):
        path.write_bytes(b"x" * size)
        assert watcher.find_ready() == {}
        now += watch.SETTLED_SECONDS - 0.1
    assert watcher.find_ready() == {}
    now += 0.2
    assert list(watcher.find_ready()) == [path]


def test_what_is_missing_or_in_use_is_told(fails: Callable[..., str], prepared: Prepared, tmp_path: Path) -> None:
    start = ("decode", "--model", prepared.model, "--watch")
    assert "there is no folder" in fails(*start, tmp_path / "in", "-o", tmp_path / "out")
    (tmp_path / "in").mkdir()
    assert "--watch needs --out" in fails(*start, tmp_path / "in")
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(*start, tmp_path / "in", "-o", tmp_path / "file")
    (tmp_path / "out").mkdir()
    lock = watch.lock_folder(tmp_path / "out", tmp_path / "out")
    assert "another process is writing" in fails(*start, tmp_path / "in", "-o", tmp_path / "out")
    os.close(lock)


def test_a_folder_that_cannot_be_read_is_waited_for(look: Callable[..., list[str]], tmp_path: Path) -> None:
    folder, away = tmp_path / "in", tmp_path / "away"
    write(folder / "a.wav", noise(0.5))
    steps = (lambda: folder.rename(away), lambda: None, lambda: away.rename(folder), lambda: None)
    assert look(*steps) == ["a.wav"]


def test_a_killed_watch_goes_on_and_a_signal_ends_it_well(prepared: Prepared, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.wav", noise(0.5))
    command = [sys.executable, "-m", "w2vbert", "decode", "--model", str(prepared.model)]
    command += ["--watch", str(tmp_path / "in"), "-o", str(tmp_path / "out")]

    def wait_for(name: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        end = time.monotonic() + 120
        while not (tmp_path / "out" / name).exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
        return process

    first = wait_for("a.wav.json")
    first.kill()
    first.communicate(timeout=20)
    before = (tmp_path / "out" / "a.wav.json").stat().st_mtime_ns
    write(tmp_path / "in" / "b.wav", noise(0.6))
    second = wait_for("b.wav.json")
    second.send_signal(signal.SIGTERM)
    _, log = second.communicate(timeout=60)
    assert second.returncode == 0 and "stopped after 1 recordings" in log and "Traceback" not in log
    assert (tmp_path / "out" / "a.wav.json").stat().st_mtime_ns == before
