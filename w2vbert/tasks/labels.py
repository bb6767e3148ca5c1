"""What a teacher says about speech, and the figures that tell good labels from bad ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from w2vbert.data.batches import FRAMES_PER_SECOND, SpeechBatch
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.loaders import group_by_seconds
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.alignment import Counts, align, count_pairs, number_words
from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.scorers import WeightedScorer
from w2vbert.decoding.search import SearchConfig, search
from w2vbert.errors import UserError
from w2vbert.files import atomic_file
from w2vbert.log import progress
from w2vbert.models.transducer import Transducer
from w2vbert.tasks.recognize import encode, search_and_rescore
from w2vbert.tasks.text_files import read_lines
from w2vbert.training.distributed import World

LABELS_FILE = "labels.jsonl"


@dataclass(frozen=True)
class Label:
    """What a teacher heard in an utterance.

    Attributes:
        id: cut id.
        seconds: duration.
        text: words of the best hypothesis.
        pieces: its word pieces.
        confidence: geometric mean of the probabilities of its pieces, 0 to 1.
        lm_score: log-probability of a piece by the first language model, mean; None without one.
        lm_difference: word edits from the text without a language model (greedy) to this one, over the words of the
            longer of the two; None without a language model.
    """

    id: str
    seconds: float
    text: str
    pieces: int
    confidence: float
    lm_score: float | None = None
    lm_difference: float | None = None

    @property
    def words(self) -> int:
        """Words of the text."""
        return len(self.text.split())

    @property
    def pieces_per_second(self) -> float:
        """Word pieces for each second of audio."""
        return self.pieces / self.seconds


@dataclass(frozen=True)
class Teacher:
    """A recogniser with the search by which it labels.

    Attributes:
        model: transducer.
        tokenizer: its own.
        search: settings of the search.
        scorers: language models of both passes; the first one gives `Label.lm_score`.
    """

    model: Transducer
    tokenizer: Tokenizer
    search: SearchConfig
    scorers: Sequence[WeightedScorer]

    @torch.inference_mode()
    def label(self, batch: SpeechBatch) -> list[Label]:
        """The labels of a batch, in its order."""
        encoded, lengths = encode(self.model, batch)
        unknown = self.tokenizer.unknown_id
        nbests = search_and_rescore(self.model, encoded, lengths, self.search, self.scorers, unknown)
        best = [nbest[0] for nbest in nbests]
        texts = [self.tokenizer.decode(list(hypothesis.tokens)) for hypothesis in best]
        seconds = [int(length) / FRAMES_PER_SECOND for length in batch.lengths]
        differences: list[float | None] = [None] * len(best)
        if self.scorers:
            plain = search(self.model, encoded, lengths, self._plain_search, (), unknown)
            without = [self.tokenizer.decode(list(nbest[0].tokens)) for nbest in plain]
            differences = [_difference(counts) for counts in count_edits(without, texts)]
        return [
            Label(id, duration, text, len(h.tokens), h.confidence, self._lm_score(h), difference)
            for id, duration, text, h, difference in zip(batch.ids, seconds, texts, best, differences, strict=True)
        ]

    @property
    def _plain_search(self) -> SearchConfig:
        """The greedy search that differs from the teacher's by nothing but the language models."""
        return replace(self.search, method="greedy", nbest=1, length_bonus=0.0, length_normalization=False)

    def _lm_score(self, hypothesis: Hypothesis) -> float | None:
        if not self.scorers:
            return None
        return hypothesis.scores[self.scorers[0].name] / (len(hypothesis.tokens) + 1)  # with the end of the sentence


def group_utterances(dataset: SpeechDataset, batch_seconds: float) -> list[list[int]]:
    """All utterances in batches, longest first: the same however many processes label them, and so are the labels."""
    order = sorted(range(len(dataset)), key=lambda i: -dataset.frames[i])
    return group_by_seconds(order, dataset.frames, batch_seconds)


def label_groups(
    teacher: Teacher, dataset: SpeechDataset, groups: Sequence[Sequence[int]], world: World, name: str
) -> dict[str, Label]:
    """Labels of the utterances of some batches by their ids, in every process; the processes share the work."""
    found = [
        label
        for group in progress(groups[world.rank :: world.size], desc=f"label {name}", unit="batches")
        for label in teacher.label(dataset.batch(group))
    ]
    lines = world.gather([json.dumps(asdict(label)) for label in found])
    return {label.id: label for label in (Label(**json.loads(line)) for line in lines)}


def write_label_file(path: Path, labels: Sequence[Label], dropped: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes labels as JSON lines, with the reason of each that is dropped (by id) under `dropped`, else null."""
    with atomic_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        for label in labels:
            line = asdict(label) | {"dropped": dropped.get(label.id)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_label_file(path: Path) -> list[Label]:
    """The labels in a file of `write_label_file`.

    Raises:
        UserError: it is missing or damaged.
    """
    labels = []
    for number, line in read_lines(path):
        try:
            values = json.loads(line)
            values.pop("dropped")
            labels.append(Label(**values))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{path}:{number} is damaged: label again with --force") from error
    return labels


def count_edits(refs: Sequence[str], hyps: Sequence[str]) -> list[Counts]:
    """Word edits between texts, pair by pair; a text may be empty."""
    numbers: dict[str, int] = {}
    sides = [number_words([text.split() for text in texts], numbers) for texts in (refs, hyps)]
    return [count_pairs(ref, hyp, path) for ref, hyp, path in zip(*sides, align(*sides), strict=True)]


def _difference(counts: Counts) -> float:
    """Edits over the words of the longer text, 0 to 1; 0 between empty ones."""
    longer = counts.length + max(counts.insertions - counts.deletions, 0)
    return counts.errors / longer if longer else 0.0
