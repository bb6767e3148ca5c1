"""Finished steps: stamps that say from what an output was made, and whether it is up to date."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any

from w2vbert.errors import UserError
from w2vbert.files import (
    CHECKPOINTS,
    OLD,
    PARTIAL,
    atomic_dir,
    encode,
    list_files,
    read_json,
    real_path,
    remove_tree,
    write_json,
)
from w2vbert.locks import hold, let_go
from w2vbert.log import logger

STAMP = ".stamp.json"
MADE_AGAIN = ".index"  # name of folders whose content is a copy, for speed, of what lies beside them
STARTED = ".started.json"
CALL = ".call.json"
SKIPS = "skips_what_is_done"  # attribute of commands that do
NO_EFFECT = ("nj", "shard", "force", "max_hours")  # arguments that change nothing in what a command makes
HASHED_BYTES = 64 * 2**20  # larger input files are known by size and time of change, not by content


def fingerprint(config: object, inputs: Mapping[str, Path | None]) -> str:
    """A hash (SHA-256, hexadecimal) that changes when the config or any input changes.

    Files count by content (by size and time of change above 64 MiB), folders with a stamp by the stamp's fingerprint,
    other folders by names, sizes and times of change of all that is in them. None: an optional input is absent.

    Raises:
        UserError: an input does not exist.
    """
    return _hash_json({"config": config, "inputs": _hash_inputs(inputs)})


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that makes the folder `out` from a config and named inputs, and the stamp that says it is finished."""

    name: str
    out: Path
    config: object
    inputs: Mapping[str, Path | None]

    @cached_property
    def input_hashes(self) -> dict[str, str | None]:
        """Hashes of the inputs, as they were when first asked for."""
        return _hash_inputs(self.inputs)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the step's name, config (without fields that are `HOW_ONLY`) and inputs."""
        return _hash_json({"config": {"step": self.name, "config": self.config}, "inputs": self.input_hashes})

    @property
    def old(self) -> Path:
        """Where the run before stays until this one, with other settings, is finished."""
        out = real_path(self.out)
        return out.with_name(f"{out.name}.old")

    @property
    def parts(self) -> Path:
        """Where finished parts of the work stay until all of it is done."""
        out = real_path(self.out)
        return out.with_name(f"{out.name}.parts")

    @contextmanager
    def keeping_parts(self) -> Iterator[None]:
        """Around the work: what it leaves in `parts` is removed if it succeeds, and kept if it does not."""
        try:
            yield
            if os.environ.get("RANK", "0") != "0":  # the first process of a run acts for all
                return
            for folder in list(self.parts.glob("*")):
                if (folder / STAMP).exists() or folder.name.startswith((PARTIAL, OLD)):
                    remove_tree(folder)
        finally:
            with suppress(OSError):
                self.parts.rmdir()  # where nothing is finished, nothing stays

    def part(self, name: str) -> Step:
        """The step that makes the part `name` of this one, for its settings and inputs only."""
        return Step(f"part of {self.name}", self.parts / name, {"of": self.fingerprint, "part": name}, {})

    def is_whole(self) -> bool:
        """As `is_done`, without a line in the log."""
        stamp = _read_stamp(self.out)
        return (
            stamp is not None
            and stamp["fingerprint"] == self.fingerprint
            and _find_changed_output(self.out, stamp) is None
        )

    def is_done(self) -> bool:
        """Whether `out` was finished from the same config and inputs and its outputs still have their sizes."""
        wanted = self.fingerprint
        stamp = _read_stamp(self.out)
        if stamp is None:
            return False
        if stamp["fingerprint"] != wanted:
            logger.info("%s: config or inputs have changed since %s was made", self.name, self.out)
            return False
        changed = _find_changed_output(self.out, stamp)
        if changed is not None:
            logger.info("%s: %s has changed or is missing", self.name, changed)
            return False
        logger.info("%s: up to date (%s)", self.name, self.out)
        return True

    def start(self, force: bool = False) -> bool:
        """For long steps that write into `out` as they go: True if the same run, unfinished, goes on there.

        Otherwise `out` is made anew, with a mark (`.started.json`) of this fingerprint. A run that was there becomes
        `old` until the new one is finished; when its settings are given again before that, it comes back.

        Raises:
            UserError: `out` holds something that no step has made, or an unfinished run of other settings where `old`
                is taken, too; or another process is working there.
        """
        self.check_out()
        if self.out.is_dir():
            hold(self.out)
        if not force and self._is_mark_of(self.out):
            (self.out / STAMP).unlink(missing_ok=True)
            return True
        out, old = real_path(self.out), self.old
        if old.is_dir() and not (out / STAMP).exists():  # what is in `out` has not taken its place
            if not force and _has_checkpoints(out):
                raise UserError(
                    f"{self.out} holds an unfinished run of other settings, and {old} the one before it: give its "
                    f"settings to go on, or remove {self.out} to begin anew (--force does)"
                )
            _remove_run(out)
            if not force and self._is_mark_of(old):
                os.replace(old, out)
                hold(out)
                logger.info("%s: %s is that of these settings again", self.name, self.out)
                return True
        elif out.is_dir() and any(out.iterdir()):
            _remove_run(old)
            os.replace(out, old)
        out.mkdir(parents=True, exist_ok=True)
        hold(out)
        if old.is_dir():
            logger.info("%s: the run before is kept as %s until this one is finished", self.name, old)
        write_json(out / STARTED, {"step": self.name, "fingerprint": self.fingerprint})
        return False

    def _is_mark_of(self, folder: Path) -> bool:
        """Whether a run of this fingerprint began in a folder."""
        return (folder / STARTED).is_file() and _read_mark(folder / STARTED) == self.fingerprint

    def finish(self, folder: Path | None = None) -> None:
        """Writes the stamp into `folder` (default: `out`): fingerprint, every output with its size, config and time.

        Hidden files, logs (`*.log`, which may grow), checkpoints, which may be removed to save room, and folders with a
        stamp of their own are not counted as outputs; a link to such a folder is, with the outputs of that one. The run
        before, if `start` has kept one, is removed.
        """
        folder = folder or self.out
        outputs = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(_own_files(folder))}
        links = {path.name: os.readlink(path) for path in sorted(folder.iterdir()) if _is_folder_link(path)}
        stamp = {
            "step": self.name,
            "fingerprint": self.fingerprint,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "outputs": outputs,
            "links": links,
            "inputs": dict(self.inputs),
            "input_hashes": self.input_hashes,
            "config": self.config,
        }
        write_json(folder / STAMP, stamp)
        if (folder / STARTED).exists():
            _remove_run(self.old)
            let_go(folder)

    def check_out(self) -> None:
        """Refuses an `out` that would be lost: a file, a folder of another step or of no step, or one of the inputs."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file, but {self.name} writes a folder there")
        self._check_folder(self.out)
        if self.old.exists():
            self._check_folder(self.old)

    def _check_folder(self, folder: Path) -> None:
        for name, path in self.inputs.items():
            if path is not None and real_path(path).is_relative_to(real_path(folder)):
                raise UserError(f"{folder} holds the input {name} of {self.name}: name another folder to write")
        makers = {_read_maker(folder / mark) for mark in (STAMP, STARTED) if (folder / mark).exists()}
        others = sorted(maker for maker in makers if maker not in (self.name, None))
        if others:
            raise UserError(f"{folder} was made by {others[0]}, not by {self.name}: name another folder")
        if not makers and folder.is_dir() and any(not path.name.startswith(PARTIAL) for path in folder.iterdir()):
            raise UserError(f"{folder} is not empty and was not made by {self.name}: name another folder or empty it")


@dataclasses.dataclass(frozen=True)
class Call:
    """A command as it was typed: whether its step is up to date can be told without loading what it needs to work.

    Attributes:
        out: folder of the step.
        typed: command, arguments and settings, before defaults are filled in.
    """

    out: Path
    typed: object

    def is_done(self) -> bool:
        """Whether this call, by the same code, has made `out`, and neither inputs nor outputs have changed."""
        stamp = _read_stamp(self.out)
        if stamp is None or not (self.out / CALL).is_file() or not {"inputs", "input_hashes"} <= stamp.keys():
            return False
        if _read_mark(self.out / CALL) != self._fingerprint(stamp):
            return False
        paths = {name: path and Path(path) for name, path in stamp["inputs"].items()}
        try:
            if _hash_inputs(paths) != stamp["input_hashes"] or _find_changed_output(self.out, stamp) is not None:
                return False
        except UserError:  # an input is gone
            return False
        logger.info("%s: up to date (%s)", stamp["step"], self.out)
        return True

    def note(self) -> None:
        """Notes that this call has made `out`, or found it up to date."""
        stamp = _read_stamp(self.out)
        if stamp is not None and os.environ.get("RANK", "0") == "0":
            write_json(self.out / CALL, {"fingerprint": self._fingerprint(stamp)})

    def _fingerprint(self, stamp: Mapping[str, Any]) -> str:
        return _hash_json([self.typed, os.getcwd(), _hash_code(), stamp["fingerprint"]])


class WorkToDo(Exception):
    """Comes from a command in place of its work, inside `only_asking`."""


_only_asked: ContextVar[bool] = ContextVar("only_asked", default=False)


@contextmanager
def only_asking() -> Iterator[None]:
    """Inside, commands that skip what is done return if it is, and raise `WorkToDo` if not."""
    token = _only_asked.set(True)
    try:
        yield
    finally:
        _only_asked.reset(token)


def skipping_what_is_done(command: Callable[..., None]) -> Callable[..., None]:
    """A command that ends before it loads anything heavy if the same call has made its OUT and nothing has changed."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        call = _find_call(command.__name__, arguments)
        if call is not None and not arguments["force"] and call.is_done():
            return
        if _only_asked.get():
            raise WorkToDo
        command(**arguments)
        if call is not None:
            call.note()

    run.__dict__[SKIPS] = True
    return run


