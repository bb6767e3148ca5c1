"""Neural models as scorers: a causal language model, and the language model inside the transducer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2vbert.decoding.model import NEVER, LabelModel, State
from w2vbert.models.language_model import BOUNDARY, CausalLm, LmState


@dataclass(frozen=True)
class NeuralState:
    """N hypotheses.

    Attributes:
        lm: the model's state.
        log_probs: (N, V), of what follows; column BOUNDARY, which is the blank's, is the end of the sentence.
    """

    lm: LmState
    log_probs: Tensor


class NeuralScorer:
    """A causal language model over the pieces; it runs for the hypotheses that have read a new label."""

    def __init__(self, model: CausalLm) -> None:
        self._model = model

    def start(self, batch: int, device: torch.device) -> NeuralState:
        """The state of `batch` empty hypotheses; the model must be on the device."""
        begin = torch.full((1,), BOUNDARY, dtype=torch.long, device=device)
        log_probs, state = self._model.step(begin, self._model.initial_state(1, device))
        rows = torch.zeros(batch, dtype=torch.long, device=device)
        return NeuralState(state.select(rows), log_probs[rows])

    def scores(self, state: NeuralState) -> Tensor:
        """Log-probability of every next label, (N, V)."""
        return state.log_probs

    def advance(self, state: NeuralState, rows: Tensor, tokens: Tensor, emitted: Tensor) -> NeuralState:
        """Continue `rows` (M,) of the state by `tokens` (M,), where `emitted` (M,)."""
        lm, log_probs = state.lm.select(rows).compact(), state.log_probs.index_select(0, rows)
        where = emitted.nonzero().squeeze(1)
        if len(where):
            new_log_probs, part = self._model.step(tokens[where], lm.select(where))
            lm = lm.put(where, part)
            log_probs.index_copy_(0, where, new_log_probs)
        return NeuralState(lm, log_probs)

    def final(self, state: NeuralState) -> Tensor:
        """Log-probability of the end of the sentence, (N,)."""
        return state.log_probs[:, BOUNDARY]


@dataclass(frozen=True)
class InternalState:
    """N hypotheses.

    Attributes:
        predictor: state of the prediction network, each (layers, N, H).
        log_probs: (N, V), of what follows; 0 for the blank.
    """

    predictor: State
    log_probs: Tensor


class InternalLmScorer:
    """What the transducer would say without its encoder: joiner with zeros in the encoder's place, and no blank.

    Source: Variani et al. 2020, "Hybrid autoregressive transducer", equation 7; Meng et al. 2021, "Internal language
    model estimation for domain-adaptive end-to-end speech recognition", equation 9.
    """

    def __init__(self, model: LabelModel) -> None:
        self._model = model

    def start(self, batch: int, device: torch.device) -> InternalState:
        """The state of `batch` empty hypotheses."""
        out, state = self._model.start(batch, device)
        return InternalState(state, self._log_probs(out))

    def _log_probs(self, out: Tensor) -> Tensor:
        """Output of the prediction network (N, J) -> (N, V)."""
        log_probs = self._model.log_probs(torch.zeros_like(out), out)
        log_probs[:, self._model.blank] = NEVER
        log_probs = log_probs.log_softmax(-1).clamp(min=torch.finfo(torch.float32).min)
        log_probs[:, self._model.blank] = 0.0
        return log_probs

    def scores(self, state: InternalState) -> Tensor:
        """Log-probability of every next label, (N, V)."""
        return state.log_probs

    def advance(self, state: InternalState, rows: Tensor, tokens: Tensor, emitted: Tensor) -> InternalState:
        """Continue `rows` (M,) of the state by `tokens` (M,), where `emitted` (M,)."""
        predictor = tuple(part.index_select(1, rows) for part in state.predictor)
        log_probs = state.log_probs.index_select(0, rows)
        where = emitted.nonzero().squeeze(1)
        if len(where):
            out, part = self._model.model.predictor.step(
                tokens[where], tuple(part.index_select(1, where) for part in predictor)
            )
            log_probs.index_copy_(0, where, self._log_probs(out))
            for old, new in zip(predictor, part, strict=True):
                old.index_copy_(1, where, new)
        return InternalState(predictor, log_probs)

    def final(self, state: InternalState) -> Tensor:
        """Nothing: a transducer says no end of a sentence. (N,)."""
        return state.log_probs.new_zeros(len(state.log_probs))
