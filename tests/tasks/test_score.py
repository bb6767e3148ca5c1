import gzip
import json
from pathlib import Path

import pytest

from w2vbert.errors import UserError
from w2vbert.tasks.score import score_files

REFS = {"s1-a": "SET THE LAMP (OFF)", "s1-b": "STOP", "s2-a": "GO ON"}
HYPS = {"s2-a": "GO", "s1-b": "STOP", "s1-a": "SET A LAMP (OFF) NOW"}


def write(path: Path, texts: dict[str, str], kind: str) -> Path:
    lines = {
        "kaldi": [f"{id} {text}" for id, text in texts.items()],
        "trn": [";; a comment", *(f"{text} ({id})" for id, text in texts.items())],
        "jsonl": [json.dumps({"id": id, "text": text, "score": 1.0}) for id, text in texts.items()],
    }[kind]
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("ref_kind", ["kaldi", "trn", "jsonl"])
@pytest.mark.parametrize("hyp_kind", ["kaldi", "trn", "jsonl"])
def test_formats_are_told_apart_by_content(tmp_path: Path, ref_kind: str, hyp_kind: str) -> None:
    result = score_files(write(tmp_path / "ref", REFS, ref_kind), write(tmp_path / "hyp.gz", HYPS, hyp_kind))
    counts = (result.errors, result.insertions, result.deletions, result.substitutions, result.words)
    assert counts == (3, 1, 1, 1, 7)
    assert (result.resampled, result.units) == ("speakers", 2)


def test_speakers_come_from_the_file_or_the_ids(tmp_path: Path) -> None:
    named = [{"id": f"u{n}", "text": "A B", "speaker": n % 3} for n in range(9)]
    (tmp_path / "ref").write_text("\n".join(map(json.dumps, named)))
    hyp = write(tmp_path / "hyp", {f"u{n}": "A" for n in range(9)}, "kaldi")
    assert score_files(tmp_path / "ref", hyp).units == 3
    plain = write(tmp_path / "plain", {f"u{n}": "A B" for n in range(9)}, "trn")
    assert score_files(plain, hyp).resampled == "utterances"


def test_no_text_counts_as_nothing_recognised(tmp_path: Path) -> None:
    (tmp_path / "ref").write_text("a ONE TWO\nb THREE\n")
    (tmp_path / "kaldi").write_text("a\nb THREE\n")
    (tmp_path / "jsonl").write_text('{"id": "a", "text": null}\n{"id": "b", "text": "THREE"}\n')
    (tmp_path / "trn").write_text("(a)\nTHREE (b)\n")
    for name in ("kaldi", "jsonl", "trn"):
        assert score_files(tmp_path / "ref", tmp_path / name).deletions == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a ONE\nb \xff\xfe\n", "hyp:2: not UTF-8"),
        (b'{"id": "a", "text": "ONE"}\n{"id": "b"\n', "hyp:2: not JSON"),
        (b'{"id": "a", "text": "ONE"}\n{"text": "x"}\n', 'hyp:2: an object with "id"'),
        (b'{"id": "a", "text": ["ONE"]}\n', 'hyp:1: "text" is not a string'),
        (b"a ONE\na TWO\n", "hyp:2: id a stands there twice"),
        (b"a ONE\n", "1 of 2 references have no hypothesis: b"),
        (b"a ONE\nb TWO\nc THREE\n", "1 of 3 hypotheses have no reference: c"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ref").write_text("a ONE\nb TWO\n")
    (tmp_path / "hyp").write_bytes(content)
    with pytest.raises(UserError, match=message):
        score_files(tmp_path / "ref", tmp_path / "hyp")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "ref").write_text("a ONE\n")
    with pytest.raises(UserError, match="no such file"):
        score_files(tmp_path / "ref", tmp_path / "absent")
    (tmp_path / "hyp.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match="not gzip"):
        score_files(tmp_path / "ref", tmp_path / "hyp.gz")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a ONE\n" * 1000)[:-12])
    with pytest.raises(UserError, match="damaged|twice"):
        score_files(tmp_path / "ref", tmp_path / "cut.gz")
