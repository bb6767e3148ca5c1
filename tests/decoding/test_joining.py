"""Words of overlapping windows, joined."""

import random
from dataclasses import replace

from w2vbert.decoding.joining import join_windows, put_in_order
from w2vbert.decoding.words import Word


def words(text: str, start: float, step: float = 0.5) -> list[Word]:
    return [Word(word, start + step * i, start + step * i + 0.3, 0.9) for i, word in enumerate(text.split())]


def test_each_word_is_there_once() -> None:
    """Windows over a long text, whatever times they give to words and whatever they miss at their edges."""
    draw = random.Random(0)
    text = [f"w{draw.randrange(6)}" for _ in range(60)]  # words repeat
    heard = [Word(word, 0.5 * i, 0.5 * i + 0.3, 1.0) for i, word in enumerate(text)]
    for _ in range(200):
        begin = draw.uniform(5.0, 20.0)
        end = begin + 4.0
        shifted = [replace(word, start=word.start + (d := draw.uniform(-0.1, 0.1)), end=word.end + d) for word in heard]
        earlier = [word for word in heard if word.end < end - draw.choice([0.0, 0.5])]
        later = [word for word in shifted if word.start > begin + draw.choice([0.0, 0.5])]
        before, after = join_windows(earlier, later, begin, end)
        assert [word.text for word in before + after] == text


def test_windows_that_agree_on_nothing_keep_their_halves() -> None:
    before, after = join_windows(words("a b c d e f", 0.0), words("u v w x y z", 1.0), 1.0, 3.0)
    assert [word.text for word in before + after] == "a b c d w x y z".split()
    assert join_windows([], [], 1.0, 3.0) == ([], [])
    assert join_windows(words("a b", 0.0), [], 1.0, 3.0) == (words("a b", 0.0), [])


def test_times_never_go_back() -> None:
    jumbled = [Word("a", 0.0, 1.0, 1.0), Word("b", 0.5, 0.7, 1.0), Word("c", 0.9, 2.0, 1.0)]
    ordered = put_in_order(jumbled, after=0.2)
    assert [(word.text, word.start, word.end) for word in ordered] == [
        ("a", 0.2, 1.0),
        ("b", 1.0, 1.0),
        ("c", 1.0, 2.0),
    ]
