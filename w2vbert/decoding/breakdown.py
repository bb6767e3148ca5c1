"""Where the errors of a scored set are: speakers, lengths, utterances, words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from w2vbert.decoding.alignment import Counts
from w2vbert.decoding.scoring import NOTHING, UtteranceScore, WerResult

LENGTHS = (0, 5, 10, 20, 40)
"""Most words of a reference in each group of the table by length but the last."""


@dataclass(frozen=True)
class Group:
    """Counts of some utterances."""

    name: str
    utterances: int
    words: Counts
    characters: Counts


def by_speaker(result: WerResult, characters: Sequence[Counts]) -> list[Group]:
    """A group for each speaker, the one with the highest word error rate first; none where speakers are not known.

    characters: counts of each utterance.
    """
    if result.resampled != "speakers":
        return []
    groups = _gather(result, characters, lambda utterance: utterance.speaker)
    return sorted(groups, key=lambda group: (-group.words.errors / max(group.words.length, 1), group.name))


def by_length(result: WerResult, characters: Sequence[Counts]) -> list[Group]:
    """A group for each range of lengths (words of the reference) that occurs, the shortest first."""
    names = [str(LENGTHS[0])]
    names += [f"{low + 1} to {high}" for low, high in zip(LENGTHS, LENGTHS[1:], strict=False)]
    names.append(f"{LENGTHS[-1] + 1} and more")

    def name(utterance: UtteranceScore) -> str:
        return names[sum(utterance.words > most for most in LENGTHS)]

    return sorted(_gather(result, characters, name), key=lambda group: names.index(group.name))


def worst_utterances(result: WerResult, count: int) -> list[UtteranceScore]:
    """The `count` utterances with the most errors; of two with as many, the shorter one first."""
    wrong = [utterance for utterance in result.utterances if utterance.errors]
    return sorted(wrong, key=lambda utterance: (-utterance.errors, utterance.words))[:count]


@dataclass(frozen=True)
class Confusions:
    """What was most often taken for what, the most frequent first."""

    substitutions: list[tuple[str, str, int]]
    """Word of the reference, of the hypothesis, how often."""
    deletions: list[tuple[str, int]]
    insertions: list[tuple[str, int]]


def find_confusions(result: WerResult, count: int) -> Confusions:
    """The `count` most frequent errors of each kind."""
    pairs = Counter(pair for utterance in result.utterances for pair in utterance.pairs if pair[0] != pair[1])
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return Confusions(
        [(ref, hyp, times) for (ref, hyp), times in ranked if NOTHING not in (ref, hyp)][:count],
        [(ref, times) for (ref, hyp), times in ranked if hyp == NOTHING][:count],
        [(hyp, times) for (ref, hyp), times in ranked if ref == NOTHING][:count],
    )


def _gather(result: WerResult, characters: Sequence[Counts], name: Callable[[UtteranceScore], str]) -> list[Group]:
    found: dict[str, list[tuple[Counts, Counts]]] = {}
    for utterance, own in zip(result.utterances, characters, strict=True):
        found.setdefault(name(utterance), []).append((utterance.counts, own))
    return [
        Group(name, len(some), sum((w for w, _ in some), start=Counts()), sum((c for _, c in some), start=Counts()))
        for name, some in found.items()
    ]
