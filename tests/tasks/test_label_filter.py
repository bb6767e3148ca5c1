"""Which labels are kept."""

import random

import pytest

from w2vbert.tasks.label_filter import UNLIKE_DEV, Bounds, FilterConfig, Filtered, filter_labels, find_bounds
from w2vbert.tasks.labels import Label

NO_BOUNDS = Bounds(None, {})


def label(id: str, words: int = 2, confidence: float = 0.9, seconds: float = 1.0, **figures: float) -> Label:
    return Label(id, seconds, " ".join(["WORD"] * words), 2 * words, confidence, **figures)


def filtered(labels: list[Label], config: FilterConfig, bounds: Bounds = NO_BOUNDS) -> Filtered:
    """Filters, and checks that everything is either kept or dropped."""
    found = filter_labels(labels, bounds, config)
    ids = [x.id for x in found.kept]
    assert ids == [x.id for x in labels if x.id in set(ids)]
    assert set(ids) | found.dropped.keys() == {x.id for x in labels} and not set(ids) & found.dropped.keys()
    report = found.report(labels)
    assert report["labelled"] == len(labels) == report["kept"] + sum(report["dropped"].values())
    assert report["kept_hours"] * 3600 == pytest.approx(sum(x.seconds for x in found.kept))
    assert report["confidence_threshold"] == min((x.confidence for x in found.kept), default=None)
    return found


def kept(labels: list[Label], config: FilterConfig, bounds: Bounds = NO_BOUNDS) -> str:
    return " ".join(sorted(x.id for x in filtered(labels, config, bounds).kept))


@pytest.mark.parametrize(("share", "expected"), [(1.0, 10), (0.9, 9), (0.5, 5), (0.41, 5), (0.01, 1)])
def test_the_most_confident_share_is_kept(share: float, expected: int) -> None:
    labels = [label(f"u{i}", confidence=0.9 - 0.05 * i) for i in range(10)]
    found = filtered(labels[::-1], FilterConfig(keep_share=share))
    assert sorted(x.id for x in found.kept) == [f"u{i}" for i in range(expected)]
    assert set(found.dropped.values()) <= {"confidence"}


def test_the_share_is_of_audio_not_of_utterances() -> None:
    labels = [label("long", 2, 0.9, 4.0), label("short1", 1, 0.8, 0.5), label("short2", 1, 0.7, 0.5)]
    assert kept(labels, FilterConfig(keep_share=0.5)) == "long"
    assert kept(labels[::-1], FilterConfig(keep_share=0.85)) == "long short1"


def test_thresholds() -> None:
    labels = [label("none", 0, 0.0), label("one", 1), label("fine", 3), label("doubtful", 3, 0.1), label("babble", 9)]
    found = filtered(labels, FilterConfig(min_confidence=0.5, min_words=2))
    assert [x.id for x in found.kept] == ["fine"]
    assert found.dropped == {
        "none": "too few words",
        "one": "too few words",
        "doubtful": "confidence",
        "babble": "too many words a second",
    }
    assert kept(labels, FilterConfig(max_words_per_second=9.0)) == "babble doubtful fine one"
    assert kept([], FilterConfig()) == ""


def test_equal_confidence_is_decided_by_id_whatever_the_order() -> None:
    labels = [label(id) for id in "abcd"]
    for order in (labels, labels[::-1]):
        assert kept(order, FilterConfig(keep_share=0.5)) == "a b"


def test_the_rate_of_pieces_is_that_of_the_transcripts() -> None:
    config = FilterConfig(rate_quantile=0.1)
    bounds = find_bounds(config, [float(rate) for rate in range(11)], [])
    assert bounds.pieces_per_second == pytest.approx((1.0, 9.0)) and find_bounds(
        FilterConfig(rate_quantile=0.0), [], []
    ) == Bounds(None, {})
    labels = [label("slow", 1, seconds=4.0), label("right", 2), label("edge", 1, seconds=2.0), label("fast", 5)]
    found = filtered(labels, config, bounds)
    assert [x.id for x in found.kept] == ["right", "edge"] and set(found.dropped.values()) == {"pieces a second"}


def test_what_the_language_model_has_changed_is_dropped() -> None:
    labels = [label("alike", lm_difference=0.0), label("changed", lm_difference=0.5), label("without")]
    assert kept(labels, FilterConfig(max_lm_difference=0.4)) == "alike without"


def test_labels_must_be_as_good_as_those_of_dev() -> None:
    config = FilterConfig(rate_quantile=0.0, dev_quantile=0.1)
    dev = [
        label(str(i), confidence=0.5 + i / 100, lm_score=-2.0 + i / 100, lm_difference=0.5 - i / 100) for i in range(11)
    ]
    bounds = find_bounds(config, [], dev)
    assert bounds.least == pytest.approx({"confidence": 0.51, "lm_score": -1.99, "lm_difference": -0.49})
    good = {"confidence": 0.52, "lm_score": -1.5, "lm_difference": 0.4}
    labels = [label("good", **good)]
    labels += [label(name, **(good | {name: bad})) for name, bad in zip(good, (0.5, -2.0, 0.6), strict=True)]
    found = filtered(labels, config, bounds)
    assert [x.id for x in found.kept] == ["good"] and found.passing_share == 0.25
    assert found.dropped == {name: f"worse than dev: {name}" for name in good}
    alone = find_bounds(config, [], [label("a", confidence=0.3)])
    assert alone.least == {"confidence": 0.3}


def test_most_of_what_is_like_dev_passes_and_what_is_not_passes_as_a_whole_or_not_at_all() -> None:
    draw = random.Random(1)
    config = FilterConfig(rate_quantile=0.0, dev_quantile=0.1, min_passing_share=0.1)
    dev, alike = ([label(f"{n}", confidence=draw.random()) for n in range(500)] for _ in range(2))
    bounds = find_bounds(config, [], dev)
    found = filtered(alike, config, bounds)
    assert found.passing_share == pytest.approx(0.9, abs=0.04) and UNLIKE_DEV not in found.dropped.values()
    strange = [label(f"{n}", confidence=0.1 * draw.random()) for n in range(500)] + [label("lucky", confidence=0.9)]
    found = filtered(strange, config, bounds)
    assert found.kept == [] and found.dropped["lucky"] == UNLIKE_DEV and 0.0 < (found.passing_share or 0.0) < 0.1
    assert kept(strange, FilterConfig(min_passing_share=0.0), bounds).endswith("lucky")


def test_balanced_by_length_short_labels_do_not_push_out_long_ones() -> None:
    labels = [label(f"short{n}", confidence=0.9 + n / 10_000, seconds=1.0) for n in range(100)]
    labels += [label(f"long{n}", 20, confidence=0.5 + n / 10_000, seconds=10.0) for n in range(10)]
    assert "long" not in kept(labels, FilterConfig(keep_share=0.5))
    balanced = kept(labels, FilterConfig(keep_share=0.5, balance_lengths=True)).split()
    assert sum(id.startswith("short") for id in balanced) == 50
    assert [id for id in balanced if id.startswith("long")] != []
    assert kept(labels, FilterConfig(balance_lengths=True)) == kept(labels, FilterConfig())


@pytest.mark.parametrize(
    "values",
    [
        {"keep_share": 0.0},
        {"min_confidence": 1.1},
        {"rate_quantile": 0.5},
        {"dev_quantile": 1.0},
        {"min_passing_share": -0.1},
        {"max_lm_difference": 2.0},
        {"min_words": -1},
    ],
)
def test_settings_that_make_no_sense(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        FilterConfig(**values)  # type: ignore[arg-type]
