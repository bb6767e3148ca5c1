import math

import pytest

from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.words import Word, find_words


def test_words_have_the_times_and_probabilities_of_their_pieces() -> None:
    pieces = ["\u2581THE", "\u2581", "C", "AT", "\u2581", "\u2581SAT"]
    frames = (2, 5, 5, 9, 12, 20)
    log_probs = tuple(math.log(p) for p in (0.9, 0.5, 0.5, 0.5, 0.1, 1.0))
    words = find_words(Hypothesis(tuple(range(6)), frames, log_probs, 0.0, 0.0), pieces)
    assert [word.text for word in words] == ["THE", "CAT", "SAT"]
    assert [w.start for w in words] == pytest.approx([0.08, 0.2, 0.8])
    assert [w.end for w in words] == pytest.approx([0.12, 0.4, 0.84])
    assert [w.confidence for w in words] == pytest.approx([0.9, 0.5, 1.0])


def test_times_never_go_back_where_a_frame_emits_two_words() -> None:
    h = Hypothesis((0, 1, 2), (3, 3, 3), (0.0, 0.0, 0.0), 0.0, 0.0)
    words = find_words(h, ["\u2581A", "\u2581B", "\u2581C"])
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and words[2] == Word("C", 0.12, 0.16, 1.0)
    assert find_words(Hypothesis((), (), (), 0.0, 0.0), []) == []
