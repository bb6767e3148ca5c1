"""Map-style access to the features of a split: any utterance, at any time, by its index."""

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2vbert.data.batches import FRAMES_PER_SECOND, SpeechBatch, collate
from w2vbert.data.features import normalize
from w2vbert.errors import UserError
from w2vbert.log import logger

MIN_FRAMES = 10
"""Shortest utterance in filterbank frames: the receptive field of one encoder frame is 7, and one span needs more."""


class SpeechDataset:
    """Utterances of one or more cut manifests with stored features.

    Attributes:
        ids: cut ids.
        frames: filterbank frames of each.
        texts: transcripts, "" where there is none.
        speakers: speaker of each.
    """

    def __init__(self, manifests: Sequence[Path], max_seconds: float) -> None:
        """Reads the manifests; features stay on disk.

        Args:
            manifests: `cuts_*.jsonl.gz` of `w2vbert features` or `w2vbert pseudo-label`.
            max_seconds: longer utterances are left out, with a line in the log.

        Raises:
            UserError: a manifest is missing, has no features, or nothing is left.
        """
        cuts = [cut for manifest in manifests for cut in read_cuts(manifest)]
        self._cuts = [cut for cut in cuts if MIN_FRAMES <= cut.num_frames <= max_seconds * FRAMES_PER_SECOND]
        dropped = len(cuts) - len(self._cuts)
        names = ", ".join(str(m) for m in manifests)
        if dropped:
            logger.warning(f"{names}: left out {dropped} utterances under 0.1 s or over {max_seconds:g} s")
        if not self._cuts:
            raise UserError(f"{names}: no utterance between 0.1 and {max_seconds:g} s")
        self.ids = [cut.id for cut in self._cuts]
        self.frames = [cut.num_frames for cut in self._cuts]
        self.texts = [(cut.supervisions[0].text or "") if cut.supervisions else "" for cut in self._cuts]
        self.speakers = [(cut.supervisions[0].speaker or "") if cut.supervisions else "" for cut in self._cuts]
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._cuts)

    @property
    def hours(self) -> float:
        """Hours of audio."""
        return sum(self.frames) / FRAMES_PER_SECOND / 3600

    def load(self, index: int) -> Tensor:
        """Normalised features (T, F) of one utterance.

        Raises:
            UserError: its stored features are missing or damaged.
        """
        if index not in self._cache:
            cut = self._cuts[index]
            try:
                stored = torch.from_numpy(cut.load_features())
            except (OSError, EOFError, ValueError, RuntimeError) as error:
                place = cut.features.storage_path
                raise UserError(f"{cut.id}: cannot read its features from {place}: make them again") from error
            self._cache[index] = normalize(stored).to(torch.bfloat16)
        return self._cache[index].float()

    def batch(self, indices: Sequence[int], encode: Callable[[str], list[int]] | None = None) -> SpeechBatch:
        """The utterances at `indices` as a batch, with tokens where `encode` turns text into them."""
        return self.joined([[index] for index in indices], encode)

    def joined(self, groups: Sequence[Sequence[int]], encode: Callable[[str], list[int]] | None = None) -> SpeechBatch:
        """A batch in which the utterances of a group follow one another as if they were one."""
        ids = ["+".join(self.ids[i] for i in group) for group in groups]
        features = [torch.cat([self.load(i) for i in group]) for group in groups]
        texts = [" ".join(self.texts[i] for i in group if self.texts[i]) for group in groups]
        return collate(ids, features, None if encode is None else [encode(text) for text in texts])


def read_cuts(manifest: Path) -> list[Any]:
    """All cuts of a manifest.

    Raises:
        UserError: the manifest is missing, damaged, or has no features.
    """
    from lhotse import CutSet

    check_manifest(manifest)
    try:
        cuts = list(CutSet.from_jsonl_lazy(manifest))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{manifest} is damaged ({error})") from error
    for cut in cuts:
        if not cut.has_features:
            raise UserError(f"{manifest} holds {cut.id} without features: make the features again")
    return cuts


def check_manifest(manifest: Path) -> None:
    """Refuses what is not a manifest of cuts with features.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    if not manifest.is_file():
        raise UserError(f"{manifest} does not exist: run `w2vbert features` for this split first")
    try:
        with gzip.open(manifest, "rt") as file:
            first = json.loads(file.readline() or "{}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{manifest} is no gzipped manifest of cuts ({error})") from error
    if not first:
        raise UserError(f"{manifest} is empty")
    if "features" not in first:
        raise UserError(f"{manifest} holds cuts without features: give the folder that `w2vbert features` made")
