import gzip
import json
import random
import time
import tracemalloc

import numpy as np
import pytest

from tests.make_sclite_golden import GOLDEN, find_sclite, random_pairs, run_sclite
from w2vbert.decoding import alignment
from w2vbert.decoding.alignment import Counts, align, count_characters, count_pairs, number_words


def count_words(pairs: list[tuple[str, str]]) -> list[list[int]]:
    numbers: dict[str, int] = {}
    refs, hyps = (number_words([pair[side].split() for pair in pairs], numbers) for side in (0, 1))
    return [as_list(count_pairs(*three)) for three in zip(refs, hyps, align(refs, hyps), strict=True)]


def as_list(counts: Counts) -> list[int]:
    return [counts.correct, counts.substitutions, counts.deletions, counts.insertions]


def golden() -> list[dict[str, list[int]]]:
    with gzip.open(GOLDEN, "rt") as file:
        return [json.loads(line) for line in file]


def test_every_count_is_that_of_sclite() -> None:
    stored = golden()
    assert sum(bool(line["real"]) for line in stored) == 500 and len(stored) == 2500
    pairs = [(str(line["ref"]), str(line["hyp"])) for line in stored]
    assert count_words(pairs) == [line["words"] for line in stored]
    found = count_characters(*zip(*pairs, strict=True))
    assert [as_list(counts) for counts in found] == [line["characters"] for line in stored]


@pytest.mark.skipif(find_sclite() is None, reason="sclite is not installed (Debian: sctk)")
def test_the_stored_counts_are_those_of_the_installed_sclite() -> None:
    stored = golden()
    pairs = [(str(line["ref"]), str(line["hyp"])) for line in stored]
    assert run_sclite(pairs) == [line["words"] for line in stored]
    others = random_pairs(500, seed=random.randrange(10**9))
    assert count_words(others) == run_sclite(others)


def test_the_same_alignment_one_by_one_in_a_band_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = random_pairs(300, seed=3)
    numbers: dict[str, int] = {}
    refs, hyps = (number_words([pair[side].split() for pair in pairs], numbers) for side in (0, 1))
    at_once = align(refs, hyps)
    monkeypatch.setattr(alignment, "BATCH_CELLS", 1)
    monkeypatch.setattr(alignment, "FIRST_BAND", 1)
    monkeypatch.setattr(alignment, "BLOCK_CELLS", 50)
    assert all(np.array_equal(one, other) for one, other in zip(at_once, align(refs, hyps), strict=True))


def test_empty_sides_and_equal_sides() -> None:
    assert count_words([("", ""), ("a b", ""), ("", "a"), ("a b", "a b")]) == [
        [0, 0, 0, 0],
        [0, 0, 2, 0],
        [0, 0, 0, 1],
        [2, 0, 0, 0],
    ]
    assert align([], []) == []


def test_characters_are_code_points_without_white_space() -> None:
    (counts,) = count_characters(["ÄPFEL  UND \U0001f600"], ["APFEL UND\t\U0001f600"])
    assert as_list(counts) == [8, 1, 0, 0] and counts.percent == pytest.approx(100 / 9)


def test_ten_thousand_words_take_seconds() -> None:
    generator = random.Random(0)
    words = [f"w{number}" for number in range(3000)]
    ref = generator.choices(words, k=10_000)
    hyp = [word if generator.random() > 0.1 else generator.choice(words) for word in ref if generator.random() > 0.05]
    begin = time.process_time()
    ((correct, substitutions, deletions, insertions),) = count_words([(" ".join(ref), " ".join(hyp))])
    assert time.process_time() - begin < 20  # 0.6 on an idle core
    assert correct + substitutions + deletions == 10_000 and deletions - insertions == 10_000 - len(hyp)


def test_memory_is_bounded_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(0)
    ref, hyp = (" ".join(generator.choices("abcdefgh", k=2000)) for _ in range(2))
    monkeypatch.setattr(alignment, "BLOCK_CELLS", 2**18)
    tracemalloc.start()
    count_words([(ref, hyp)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * 2000 / 2  # bytes; the table has 2000 * 2000 cells
