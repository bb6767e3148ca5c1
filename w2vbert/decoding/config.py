"""Settings of a search."""

import math
from dataclasses import dataclass
from typing import Literal

MAX_BEAM_SIZE = 1000


@dataclass(frozen=True)
class SearchConfig:
    """How to look for the best label sequences.

    Attributes:
        method: greedy: the best choice on each frame. beam: keeps `beam_size` hypotheses and takes language models.
        beam_size: hypotheses kept for each utterance (beam only).
        max_symbols_per_frame: labels that one encoder frame may emit.
        blank_penalty: subtracted from the blank's score before the softmax, in nats: above 0 against deletions.
        length_bonus: added to the score for each label, in nats (beam only): above 0 for longer texts.
        length_normalization: sort the finished hypotheses by score per label instead of by score (beam only).
        nbest: hypotheses returned for each utterance; fewer where the beam holds fewer.
    """

    method: Literal["greedy", "beam"] = "greedy"
    beam_size: int = 4
    max_symbols_per_frame: int = 1
    blank_penalty: float = 0.0
    length_bonus: float = 0.0
    length_normalization: bool = False
    nbest: int = 1

    def __post_init__(self) -> None:
        for key in ("beam_size", "max_symbols_per_frame", "nbest"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} is not allowed: at least 1")
        if self.beam_size > MAX_BEAM_SIZE:
            raise ValueError(f"beam_size: {self.beam_size} is not allowed: at most {MAX_BEAM_SIZE}")
        for key in ("blank_penalty", "length_bonus"):
            if not math.isfinite(getattr(self, key)):
                raise ValueError(f"{key}: {getattr(self, key)} is not allowed: a finite number")
        if self.method == "greedy" and (self.nbest > 1 or self.length_bonus or self.length_normalization):
            raise ValueError("nbest, length_bonus and length_normalization need method: beam")
        if self.method == "beam" and self.nbest > self.beam_size:
            raise ValueError(f"nbest: {self.nbest} is more than beam_size: {self.beam_size}")