def _find_call(name: str, arguments: Mapping[str, Any]) -> Call | None:
    """A command with what was typed; None where it has no OUT."""
    if arguments["out"] is None:
        return None
    config = arguments.get("config")
    settings = config.read_text(encoding="utf-8", errors="replace") if config and config.is_file() else None
    typed = {name: value for name, value in arguments.items() if name not in NO_EFFECT}
    return Call(arguments["out"], [name, typed, settings])


def run_step(step: Step, work: Callable[[Path], None], force: bool = False) -> bool:
    """Lets `work` fill a folder that becomes `step.out` when it returns; False if the step was up to date already."""
    if not force and step.is_done():
        return False
    step.check_out()
    with atomic_dir(step.out) as folder:
        work(folder)
        step.finish(folder)
    return True


def _hash_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_encode_what_counts).encode()).hexdigest()


def _encode_what_counts(value: object) -> object:
    encoded = encode(value)
    if dataclasses.is_dataclass(value) and isinstance(encoded, dict):
        return {f.name: encoded[f.name] for f in dataclasses.fields(value) if not f.metadata.get("how_only")}
    return encoded


def _hash_inputs(inputs: Mapping[str, Path | None]) -> dict[str, str | None]:
    return {name: None if path is None else _hash_path(name, path) for name, path in inputs.items()}


