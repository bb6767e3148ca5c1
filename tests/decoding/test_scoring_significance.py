import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.make_sclite_golden import random_pairs
from w2vbert.decoding.scoring import compare_results, score_pairs
from w2vbert.decoding.significance import compare, rate_interval, segment_differences, t_quantile, t_within

MEAN = 0.1


def speakers(generator: np.random.Generator, count: int, spread: float) -> tuple[NDArray[Any], ...]:
    """Words, error probabilities and errors of speakers whose rates have the coefficient of variation `spread`."""
    words = generator.integers(600, 3500, count)
    rates = np.full(count, MEAN) if spread == 0 else MEAN * generator.gamma(spread**-2, spread**2, count)
    return words, rates, generator.binomial(words, np.minimum(rates, 1))


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("count", [5, 8, 40])
def test_the_interval_holds_the_true_rate_in_95_percent(count: int, spread: float) -> None:
    generator, trials, held = np.random.default_rng(count), 2500, 0
    for _ in range(trials):
        words, _, errors = speakers(generator, count, spread)
        low, high = rate_interval(errors, words)
        held += low <= 100 * MEAN <= high
    assert 0.93 <= held / trials <= 0.97


@pytest.mark.parametrize("count", [5, 8, 40])
def test_equal_systems_differ_by_the_test_in_5_percent(count: int) -> None:
    """Two systems with the same rate for each speaker on average; the interval of their difference holds 0."""
    generator, trials, chance, held = np.random.default_rng(count), 2500, 0, 0
    for _ in range(trials):
        words, rates, first = speakers(generator, count, 0.5)
        taste = np.clip(rates * generator.normal(1, 0.2, count), 0, 1)  # each system has speakers that it likes
        found = compare(generator.binomial(words, taste), first, words, [])
        assert found.interval is not None and found.p is not None
        chance += found.p >= 0.05
        held += found.interval[0] <= 0 <= found.interval[1]
    assert 0.93 <= chance / trials <= 0.97
    assert abs(held - chance) <= 1


def test_equal_systems_differ_by_segments_in_5_percent() -> None:
    generator = np.random.default_rng(1)
    rows = [compare([1], [1], [10], generator.integers(-2, 3, 60).tolist()).p_segments for _ in range(2000)]
    assert 0.93 <= np.mean([p is not None and p >= 0.05 for p in rows]) <= 0.97


def test_students_distribution() -> None:
    """Quantiles from tables."""
    for freedom, quantile in ((1, 12.706), (2, 4.303), (5, 2.571), (8, 2.306), (30, 2.042), (math.inf, 1.960)):
        assert t_quantile(0.95, freedom) == pytest.approx(quantile, abs=6e-4)
        assert t_within(quantile, freedom) == pytest.approx(0.95, abs=1e-4)
    assert t_within(0, 4) == 0


def test_no_errors_one_unit_and_unused_units() -> None:
    assert rate_interval([0, 0], [50, 50]) == (0, pytest.approx(3.6, abs=0.1))
    low, high = rate_interval([20], [100])
    assert low == pytest.approx(20 / 1.55, abs=0.1) and high == pytest.approx(20 * 1.55, abs=0.1)
    assert rate_interval([20, 0], [100, 0]) == (low, high)
    found = compare([20], [10], [100], [1])
    assert (found.percent, found.interval, found.p, found.p_segments) == (10, None, None, None) and found.is_chance


def test_segments_are_parted_by_two_words_that_both_have_right() -> None:
    ref = "a b c d e f g h i"
    ones = {"first": "a X c d e f g h i", "other": "a b c X e Y f g Z i"}
    first, other = (score_pairs({"u": ref}, {"u": hyp}).utterances[0].pairs for hyp in ones.values())
    # b wrong in the first; c right in both; d, the insertion and what is between belong to the same segment.
    assert segment_differences(first, other) == [-1 + 1 + 1, 1]
    assert segment_differences(first, first) == [0]
    assert segment_differences(other, first) == [-1, -1]


def two_systems() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """References, and hypotheses of which the second lack some words of the first."""
    pairs = {f"speaker_{number:04d}": pair for number, pair in enumerate(random_pairs(300, seed=8))}
    refs, first = ({id: pair[side] for id, pair in pairs.items()} for side in (0, 1))
    kept = {id: [word for place, word in enumerate(text.split()) if (place + 2) % 9] for id, text in first.items()}
    return refs, first, {id: " ".join(words) for id, words in kept.items()}


def test_the_matched_pairs_test_is_that_of_sc_stats() -> None:
    """`sc_stats -t mapsswe` of Debian's sctk 2.4.10: number of segments, mean, standard deviation, Z."""
    refs, first, other = two_systems()
    results = [score_pairs(refs, hyps).utterances for hyps in (first, other)]
    segments = [d for one, two in zip(*results, strict=True) for d in segment_differences(one.pairs, two.pairs)]
    mean, deviation = np.mean(segments), np.std(segments, ddof=1)
    assert (len(segments), round(mean, 3), round(deviation, 3)) == (645, -0.133, 0.986)
    assert mean / deviation * math.sqrt(len(segments)) == pytest.approx(-3.433, abs=1e-3)
    found = compare([2], [1], [10], segments)
    assert found.p_segments == pytest.approx(math.erfc(3.433 / math.sqrt(2)), rel=0.01)


def test_a_clear_difference_is_no_chance() -> None:
    refs = {f"s{number % 6}-{number}": "one two three four five six" for number in range(120)}
    better = {id: text if int(id.split("-")[1]) % 9 else "one too three four five six" for id, text in refs.items()}
    worse = {id: "one too three for five" if int(id.split("-")[1]) % 4 else text for id, text in refs.items()}
    groups = {id: id.split("-")[0] for id in refs}
    first, other = score_pairs(refs, better, groups), score_pairs(refs, worse, groups)
    found = compare_results(first, other)
    assert found.percent == pytest.approx(other.wer - first.wer) and found.interval is not None
    assert found.interval[0] > 0 and found.p is not None and found.p < 0.01 and not found.is_chance
    assert found.p_segments is not None and found.p_segments < 1e-6
    assert compare_results(first, first).is_chance
