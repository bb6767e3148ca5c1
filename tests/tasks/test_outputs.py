"""Formats of transcripts, and where they are written."""

import gzip
import json
from pathlib import Path

import pytest
from lhotse import SupervisionSet

from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.words import Word
from w2vbert.errors import UserError
from w2vbert.tasks.outputs import check_output, choose_format, open_output
from w2vbert.tasks.transcript_formats import (
    Candidate,
    Segment,
    Transcript,
    describe,
    format_ctm,
    format_srt,
    format_txt,
)


def segment(start: float, text: str, nbest: int = 1) -> Segment:
    words = tuple(Word(word, start + 0.4 * i, start + 0.4 * i + 0.3, 0.5) for i, word in enumerate(text.split()))
    hypothesis = Hypothesis((1, 2), (0, 1), (-0.1, -0.2), -1.23456, -1.5, scores={"ngram": -3.0})
    end = start + 0.4 * len(words) + 0.5
    return Segment(start, end, text, words, 0.5, tuple(Candidate(text, hypothesis) for _ in range(nbest)))


def transcript(*segments: Segment, name: str = "a", error: str | None = None) -> Transcript:
    text = None if error else " ".join(part.text for part in segments)
    return Transcript(f"in/{name}.wav", name, name, 10.0, 0, 60.0, text, 0.5, segments, error)


def test_json_has_nbest_lists_where_there_are_several_texts() -> None:
    line = describe(transcript(segment(0.0, "A B", nbest=2)))
    assert line["text"] == "A B" and line["words"][1] == {"word": "B", "start": 0.4, "end": 0.7, "confidence": 0.5}
    assert line["nbest"] == 2 * [
        {"text": "A B", "score": -1.2346, "model_score": -1.5, "tokens": 2, "scores": {"ngram": -3.0}}
    ]
    assert "nbest" not in describe(transcript(segment(0.0, "A B")))
    parts = describe(transcript(segment(0.0, "A", nbest=2), segment(5.0, "B", nbest=2)))
    assert parts["text"] == "A B" and [part["start"] for part in parts["segments"]] == [0.0, 5.0]
    assert all(len(part["nbest"]) == 2 for part in parts["segments"]) and "nbest" not in parts
    assert describe(transcript(error="is broken")) == {
        "id": "in/a.wav",
        "text": None,
        "confidence": 0.5,
        "error": "is broken",
    }


def test_lines_of_ctm_and_kaldi() -> None:
    found = transcript(segment(0.0, "A B"))
    assert format_ctm(found) == "a 1 0.00 0.30 A 0.500\na 1 0.40 0.30 B 0.500\n"
    assert format_txt(found) == "a A B\n" and format_txt(transcript(segment(0.0, ""))) == "a\n"
    assert format_ctm(transcript(error="is\nbroken")) == ";; a: is broken\n"


def test_subtitles_are_short_and_numbered() -> None:
    found = format_srt(transcript(segment(0.0, "WORD " * 40), segment(3725.5, "LAST")))
    captions = [caption.split("\n") for caption in found.rstrip("\n").split("\n\n")]
    assert [caption[0] for caption in captions] == [str(n) for n in range(1, len(captions) + 1)]
    assert " ".join(caption[2] for caption in captions).split() == ["WORD"] * 40 + ["LAST"]
    assert max(len(caption[2]) for caption in captions) <= 84
    assert captions[-1][1] == "01:02:05,500 --> 01:02:05,800"


def test_supervisions_are_lhotses(tmp_path: Path) -> None:
    with open_output(tmp_path / "x.jsonl.gz", "lhotse") as write:
        write(transcript(segment(0.0, "A"), segment(5.0, "B C")))
        write(transcript(error="broken", name="b"))
        write(transcript(segment(0.0, "D"), name="c"))
    found = list(SupervisionSet.from_file(tmp_path / "x.jsonl.gz"))
    assert [(s.id, s.recording_id, s.start, s.text) for s in found] == [
        ("in/a.wav-00000", "a", 10.0, "A"),
        ("in/a.wav-00001", "a", 15.0, "B C"),
        ("in/c.wav", "c", 10.0, "D"),
    ]
    (first, second) = found[1].alignment["word"]
    assert (first.symbol, first.start, second.start, second.score) == ("B", 15.0, 15.4, 0.5)


def test_nothing_is_there_before_all_is_written(tmp_path: Path) -> None:
    target = tmp_path / "x.jsonl"
    with pytest.raises(KeyboardInterrupt), open_output(target, "jsonl") as write:
        write(transcript(segment(0.0, "A")))
        assert not target.exists() and len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_subtitles_keeps_what_else_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").touch()
    check_output(tmp_path, "srt", 2)
    with open_output(tmp_path, "srt") as write:
        write(transcript(segment(0.0, "A")))
        write(transcript(name="b", error="broken"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.srt", "film.mp4"]


def test_the_name_tells_the_format() -> None:
    names = {"a.jsonl": "jsonl", "a.ctm": "ctm", "a.srt": "srt", "a.txt": "txt", "a.jsonl.gz": "lhotse"}
    assert {name: choose_format(Path(name), None) for name in names} == names
    assert choose_format(Path("a.jsonl"), "ctm") == "ctm"
    with pytest.raises(UserError, match="does not tell its format"):
        choose_format(Path("a.json"), None)
    with pytest.raises(UserError, match="there are jsonl, ctm, srt, txt, lhotse"):
        choose_format(None, "stm")


def test_only_earlier_results_are_written_over(tmp_path: Path) -> None:
    contents: dict[str, bytes] = {
        "jsonl": json.dumps(describe(transcript(segment(0.0, "A")))).encode() + b"\n",
        "ctm": b"a 1 0.00 0.30 A 0.500\n",
        "srt": b"1\n00:00:00,000 --> 00:00:00,300\nA\n\n",
        "txt": b"a A B\n",
        "lhotse": gzip.compress(b'{"id": "a", "recording_id": "a", "start": 0}\n'),
    }
    for format in ("jsonl", "ctm", "srt", "txt", "lhotse"):
        for kind, content in contents.items():
            target = tmp_path / "x.srt"
            target.write_bytes(content)
            if kind == format != "txt":
                check_output(target, format, 1)
            else:
                with pytest.raises(UserError, match="was not written by|may hold other text"):
                    check_output(target, format, 1)
    target.write_bytes(b"")
    check_output(target, "txt", 1)
