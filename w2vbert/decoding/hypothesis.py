"""What a search returns for an utterance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hypothesis:
    """A label sequence with its times and scores; scores are natural logarithms.

    Of the alignments that give the same labels, `frames` and `token_log_probs` belong to the best one.
    """

    tokens: tuple[int, ...]
    """Label ids without blanks."""
    frames: tuple[int, ...]
    """Encoder frame at which each label was emitted; never decreasing."""
    token_log_probs: tuple[float, ...]
    """The transducer's log-probability of each label where it was emitted."""
    score: float
    """What the n-best list is sorted by: transducer, scorers and length bonus, normalised if the config says so."""
    model_score: float
    """Log-probability by the transducer alone, summed over the alignments that the search kept."""
    posterior: float = 1.0
    """Share of this hypothesis among all that were left in the beam, in 0 .. 1 (1 for a greedy search)."""
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Log-probability of the whole text by each scorer of the search, without its weight, with the end of the sentence
    where the scorer knows one."""

    @classmethod
    def of_path(
        cls,
        path: Sequence[tuple[int, int, float]],
        score: float,
        model_score: float,
        posterior: float = 1.0,
        scores: Mapping[str, float] | None = None,
    ) -> Hypothesis:
        """A hypothesis from its emissions: (label, frame, log-probability) each."""
        return cls(
            tokens=tuple(token for token, _, _ in path),
            frames=tuple(frame for _, frame, _ in path),
            token_log_probs=tuple(log_prob for _, _, log_prob in path),
            score=score,
            model_score=model_score,
            posterior=posterior,
            scores=scores or {},
        )

    @property
    def confidence(self) -> float:
        """Geometric mean of the label probabilities, in 0 .. 1; 0 for an empty hypothesis."""
        if not self.token_log_probs:
            return 0.0
        return math.exp(sum(self.token_log_probs) / len(self.token_log_probs))