@cache
def _hash_code() -> str:
    """Hash of the package's own code: defaults and their meaning stand there."""
    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    return _hash_json([(str(path.relative_to(package)), path.read_text(encoding="utf-8")) for path in files])


def _hash_path(name: str, path: Path) -> str:
    if path.is_dir():
        stamp = _read_stamp(path)
        return stamp["fingerprint"] if stamp is not None else _hash_json(_list_tree(path))
    if not path.is_file():
        raise UserError(f"{name}: no such file or folder: {path}")
    stat = path.stat()
    if stat.st_size > HASHED_BYTES:
        return f"{stat.st_size} {stat.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _list_tree(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file under a folder, without what is made again where it is missing."""
    files = (path for path in list_files(folder) if MADE_AGAIN not in path.relative_to(folder).parts)
    stats = ((path, path.stat()) for path in files)
    return [(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _has_checkpoints(folder: Path) -> bool:
    return (folder / CHECKPOINTS).is_dir() and any((folder / CHECKPOINTS).iterdir())


def _own_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.suffix == ".log" or path.name == CHECKPOINTS:
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not (path / STAMP).exists():
            yield from _own_files(path)


def _is_folder_link(path: Path) -> bool:
    return path.is_symlink() and path.is_dir() and not path.name.startswith(".")


def _find_changed_output(folder: Path, stamp: Mapping[str, Any]) -> Path | None:
    """The first output that is missing or has another size than the stamp says; None if all are as they were."""
    for name, size in stamp["outputs"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return path
    for name, target in stamp.get("links", {}).items():
        path = folder / name
        if not path.is_symlink() or os.readlink(path) != target or not path.is_dir():
            return path
        linked = _read_stamp(path)
        changed = None if linked is None else _find_changed_output(path, linked)
        if changed is not None:
            return changed
    return None


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    """The stamp in a folder; None if there is none, or a damaged one."""
    if not (folder / STAMP).is_file():
        return None
    try:
        stamp = read_json(folder / STAMP)
    except UserError as error:
        logger.warning("%s", error)
        return None
    return stamp if isinstance(stamp, dict) and {"fingerprint", "outputs"} <= stamp.keys() else None


def _read_maker(mark: Path) -> str | None:
    """Name of the step that wrote a stamp or a mark; None if it cannot be read."""
    try:
        content = read_json(mark)
    except UserError:
        return None
    return content.get("step") if isinstance(content, dict) else None


def _read_mark(started: Path) -> str | None:
    try:
        mark = read_json(started)
    except UserError as error:
        logger.warning("%s", error)
        return None
    return mark.get("fingerprint") if isinstance(mark, dict) else None


def _remove_run(folder: Path) -> None:
    """Removes a step's folder, its marks last, so that a kill in between leaves one that is still known as ours."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name in (STAMP, STARTED)):
        remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()
