"""Language models of a search: which scorers a command's options stand for, and their weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.model import LabelModel
from w2vbert.decoding.neural_scorers import InternalLmScorer, NeuralScorer
from w2vbert.decoding.scorers import NgramScorer, Scorer, WeightedScorer
from w2vbert.decoding.search import SearchConfig
from w2vbert.decoding.word_ngram import WordNgramScorer
from w2vbert.errors import UserError
from w2vbert.models.transducer import Transducer
from w2vbert.tasks.language_models import NGRAM, WORD_NGRAM, load_neural_lm, load_ngram, read_lm_card

LETTERS: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower, "mixed": str}
"""From a word of the tokenizer to that of a model over words, by the case of its words."""


@dataclass(frozen=True)
class FusionConfig:
    """Weights of the language models' log-probabilities beside the transducer's, one for each kind.

    Attributes:
        ngram: n-gram over word pieces.
        word_ngram: n-gram over words.
        neural: neural language model over word pieces.
        lodr: of the low-order n-gram over word pieces that is subtracted (Zheng et al. 2022); no effect without one.
        internal: of the transducer's own language model that is subtracted (Variani et al. 2020; Meng et al. 2021).
        second_pass: kinds that score the n-best lists of the search alone; `search.nbest` says how long these are.
    """

    ngram: float = 0.3
    word_ngram: float = 0.3
    neural: float = 0.3
    lodr: float = 0.15
    internal: float = 0.0
    second_pass: tuple[Literal["ngram", "word_ngram", "neural", "lodr", "internal"], ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "second_pass" and not math.isfinite(getattr(self, field.name)):
                raise ValueError(f"{field.name}: {getattr(self, field.name)} is not allowed: a finite number")


@dataclass(frozen=True)
class LanguageModels:
    """Language models of a search.

    Attributes:
        folders: each made by `w2vbert lm`, at most one of a kind.
        lodr: folder of a low-order n-gram model over word pieces that is subtracted; None: none.
    """

    folders: tuple[Path, ...] = ()
    lodr: Path | None = None

    def inputs(self) -> dict[str, Path | None]:
        """The folders by name, for the stamp of a step."""
        first = self.folders[0] if self.folders else None
        return {"lm": first} | {f"lm{n}": path for n, path in enumerate(self.folders[1:], 2)} | {"lodr": self.lodr}


def load_scorers(
    lms: Sequence[Path],
    lodr: Path | None,
    weights: FusionConfig,
    config: SearchConfig,
    tokenizer: Tokenizer,
    model: Transducer,
) -> list[WeightedScorer]:
    """The scorers of a search: the language models `lms`, at most one of a kind, and what is subtracted from them.

    Args:
        lms: folders of language models.
        lodr: folder of a low-order n-gram over word pieces, to be subtracted.
        weights: weight of each kind.
        config: of the search.
        tokenizer: of the transducer.
        model: the transducer, for its internal language model.

    Raises:
        UserError: the search is greedy, a folder is no language model, its pieces are not the tokenizer's, two are of
            one kind, or one of the second pass is not there.
    """
    if not lms and lodr is None and weights.internal == 0.0 and not weights.second_pass:
        return []
    if config.method == "greedy":
        raise UserError("a language model needs a beam search: --set search.method=beam")
    if weights.second_pass and config.nbest == 1:
        raise UserError("fusion.second_pass needs n-best lists: --set search.nbest=8, for instance")
    found: dict[str, Scorer] = {}
    for folder in lms:
        kind = read_lm_card(folder)["kind"]
        if kind in found:
            raise UserError(f"{folder} is the second {kind} language model: one of each kind is allowed")
        found[kind] = _load_scorer(folder, tokenizer)
    scorers = [WeightedScorer(name, scorer, getattr(weights, name)) for name, scorer in found.items()]
    if lodr is not None:
        if read_lm_card(lodr)["kind"] != NGRAM:
            raise UserError(f"{lodr} cannot be subtracted: an n-gram over word pieces is needed")
        scorers.append(WeightedScorer("lodr", _load_scorer(lodr, tokenizer), -weights.lodr))
    if weights.internal != 0.0:
        labels = LabelModel(model, tokenizer.unknown_id, config.blank_penalty)
        scorers.append(WeightedScorer("internal", InternalLmScorer(labels), -weights.internal))
    missing = [kind for kind in weights.second_pass if kind not in {weighted.name for weighted in scorers}]
    if missing:
        raise UserError(f"fusion.second_pass names {missing[0]}, which takes no part: give its model and its weight")
    return [replace(weighted, second_pass=weighted.name in weights.second_pass) for weighted in scorers]


def _load_scorer(folder: Path, tokenizer: Tokenizer) -> Scorer:
    card = read_lm_card(folder)
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    if card["kind"] == NGRAM:
        return NgramScorer.load(folder, pieces)
    if card["kind"] == WORD_NGRAM:
        return WordNgramScorer(load_ngram(folder), pieces, LETTERS[card["case"]])
    lm, own = load_neural_lm(folder)
    if own.digest != tokenizer.digest:
        raise UserError(f"{folder} was made for another tokenizer: train it again with `w2vbert lm train`")
    return NeuralScorer(lm)
