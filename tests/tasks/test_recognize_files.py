"""`w2vbert decode` of audio."""

import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.corpus_factory import RATE_HZ, noise
from tests.tasks.conftest import Prepared, kill, run
from tests.tasks.recordings import cut_of, damage, write, write_cuts, write_recordings
from w2vbert.data.features import normalize
from w2vbert.data.pieces import CuttingConfig, cut
from w2vbert.errors import UserError
from w2vbert.tasks import recognize_files as task
from w2vbert.tasks.fusion import LanguageModels
from w2vbert.tasks.outputs import Output


@pytest.fixture
def decode(prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Decodes to a file and returns its objects by id, in their order; the terminal must say the same."""

    def run_decode(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        out = tmp_path / "decoded.jsonl"
        run("decode", "--model", prepared.model, "-o", out, *arguments)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        shown = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert shown == [[line["id"], line["text"]] for line in lines if line["text"] is not None]
        assert all(0.0 <= line["confidence"] <= 1.0 for line in lines)
        return {line["id"]: line for line in lines}

    return run_decode


def test_every_format_rate_and_channel_count_in_the_order_of_the_inputs(
    decode: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    files = write_recordings(tmp_path / "in")
    found = decode(tmp_path / "in")
    assert list(found) == [str(file) for file in files] and all(line["text"] for line in found.values())
    assert list(decode(*reversed(files))) == [str(file) for file in reversed(files)]
    (tmp_path / "in" / "notes.txt").write_text("not audio")
    assert decode(tmp_path / "in") == found
    assert decode(tmp_path / "in", "--set", "batch_seconds=1.3").keys() == found.keys()


def test_what_is_decoded_is_the_mean_of_the_channels(decode: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    both = noise(0.6, seed=5)
    file = write(tmp_path / "stereo.wav", np.stack([both, both], axis=1), subtype="FLOAT")
    single = write(tmp_path / "mono.wav", both, subtype="FLOAT")
    assert decode(file)[str(file)]["text"] == decode(single)[str(single)]["text"]


def test_broken_files_are_named_and_counted_and_the_rest_is_decoded(
    decode: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = write_recordings(tmp_path / "good"), damage(tmp_path / "bad")
    alone = decode(*good)
    caplog.clear()
    found = decode(bad[0], good[0], *bad[1:3], *good[1:], *bad[3:])
    assert list(found) == [str(f) for f in (bad[0], good[0], *bad[1:3], *good[1:], *bad[3:])]
    assert [id for id, line in found.items() if line["text"] is None] == [str(file) for file in bad]
    assert {id: line for id, line in found.items() if line["text"] is not None} == alone
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == len(bad) + 1 and warnings[-1] == "6 of 14 recordings could not be decoded"
    reasons = ["cannot be decoded", "", "cannot be decoded", "shorter than 0.1 s", "not finite", "no samples"]
    for file, warning, reason in zip(bad, warnings, reasons, strict=False):
        assert str(file) in warning and reason in warning


def test_nothing_is_written_when_no_file_can_be_used(
    fails: Callable[..., str], prepared: Prepared, tmp_path: Path
) -> None:
    damage(tmp_path / "bad")
    error = fails("decode", "--model", prepared.model, tmp_path / "bad", "-o", tmp_path / "out.jsonl")
    assert error == "error: none of 6 recordings could be decoded" and os.listdir(tmp_path) == ["bad"]


def test_a_manifest_of_cuts(decode: Callable[..., dict[str, Any]], prepared: Prepared, tmp_path: Path) -> None:
    long, slow = write(tmp_path / "long.wav", noise(2.0)), write(tmp_path / "slow.wav", noise(0.9, 8000), 8000)
    gone, nan = write(tmp_path / "gone.wav", noise(0.5)), write(tmp_path / "nan.wav", noise(0.5), subtype="FLOAT")
    part = cut_of(long).truncate(offset=0.5, duration=0.7, preserve_id=True)
    short = replace(cut_of(long), id="short", duration=0.05)
    manifest = write_cuts(tmp_path / "cuts.jsonl.gz", [cut_of(slow), cut_of(gone), part, short, cut_of(nan)])
    gone.unlink()
    write(nan, np.full(8000, np.nan, dtype=np.float32), subtype="FLOAT")
    found = decode(manifest)
    assert list(found) == ["slow", "gone", "long", "short", "nan"]
    assert [id for id, line in found.items() if line["text"] is None] == ["gone", "short", "nan"]
    excerpt = write(tmp_path / "part.wav", noise(2.0)[8000:19200])
    assert decode(excerpt)[str(excerpt)]["text"] == found["long"]["text"]
    # The manifests that the preparation leaves serve too, with features or without.
    plain, stored = (decode(folder / "cuts_test.jsonl.gz") for folder in (prepared.manifests, prepared.data))
    assert plain == stored and len(plain) == 2 and all(line["text"] for line in plain.values())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", b"not gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"id": "x"}\n')),
        ("a.jsonl.gz", gzip.compress(b"{}{")),
        ("a.jsonl.gz", gzip.compress(b'{"id": "x"}\n' * 99)[:-12]),
        ("a.jsonl", b'{"id": "x", "text": "RESULT"}\n'),
        ("a.jsonl", b"[1]\n"),
        ("a.jsonl", b""),
    ],
)
def test_manifests_that_are_none(
    name: str, content: bytes, fails: Callable[..., str], prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name} is no manifest of cuts" in fails("decode", "--model", prepared.model, tmp_path / name)
    assert "is no manifest of cuts" in fails(
        "decode", "--model", prepared.model, prepared.manifests / "supervisions_dev.jsonl.gz"
    )


def test_a_long_recording_is_decoded_in_pieces(
    decode: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = np.zeros(8000, dtype=np.float32)
    parts = [np.concatenate([noise(1.5, seed=i), silence]) for i in range(100)]
    long = write(tmp_path / "long.flac", np.concatenate(parts))  # 200 s
    before, after = write(tmp_path / "before.wav", noise(0.5)), write(tmp_path / "after.wav", noise(0.6))
    read: list[int] = []

    def note(features: torch.Tensor) -> torch.Tensor:
        read.append(len(features))
        return normalize(features)

    monkeypatch.setattr(task, "normalize", note)
    found = decode(before, long, after, "--set", "max_seconds=10")
    assert list(found) == [str(before), str(long), str(after)]
    assert read == [50, *[150] * 100, 60]  # what zeros part is decoded as it is alone
    assert len(found[str(long)]["text"]) > 50 * len(found[str(before)]["text"])


def test_a_remnant_shorter_than_the_receptive_field_is_left_out(
    decode: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    samples = noise(2.01)
    samples[int(1.85 * RATE_HZ) :] *= 1e-3  # the pause is at the end
    file = write(tmp_path / "a.wav", samples)
    pieces = list(cut([torch.from_numpy(samples)], RATE_HZ, 2.0, CuttingConfig()))
    assert len(pieces) == 2 and len(pieces[1].samples) < 0.1 * RATE_HZ
    assert decode(file, "--set", "max_seconds=2")[str(file)]["text"]


def test_memory_is_bounded_by_stretches(
    decode: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_recordings(tmp_path / "in")
    whole = decode(*files)
    monkeypatch.setattr(task, "READ_AHEAD_SECONDS", 1.0)
    stretches: list[int] = []
    real = task._recognize_stretch

    def note(stretch: list[Any], *rest: Any) -> Any:
        stretches.append(len(stretch))
        return real(stretch, *rest)

    monkeypatch.setattr(task, "_recognize_stretch", note)
    assert decode(*files).keys() == whole.keys() and len(stretches) > 2 and sum(stretches) == 2 * len(files)


def test_the_language_model_counts(decode: Callable[..., dict[str, Any]], prepared: Prepared, tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", noise(1.5))
    beam = ("--set", "search.method=beam", "--set", "search.beam_size=3")
    plain = decode(file, *beam)[str(file)]["text"]
    fused = decode(file, *beam, "--lm", prepared.lm, "--set", "fusion.ngram=2")[str(file)]["text"]
    assert plain != fused
    assert decode(file, *beam, "--lm", prepared.lm, "--set", "fusion.ngram=0")[str(file)]["text"] == plain


def test_a_full_disk_leaves_the_old_results(
    prepared: Prepared, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, out = write(tmp_path / "a.wav", noise(0.5)), tmp_path / "out.jsonl"
    run("decode", "--model", prepared.model, audio, "-o", out)
    before, text = sorted(os.listdir(tmp_path)), out.read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=f"^cannot write {out}: no space left on device"):
        task.decode_files(prepared.model, [audio], Output(out), LanguageModels(), None, [])
    assert sorted(os.listdir(tmp_path)) == before and out.read_text() == text


def test_where_nothing_can_be_written_nothing_is_decoded(
    prepared: Prepared, tmp_path: Path, fails: Callable[..., str]
) -> None:
    audio = write(tmp_path / "a.wav", noise(0.5))
    for out in (audio / "out.jsonl", tmp_path / f"{'n' * 244}.jsonl", Path("/proc/out.jsonl")):
        assert f"cannot write {out}: " in fails("decode", "--model", prepared.model, audio, "-o", out)


def test_a_name_never_breaks_a_line(prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = write(tmp_path / "a\tb\nc.wav", noise(0.5))
    run("decode", "--model", prepared.model, audio)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path}/a\\tb\\nc.wav\t")


def test_killed_while_writing_lines_leaves_no_half_file(prepared: Prepared, tmp_path: Path) -> None:
    audio = write(tmp_path / "a.wav", noise(0.5))
    kill("out.jsonl", 1, "decode", "--model", prepared.model, audio, "-o", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    run("decode", "--model", prepared.model, audio, "-o", tmp_path / "out.jsonl")
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "out.jsonl"]


def test_only_earlier_results_are_written_over(fails: Callable[..., str], prepared: Prepared, tmp_path: Path) -> None:
    audio = write(tmp_path / "a.wav", noise(1.0))
    before = audio.read_bytes()
    start = ("decode", "--model", prepared.model, audio, "-o", audio)
    assert "does not tell its format" in fails(*start)
    for name in ("jsonl", "ctm", "txt", "lhotse", "srt"):
        assert "file" in fails(*start, "--format", name)
    assert audio.read_bytes() == before
    run("decode", "--model", prepared.model, audio, "-o", tmp_path / "a.jsonl")
    run("decode", "--model", prepared.model, audio, "-o", tmp_path / "a.jsonl")


def test_a_reader_that_leaves_does_not_stop_the_work(prepared: Prepared, tmp_path: Path) -> None:
    recordings = write_recordings(tmp_path / "in")
    command = [sys.executable, "-m", "w2vbert", "decode", "--model", str(prepared.model), str(tmp_path / "in")]
    process = subprocess.Popen([*command, "-o", str(tmp_path / "out.jsonl")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(recordings)


def test_names_need_not_be_unicode(prepared: Prepared, tmp_path: Path) -> None:
    audio = write(tmp_path / "a.wav", noise(1.0))
    odd = tmp_path / os.fsdecode(b"\xff.wav")
    audio.rename(odd)
    run("decode", "--model", prepared.model, tmp_path, "-o", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["id"] == str(odd)
