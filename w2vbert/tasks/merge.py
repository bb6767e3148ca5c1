"""Joins what the parts of a job have written, after a check that nothing is missing or doubled."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from w2vbert.errors import UserError
from w2vbert.files import atomic_file, check_writable
from w2vbert.log import logger
from w2vbert.tasks.shards import Shard, shard_of, shard_path
from w2vbert.tasks.text_files import read_lines

PART = re.compile(r"^(?P<stem>.+)\.(?P<index>\d+)-of-(?P<count>\d+)(?P<suffix>\.jsonl)$")
NAMED = 3  # parts or ids that an error message names


def merge_parts(parts: Sequence[Path], out: Path, manifest: Path | None = None) -> int:
    """Joins the JSON lines that `--shard 1/N` to `--shard N/N` of one command have written.

    The lines come into the order in which the command without `--shard` writes them.

    Args:
        parts: all `NAME.I-of-N.jsonl` of one NAME, in any order.
        out: file to write.
        manifest: JSON lines with the ids that must be there, such as the manifest of cuts that was decoded; without it
            a part that has lost its last line is noticed only where that makes it shorter than its share.

    Returns:
        The number of lines.

    Raises:
        UserError: a part is missing, doubled, of another job, damaged, or shorter than its share; an id stands twice.
    """
    check_writable(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder, but a file is to be written there")
    paths = _sort_parts(parts)
    if any(path.resolve() == out.resolve() for path in paths):
        raise UserError(f"{out} is one of the parts: name another file")
    lines = [read_part(path) for path in paths]
    total = sum(map(len, lines))
    for index, (path, own) in enumerate(zip(paths, lines, strict=True), start=1):
        share = len(list(shard_of(range(total), Shard(index, len(paths)))))
        if len(own) != share:
            raise UserError(f"{path} has {len(own)} lines, but its share of {total} is {share}: do this part again")
    check_once([(path, line["id"]) for path, own in zip(paths, lines, strict=True) for line in own])
    if manifest is not None:
        _check_against(manifest, {line["id"] for own in lines for line in own})
    turns = chain.from_iterable(zip_longest(*lines))
    write_lines(out, (line for line in turns if line is not None))
    logger.info(f"{out}: {total} lines of {len(paths)} parts")
    return total


def read_part(path: Path) -> list[dict[str, Any]]:
    """The lines of a part, each with an id.

    Raises:
        UserError: the file is missing or damaged.
    """
    lines = []
    for number, text in read_lines(path):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON: do this part again") from error
        if not isinstance(line, dict) or not isinstance(line.get("id"), str):
            raise UserError(f'{path}:{number}: an object with "id" (a string) is needed')
        lines.append(line)
    return lines


def write_lines(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    """Writes JSON lines, whole or not at all."""
    with atomic_file(path) as aside, aside.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def check_once(ids: Sequence[tuple[Path, str]]) -> None:
    """Refuses an id that stands twice, in one file or in two."""
    seen: dict[str, Path] = {}
    for path, id in ids:
        if id in seen:
            where = f"twice in {path}" if seen[id] == path else f"in {seen[id]} and in {path}"
            raise UserError(f"id {id} stands {where}")
        seen[id] = path


def _check_against(manifest: Path, ids: set[str]) -> None:
    wanted = [line["id"] for line in read_part(manifest)]
    missing = [id for id in wanted if id not in ids]
    unknown = sorted(ids.difference(wanted))
    if missing:
        raise UserError(f"{len(missing)} of {len(wanted)} ids in {manifest} are in no part: {_name_some(missing)}")
    if unknown:
        raise UserError(f"{len(unknown)} ids of the parts are not in {manifest}: {_name_some(unknown)}")


def _sort_parts(parts: Sequence[Path]) -> list[Path]:
    """The parts by number, if all are there once."""
    found: dict[Path, dict[Shard, Path]] = {}
    for path in parts:
        match = PART.match(path.name)
        if match is None:
            raise UserError(f"{path} is no part: their names end with such as .3-of-16.jsonl")
        shard = Shard(int(match["index"]), int(match["count"]))
        job = found.setdefault(path.with_name(match["stem"] + match["suffix"]), {})
        if shard in job:
            raise UserError(f"part {shard} is given twice: {job[shard]} and {path}")
        job[shard] = path
    if len(found) > 1:
        raise UserError(f"parts of {len(found)} jobs: {_name_some([str(job) for job in found])}; merge one at a time")
    (out, job), counts = next(iter(found.items())), {shard.count for shard in next(iter(found.values()))}
    if len(counts) > 1:
        raise UserError(f"{out}: parts of {' and of '.join(map(str, sorted(counts)))} do not belong together")
    count = counts.pop()
    wanted = [Shard(index, count) for index in range(1, count + 1)]
    missing = [str(shard_path(out, shard)) for shard in wanted if shard not in job]
    if missing or len(job) > count:
        raise UserError(f"{len(missing)} of {count} parts are missing: {_name_some(missing)}")
    return [job[shard] for shard in wanted]


def _name_some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
