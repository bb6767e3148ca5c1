"""Log lines: few, plain where there is no terminal, and only from the first process."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from w2vbert import log
from w2vbert.log import is_terminal, logger, progress, setup_logging


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), logger.level
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    logger.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_go_once_to_stderr_and_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path / "a" / "run.log")
    setup_logging(tmp_path / "a" / "run.log")
    logging.info("makes a handler on the root logger where there is none, as some packages do")
    logger.info("hello 100%")
    captured = capsys.readouterr()
    assert captured.err.count("hello 100%") == 1 and captured.out == ""
    assert (tmp_path / "a" / "run.log").read_text().count("hello 100%") == 1


def test_a_name_that_is_not_utf8_can_be_told(tmp_path: Path) -> None:
    """In a process of its own: pytest's processes cannot tell one another such a name."""
    code = "import sys, pathlib; from w2vbert.log import logger, setup_logging; "
    code += r"setup_logging(pathlib.Path(sys.argv[1])); logger.info('Gr\u00fc\u00dfe \udce4.wav')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.log")], check=True, capture_output=True)
    assert (tmp_path / "run.log").read_text(encoding="utf-8").endswith("Gr\u00fc\u00dfe \\udce4.wav\n")


def test_other_processes_report_warnings_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    setup_logging(tmp_path / "run.log")
    logger.info("quiet")
    logger.warning("loud")
    assert list(progress(range(3), desc="steps", unit="steps")) == [0, 1, 2]
    error = capsys.readouterr().err
    assert "loud" in error and "quiet" not in error and "steps" not in error and not (tmp_path / "run.log").exists()


def test_without_a_terminal_progress_is_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    assert not is_terminal()
    assert sum(progress(range(1000), desc="decode", unit="utterances")) == 499500
    with progress(total=5, desc="train", unit="steps", initial=3) as bar:
        bar.set_postfix_str("loss 2.5", refresh=False)
        bar.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "\r" not in "".join(lines)
    assert "decode: 1000/1000 utterances" in lines[0] and "left" in lines[0] and "utterances/s" in lines[0]
    assert "train: 5/5 steps" in lines[1] and "loss 2.5" in lines[1]


def test_lines_come_at_their_interval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    setup_logging()
    monkeypatch.setattr(log, "LINE_SECONDS", 1e-9)
    for _ in progress(iter(range(4)), desc="count", unit="files"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5 and "count: 4 files" in lines[-1]


def test_a_bar_draws_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal()
    with progress(total=2, desc="train", unit="steps") as bar:
        setup_logging()
        logger.info("a line above the bar")
        bar.update(2)
    assert isinstance(sys.stderr, Terminal)
    text = sys.stderr.getvalue()
    assert "a line above the bar\n" in text and "100%" in text
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal()
