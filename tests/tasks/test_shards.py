"""Parts of a list of work."""

from pathlib import Path

import pytest

from w2vbert.errors import UserError
from w2vbert.tasks.shards import Shard, parse_shard, shard_of, shard_path


@pytest.mark.parametrize(("items", "count"), [(0, 3), (2, 3), (16, 4), (17, 4), (1000, 16)])
def test_parts_have_each_item_once_and_are_equally_long(items: int, count: int) -> None:
    parts = [list(shard_of(range(items), Shard(index, count))) for index in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_option_is_read_and_names_a_file() -> None:
    shard = parse_shard("3/16")
    assert shard == Shard(3, 16)
    assert shard_path(Path("out/hyps.jsonl"), shard) == Path("out/hyps.3-of-16.jsonl")
    assert shard_path(Path("cuts.jsonl.gz"), shard) == Path("cuts.3-of-16.jsonl.gz")
    assert shard_path(Path("exp/decode"), shard) == Path("exp/decode.3-of-16")


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "a/4", "-1/4", "1/4/2", "1.5/4"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write I/N"):
        parse_shard(text)
