"""What a search needs of a transducer, and the few steps that all searches take with it.

Letters: N rows (hypotheses), J joiner channels, V labels with the blank.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NEVER = float("-inf")

State = tuple[Tensor, ...]


class Predictor(Protocol):
    """The prediction network; each tensor of its state is (layers, N, H)."""

    def initial_state(self, batch: int, device: torch.device) -> State: ...

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens (N,) int64 -> output (N, J), state."""


class Joiner(Protocol):
    """(..., J) of the encoder and (..., J) of the predictor, which broadcast -> logits (..., V)."""

    def __call__(self, encoder_out: Tensor, predictor_out: Tensor) -> Tensor: ...


class Transducer(Protocol):
    """All that a search needs of a model. The blank also stands before the first label."""

    @property
    def predictor(self) -> Predictor: ...

    @property
    def joiner(self) -> Joiner: ...

    @property
    def blank(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True)
class LabelModel:
    """A transducer as a distribution over the next label.

    Attributes:
        model: the transducer.
        unknown: label that is never emitted, since it stands for no text; the others share its probability.
        blank_penalty: subtracted from the blank's score before the softmax, in nats.
    """

    model: Transducer
    unknown: int | None = None
    blank_penalty: float = 0.0

    @property
    def blank(self) -> int:
        """Label that stands for none."""
        return self.model.blank

    def log_probs(self, encoder_out: Tensor, predictor_out: Tensor) -> Tensor:
        """(..., J) and (..., J), which broadcast -> log-probabilities float32 (..., V)."""
        logits = self.model.joiner(encoder_out, predictor_out).float()
        if self.blank_penalty:
            logits[..., self.blank] -= self.blank_penalty
        if self.unknown is not None:
            logits[..., self.unknown] = NEVER
        return logits.log_softmax(-1)

    def start(self, rows: int, device: torch.device) -> tuple[Tensor, State]:
        """Output (N, J) of the prediction network before the first label, and its state."""
        blanks = torch.full((rows,), self.blank, dtype=torch.long, device=device)
        return self.model.predictor.step(blanks, self.model.predictor.initial_state(rows, device))

    def read(self, out: Tensor, state: State, rows: Tensor, tokens: Tensor) -> None:
        """Let `rows` int64 (M,) of out (N, J) and state read `tokens` int64 (M,); changes both in place."""
        new_out, new_state = self.model.predictor.step(tokens, tuple(part.index_select(1, rows) for part in state))
        out.index_copy_(0, rows, new_out)
        for part, new_part in zip(state, new_state, strict=True):
            part.index_copy_(1, rows, new_part)
