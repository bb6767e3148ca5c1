"""Where the transcripts of recordings are written to, and in which format."""

import gzip
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from w2vbert.errors import UserError
from w2vbert.files import atomic_file, check_writable
from w2vbert.tasks.shards import Shard
from w2vbert.tasks.transcript_formats import FORMATTERS, Format, Transcript, format_srt

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ctm": "ctm",
    ".srt": "srt",
    ".txt": "txt",
    ".jsonl.gz": "lhotse",
}
FIRST_LINES: dict[Format, str] = {
    "jsonl": r'\{"id": (?!.*"recording_id": )',
    "ctm": r";; |\S+ \S+ \d+\.\d+ \d+\.\d+ ",
    "srt": r"\d+$",
    "txt": r"(?!)",  # any text could be one
    "lhotse": r'\{"id": .*"recording_id": ',
}
"""Patterns of how files of each format begin: a file that begins otherwise is not written over."""

ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
"""What would break a line `FILE<tab>TEXT` in a file name, and how it is shown."""


@dataclass(frozen=True)
class Output:
    """What `w2vbert decode` writes.

    Attributes:
        path: file, or folder of subtitles; None: the terminal alone.
        format: its format; None: as the name of `path` says.
        channel: which channel is read, from 0; None: the mean of all.
        shard: which part of the recordings is decoded; None: all.
    """

    path: Path | None = None
    format: str | None = None
    channel: int | None = None
    shard: Shard | None = None


def choose_format(output: Path | None, name: str | None) -> Format:
    """The format that was named, or else that of the output's name.

    Raises:
        UserError: there is no such format, or the name does not tell.
    """
    if name is not None:
        if name not in FORMATTERS:
            raise UserError(f"--format {name}: there are {', '.join(FORMATTERS)}")
        return next(format for format in FORMATTERS if format == name)
    assert output is not None
    for suffix, format in SUFFIXES.items():
        if output.name.endswith(suffix):
            return format
    raise UserError(f"the name of {output} does not tell its format: end it with {' '.join(SUFFIXES)}, or add --format")


def check_output(output: Path | None, format: Format, count: int) -> None:
    """Refuses what cannot be written, or holds anything but earlier results, before the work is done.

    Args:
        output: file, or folder for subtitles; None: the terminal.
        format: what will be written.
        count: recordings to come.

    Raises:
        UserError: says why.
    """
    if format == "srt" and count > 1 and (output is None or not _is_folder(output, format)):
        place = output or "the terminal"
        raise UserError(f"{place} takes the subtitles of one recording, not of {count}: name a folder with -o")
    if output is None:
        return
    if _is_folder(output, format):
        if output.exists() and not output.is_dir():
            raise UserError(f"{output} is a file, but a folder of subtitles is to be written there")
        check_writable(output / "a.srt")
        return
    check_writable(output)
    if output.is_dir():
        raise UserError(f"{output} is a folder, but a file is to be written there")
    begin = _read_first_line(output) if output.is_file() else ""
    if begin and not re.match(FIRST_LINES[format], begin):
        doubt = "may hold other text than results" if format == "txt" else "was not written by `w2vbert decode`"
        raise UserError(f"{output} exists and {doubt}: remove it, or name another file")


def _is_folder(output: Path, format: Format) -> bool:
    return format == "srt" and output.suffix != ".srt"


def _read_first_line(path: Path) -> str:
    """The first line, or its begin; of what is inside where the file is compressed."""
    with path.open("rb") as file:
        begin = file.read(2)
    try:
        with gzip.open(path) if begin == b"\x1f\x8b" else path.open("rb") as file:
            return file.readline(4096).decode(errors="replace").rstrip("\n")
    except (OSError, EOFError):
        return "\0"


@contextmanager
def open_output(output: Path | None, format: Format | None) -> Iterator[Callable[[Transcript], None]]:
    """A function that writes one transcript after another; what it has written is there when all is well in the end.

    Subtitles in a folder are whole files, each from the moment when it is there.

    Args:
        output: file, or folder for subtitles; None: the terminal.
        format: of `FORMATTERS`; None: lines for people, on the terminal.
    """
    if format is None:
        yield print_line
        return
    formatter = FORMATTERS[format]
    if output is None:
        yield lambda transcript: print_text(formatter(transcript))
    elif _is_folder(output, format):
        yield lambda transcript: _write_subtitles(output, transcript)
    else:
        with atomic_file(output) as aside, _open_text(aside) as file:

            def write(transcript: Transcript) -> None:
                file.write(formatter(transcript))
                file.flush()

            yield write


def _write_subtitles(folder: Path, transcript: Transcript) -> None:
    if transcript.error is None:
        with atomic_file(folder / f"{transcript.name}.srt") as aside:
            aside.write_text(format_srt(transcript), encoding="utf-8", errors="backslashreplace")


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """A file to write text to, compressed if its name ends in .gz; names of files in it need not be UTF-8."""
    with path.open("wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                with io.TextIOWrapper(packed, encoding="utf-8", errors="backslashreplace") as text:
                    yield text
        else:
            with io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace") as text:
                yield text


def print_line(transcript: Transcript) -> None:
    """Prints `FILE<tab>TEXT` of what could be decoded; what would break the line in a file's name, as in C."""
    if transcript.error is None:
        print_text(f"{transcript.id.translate(ESCAPES)}\t{transcript.text}\n")


def print_text(text: str) -> None:
    """Prints; where nobody listens any more (`| head`), what is left goes nowhere, and the work goes on."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
