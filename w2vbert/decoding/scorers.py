"""Language models as seen by the search."""

from typing import Any, Protocol

import torch
from torch import Tensor


class Scorer(Protocol):
    """Scores label sequences one label at a time, for many hypotheses at once.

    A state stands for N hypotheses. What it is made of is the scorer's own business: the search only passes it back.
    Scores are natural logarithms.
    """

    def start(self, batch: int, device: torch.device) -> Any:
        """The state of `batch` empty hypotheses."""

    def scores(self, state: Any) -> Tensor:
        """Log-probability of every next label, (N, V) float32; the blank's column is not read."""

    def advance(self, state: Any, rows: Tensor, tokens: Tensor, emitted: Tensor) -> Any:
        """The state of M hypotheses: hypothesis m continues row `rows[m]` of `state` by the label `tokens[m]`.

        rows, tokens: (M,) int64. emitted: (M,) bool; where it is False the row is taken over without a label.
        """

    def final(self, state: Any) -> Tensor:
        """Log-probability that the sentence ends here, (N,) float32."""
