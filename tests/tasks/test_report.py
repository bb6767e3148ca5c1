"""The table."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.conftest import run
from w2vbert.errors import UserError
from w2vbert.files import write_json
from w2vbert.tasks.curve import earlier_hours, group_alike
from w2vbert.tasks.report import write_report


def write_result(folder: Path, wer: dict[str, float], history: dict[str, Any], words: int = 200) -> Path:
    splits = {
        split: {
            "wer": rate,
            "interval": [rate - 1.5, rate + 2.5],
            "resampled": "speakers",
            "insertions": 1,
            "deletions": 2,
            "substitutions": 3,
            "words": words,
        }
        for split, rate in wer.items()
    }
    write_json(folder / "wer.json", {"splits": splits, "history": history})
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    """Two rows as options."""
    scratch = {"scratch": {"audio_hours": 2.0, "minutes": 3.25}}
    tuned = {"pre": {"audio_hours": 10.0, "minutes": 4.0}, "tuned": {"audio_hours": 2.06, "minutes": 3.0}}
    a = write_result(tmp_path / "a", {"dev": 12.3456, "test": 20.0}, scratch)
    b = write_result(tmp_path / "b", {"test": 10.04, "dev": 5.06}, tuned)
    return ["--row", f"from scratch={a}", "--row", f"pre-trained + LM={b}"]


def test_the_table(rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("report", tmp_path / "new" / "RESULTS.md", *rows)
    text = (tmp_path / "new" / "RESULTS.md").read_text()
    assert capsys.readouterr().out == text
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert table[0] == ["", "WER dev (%)", "WER test (%)", "hours of audio seen", "minutes"]
    counts = "(1 ins, 2 del, 3 sub / 200)"
    assert table[2:] == [
        ["from scratch", f"**12.3** [10.8, 14.8] {counts}", f"**20.0** [18.5, 22.5] {counts}", "2.0", "3.2"],
        ["pre-trained + LM", f"**5.1** [3.6, 7.6] {counts}", f"**10.0** [8.5, 12.5] {counts}", "12.1", "7.0"],
    ]
    assert "95 % interval (by speakers)" in text
    run("report", tmp_path / "new" / "RESULTS.md", *rows[:2])
    assert "pre-trained + LM" not in (tmp_path / "new" / "RESULTS.md").read_text()


def test_a_model_in_two_rows_is_told(rows: list[str], tmp_path: Path) -> None:
    run("report", tmp_path / "RESULTS.md", *rows, "--row", f"student={tmp_path / 'b'}")
    told = [line for line in (tmp_path / "RESULTS.md").read_text().splitlines() if " is the model of " in line]
    assert [line.partition(":")[0] for line in told] == ["'student' is the model of 'pre-trained + LM'"]
    run("report", tmp_path / "RESULTS.md", *rows)
    assert "is the model of" not in (tmp_path / "RESULTS.md").read_text()


def test_a_picture_of_wer_against_hours_of_pretraining(rows: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    run("report", tmp_path / "RESULTS.md", *rows, "--curve", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_seeds_of_one_length_of_pretraining_share_a_mean() -> None:
    points = [(9.91, 5.0), (0.0, 30.0), (9.89, 7.0), (39.4, 4.0), (0.0, 20.0), (40.1, 3.0)]
    groups = [[(0.0, 20.0), (0.0, 30.0)], [(9.89, 7.0), (9.91, 5.0)], [(39.4, 4.0), (40.1, 3.0)]]
    assert group_alike(points) == groups


def test_nothing_of_the_users_is_written_over(rows: list[str], tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "notes.png").write_text("precious")
    assert "is no PNG picture" in fails("report", tmp_path / "R.md", *rows, "--curve", tmp_path / "notes.png")
    assert "must be a PNG file" in fails("report", tmp_path / "R.md", *rows, "--curve", tmp_path / "c.pdf")
    assert "not written by `w2vbert report`" in fails("report", tmp_path / "notes.txt", *rows)
    assert "cannot write" in fails("report", tmp_path / "R.md", *rows, "--curve", tmp_path / "notes.txt" / "c.png")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "notes.png", "notes.txt"]
    run("report", tmp_path / "R.md", "--row", f"a|b={tmp_path / 'a'}")
    assert "\n| a/b |" in (tmp_path / "R.md").read_text()


def test_hours_before_the_last_training() -> None:
    history = {"pre": {"audio_hours": 10.0}, "teacher": {"audio_hours": 2.5}, "student": {"audio_hours": 7.0}}
    assert earlier_hours({"history": history}) == 12.5
    assert earlier_hours({"history": {"scratch": {"audio_hours": 3.0}}}) == 0.0


def test_the_file_shows_the_curves_of_the_trainings(tmp_path: Path) -> None:
    training = tmp_path / "exp" / "pre"
    training.mkdir(parents=True)
    (training / "curves.png").write_bytes(b"")
    write_json(training / "run.json", {"commit": "0123456789abcdef", "torch": "2.11.0", "cpus": 2, "machine": "x86_64"})
    write_json(training / "model.json", {"best": {"step": 400, "masked_accuracy": 0.16789}})
    cost = {"audio_hours": 1.0, "minutes": 1.0}
    result = write_result(tmp_path / "a", {"dev": 10.0}, {str(training): cost, str(tmp_path / "gone"): cost})
    run("report", tmp_path / "exp" / "RESULTS.md", "--row", f"one={result}")
    text = (tmp_path / "exp" / "RESULTS.md").read_text()
    assert f"{training}: 012345678, torch 2.11.0, 2 cores (x86_64); kept, on dev: step 400" in text
    assert "masked_accuracy 0.1679" in text
    assert f"![curves of {training}](pre/curves.png)" in text
    assert "gone" not in text


def test_rows_that_cannot_be_compared_are_refused(rows: list[str], tmp_path: Path, fails: Callable[..., str]) -> None:
    for folder, message in (
        (write_result(tmp_path / "c", {"dev": 1.0}, {}), "row 'c' scores dev (200 words), the first row dev (200"),
        (write_result(tmp_path / "d", {"dev": 1.0, "test": 1.0}, {}, 199), "row 'c' scores dev (199 words), test (199"),
        (tmp_path / "nowhere", "holds no wer.json"),
        (tmp_path, "holds no wer.json"),
    ):
        assert message in fails("report", tmp_path / "R.md", *rows, "--row", f"c={folder}")
    for foreign in (["foreign"], {"splits": 3, "history": {}}, {"splits": {"dev": 1}, "history": {}}, {"splits": {}}):
        write_json(tmp_path / "c" / "wer.json", foreign)
        assert "was not written by" in fails("report", tmp_path / "R.md", *rows, "--row", f"c={tmp_path / 'c'}")
    (tmp_path / "c" / "wer.json").write_text("{")
    assert "is damaged" in fails("report", tmp_path / "R.md", *rows, "--row", f"c={tmp_path / 'c'}")
    assert "missing option '--row'" in fails("report", tmp_path / "R.md")
    with pytest.raises(UserError, match="needs a --row"):
        write_report(tmp_path / "R.md", [])
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d"]
