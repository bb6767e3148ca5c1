"""Which of a teacher's labels are good enough to learn from.

A filter that compares labels with one another always finds a best part, also where the teacher has understood nothing.
So labels are compared with what is known to be good: the transcripts of the train split, and what the same teacher
makes of the dev split.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2vbert.tasks.labels import Label

UNLIKE_DEV = "too few are as good as on dev"
BALANCED_GROUPS = 10

_DEV_FIGURES: dict[str, Callable[[Label], float | None]] = {
    "confidence": lambda label: label.confidence,
    "lm_score": lambda label: label.lm_score,
    "lm_difference": lambda label: None if label.lm_difference is None else -label.lm_difference,
}
"""What is compared with dev, by the names in reports; higher is better."""


@dataclass(frozen=True)
class FilterConfig:
    """Which labels are kept.

    Attributes:
        min_words: shorter labels are dropped: noise and silence often become one word, or none.
        max_words_per_second: labels with more are dropped.
        rate_quantile: labels with fewer or more pieces a second than all but this share of the train split's
            transcripts, at each end, are dropped; 0: no such filter.
        max_lm_difference: labels that the language model has changed in a larger share of their words are dropped.
        dev_quantile: labels must be as confident, as likely a text and as little changed by the language model as all
            but this share of the teacher's labels of the dev split; 0: no such filter.
        min_passing_share: if less of the audio than this is as good as that, it is speech of another kind, what passes
            does so by chance, and nothing is kept.
        min_confidence: labels under this confidence (0 to 1) are dropped.
        keep_share: share of the audio still there that is kept, the most confident first.
        balance_lengths: take that share in each tenth of the audio by duration, since short labels are surer.
    """

    min_words: int = 1
    max_words_per_second: float = 8.0
    rate_quantile: float = 0.01
    max_lm_difference: float = 1.0
    dev_quantile: float = 0.1
    min_passing_share: float = 0.1
    min_confidence: float = 0.0
    keep_share: float = 1.0
    balance_lengths: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.keep_share <= 1.0 or not 0.0 <= self.min_confidence <= 1.0:
            raise ValueError("keep_share must lie in (0, 1] and min_confidence in [0, 1]")
        if not 0.0 <= self.rate_quantile < 0.5 or not 0.0 <= self.dev_quantile < 1.0:
            raise ValueError("rate_quantile must lie in [0, 0.5) and dev_quantile in [0, 1)")
        if not 0.0 <= self.max_lm_difference <= 1.0 or not 0.0 <= self.min_passing_share <= 1.0:
            raise ValueError("max_lm_difference and min_passing_share must lie in [0, 1]")
        if self.min_words < 0 or self.max_words_per_second <= 0.0:
            raise ValueError("min_words must be at least 0 and max_words_per_second above 0")


@dataclass(frozen=True)
class Bounds:
    """What labelled speech tells about good labels.

    Attributes:
        pieces_per_second: least and most; None: not looked at.
        least: of `confidence`, `lm_score` and minus `lm_difference`, by these names; {}: not looked at.
    """

    pieces_per_second: tuple[float, float] | None
    least: dict[str, float]


@dataclass(frozen=True)
class Filtered:
    """The result of a filter.

    Attributes:
        kept: labels to train on, in the order in which they came.
        dropped: why each of the others is not kept, by id.
        passing_share: of the audio, what is as good as dev; None where this was not looked at.
    """

    kept: list[Label]
    dropped: dict[str, str]
    passing_share: float | None

    def report(self, labels: Sequence[Label]) -> dict[str, Any]:
        """Counts and hours for JSON."""
        return {
            "labelled": len(labels),
            "labelled_hours": sum(label.seconds for label in labels) / 3600,
            "kept": len(self.kept),
            "kept_hours": sum(label.seconds for label in self.kept) / 3600,
            "dropped": dict(sorted(Counter(self.dropped.values()).items())),
            "passing_share": self.passing_share,
            "confidence_threshold": min((label.confidence for label in self.kept), default=None),
        }


def find_bounds(config: FilterConfig, rates: Sequence[float], dev: Sequence[Label]) -> Bounds:
    """Bounds from labelled speech.

    Args:
        config: the quantiles.
        rates: pieces a second of the train split's transcripts; may be empty where `rate_quantile` is 0.
        dev: the teacher's labels of the dev split; may be empty where `dev_quantile` is 0.
    """
    span = None
    if config.rate_quantile:
        low, high = np.quantile(rates, [config.rate_quantile, 1.0 - config.rate_quantile])
        span = (float(low), float(high))
    least = {}
    if config.dev_quantile:
        for name, figure in _DEV_FIGURES.items():
            values = [value for value in map(figure, dev) if value is not None]
            if values:  # without a language model only the confidence
                least[name] = float(np.quantile(values, config.dev_quantile))
    return Bounds(span, least)


def filter_labels(labels: Sequence[Label], bounds: Bounds, config: FilterConfig) -> Filtered:
    """The labels to train on, and why the others are not among them; equal confidence is decided by id."""
    dropped: dict[str, str] = {}
    sound = []
    for label in labels:
        problem = _find_problem(label, bounds, config)
        if problem is None:
            sound.append(label)
        else:
            dropped[label.id] = problem
    passing = None
    if bounds.least:
        whole = sum(label.seconds for label in labels)
        passing = sum(label.seconds for label in sound) / whole if whole else 0.0
        if passing < config.min_passing_share:
            return Filtered([], dropped | {label.id: UNLIKE_DEV for label in sound}, passing)
    chosen: set[str] = set()
    for group in _groups_by_length(sound) if config.balance_lengths else [sound]:
        chosen |= _most_confident(group, config)
    kept = [label for label in sound if label.id in chosen]
    return Filtered(kept, dropped | {label.id: "confidence" for label in sound if label.id not in chosen}, passing)


def _find_problem(label: Label, bounds: Bounds, config: FilterConfig) -> str | None:
    """What is wrong with a label by itself; None if nothing is."""
    if label.words < config.min_words:
        return "too few words"
    if label.words > config.max_words_per_second * label.seconds:
        return "too many words a second"
    if bounds.pieces_per_second is not None:
        low, high = bounds.pieces_per_second
        if not low <= label.pieces_per_second <= high:
            return "pieces a second"
    if label.lm_difference is not None and label.lm_difference > config.max_lm_difference:
        return "changed by the language model"
    for name, least in bounds.least.items():
        value = _DEV_FIGURES[name](label)
        if value is not None and value < least:
            return f"worse than dev: {name}"
    return None


def _most_confident(labels: Sequence[Label], config: FilterConfig) -> set[str]:
    """Ids of the share of the audio that is kept."""
    allowed = config.keep_share * sum(label.seconds for label in labels)
    seconds = 0.0
    chosen: set[str] = set()
    for label in sorted(labels, key=lambda label: (-label.confidence, label.id)):
        if label.confidence < config.min_confidence or seconds >= allowed:
            break
        chosen.add(label.id)
        seconds += label.seconds
    return chosen


def _groups_by_length(labels: Sequence[Label]) -> list[list[Label]]:
    """Labels by duration, in groups of like amounts of audio."""
    whole = sum(label.seconds for label in labels)
    groups: list[list[Label]] = [[] for _ in range(BALANCED_GROUPS)]
    seconds = 0.0
    for label in sorted(labels, key=lambda label: (label.seconds, label.id)):
        groups[min(int(BALANCED_GROUPS * seconds / whole), BALANCED_GROUPS - 1)].append(label)
        seconds += label.seconds
    return groups
