"""The numbers behind the picture of a filter equal a plain computation."""

import random
from pathlib import Path

import pytest

from w2vbert.decoding.scoring import score_pairs
from w2vbert.tasks.label_curve import draw_filter, measure_filter
from w2vbert.tasks.labels import Label, count_edits, read_label_file, write_label_file


@pytest.fixture(scope="module")
def labels_and_references() -> tuple[list[Label], dict[str, str]]:
    """Labels whose words are wrong the more often the less sure they are."""
    draw = random.Random(1)
    labels, references = [], {}
    for n in range(300):
        sure = draw.random()
        ref = [draw.choice("ABCDEF") for _ in range(draw.randint(1, 9))]
        hyp = [word if draw.random() < sure else draw.choice("ABCDEF") for word in ref][: draw.randint(1, 9)]
        figures = (sure, draw.uniform(-5.0, 0.0), draw.random())
        labels.append(Label(f"u{n:03}", draw.uniform(0.5, 5.0), " ".join(hyp), len(hyp), *figures))
        references[labels[-1].id] = " ".join(ref)
    return labels, references


def plain_wer(labels: list[Label], references: dict[str, str]) -> float:
    """As decoding scores them."""
    return score_pairs({x.id: references[x.id] for x in labels}, {x.id: x.text for x in labels}).wer


def test_curves_equal_a_plain_computation(labels_and_references: tuple[list[Label], dict[str, str]]) -> None:
    labels, references = labels_and_references
    kept = {x.id for x in labels if x.confidence > 0.6}
    measured = measure_filter([*labels, Label("unknown", 9.0, "A", 1, 1.0)], references, kept)
    whole = sum(x.seconds for x in labels)
    assert measured["hours"] == pytest.approx(whole / 3600) and measured["utterances"] == 300
    assert measured["wer"] == pytest.approx(plain_wer(labels, references))
    assert measured["kept_wer"] == pytest.approx(plain_wer([x for x in labels if x.id in kept], references))
    assert measured["dropped_wer"] == pytest.approx(plain_wer([x for x in labels if x.id not in kept], references))
    orders = {
        "confidence": sorted(labels, key=lambda x: -x.confidence),
        "lm_score": sorted(labels, key=lambda x: -(x.lm_score or 0.0)),
        "lm_difference": sorted(labels, key=lambda x: x.lm_difference or 0.0),
    }
    assert measured["curves"].keys() == orders.keys()
    for name, order in orders.items():
        for point in measured["curves"][name]:
            best, seconds = [], 0.0
            for x in order:
                if seconds >= point["share"] * whole - 1e-9:
                    break
                best.append(x)
                seconds += x.seconds
            assert point["hours"] == pytest.approx(seconds / 3600)
            assert point["wer"] == pytest.approx(plain_wer(best, references))
        assert measured["curves"][name][-1]["wer"] == pytest.approx(measured["wer"])


def test_a_confidence_that_means_something_shows(labels_and_references: tuple[list[Label], dict[str, str]]) -> None:
    measured = measure_filter(*labels_and_references, None)
    tenths = measured["tenths"]
    assert len(tenths) == 10 and "kept_wer" not in measured
    confidences = [tenth["confidence"] for tenth in tenths]
    assert confidences == sorted(confidences, reverse=True)
    assert sum(tenth["hours"] for tenth in tenths) == pytest.approx(measured["hours"])
    assert sum(t["wer"] for t in tenths[:5]) < sum(t["wer"] for t in tenths[5:])


def test_without_a_language_model_or_without_words(tmp_path: Path) -> None:
    labels = [Label("a", 1.0, "A B", 2, 0.9), Label("b", 1.0, "", 0, 0.0)]
    measured = measure_filter(labels, {"a": "A C", "b": ""}, {"b"})
    assert list(measured["curves"]) == ["confidence"] and measured["wer"] == 50.0
    assert measured["kept_wer"] is None and measured["dropped_wer"] == 50.0
    empty = measure_filter(labels, {"b": ""}, None)
    assert empty["wer"] is None
    draw_filter({"one": measured, "two": empty}, tmp_path / "filter.png")
    assert (tmp_path / "filter.png").read_bytes().startswith(b"\x89PNG")


def test_labels_survive_their_file(tmp_path: Path) -> None:
    labels = [Label("a", 1.5, "ÄB", 2, 0.9, -1.0, 0.5), Label("b", 1.0, "", 0, 0.0)]
    write_label_file(tmp_path / "labels.jsonl", labels, {"b": "too few words"})
    assert read_label_file(tmp_path / "labels.jsonl") == labels
    for damaged in ("{", "[]", '{"id": "a"}', '{"id": "a", "dropped": null}', "7"):
        (tmp_path / "labels.jsonl").write_text(f"{damaged}\n")
        with pytest.raises(ValueError, match="labels.jsonl:1 is damaged"):
            read_label_file(tmp_path / "labels.jsonl")


def test_edits_of_empty_texts() -> None:
    assert [count.errors for count in count_edits(["", "A", "", "A B"], ["", "", "B C", "A B"])] == [0, 1, 2, 0]
