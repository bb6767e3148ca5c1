"""Log lines and progress bars: bars on a terminal, few plain lines elsewhere, only from the first process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger("w2vbert")

LINE_SECONDS = 10.0  # at most one progress line in this time where there is no terminal
_HANDLER_PREFIX = "w2vbert-"


def setup_logging(file: Path | None = None) -> None:
    """Sends our log lines (and other packages' warnings) to stderr, and to `file` as well; may be called again.

    Processes other than the first of a distributed run (environment variable RANK) report only warnings.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if (handler.name or "").startswith(_HANDLER_PREFIX):
            root.removeHandler(handler)
            handler.close()
    logger.setLevel(logging.INFO if _is_first_process() else logging.WARNING)
    screen = _ScreenHandler()
    screen.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    screen.set_name(f"{_HANDLER_PREFIX}screen")
    root.addHandler(screen)
    if file is not None and _is_first_process():
        file.parent.mkdir(parents=True, exist_ok=True)
        lasting = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
        lasting.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        lasting.set_name(f"{_HANDLER_PREFIX}file")
        root.addHandler(lasting)


def is_terminal() -> bool:
    """Whether a progress bar may draw: stderr is a terminal, and this is the first process of its run."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and _is_first_process()


def progress(
    iterable: Iterable[Any] | None = None, *, total: int | None = None, desc: str, unit: str, initial: int = 0
) -> tqdm[Any]:
    """Progress over an iterable, or of a count advanced with `.update(n)`: a bar, or log lines with rate and time left.

    Args:
        total: how many units there are; None asks the iterable, and it may be unknown.
        unit: name of one unit, such as `utterances`.
        initial: units that an earlier, interrupted run has done.

    Results beside the count: `.set_postfix_str("loss 3.21", refresh=False)`; a refresh would write a line each time.
    """
    from tqdm import tqdm

    if is_terminal():
        return tqdm(iterable, total=total, desc=desc, unit=f" {unit}", initial=initial, dynamic_ncols=True)
    known = total is not None or hasattr(iterable, "__len__")
    left = "/{total_fmt}{unit}, {remaining} left" if known else "{unit}"
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=f" {unit}",
        initial=initial,
        disable=not _is_first_process(),
        file=_LogWriter(),
        bar_format="{desc}: {n_fmt}" + left + ", {rate_fmt}{postfix}",
        mininterval=LINE_SECONDS,
        miniters=1,
        delay=1e-9,  # no line before the first unit
    )


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


class _ScreenHandler(logging.Handler):
    """Writes to what stderr is at the time, around any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if is_terminal():
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


class _LogWriter:
    """The file that a tqdm bar draws on where there is no terminal: each picture of the bar becomes a log line."""

    def __init__(self) -> None:
        self.last = ""

    def write(self, text: str) -> int:
        line = " ".join(text.split())
        if line and line != self.last:
            logger.info(line)
            self.last = line
        return len(text)

    def flush(self) -> None:
        pass
