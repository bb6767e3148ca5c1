import math

import pytest

from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.words import Word, find_words


@pytest.mark.parametrize("frame_seconds", [0.04, 0.02])
def test_words_have_the_times_and_probabilities_of_their_pieces(frame_seconds: float) -> None:
    pieces = ["\u2581THE", "\u2581", "C", "AT", "\u2581", "\u2581SAT"]
    frames = (2, 5, 5, 9, 12, 20)
    log_probs = tuple(math.log(p) for p in (0.9, 0.5, 0.5, 0.5, 0.1, 1.0))
    words = find_words(Hypothesis(tuple(range(6)), frames, log_probs, 0.0, 0.0), pieces, frame_seconds)
    assert [word.text for word in words] == ["THE", "CAT", "SAT"]
    assert [w.start for w in words] == pytest.approx([frame * frame_seconds for frame in (2, 5, 20)])
    assert [w.end for w in words] == pytest.approx([frame * frame_seconds for frame in (3, 10, 21)])
    assert [w.confidence for w in words] == pytest.approx([0.9, 0.5, 1.0])


def test_times_never_go_back_where_a_frame_emits_two_words() -> None:
    h = Hypothesis((0, 1, 2), (3, 3, 3), (0.0, 0.0, 0.0), 0.0, 0.0)
    words = find_words(h, ["\u2581A", "\u2581B", "\u2581C"], 0.04)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and words[2] == Word("C", 0.12, 0.16, 1.0)
    assert find_words(Hypothesis((), (), (), 0.0, 0.0), [], 0.04) == []
