"""Parts of a list of work: part i of n, and the names of what parts write."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from w2vbert.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`.

    Attributes:
        index: 1 to `count`.
        count: number of parts.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def parse_shard(text: str) -> Shard:
    """The part that an option such as `--shard 3/16` names.

    Raises:
        UserError: it is not I/N with 1 <= I <= N.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text}: write I/N with 1 <= I <= N, such as 3/16")
    return Shard(int(index), int(count))


def shard_of(items: Iterable[T], shard: Shard) -> Iterator[T]:
    """The items of a part, in their order: every n-th, so that parts of a sorted list are about equally long.

    All parts together have each item once; `w2vbert merge` puts their results back into the order of the items.
    """
    return islice(items, shard.index - 1, None, shard.count)


def shard_path(out: Path, shard: Shard) -> Path:
    """Where a part of `out` is written: `hyps.jsonl` becomes `hyps.3-of-16.jsonl`, a folder `dir` `dir.3-of-16`."""
    suffix = ".jsonl.gz" if out.name.endswith(".jsonl.gz") else out.suffix
    return out.with_name(f"{out.name.removesuffix(suffix)}.{shard}{suffix}")
