import numpy as np
import pytest

from w2vbert.data.grammar import SentenceGrammar, spell_number


def test_the_vocabulary_is_small_and_sentences_have_about_seven_words() -> None:
    sentences = SentenceGrammar(np.random.default_rng(1)).draw_many(5000, distinct=False)
    lengths = [len(sentence.split()) for sentence in sentences]
    words = {word for sentence in sentences for word in sentence.split()}
    assert 60 <= len(words) <= 100
    assert all(word.isalpha() and word.islower() for word in words)
    assert 6 <= np.mean(lengths) <= 8
    assert (min(lengths), max(lengths)) == (2, 12)


def test_the_same_generator_state_gives_the_same_sentences() -> None:
    first, second, other = (SentenceGrammar(np.random.default_rng(s)).draw_many(50, distinct=False) for s in (5, 5, 6))
    assert first == second != other


def test_distinct_sentences_are_distinct_and_none_is_banned() -> None:
    banned = SentenceGrammar(np.random.default_rng(1)).draw_many(300, distinct=True)
    assert len(set(banned)) == 300
    again = SentenceGrammar(np.random.default_rng(1)).draw_many(300, distinct=False, banned=banned)
    assert not set(banned) & set(again)


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (13, "thirteen"), (20, "twenty"), (99, "ninety nine"), (100, "one hundred"), (342, None)],
)
def test_numbers_are_spelled(number: int, words: str | None) -> None:
    assert spell_number(number) == (words or "three hundred forty two")


def test_every_number_is_spelled_differently() -> None:
    assert len({spell_number(number) for number in range(1000)}) == 1000
    with pytest.raises(ValueError, match="0 to 999"):
        spell_number(1000)
