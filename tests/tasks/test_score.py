import gzip
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from w2vbert.cli import main
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
        (b"a ONE\nb \0\1\n", "hyp:2: not text, but binary data"),
        (b'{"id": "a", "supervisions": []}\n', 'hyp:1: a cut needs supervisions with "text"'),
        (b'{"id": "x/a.wav", "text": "A"}\n{"id": "y/a.wav", "text": "B"}\n', "x/a.wav and y/a.wav both belong to"),
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


def test_manifests_of_lhotse(tmp_path: Path) -> None:
    from lhotse import CutSet, MonoCut, SupervisionSegment, SupervisionSet

    def part(id: str, text: str, start: float, speaker: str) -> SupervisionSegment:
        return SupervisionSegment(id, "r", start, 1.0, text=text, speaker=speaker)

    whole = [part("u1", "ONE TWO", 0, "anna"), part("u2", "THREE", 3, "bert")]
    SupervisionSet.from_segments(whole).to_file(tmp_path / "supervisions.jsonl.gz")
    late, early = part("p2", "TWO", 1, "anna"), part("p1", "ONE", 0, "anna")
    cuts = [MonoCut("u1", 0, 2, 0, [late, early]), MonoCut("u2", 3, 1, 0, [part("p3", "THREE", 0, "bert")])]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    (tmp_path / "hyp").write_text("u1 ONE TWO\nu2 FREE\n")
    for name in ("supervisions.jsonl.gz", "cuts.jsonl.gz"):
        result = score_files(tmp_path / name, tmp_path / "hyp")
        assert (result.errors, result.words, result.resampled, result.units) == (1, 3, "speakers", 2)


