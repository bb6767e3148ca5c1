"""Language models of a search: which scorers a command's options stand for, and their weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.scorers import NgramScorer, Scorer, WeightedScorer
from w2vbert.decoding.search import SearchConfig
from w2vbert.errors import UserError
from w2vbert.models.transducer import Transducer

LmKind = Literal["ngram", "word_ngram", "neural"]


@dataclass(frozen=True)
class FusionConfig:
    """Weights of the language models' log-probabilities beside the transducer's, one for each kind.

    Attributes:
        ngram: n-gram over word pieces.
        word_ngram: n-gram over words.
        neural: neural language model over word pieces.
        lodr: of the low-order n-gram over word pieces that is subtracted (Zheng et al. 2022); no effect without one.
        internal: of the transducer's own language model that is subtracted (Variani et al. 2020; Meng et al. 2021).
    """

    ngram: float = 0.3
    word_ngram: float = 0.3
    neural: float = 0.3
    lodr: float = 0.15
    internal: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not math.isfinite(getattr(self, field.name)):
                raise ValueError(f"{field.name}: {getattr(self, field.name)} is not allowed: a finite number")


def lm_kind(folder: Path) -> LmKind:
    """What kind of language model a folder of `w2vbert lm` holds.

    Raises:
        UserError: the folder is no language model's.
    """
    return "ngram"


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
        UserError: the search is greedy, a folder is no language model, its pieces are not the tokenizer's, or two are
            of one kind.
    """
    if not lms and lodr is None:
        return []
    if config.method == "greedy":
        raise UserError("a language model needs a beam search: --set search.method=beam")
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    found: dict[str, Scorer] = {}
    for folder in lms:
        kind = lm_kind(folder)
        if kind in found:
            raise UserError(f"{folder} is the second {kind} language model: one of each kind is allowed")
        found[kind] = NgramScorer.load(folder, pieces)
    scorers = [WeightedScorer(name, scorer, getattr(weights, name)) for name, scorer in found.items()]
    if lodr is not None:
        scorers.append(WeightedScorer("lodr", NgramScorer.load(lodr, pieces), -weights.lodr))
    return scorers
