"""Parts of a job are joined, if nothing is missing or doubled."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tasks.conftest import run
from w2vbert.tasks.shards import Shard, shard_of, shard_path


def write_parts(folder: Path, count: int, lines: int, name: str = "hyps") -> list[Path]:
    """Parts as `--shard` writes them."""
    whole = [{"id": f"utterance-{number}", "text": "Ä B"} for number in range(lines)]
    parts = []
    for index in range(1, count + 1):
        path = shard_path(folder / f"{name}.jsonl", Shard(index, count))
        path.write_text("".join(json.dumps(line) + "\n" for line in shard_of(whole, Shard(index, count))))
        parts.append(path)
    return parts


@pytest.mark.parametrize(("count", "lines"), [(1, 5), (3, 10), (16, 1000), (7, 3)])
def test_the_order_is_that_of_a_single_part(tmp_path: Path, count: int, lines: int) -> None:
    parts = write_parts(tmp_path, count, lines)
    random.Random(0).shuffle(parts)
    run("merge", *parts, "-o", tmp_path / "out.jsonl")
    ids = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ids == [f"utterance-{number}" for number in range(lines)]


def test_what_is_missing_or_doubled_is_named(tmp_path: Path, fails: Callable[..., str]) -> None:
    parts = write_parts(tmp_path, 4, 10)
    out = tmp_path / "out.jsonl"

    def refusal(*given: Path) -> str:
        message = fails("merge", *given, "-o", out)
        assert not out.exists()
        return message

    assert "1 of 4 parts are missing: " in (message := refusal(*parts[:2], parts[3])) and "hyps.3-of-4.jsonl" in message
    assert "part 1-of-4 is given twice" in refusal(*parts, parts[0])
    assert "parts of 2 jobs" in refusal(*parts, *write_parts(tmp_path, 4, 10, "others"))
    assert "parts of 2 and of 4 do not belong together" in refusal(*parts, *write_parts(tmp_path, 2, 10))
    (tmp_path / "more.jsonl").write_text('{"id": "a"}\n')
    assert "more.jsonl is no part" in refusal(*parts, tmp_path / "more.jsonl")
    first = parts[0].read_text()
    parts[0].write_text("".join(first.splitlines(keepends=True)[:-1]))
    assert "hyps.1-of-4.jsonl has 2 lines, but its share of 9 is 3: do this part again" in refusal(*parts)
    parts[0].write_text(first)
    lines = parts[1].read_text().splitlines(keepends=True)
    parts[1].write_text(lines[0] + parts[0].read_text().splitlines(keepends=True)[0] + lines[2])
    assert "id utterance-0 stands in " in refusal(*parts)
    parts[1].write_text(lines[0] + '{"id": "half\n')
    assert "hyps.2-of-4.jsonl:2: not JSON" in refusal(*parts)
    parts[1].unlink()
    assert "no such file" in refusal(*parts)
    assert "is one of the parts" in fails("merge", *parts, "-o", parts[0])


def test_a_manifest_tells_what_must_be_there(tmp_path: Path, fails: Callable[..., str]) -> None:
    parts = write_parts(tmp_path, 4, 10)
    for count, problem in ((10, ""), (11, "1 of 11 ids in "), (9, "1 ids of the parts are not in ")):
        manifest = tmp_path / "cuts.jsonl.gz"
        with gzip.open(manifest, "wt") as file:
            file.writelines(
                json.dumps({"id": f"utterance-{number}", "type": "MonoCut"}) + "\n" for number in range(count)
            )
        command = ("merge", *parts, "-o", tmp_path / "out.jsonl", "--manifest", manifest)
        if problem:
            assert problem in fails(*command)
        else:
            run(*command)
