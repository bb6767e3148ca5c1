"""Words of the overlapping windows of a recording, put together so that none is there twice."""

from collections.abc import Sequence
from dataclasses import replace

from w2vbert.decoding.words import Word

NEAR_SECONDS = 0.4
"""Words of two windows are the same if they are spelt alike and begin this close to one another."""


def join_windows(
    earlier: Sequence[Word], later: Sequence[Word], begin: float, end: float
) -> tuple[list[Word], list[Word]]:
    """What of the words of two windows is kept, of which the earlier one ends at `end` and the later begins at `begin`.

    Both know the overlap from `begin` to `end`, and each of them least about its own edge. So they change over at the
    word nearest to the middle that both have heard; without one, each keeps its half.
    """
    middle = (begin + end) / 2
    same = [
        (i, j)
        for i, left in enumerate(earlier)
        if left.end > begin
        for j, right in enumerate(later)
        if left.text == right.text and abs(left.start - right.start) < NEAR_SECONDS
    ]
    if same:
        i, j = min(same, key=lambda pair: abs(earlier[pair[0]].start - middle))
        return list(earlier[: i + 1]), list(later[j + 1 :])
    return [word for word in earlier if _centre(word) < middle], [word for word in later if _centre(word) >= middle]


def put_in_order(words: Sequence[Word], after: float = 0.0) -> list[Word]:
    """The same words with times that never go back: where two overlap, the later begins at the end of the earlier.

    Args:
        words: as they follow one another.
        after: no word begins before.
    """
    ordered: list[Word] = []
    for word in words:
        start = max(word.start, ordered[-1].end if ordered else after)
        ordered.append(replace(word, start=start, end=max(word.end, start)))
    return ordered


def _centre(word: Word) -> float:
    return (word.start + word.end) / 2
