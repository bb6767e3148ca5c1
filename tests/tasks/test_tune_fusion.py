import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from w2vbert.cli import main
from w2vbert.config import load_config
from w2vbert.files import read_json
from w2vbert.tasks.decode import DecodeConfig

WORDS = "zero one two three four five six seven eight nine".split()
LM, LODR, BONUS = 0.4, 0.2, 1.5


def make_lists(count: int = 120, texts: int = 6) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """References, and lists whose best text has the highest score with the weights above, and not without."""
    generator = random.Random(0)
    refs, lines = {}, []
    for number in range(count):
        ref = generator.choices(WORDS, k=5)
        id = f"s{number % 6}-{number:03d}"
        refs[id] = " ".join(ref)
        entries = []
        for wrong in range(texts):
            text = [generator.choice(WORDS) if place < wrong else word for place, word in enumerate(ref)]
            scores = {"ngram": generator.uniform(-30, -5), "lodr": generator.uniform(-30, -5)}
            tokens = 8 + generator.randint(0, 4)
            total = -float(wrong) + generator.gauss(0, 0.3)
            model = total - LM * scores["ngram"] + LODR * scores["lodr"] - BONUS * tokens
            entry: dict[str, Any] = {
                "text": " ".join(text),
                "score": total,
                "model_score": model,
                "tokens": tokens,
                "scores": scores,
            }
            entries.append(entry)
        entries.sort(key=lambda entry: -float(entry["model_score"]))
        lines.append({"id": id, "text": entries[0]["text"], "confidence": 0.5, "words": [], "nbest": entries})
    return refs, lines


def write(folder: Path, refs: dict[str, str], lines: list[dict[str, Any]]) -> tuple[str, str, str]:
    (folder / "ref").write_text("".join(f"{id} {text}\n" for id, text in refs.items()))
    (folder / "hyps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "ref"), str(folder / "hyps.jsonl"), str(folder / "out")


def test_the_weights_are_found_and_fit_decode(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refs, lines = make_lists()
    del lines[3]["nbest"]  # a beam that held a single text
    lines[4] = {"id": lines[4]["id"], "text": None, "confidence": 0.0}  # a recording that failed
    ref, nbest, out = write(tmp_path, refs, lines)
    assert main(["tune-fusion", ref, nbest, out]) == 0
    printed, warnings = capfd.readouterr()
    assert sorted(path.name for path in Path(out).glob("[!.]*")) == [
        "decode.yaml",
        "tuning.json",
        "tuning.txt",
        "wer.png",
    ]
    found = read_json(Path(out) / "tuning.json")
    for name, value, tolerance in (("ngram", LM, 0.05), ("lodr", LODR, 0.05), ("length_bonus", BONUS, 0.2)):
        assert found["weights"][name] == pytest.approx(value, abs=tolerance)
    config = load_config(DecodeConfig, Path(out) / "decode.yaml")
    assert config.search.method == "beam" and config.search.length_bonus == found["weights"]["length_bonus"]
    assert (config.fusion.ngram, config.fusion.lodr) == (found["weights"]["ngram"], found["weights"]["lodr"])
    alone, decoded, tuned, oracle = found["rows"]
    assert oracle["errors"] <= tuned["errors"] < 0.5 * alone["errors"] and decoded["errors"] == alone["errors"]
    assert found["difference"]["percent"] == pytest.approx(tuned["wer"] - alone["wer"])
    assert found["warnings"] == [] and "border" not in warnings
    assert (Path(out) / "tuning.txt").read_text() == printed and "normalization: none" in printed
    assert (Path(out) / "wer.png").read_bytes().startswith(b"\x89PNG")
    first = (Path(out) / "decode.yaml").read_bytes()
    assert main(["tune-fusion", ref, nbest, out]) == 0
    assert (Path(out) / "decode.yaml").read_bytes() == first


def test_doubts_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ref, nbest, out = write(tmp_path, *make_lists(texts=3))
    assert main(["tune-fusion", ref, nbest, out, "--range", "ngram=0:0.2", "--range", "lodr=0:1"]) == 0
    err = capfd.readouterr().err
    assert "try --range ngram=0:0.4" in err and "half of the lists hold fewer than 4 texts" in err
    assert yaml.safe_load((Path(out) / "decode.yaml").read_text())["fusion"]["ngram"] <= 0.2


def broken(change: str) -> list[dict[str, Any]]:
    _, lines = make_lists(count=4)
    if change == "no lists":
        for line in lines:
            del line["nbest"]
    elif change == "pieces":
        lines[1]["segments"] = []
    elif change == "scores":
        del lines[1]["nbest"][2]["scores"]["lodr"]
    elif change == "format":
        del lines[1]["nbest"][2]["tokens"]
    elif change == "nan":
        lines[1]["nbest"][2]["model_score"] = float("nan")
    elif change == "name":
        for line in lines:
            for entry in line["nbest"]:
                entry["scores"]["oracle"] = 0.0
    elif change == "ids":
        lines = lines[1:]
    return lines


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ("no lists", [], "holds no n-best lists with scores of language models: decode with --lm"),
        ("pieces", [], "s1-001 was decoded in pieces"),
        ("scores", [], "not all texts of s1-001 have scores of lodr, ngram"),
        ("format", [], "the n-best list of s1-001 is not as"),
        ("nan", [], "the n-best list of s1-001 is not as"),
        ("name", [], "holds scores of oracle, which no weight"),
        ("ids", [], "1 of 4 references have no hypothesis: s0-000"),
        ("", ["--range", "neural=0:1"], "has no such scores; there are ngram, lodr, length_bonus"),
        ("", ["--range", "ngram=1:0"], "--range ngram=1:0: write NAME=LOW:HIGH"),
        ("", ["--range", "ngram"], "--range ngram: write NAME=LOW:HIGH"),
    ],
)
def test_what_cannot_be_tuned(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: str, arguments: list[str], message: str
) -> None:
    refs, _ = make_lists(count=4)
    ref, nbest, out = write(tmp_path, refs, broken(change))
    assert main(["tune-fusion", ref, nbest, out, *arguments]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not Path(out).exists()
