"""`w2vbert decode` of audio."""

import errno
import gzip
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import Recording

from tests.data.corpus_factory import RATE_HZ, noise
from tests.tasks.conftest import Prepared, kill, run
from tests.tasks.recordings import cut_of, damage, write, write_cuts, write_recordings
from w2vbert import cli
from w2vbert.data.features import normalize
from w2vbert.data.pieces import CuttingConfig, cut
from w2vbert.errors import UserError
from w2vbert.tasks import audio_sources
from w2vbert.tasks import recognize_files as task
from w2vbert.tasks.audio_sources import Sources
from w2vbert.tasks.fusion import LanguageModels
from w2vbert.tasks.merge import merge_parts
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
    reasons = ["is an empty file", "", "cannot be decoded", "shorter than 0.1 s", "not finite", "no samples"]
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
    [  # mtime: the ids of the tests hold the bytes, and must be the same in all processes that collect them
        ("a.jsonl.gz", b"not gzip"),
        ("a.jsonl.gz", gzip.compress(b'{"id": "x"}\n', mtime=0)),
        ("a.jsonl.gz", gzip.compress(b"{}{", mtime=0)),
        ("a.jsonl.gz", gzip.compress(b'{"id": "x"}\n' * 99, mtime=0)[:-12]),
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


def test_standard_input_and_patterns(
    decode: Callable[..., dict[str, Any]],
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    files = write_recordings(tmp_path / "in")
    alone = decode(*files)
    with files[1].open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        found = decode(files[0], "-", files[2])
    assert list(found) == [str(files[0]), "-", str(files[2])] and found["-"]["text"] == alone[str(files[1])]["text"]
    assert decode(tmp_path / "in" / "[ab].*") == {str(file): alone[str(file)] for file in files[:2]}
    assert decode(f"{tmp_path}/**/*.flac").keys() == {str(files[1]), str(files[7])}
    assert decode(f"{tmp_path}/i?").keys() == alone.keys()
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input (-) is closed" in fails("decode", "--model", prepared.model, "-")


def test_files_of_foreign_formats_are_named_not_passed_over(
    decode: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    good = write(tmp_path / "in" / "a.aiff", noise(0.5))
    (tmp_path / "in" / "b.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    found = decode(tmp_path / "in")
    assert found[str(good)]["text"] and "convert .m4a" in found[str(tmp_path / "in" / "b.m4a")]["error"]


def test_a_silent_recording_has_no_words_and_is_no_failure(
    decode: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    file = write(tmp_path / "a.wav", np.zeros(3 * RATE_HZ, dtype=np.float32))
    line = {"id": str(file), "text": "", "confidence": 0.0, "seconds": 3.0, "words": []}
    assert decode(file, "--strict") == {str(file): line}


def test_strict_ends_with_one_where_a_recording_failed(prepared: Prepared, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.wav", noise(0.5)), write(tmp_path / "b.wav", noise(0.01))
    arguments = ["decode", "--model", str(prepared.model), str(good), str(bad), "-o", str(tmp_path / "out.jsonl")]
    assert cli.main(arguments) == 0 and cli.main([*arguments, "--strict"]) == 1
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] is None for line in lines] == [False, True] and "shorter than 0.1 s" in lines[1]["error"]


def test_one_channel(decode: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    left, right = noise(0.6, seed=5), noise(0.6, seed=6)
    both = write(tmp_path / "both.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    texts = [
        decode(file, *more)[str(file)]["text"]
        for file, more in (
            (write(tmp_path / "l.wav", left, subtype="FLOAT"), ()),
            (write(tmp_path / "r.wav", right, subtype="FLOAT"), ()),
            (both, ("--channel", 0)),
            (both, ("--channel", 1)),
        )
    ]
    assert texts[:2] == texts[2:] and texts[0] != texts[1]


def test_parts_of_the_recordings_make_the_whole(
    decode: Callable[..., dict[str, Any]], prepared: Prepared, tmp_path: Path
) -> None:
    write_recordings(tmp_path / "in")
    whole = decode(tmp_path / "in")
    for part in (1, 2, 3):
        run("decode", "--model", prepared.model, tmp_path / "in", "-o", tmp_path / "x.jsonl", "--shard", f"{part}/3")
    merge_parts([tmp_path / f"x.{part}-of-3.jsonl" for part in (1, 2, 3)], tmp_path / "x.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(whole)
    assert [line["text"] for line in lines] == [line["text"] for line in whole.values()]


def test_a_manifest_is_read_as_it_is_gone_through(tmp_path: Path) -> None:
    recording = Recording.from_file(write(tmp_path / "a.wav", noise(0.5)))
    manifest = tmp_path / "recordings.jsonl.gz"
    with gzip.open(manifest, "wt") as file:
        for number in range(20_000):
            file.write(json.dumps(recording.to_dict() | {"id": f"r{number:05d}"}) + "\n")
    sources = Sources([manifest])
    assert len(sources) == 20_000
    begin = time.monotonic()
    first = [source.id for source, _ in zip(sources, range(3), strict=False)]
    assert first == ["r00000", "r00001", "r00002"] and time.monotonic() - begin < 0.5


def test_a_long_cut_gives_what_its_audio_gives(
    decode: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = np.zeros(8000, dtype=np.float32)
    parts = [np.concatenate([noise(1.5, seed=i), silence]) for i in range(10)]
    file = write(tmp_path / "long.flac", np.concatenate(parts))
    monkeypatch.setattr(audio_sources, "BLOCK_SECONDS", 0.37)  # windows of 3.7 s
    cut_manifest = write_cuts(tmp_path / "cuts.jsonl", [cut_of(file)])
    by_cut, by_file = decode(cut_manifest, "--set", "max_seconds=5")["long"], decode(file, "--set", "max_seconds=5")
    expected = by_file[str(file)] | {"id": "long"}
    assert by_cut == expected and len(expected["segments"]) == 10
    ends = [end for word in expected["words"] for end in (word["start"], word["end"])]
    assert ends == sorted(ends) and ends[-1] <= 20.0


def test_windows_without_pauses_are_joined(decode: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", noise(20.0))
    line = decode(file, "--set", "max_seconds=6", "--set", "cutting.overlap_seconds=1.5")[str(file)]
    assert len(line["segments"]) > 3 and line["text"] == " ".join(word["word"] for word in line["words"])
    assert [part["start"] for part in line["segments"]] == sorted(part["start"] for part in line["segments"])


def test_nbest_lists_hold_scores(decode: Callable[..., dict[str, Any]], prepared: Prepared, tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", noise(1.5))
    search = [f"--set=search.{setting}" for setting in ("method=beam", "beam_size=3", "nbest=3")]
    line = decode(file, *search, "--lm", prepared.lm)[str(file)]
    assert 1 < len(line["nbest"]) <= 3 and line["nbest"][0]["text"] == line["text"]
    for entry in line["nbest"]:
        total = entry["model_score"] + 0.3 * entry["scores"]["ngram"]
        assert entry["score"] == pytest.approx(total, abs=1e-3) and entry["tokens"] > 0


@pytest.mark.parametrize("name", ["x.ctm", "x.srt", "x.txt", "x.jsonl.gz", "folder"])
def test_other_formats(name: str, prepared: Prepared, tmp_path: Path) -> None:
    file = write(tmp_path / "a b.wav", noise(1.0))
    more = ("--format", "srt") if name == "folder" else ()
    run("decode", "--model", prepared.model, file, "-o", tmp_path / name, *more)
    found = tmp_path / "folder" / "a_b.srt" if name == "folder" else tmp_path / name
    text = gzip.decompress(found.read_bytes()).decode() if name.endswith("gz") else found.read_text()
    assert text.startswith({"x.ctm": "a_b 1 ", "x.txt": "a_b ", "x.jsonl.gz": '{"id": '}.get(name, "1\n00:00:00,"))


def test_options_that_do_not_go_together(fails: Callable[..., str], prepared: Prepared, tmp_path: Path) -> None:
    audio = write(tmp_path / "a.wav", noise(0.5))
    start = ("decode", "--model", prepared.model)
    splits = (*start, "--data", prepared.data, "--split", "dev", "-o", tmp_path / "out")
    for more in (("--shard", "1/2"), ("--strict",), ("--format", "ctm"), ("--channel", "0")):
        assert f"{more[0]} goes with INPUT" in fails(*splits, *more)
    assert "write I/N" in fails(*start, audio, "--shard", "3/2")
    assert "there are jsonl, ctm" in fails(*start, audio, "--format", "doc")
    assert "takes the subtitles of one recording, not of 2" in fails(*start, audio, audio, "-o", tmp_path / "x.srt")
    assert "no file matches" in fails(*start, tmp_path / "*.flac")
    assert "can be read once" in fails(*start, "-", "-")