def test_files_that_were_decoded_go_by_their_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ref = write(tmp_path / "ref", REFS, "kaldi")
    decoded = [{"id": f"some/folder/{id}.flac", "text": text, "confidence": 0.5} for id, text in HYPS.items()]
    decoded[0]["text"] = None
    (tmp_path / "hyp").write_text("\n".join(map(json.dumps, decoded)))
    assert main(["score", str(ref), str(tmp_path / "hyp"), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["deletions"] == 1 + 1 and "1 of 3 utterances have no text" in err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["score", *map(str, arguments), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_one_system_as_json_and_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref, hyp = write(tmp_path / "ref", REFS, "kaldi"), write(tmp_path / "hyp", HYPS, "jsonl")
    found = run_json(capsys, ref, hyp)
    counts = {"errors": 3, "insertions": 1, "deletions": 1, "substitutions": 1, "words": 7}
    assert counts.items() <= found.items() and found["wer"] == pytest.approx(300 / 7)
    assert (found["normalization"], found["resampled"], found["units"]) == ("none", "speakers", 2)
    assert found["characters"]["length"] == 23 and found["characters"]["errors"] == 8  # THE -> A: 3, NOW: 3, ON: 2
    assert {group["name"]: group["words"] for group in found["speakers"]} == {"s1": 5, "s2": 2}
    assert {group["name"]: group["utterances"] for group in found["lengths"]} == {"1 to 5": 3}
    assert found["worst"][0]["id"] == "s1-a" and found["confusions"]["substitutions"] == [["THE", "A", 1]]
    assert main(["score", str(ref), str(hyp)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("normalization: none (") and "WER 42.86 %" in text and "CER " in text
    for line in ("substituted: THE -> A (1)", "deleted: ON (1)", "inserted: NOW (1)", "s1-a (errors: 2, words: 4)"):
        assert f"  {line}\n" in text


def test_normalization_is_stated_and_counts_on_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ref").write_text("u It\u2019s late, isn't it?\n", encoding="utf-8")
    (tmp_path / "hyp").write_text("u it's LATE isn\u2019t it\n", encoding="utf-8")
    files = tmp_path / "ref", tmp_path / "hyp"
    assert run_json(capsys, *files)["errors"] == 4
    found = run_json(capsys, *files, "--normalize", "basic")
    assert (found["errors"], found["normalization"]) == (0, "basic")
    assert found["normalization_steps"] == ["nfkc", "apostrophes", "case", "punctuation"]
    assert run_json(capsys, *files, "--normalize", "case,apostrophes")["errors"] == 2
    assert main(["score", *map(str, files), "--normalize", "all"]) == 2
    assert capsys.readouterr().err.startswith("error: --normalize all: none, basic, or some of")


def test_several_systems_are_compared_with_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = {f"s{number % 8}-{number}": "one two three four" for number in range(80)}
    same = {id: "one two three for" if int(id.split("-")[1]) % 5 == 0 else text for id, text in refs.items()}
    worse = {id: "one to three for" if int(id.split("-")[1]) % 3 else text for id, text in refs.items()}
    ref = write(tmp_path / "ref", refs, "kaldi")
    hyps = [write(tmp_path / f"{name}.jsonl", texts, "jsonl") for name, texts in (("base", same), ("new", worse))]
    hyps.append(write(tmp_path / "again.txt", same, "kaldi"))
    found = run_json(capsys, ref, *hyps)
    base, new, again = found["systems"]
    assert [system["name"] for system in found["systems"]] == ["base", "new", "again"]
    assert "difference" not in base and again["difference"]["percent"] == 0 and again["difference"]["is_chance"]
    difference = new["difference"]
    assert difference["percent"] == pytest.approx(new["wer"] - base["wer"]) and not difference["is_chance"]
    assert difference["interval"][0] > 0 and difference["p"] < 0.01 and difference["p_segments"] < 0.01
    assert main(["score", str(ref), *map(str, hyps)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("new ") and lines[3].endswith(" worse") and lines[4].endswith(" may be chance")
    with pytest.raises(UserError, match="new.jsonl: 1 of 80 references have no hypothesis"):
        from w2vbert.decoding.normalization import Normalization
        from w2vbert.tasks.score import score_systems

        write(hyps[1], dict(list(worse.items())[1:]), "jsonl")
        score_systems(ref, hyps, Normalization())


class Page(HTMLParser):
    """Reads a page: its text, tags that are left open, and what it would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.loads = "", list[str](), list[str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href")]
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_folder_holds_tables_alignments_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = REFS | {"s2-b": "<script>alert(1)</script> {x} \u4f60\u597d"}
    ref, out = write(tmp_path / "ref", texts, "kaldi"), tmp_path / "out"
    hyp = write(tmp_path / "hyps-test.jsonl", HYPS | {"s2-b": "&amp; {y}"}, "jsonl")
    assert main(["score", str(ref), str(hyp), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    names = ["align-test.txt", "errs-test.txt", "recogs-test.txt", "report.html", "scores.json", "wer-summary-test.txt"]
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == names
    assert "  REF: SET THE LAMP (OFF) ***\n  HYP: SET A   LAMP (OFF) NOW\n           S              I\n" in (
        out / "align-test.txt"
    ).read_text(encoding="utf-8")
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.open == [] and page.loads == []
    assert printed in page.text and "<script>alert(1)</script>" in page.text and "&amp;" in page.text
    assert json.loads((out / "scores.json").read_text()) == run_json(capsys, ref, hyp)
    assert main(["score", str(ref), str(hyp), str(ref), "--out", str(out)]) == 0
    assert (out / "align-ref.txt").is_file()


def test_a_folder_of_the_users_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref = write(tmp_path / "ref", REFS, "kaldi")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert main(["score", str(ref), str(ref), "--out", str(tmp_path / "mine")]) == 2
    assert "is not empty and was not made by score" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_long_alignments_are_wrapped(tmp_path: Path) -> None:
    ref = write(tmp_path / "ref", {"u": " ".join(["WORD"] * 100)}, "kaldi")
    assert main(["score", str(ref), str(ref), "--out", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "align-ref.txt").read_text().splitlines()[3:]
    assert max(map(len, lines)) < 120 and sum(line.count("WORD") for line in lines) == 200
