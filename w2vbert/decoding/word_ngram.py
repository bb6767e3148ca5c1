"""An n-gram model over words as a scorer of pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2vbert.data.tokenizer import SPACE
from w2vbert.decoding.ngram import SPECIALS, piece_word

MAX_CONTEXTS = 1_000_000  # a search that starts beyond it starts anew


@dataclass(frozen=True)
class WordState:
    """N hypotheses; contexts int64 (N,), each words that are complete and the begin of one."""

    memory: _Memory
    contexts: Tensor


class WordNgramScorer:
    """A KenLM model over words; a word's score comes with the piece that begins the next word, or with the end."""

    def __init__(self, model: Any, pieces: Sequence[str], spell: Callable[[str], str] = str) -> None:
        """A scorer.

        Args:
            model: a `kenlm.Model` over words.
            pieces: of all labels; `SPACE` begins a word.
            spell: from a word of the tokenizer to the model's, such as `str.lower`.
        """
        self._model, self._pieces, self._spell = model, list(pieces), spell
        self._begins = torch.tensor([piece.startswith(SPACE) for piece in pieces])
        self._memory = _Memory(self._model, spell)

    def start(self, batch: int, device: torch.device) -> WordState:
        """The state of `batch` empty hypotheses, after <s>."""
        if len(self._memory.partial) > MAX_CONTEXTS:
            self._memory = _Memory(self._model, self._spell)
        self._begins = self._begins.to(device)
        return WordState(self._memory, torch.zeros(batch, dtype=torch.long, device=device))

    def scores(self, state: WordState) -> Tensor:
        """Log-probability that each next label brings, (N, V): of the word that it completes."""
        complete = [state.memory.complete(context)[1] for context in state.contexts.tolist()]
        return torch.tensor(complete, device=state.contexts.device).unsqueeze(1) * self._begins

    def advance(self, state: WordState, rows: Tensor, tokens: Tensor, emitted: Tensor) -> WordState:
        """Continue `rows` (M,) of the state by `tokens` (M,), where `emitted` (M,)."""
        contexts = state.contexts[rows]
        where = emitted.nonzero().squeeze(1)
        if len(where):
            pairs = zip(contexts[where].tolist(), tokens[where].tolist(), strict=True)
            following = [state.memory.follow(context, self._pieces[token]) for context, token in pairs]
            contexts[where] = torch.tensor(following, device=contexts.device)
        return WordState(state.memory, contexts)

    def final(self, state: WordState) -> Tensor:
        """Log-probability of the last word and of </s>, (N,)."""
        ends = [state.memory.end(context) for context in state.contexts.tolist()]
        return torch.tensor(ends, device=state.contexts.device)


class _Memory:
    """The contexts that were met so far, numbered; 0 is the begin of a sentence."""

    def __init__(self, model: Any, spell: Callable[[str], str]) -> None:
        import kenlm

        self._model, self._spell, self._new_state = model, spell, kenlm.State
        begin = kenlm.State()
        model.BeginSentenceWrite(begin)
        self.states: list[Any] = [begin]
        """KenLM's state after the complete words of each context."""
        self.partial = [""]
        """Begin of a word that each context ends with."""
        self._numbers = {(begin, ""): 0}
        self._following: dict[tuple[int, str], int] = {}
        self._complete: dict[int, tuple[Any, float]] = {}

    def complete(self, context: int) -> tuple[Any, float]:
        """KenLM's state after the word that the context ends with, and the word's log-probability (0 without one)."""
        known = self._complete.get(context)
        if known is None:
            word = self.partial[context]
            known = self._score_word(self.states[context], word) if word else (self.states[context], 0.0)
            self._complete[context] = known
        return known

    def end(self, context: int) -> float:
        """Log-probability of the word that the context ends with, and of the end of the sentence."""
        state, log_prob = self.complete(context)
        return log_prob + self._score(state, "</s>")[1]

    def follow(self, context: int, piece: str) -> int:
        """Number of the context after a piece."""
        number = self._following.get((context, piece))
        if number is None:
            if piece.startswith(SPACE):
                key = (self.complete(context)[0], piece[len(SPACE) :])
            else:
                key = (self.states[context], self.partial[context] + piece)
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self.partial)
                self.states.append(key[0])
                self.partial.append(key[1])
            self._following[(context, piece)] = number
        return number

    def _score_word(self, state: Any, word: str) -> tuple[Any, float]:
        spelt = self._spell(word)
        return self._score(state, piece_word(spelt) if spelt in SPECIALS else spelt)

    def _score(self, state: Any, word: str) -> tuple[Any, float]:
        after = self._new_state()
        return after, self._model.BaseScore(state, word, after) * math.log(10)
