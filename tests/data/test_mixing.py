"""The ratio of labelled and pseudo-labelled audio."""

import random
from collections import Counter

import pytest

from w2vbert.data.mixing import Mixture


@pytest.mark.parametrize(("labelled", "pseudo"), [(20, 400), (400, 20), (1, 100), (100, 1), (50, 450)])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_every_epoch_has_the_ratio(labelled: int, pseudo: int, share: float) -> None:
    draw = random.Random(labelled)
    frames = [draw.randint(100, 1500) for _ in range(labelled + pseudo)]
    mixture = Mixture(labelled, share)
    counts: Counter[int] = Counter()
    total = 0
    for epoch in range(30):
        drawn = mixture.draw(frames, 7, epoch)
        assert drawn == mixture.draw(frames, 7, epoch)
        assert [i for i in drawn if i >= labelled] == list(range(labelled, labelled + pseudo))
        own = [i for i in drawn if i < labelled]
        counts.update(own)
        total += sum(frames[i] for i in own)
        wanted = sum(frames[labelled:]) * (1 - share) / share
        assert sum(frames[i] for i in own) == pytest.approx(wanted, abs=max(frames[:labelled]))
    assert total == pytest.approx(30 * wanted, abs=max(frames[:labelled]))  # no drift
    assert max(counts.values()) - min(counts[i] for i in range(labelled)) <= 1  # all are heard equally often


def test_the_order_changes_with_seed_and_round() -> None:
    frames = [100] * 60
    mixture = Mixture(10, 0.5)
    own = [[i for i in mixture.draw(frames, seed, epoch) if i < 10] for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert own[0] != own[1] and own[0] != own[2] and all(len(x) == 50 for x in own)
    for begin in range(0, 50, 10):
        assert sorted(own[0][begin : begin + 10]) == list(range(10))
