"""Recognition in parts on this machine: the same as in one go, and it goes on where it was ended."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from tests.data.corpus_factory import RATE_HZ, noise
from tests.tasks.conftest import Prepared, is_up_to_date, run
from w2vbert.files import read_json
from w2vbert.tasks import batch_score as task
from w2vbert.tasks.parts import Work, run_parts
from w2vbert.tasks.slurm import Resources


def call(prepared: Prepared, out: Path, *more: object, manifest: Path | None = None) -> tuple[object, ...]:
    manifest = manifest or prepared.manifests / "cuts_train.jsonl.gz"
    return "batch-score", "--model", prepared.model, "--manifest", manifest, "-o", out, *more


def read_texts(path: Path) -> list[tuple[str, str]]:
    return [(line["id"], line["text"]) for line in map(json.loads, path.read_text().splitlines())]


def test_parts_give_what_one_call_gives(prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = call(prepared, tmp_path / "out", "--nj", 2)
    run(*command)
    run("decode", "--model", prepared.model, prepared.manifests / "cuts_train.jsonl.gz", "-o", tmp_path / "once.jsonl")
    assert read_texts(tmp_path / "out" / "hyps.jsonl") == read_texts(tmp_path / "once.jsonl")
    scores = read_json(tmp_path / "out" / "wer.json")["splits"]["train"]
    assert scores["utterances"] == 8 and (tmp_path / "out" / "errs-train.txt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once.jsonl", "out"]
    assert is_up_to_date(caplog, *command) and is_up_to_date(caplog, *command, "--cmd", "slurm")


@pytest.mark.parametrize(("jobs", "chosen", "threads"), [(8, None, "1"), (2, None, "4"), (8, "3", "3"), (1, None, "-")])
def test_parts_that_run_at_once_share_out_the_cores(
    jobs: int, chosen: str | None, threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    work = Work("echo", ("sh", "-c", "echo ${OMP_NUM_THREADS:--}"), tmp_path, jobs)
    place = task.Place("local", jobs, Resources())
    run_parts(task._make_queue(work, place, jobs), work.numbers)
    assert {work.log(part).read_text() for part in work.numbers} == {f"{threads}\n"}


def test_a_killed_call_goes_on_with_what_is_missing(prepared: Prepared, tmp_path: Path) -> None:
    command = [str(word) for word in call(prepared, tmp_path / "out", "--nj", 2)]
    process = subprocess.Popen([sys.executable, "-m", "w2vbert", *command], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (found := list(tmp_path.glob("out.parts-*/hyps.*.jsonl"))):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in found}
    parts = found[0].parent
    kept = parts.with_name("kept")
    kept.mkdir()
    for path in found:
        (kept / path.name).hardlink_to(path)
    run(*command)
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == before
    assert len(read_texts(tmp_path / "out" / "hyps.jsonl")) == 8 and not parts.exists()


def test_a_folder_of_audio_has_no_references(prepared: Prepared, tmp_path: Path) -> None:
    run(*call(prepared, tmp_path / "out", "--nj", 50, manifest=prepared.corpus / "a-test"))
    texts = read_texts(tmp_path / "out" / "hyps.jsonl")
    assert [id for id, _ in texts] == sorted(map(str, (prepared.corpus / "a-test").rglob("*.flac")))
    assert read_json(tmp_path / "out" / "wer.json")["splits"] == {}


def test_a_folder_of_audio_is_listed_as_decode_lists_it(
    prepared: Prepared, tmp_path: Path, fails: Callable[..., str]
) -> None:
    formats = {".aiff": "AIFF", ".au": "AU", ".caf": "CAF", ".sph": "NIST", ".w64": "W64", ".wav": "WAV"}
    for number, (suffix, format) in enumerate(formats.items()):
        path = tmp_path / "in" / f"a{suffix}"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise(0.5, seed=number), RATE_HZ, format=format)
    run(*call(prepared, tmp_path / "out", "--nj", 1, manifest=tmp_path / "in"))
    run("decode", "--model", prepared.model, tmp_path / "in", "-o", tmp_path / "once.jsonl")
    texts = read_texts(tmp_path / "out" / "hyps.jsonl")
    assert texts == read_texts(tmp_path / "once.jsonl") and len(texts) == 6 and all(text for _, text in texts)
    (tmp_path / "in" / "b.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    assert "b.m4a cannot be read: convert it" in fails(*call(prepared, tmp_path / "out", manifest=tmp_path / "in"))


def test_what_cannot_be_read_of_a_folder_has_no_text(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "good.wav", noise(0.5), RATE_HZ)
    soundfile.write(folder / "empty.wav", noise(0.5)[:0], RATE_HZ)
    (folder / "text.wav").write_text("no audio")
    run(*call(prepared, tmp_path / "out", "--nj", 1, manifest=folder))
    texts = {Path(name).stem: text for name, text in read_texts(tmp_path / "out" / "hyps.jsonl")}
    assert texts["good"] is not None and texts["empty"] is None and texts["text"] is None
    assert "text.wav cannot be read or holds no samples" in caplog.text


def test_what_cannot_succeed_is_one_line_and_not_tried_again(
    prepared: Prepared, tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    assert "choose local or slurm" in fails(*call(prepared, out, "--cmd", "pbs"))
    assert "manifest: no such file or folder: " in fails(*call(prepared, out, manifest=tmp_path / "nowhere"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a", "text": "B"}\n')
    assert "bad.jsonl:1: no cut with a recording" in fails(*call(prepared, out, manifest=bad))
    lines = (prepared.manifests / "cuts_dev.jsonl.gz").read_bytes()
    (tmp_path / "twice.jsonl.gz").write_bytes(lines + lines)
    assert "stands twice in" in fails(*call(prepared, out, manifest=tmp_path / "twice.jsonl.gz"))
    message = fails(*call(prepared, out, "--lm", prepared.lm))
    assert "a language model needs a beam search" in message and "its log: " in message
