"""Reading of text files that users bring."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from w2vbert.errors import UserError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text, without white space at its ends, of each line that is not blank.

    The file is UTF-8, gzip if its name ends in .gz.

    Raises:
        UserError: no such file, not gzip, or not UTF-8 text; with the line.
    """
    for number, raw in read_raw_lines(path):
        if b"\0" in raw:
            raise UserError(f"{path}:{number}: not text, but binary data")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8 text") from error
        if line:
            yield number, line


def read_raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line, its end included; the file is gzip if its name ends in .gz.

    Raises:
        UserError: no such file, or not gzip; with the line.
    """
    if not path.exists() or path.is_dir():
        raise UserError(f"no such file: {path}")
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged after line {number}, or not gzip") from error
