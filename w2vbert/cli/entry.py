"""Runs one command, and turns errors and signals into one line and an exit code."""

import codecs
import io
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, cast

import typer

from w2vbert import __version__
from w2vbert.cli.options import app
from w2vbert.errors import REQUEUE_EXIT_CODE, Unfinished, UserError
from w2vbert.log import setup_logging
from w2vbert.stages import SKIPS, WorkToDo, only_asking

# Threads that wait for one another sleep instead of spinning (set before torch is imported). With another busy program
# on two cores a pre-training step took 1.2 s with spinning and 0.19 s without.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The base of Typer's parameter errors: unknown options and commands, missing arguments, values of a wrong type.
_USAGE_ERROR = cast(type[typer.BadParameter], typer.BadParameter.__base__)

MAY_BE_EMPTY = ("--train", "--dev", "--test", "--unlabelled")


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""What a stream cannot encode as JSON does it: \u00fc. Python's own escapes (\xfc) would be no JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


_ESCAPE = "w2vbert-escape"
codecs.register_error(_ESCAPE, _escape)  # file names need not be UTF-8, nor the terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 after an error the user can mend, 130 after an interruption.

    SIGTERM ends with code 143, and leaves as little behind as an error does; a training saves its state and ends with
    75, as after SIGUSR1 and `--max-hours`: started again, it goes on. With the environment variable
    W2VBERT_DEBUG=1 errors come with a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPE)
    given = sys.argv[1:] if arguments is None else arguments
    command = typer.main.get_command(app)
    try:
        with _ending_on_sigterm():
            _refuse_empty(given)
            code = command.main(args=given, prog_name="w2vbert", standalone_mode=False)
    except (_USAGE_ERROR, UserError, OSError, MemoryError, RuntimeError) as error:
        if os.environ.get("W2VBERT_DEBUG") == "1" or (isinstance(error, RuntimeError) and not _is_memory(error)):
            raise
        print(f"error: {_describe(error)}", file=sys.stderr)
        return 2
    except Unfinished as stop:
        print(stop, file=sys.stderr)
        return REQUEUE_EXIT_CODE
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def has_nothing_to_do(arguments: Sequence[str]) -> bool:
    """Whether a command would end at once, since its OUT is up to date; it says so. Loads nothing heavy.

    Args:
        arguments: a command and its own, after any options of the launcher. Where these hold a command's name, it is
            taken for one that is typed wrongly, and that has something to say.
    """
    command = typer.main.get_command(app)
    names = getattr(command, "commands", {})
    begin = next((number for number, word in enumerate(arguments) if word in names), len(arguments))
    named: Any = command
    for word in arguments[begin:]:
        named = getattr(named, "commands", {}).get(word, named)
    if not getattr(named.callback, SKIPS, False):
        return False
    try:
        with only_asking():
            command.main(args=list(arguments[begin:]), prog_name="w2vbert", standalone_mode=False)
    except (WorkToDo, _USAGE_ERROR, UserError, OSError, typer.Abort):
        return False
    return True


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM becomes SystemExit, so that half-written files are removed on the way out."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        print("terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """An empty argument would mean the current folder; it comes from a variable of the shell that is not set."""
    for before, argument in itertools.pairwise(["", *arguments]):
        if not argument and before not in MAY_BE_EMPTY:
            place = f"after {before} " if before else ""
            raise UserError(f"an argument {place}is empty: is a variable of your shell not set?")


def _is_memory(error: Exception) -> bool:
    """Whether memory was used up, which torch tells as a RuntimeError."""
    told = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(words in str(error) for words in told)


def _describe(error: Exception) -> str:
    """One line for an error that the user can mend."""
    if isinstance(error, _USAGE_ERROR):
        message = " ".join(error.format_message().split()).rstrip(".")
        path = error.ctx.command_path if error.ctx else "w2vbert"
        return f"{message[:1].lower()}{message[1:]} (try {path} --help)"
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.strerror[:1].lower()}{error.strerror[1:]}"
        return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
    if _is_memory(error):
        return "out of memory: make batches (batch_seconds), the model or --nj smaller"
    return " ".join(str(error).split())


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"w2vbert {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, help="Print the version.")] = False,
) -> None:
    """w2v-BERT speech recognition: pre-training, fine-tuning with a pruned RNN-T, self-training, decoding.

    Settings come from YAML files (--config) and from --set; `w2vbert settings COMMAND` shows them.
    """
    setup_logging()
    if context.invoked_subcommand is None:
        print(context.get_help())
