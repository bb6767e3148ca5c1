"""Words of a hypothesis, with their times and confidences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from w2vbert.data.tokenizer import SPACE
from w2vbert.decoding.hypothesis import Hypothesis


@dataclass(frozen=True)
class Word:
    """A recognised word.

    Attributes:
        text: its letters.
        start, end: seconds; from the frame that emitted its first piece to the end of the frame that emitted its last,
            or to the start of the next word, if that comes on the same frame.
        confidence: geometric mean of the probabilities of its pieces, 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


def find_words(hypothesis: Hypothesis, pieces: Sequence[str], frame_seconds: float) -> list[Word]:
    """The words of a hypothesis, in order of time.

    Args:
        hypothesis: of a search.
        pieces: spelling of each of its tokens, with the mark of a word's begin.
        frame_seconds: from one encoder frame to the next.
    """
    groups: list[list[int]] = []
    for index, piece in enumerate(pieces):
        if not groups or piece.startswith(SPACE):
            groups.append([])
        groups[-1].append(index)
    words = []
    for group in groups:
        text = "".join(pieces[i] for i in group).replace(SPACE, "")
        if text:
            log_prob = sum(hypothesis.token_log_probs[i] for i in group) / len(group)
            first, after = hypothesis.frames[group[0]], hypothesis.frames[group[-1]] + 1
            words.append(Word(text, first * frame_seconds, after * frame_seconds, math.exp(min(log_prob, 0.0))))
    starts = [*(word.start for word in words[1:]), math.inf][: len(words)]
    return [replace(word, end=min(word.end, start)) for word, start in zip(words, starts, strict=True)]
