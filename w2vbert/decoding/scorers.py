"""Language models as seen by the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from w2vbert.decoding.ngram import piece_word
from w2vbert.decoding.ngram_automaton import NgramAutomaton, load_automaton
from w2vbert.errors import UserError

ARPA_FILE, BINARY_FILE, WORDS_FILE = "lm.arpa", "lm.bin", "words.txt"
CACHE_BYTES = 256 * 2**20  # of rows of scores; a search that starts beyond it starts anew
FIRST_ROWS = 256  # the table of scores doubles when it is full


class Scorer(Protocol):
    """Scores label sequences one label at a time, for many hypotheses at once.

    A state stands for N hypotheses. What it is made of is the scorer's own business: the search only passes it back.
    Scores are natural logarithms.
    """

    def start(self, batch: int, device: torch.device) -> Any:
        """The state of `batch` empty hypotheses."""

    def scores(self, state: Any) -> Tensor:
        """Log-probability of every next label, (N, V) float32; finite, also in the blank's column (not used)."""

    def advance(self, state: Any, rows: Tensor, tokens: Tensor, emitted: Tensor) -> Any:
        """The state of M hypotheses: hypothesis m continues row `rows[m]` of `state` by the label `tokens[m]`.

        rows, tokens: (M,) int64. emitted: (M,) bool; where it is False the row is taken over without a label.
        """

    def final(self, state: Any) -> Tensor:
        """Log-probability that the sentence ends here, (N,) float32."""


@dataclass(frozen=True)
class WeightedScorer:
    """A scorer of a search.

    Attributes:
        name: of its own in the search; n-best lists keep the scores by it.
        scorer: what scores.
        weight: of its log-probabilities beside the model's; below 0 to subtract them.
        second_pass: it scores the n-best lists of a search, and takes no part in the search.
    """

    name: str
    scorer: Scorer
    weight: float
    second_pass: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight of {self.name}: {self.weight} is not allowed: a finite number")


def load_kenlm(model_file: Path) -> Any:
    """A `kenlm.Model` from an ARPA or binary file, without a word on the terminal.

    Raises:
        UserError: KenLM cannot read the file.
    """
    import kenlm

    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(str(model_file), config)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{model_file} cannot be read as a language model: {reason}") from error


@dataclass(frozen=True)
class NgramState:
    """N hypotheses, each a context of the n-gram model; contexts int64 (N,)."""

    contexts: Tensor


class NgramScorer:
    """An n-gram model over the pieces that the labels stand for, on any device.

    The scores of all labels after a context are computed once and kept as a row of a table, so a search over many
    hypotheses mostly gathers rows.
    """

    def __init__(self, automaton: NgramAutomaton) -> None:
        self._automaton = automaton
        self._clear()

    def _clear(self) -> None:
        self._rows = torch.full_like(self._automaton.shorter, -1, dtype=torch.int32)  # of each context in the table
        self._table = torch.zeros(FIRST_ROWS, len(self._automaton.label_words), device=self._rows.device)
        self._filled = 0

    @classmethod
    def load(cls, folder: Path, pieces: Sequence[str]) -> NgramScorer:
        """The model in a folder of `w2vbert lm ngram`, for a tokenizer with these pieces.

        Raises:
            UserError: the folder holds no language model, a damaged one, or one for another tokenizer.
        """
        if not (folder / ARPA_FILE).is_file() or not (folder / WORDS_FILE).is_file():
            raise UserError(f"{folder} is not a language model over pieces: {ARPA_FILE} and {WORDS_FILE} are needed")
        words = [piece_word(piece) for piece in pieces]
        if (folder / WORDS_FILE).read_text(encoding="utf-8").split("\n")[:-1] != words:
            raise UserError(f"{folder} was made for another tokenizer: train it again with `w2vbert lm ngram`")
        return cls(load_automaton(folder / ARPA_FILE, words))

    def start(self, batch: int, device: torch.device) -> NgramState:
        """The state of `batch` empty hypotheses, after <s>."""
        if self._automaton.keys.device != device:
            self._automaton = self._automaton.to(device)
            self._clear()
        elif self._filled * self._table.shape[1] * 4 > CACHE_BYTES:
            self._clear()
        return NgramState(torch.full((batch,), self._automaton.begin, dtype=torch.long, device=device))

    def _known(self, contexts: Tensor) -> Tensor:
        """Rows (N, V + 1) of the table for contexts (N,)."""
        rows = self._rows[contexts]
        missing = contexts[rows < 0]
        if len(missing):
            missing = missing.unique()
            begin, self._filled = self._filled, self._filled + len(missing)
            if self._filled > len(self._table):
                more = max(len(self._table), self._filled - len(self._table))
                self._table = torch.cat([self._table, self._table.new_zeros(more, self._table.shape[1])])
            self._table[begin : self._filled] = self._automaton.scores(missing)
            self._rows[missing] = torch.arange(begin, self._filled, dtype=torch.int32, device=missing.device)
            rows = self._rows[contexts]
        return self._table.index_select(0, rows)

    def scores(self, state: NgramState) -> Tensor:
        """Log-probability of every next label, (N, V)."""
        return self._known(state.contexts)[:, :-1]

    def advance(self, state: NgramState, rows: Tensor, tokens: Tensor, emitted: Tensor) -> NgramState:
        """Continue `rows` (M,) of the state by `tokens` (M,), where `emitted` (M,)."""
        contexts = state.contexts[rows]
        where = emitted.nonzero().squeeze(1)
        if len(where):
            contexts[where] = self._automaton.follow(contexts[where], tokens[where])
        return NgramState(contexts)

    def final(self, state: NgramState) -> Tensor:
        """Log-probability of </s>, (N,)."""
        return self._known(state.contexts)[:, -1]
