"""Language models as seen by the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from w2vbert.decoding.ngram import piece_word
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
    """

    name: str
    scorer: Scorer
    weight: float

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
    """N hypotheses, each a context of the n-gram model."""

    automaton: _Automaton
    contexts: Tensor
    """(N,) int64, numbers of contexts in the automaton."""


class NgramScorer:
    """A KenLM model over the pieces that the labels stand for.

    The scores of all labels in a context are asked of KenLM once and kept as a row of a tensor, so a search over
    many hypotheses mostly gathers rows.
    """

    def __init__(self, model_file: Path, words: Sequence[str]) -> None:
        """model_file: ARPA or KenLM binary. words: the model's word for each label id (`piece_word` of its piece).

        Raises:
            UserError: KenLM cannot read the file, or it knows none of the words.
        """
        self._model = load_kenlm(model_file)
        if not any(word in self._model for word in words):
            raise UserError(f"{model_file} knows none of the tokenizer's pieces: it was trained for another one")
        self._words = list(words)
        self._automaton: _Automaton | None = None

    @classmethod
    def load(cls, folder: Path, pieces: Sequence[str]) -> NgramScorer:
        """The model in a folder of `w2vbert lm`, for a tokenizer with these pieces.

        Raises:
            UserError: the folder holds no language model, a damaged one, or one for another tokenizer.
        """
        model_file = next((folder / name for name in (BINARY_FILE, ARPA_FILE) if (folder / name).is_file()), None)
        if model_file is None or not (folder / WORDS_FILE).is_file():
            raise UserError(f"{folder} is not a language model: {ARPA_FILE} and {WORDS_FILE} are needed")
        words = [piece_word(piece) for piece in pieces]
        if (folder / WORDS_FILE).read_text(encoding="utf-8").split("\n")[:-1] != words:
            raise UserError(f"{folder} was made for another tokenizer: train it again with `w2vbert lm`")
        return cls(model_file, words)

    def start(self, batch: int, device: torch.device) -> NgramState:
        """The state of `batch` empty hypotheses, after <s>."""
        if self._automaton is None or self._automaton.is_full() or self._automaton.device != device:
            self._automaton = _Automaton(self._model, self._words, device)
        return NgramState(self._automaton, torch.zeros(batch, dtype=torch.long, device=device))

    def scores(self, state: NgramState) -> Tensor:
        """Log-probability of every next label, (N, V)."""
        return state.automaton.table[state.contexts, :-1]

    def advance(self, state: NgramState, rows: Tensor, tokens: Tensor, emitted: Tensor) -> NgramState:
        """Continue `rows` (M,) of the state by `tokens` (M,), where `emitted` (M,)."""
        contexts = state.contexts[rows]
        where = emitted.nonzero().squeeze(1)
        if len(where):
            pairs = zip(contexts[where].tolist(), tokens[where].tolist(), strict=True)
            following = [state.automaton.follow(context, token) for context, token in pairs]
            contexts[where] = torch.tensor(following, device=contexts.device)
        return NgramState(state.automaton, contexts)

    def final(self, state: NgramState) -> Tensor:
        """Log-probability of </s>, (N,)."""
        return state.automaton.table[state.contexts, -1]


@dataclass
class _Automaton:
    """The contexts of a KenLM model that were met so far, numbered; 0 is the begin of a sentence."""

    model: Any
    words: Sequence[str]
    device: torch.device
    states: list[Any] = field(default_factory=list)
    """KenLM's state of each context."""
    numbers: dict[Any, int] = field(default_factory=dict)
    """Its inverse: two histories that KenLM cannot tell apart are one context."""
    following: dict[tuple[int, int], int] = field(default_factory=dict)
    """(context, label) -> context."""
    table: Tensor = field(init=False)
    """(capacity, V + 1): scores of each label after each context, and of </s> in the last column."""

    def __post_init__(self) -> None:
        import kenlm

        self._new_state = kenlm.State
        self.table = torch.zeros(FIRST_ROWS, len(self.words) + 1, device=self.device)
        begin = kenlm.State()
        self.model.BeginSentenceWrite(begin)
        self._number(begin)

    def is_full(self) -> bool:
        return len(self.states) * self.table.shape[1] * 4 > CACHE_BYTES

    def follow(self, context: int, token: int) -> int:
        """Number of the context after a label."""
        number = self.following.get((context, token))
        if number is None:
            state = self._new_state()
            self.model.BaseScore(self.states[context], self.words[token], state)
            number = self.following[(context, token)] = self._number(state)
        return number

    def _number(self, state: Any) -> int:
        number = self.numbers.get(state)
        if number is None:
            number = self.numbers[state] = len(self.states)
            self.states.append(state)
            if number == len(self.table):
                self.table = torch.cat([self.table, torch.zeros_like(self.table)])
            after, score = self._new_state(), self.model.BaseScore
            row = [score(state, word, after) for word in self.words] + [score(state, "</s>", after)]
            self.table[number] = torch.tensor(row) * math.log(10)
        return number
