"""Reading of n-best lists that `w2vbert decode` has written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2vbert.decoding.alignment import align, count_pairs, number_words
from w2vbert.decoding.normalization import Normalization
from w2vbert.decoding.tuning import NbestTable
from w2vbert.errors import UserError
from w2vbert.tasks.scored_texts import Utterance

LENGTH_BONUS = "length_bonus"
SUBTRACTED = ("lodr", "internal")
"""Scorers whose weight in a config is taken from the score."""


@dataclass(frozen=True)
class Entry:
    """A text of an n-best list."""

    text: str
    model_score: float
    tokens: int
    scores: Mapping[str, float]


def read_lists(path: Path, utterances: Mapping[str, Utterance]) -> dict[str, list[Entry]]:
    """The n-best list of each utterance; one with a single text where none was written.

    Args:
        path: of the file, for messages.
        utterances: its JSON lines.

    Raises:
        UserError: there are no n-best lists, or they are not in the format of `w2vbert decode`.
    """
    lists: dict[str, list[Entry]] = {}
    for id, utterance in utterances.items():
        value = utterance.value or {}
        if "segments" in value:
            raise UserError(f"{path}: {id} was decoded in pieces: tune on utterances, not on long recordings")
        try:
            lists[id] = [_parse(entry) for entry in value.get("nbest", [])]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: the n-best list of {id} is not as `w2vbert decode` writes it") from error
    names = {name for entries in lists.values() for entry in entries for name in entry.scores}
    if not names:
        raise UserError(
            f"{path} holds no n-best lists with scores of language models: decode with --lm, --set search.method=beam "
            "--set search.beam_size=10 --set search.nbest=10"
        )
    for id, entries in lists.items():
        if any(entry.scores.keys() != names for entry in entries):
            raise UserError(f"{path}: not all texts of {id} have scores of {', '.join(sorted(names))}")
        if not entries:
            lists[id] = [Entry(utterances[id].text, 0.0, 0, dict.fromkeys(names, 0.0))]
    return lists


def make_table(refs: Mapping[str, str], lists: Mapping[str, list[Entry]], normalization: Normalization) -> NbestTable:
    """Scores and word errors of all texts. refs: id -> normalised text."""
    names = sorted(next(iter(lists.values()))[0].scores, key=lambda name: (name in SUBTRACTED, name))
    longest = max(map(len, lists.values()))
    scores = np.full((len(refs), longest), -np.inf)
    features = np.zeros((len(refs), longest, len(names) + 1))
    errors = np.zeros((len(refs), longest), np.int64)
    signs = [-1.0 if name in SUBTRACTED else 1.0 for name in names]
    places, ref_texts, hyp_texts = [], [], []
    for row, id in enumerate(refs):
        for column, entry in enumerate(lists[id]):
            scores[row, column] = entry.model_score
            weighted = [sign * entry.scores[name] for name, sign in zip(names, signs, strict=True)]
            features[row, column] = [*weighted, entry.tokens]
            places.append((row, column))
            ref_texts.append(refs[id].split())
            hyp_texts.append(normalization(entry.text).split())
    numbers: dict[str, int] = {}
    pair = number_words(ref_texts, numbers), number_words(hyp_texts, numbers)
    for place, ref, hyp, path in zip(places, *pair, align(*pair), strict=True):
        errors[place] = count_pairs(ref, hyp, path).errors
    return NbestTable((*names, LENGTH_BONUS), scores, features, errors)


def _parse(entry: Any) -> Entry:
    scores = {str(name): float(score) for name, score in entry["scores"].items()}
    found = Entry(entry["text"], float(entry["model_score"]), int(entry["tokens"]), scores)
    if not isinstance(found.text, str) or not all(map(math.isfinite, (found.model_score, *scores.values()))):
        raise ValueError
    return found
