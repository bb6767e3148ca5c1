import time

import numpy as np
import pytest

from w2vbert.decoding.tuning import NbestTable, tune


def make_table(generator: np.random.Generator, truth: list[float], utterances: int = 300, texts: int = 8) -> NbestTable:
    """Lists in which the text with the fewest errors has the highest score if the weights are `truth`."""
    count = len(truth)
    features = generator.normal(0, 3, (utterances, texts, count))
    scores = -(features @ np.array(truth)) + generator.normal(0, 0.5, (utterances, texts))
    ranks = np.argsort(np.argsort(-(scores + features @ np.array(truth)), axis=1), axis=1)
    names = tuple(f"w{number}" for number in range(count))
    return NbestTable(names, scores, features, ranks.astype(np.int64))


def slowly(table: NbestTable, weights: np.ndarray) -> int:
    errors = 0
    for scores, features, wrong in zip(table.scores, table.features, table.errors, strict=True):
        rows = zip(scores, features, strict=True)
        totals = [score + sum(w * f for w, f in zip(weights, own, strict=True)) for score, own in rows]
        errors += int(wrong[totals.index(max(totals))])
    return errors


@pytest.mark.parametrize("truth", [[0.4], [0.35, -0.7], [0.6, 0.2, 1.3], [0.5, 0.3, 0.2, 1.0]])
def test_the_weights_that_made_the_lists_are_found(truth: list[float]) -> None:
    table = make_table(np.random.default_rng(len(truth)), truth)
    bounds = [(0.0, 1.0)] * (len(truth) - 1) + [(-1.0, 3.0)]
    found = tune(table, bounds)
    assert np.abs(found.weights - truth).max() < 0.12 and found.border == ()
    assert found.errors == slowly(table, found.weights)
    assert found.errors <= 1.05 * slowly(table, np.array(truth)) + 3
    again = tune(table, bounds)
    assert np.array_equal(again.weights, found.weights) and again.errors == found.errors


def test_errors_are_those_of_one_choice_after_the_other() -> None:
    generator = np.random.default_rng(0)
    table = make_table(generator, [0.5, 0.2], utterances=60)
    table.scores[5:20, 3:] = -np.inf
    table.errors[5:20, 3:] = 0  # of texts that are not there
    table.errors[30:40] = 2
    weights = generator.normal(0, 1, (50, 2))
    expected = [slowly(table, one) for one in weights]
    assert table.count_errors(weights).tolist() == expected
    varied, fixed = table.split()
    assert len(varied.scores) <= 50 and (varied.count_errors(weights) + fixed).tolist() == expected
    lists = zip(table.errors, table.scores, strict=True)
    best = sum(min(e for e, s in zip(*row, strict=True) if np.isfinite(s)) for row in lists)
    assert table.oracle_errors == best <= min(expected)


def test_the_border_is_named_and_a_plateau_is_met_in_its_middle() -> None:
    table = make_table(np.random.default_rng(1), [2.0, 0.5])
    assert tune(table, [(0, 1), (-1, 3)]).border == ("w0",)
    flat = NbestTable(("a",), np.array([[0.0, -3.0]]), np.array([[[0.0], [10.0]]]), np.array([[1, 0]]))
    assert tune(flat, [(0, 1)]).weights[0] == pytest.approx(0.65, abs=0.05)  # fewest errors from 0.3 to 1


def test_nothing_to_choose() -> None:
    table = NbestTable(("a", "b"), np.zeros((2, 1)), np.zeros((2, 1, 2)), np.array([[3], [4]]))
    found = tune(table, [(0, 1), (-1, 3)])
    assert found.errors == 7 and found.border == ()


def test_thousands_of_choices_a_second() -> None:
    table = make_table(np.random.default_rng(2), [0.4, 0.3, 1.0], utterances=360, texts=10)
    begin = time.process_time()
    found = tune(table, [(0, 1), (0, 1), (-1, 3)])
    assert found.tried > 9000 and found.tried / (time.process_time() - begin) > 1000
