"""Curves of several runs in one picture."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tasks.conftest import run
from w2vbert.training.metrics import MetricsWriter


def write_run(folder: Path, scale: float, validated: tuple[str, ...]) -> Path:
    writer = MetricsWriter(folder, 0)
    for step in range(1, 9):
        writer.write(step, "train", {"loss": scale / step, "rate": 0.1 * step})
        writer.write(step, "dev", {name: scale / step for name in validated})
    writer.close()
    return folder


def size_of(picture: Path) -> tuple[int, int]:
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "a" / "pretrain", 1.0, ("loss", "wer")),
        write_run(tmp_path / "b" / "pretrain", 2.0, ("wer", "other", "loss")),
    ]


def test_what_all_runs_have_validated_is_drawn(runs: list[Path], tmp_path: Path) -> None:
    run("plot", *runs, "-o", tmp_path / "both.png")
    run("plot", *runs, "-o", tmp_path / "one.png", "--metric", "rate")
    wide, narrow = size_of(tmp_path / "both.png"), size_of(tmp_path / "one.png")
    assert wide[0] == 2 * narrow[0] and wide[1] == narrow[1]
    run("plot", runs[0], "-o", tmp_path / "one.png")  # a picture may be drawn anew
    assert size_of(tmp_path / "one.png") == wide


def test_runs_keep_their_names_apart(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("w2vbert.tasks.plot.draw_runs", lambda named, keys, out: seen.append([*named, *keys]))
    run("plot", *runs, "-o", tmp_path / "both.png")
    assert seen == [["a/pretrain", "b/pretrain", "loss", "wer"]]


def test_what_cannot_be_drawn_is_said(runs: list[Path], tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "x.png"
    assert f"{tmp_path} has no metrics.jsonl" in fails("plot", runs[0], tmp_path, "-o", out)
    assert "no run has the metric los; there are loss, other, rate, wer" in fails(
        "plot", *runs, "-o", out, "--metric", "los"
    )
    assert "must be a PNG file" in fails("plot", *runs, "-o", tmp_path / "x.txt")
    third = write_run(tmp_path / "c", 1.0, ("else",))
    assert "validated nothing in common: name one with --metric" in fails("plot", runs[0], third, "-o", out)
    assert not out.exists()
