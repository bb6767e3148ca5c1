"""Map-style access to the features of a split: any utterance, at any time, by its index."""

import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2vbert.data.batches import FRAMES_PER_SECOND, SpeechBatch, collate
from w2vbert.data.cut_index import Column, open_index
from w2vbert.data.features import normalize
from w2vbert.data.manifest_files import read_cuts
from w2vbert.data.on_the_fly import compute_frames, is_computed
from w2vbert.data.shards import ShardReader
from w2vbert.errors import UserError
from w2vbert.files import read_json
from w2vbert.log import logger
from w2vbert.machine import local_processes

MIN_FRAMES = 10
"""Shortest utterance in filterbank frames: the receptive field of one encoder frame is 7, and one span needs more."""

CACHE_BYTES = min(8 * 2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
"""Features that the processes of a machine keep of a dataset in memory, together: 8 GiB (149 h with 80 mel bins) or, if
less, a quarter of the machine's."""

Change = Callable[[Tensor], Tensor]
"""What augmentation does to raw features (T, F) before they are normalised."""


class _Rows(Sequence[str]):
    """Some strings of several columns, which stay where they are."""

    def __init__(self, columns: Sequence[Sequence[str]], rows: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
        """Takes the strings at `rows` of all columns, one after the other."""
        self._columns = columns
        self._ends = np.cumsum([len(column) for column in columns])
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        row = int(self._rows[index])
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._columns[number][row - int(self._ends[number - 1] if number else 0)]

    def __iter__(self) -> Iterator[str]:
        values = list(chain.from_iterable(self._columns))
        return (values[row] for row in self._rows.tolist())


class SpeechDataset:
    """Utterances of one or more cut manifests with stored features.

    Attributes:
        ids: cut ids.
        frames: filterbank frames of each, of its crop where it is cropped.
        spare: frames of each beyond its crop; 0 where all of it is taken.
        texts: transcripts, "" where there is none.
        speakers: speaker of each.
        shards: number of the shard that each lies in, where the audio is in shards; else None.
    """

    shards: list[int] | None = None

    def __init__(
        self, manifests: Sequence[Path], max_seconds: float, crop: bool = False, cache_bytes: int = CACHE_BYTES
    ) -> None:
        """Reads the manifests; features stay on disk until they are asked for.

        Args:
            manifests: `cuts_*.jsonl.gz` of `w2vbert features` or `w2vbert pseudo-label`.
            max_seconds: longer utterances are left out, with a line in the log, or cropped.
            crop: of longer utterances take `max_seconds`.
            cache_bytes: most features to keep in memory, shared out among the processes of the machine; what comes
                after is read from disk each time.

        Raises:
            UserError: a manifest is missing, has no features, or nothing is left.
        """
        most = int(max_seconds * FRAMES_PER_SECOND)
        for manifest in manifests:
            check_manifest(manifest)
        self._manifests = [open_index(manifest) for manifest in manifests]
        self._ends = np.cumsum([len(index.frames) for index in self._manifests])
        frames = np.concatenate([np.asarray(index.frames) for index in self._manifests])
        kept = np.flatnonzero((frames >= MIN_FRAMES) & (crop | (frames <= most)))
        dropped = len(frames) - len(kept)
        names = ", ".join(str(m) for m in manifests)
        if dropped:
            over = "" if crop else f" or over {max_seconds:g} s"
            logger.warning(f"{names}: left out {dropped} utterances under 0.1 s{over}")
        if not len(kept) or most < MIN_FRAMES:
            raise UserError(f"{names}: no utterance between 0.1 and {max_seconds:g} s")
        self._choose(kept)
        self.frames: list[int] = np.minimum(frames[kept], most).tolist()
        self.spare: list[int] = np.maximum(frames[kept] - most, 0).tolist()
        self.shards = self._find_shards(manifests)
        self._reader = ShardReader()
        self._cache: dict[tuple[int, torch.dtype], Tensor] = {}
        self._free_bytes = cache_bytes // local_processes()

    def __len__(self) -> int:
        return len(self._rows)

    def _choose(self, rows: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
        """Takes rows of all manifests, one after the other."""
        self._rows = rows
        self.ids = self._take([index.ids for index in self._manifests])
        self.texts = self._take([index.texts for index in self._manifests])
        self.speakers = self._take([index.speakers for index in self._manifests])

    def _take(self, columns: Sequence[Sequence[str]]) -> Sequence[str]:
        """Our rows of columns; a list, unless there are many of them."""
        rows = _Rows(columns, self._rows)
        return rows if any(isinstance(column, Column) for column in columns) else list(rows)

    def _find_shards(self, manifests: Sequence[Path]) -> list[int] | None:
        """Shard of each of our rows, if all manifests are of shards."""
        if not all(shards_file(manifest).is_file() for manifest in manifests):
            return None
        counts = list(chain.from_iterable(read_json(shards_file(manifest)) for manifest in manifests))
        owners: list[int] = np.repeat(np.arange(len(counts)), counts)[self._rows].tolist()
        return owners

    @property
    def hours(self) -> float:
        """Hours of audio."""
        return sum(self.frames) / FRAMES_PER_SECOND / 3600

    def count_from(self, manifest: int) -> int:
        """How many utterances of manifest number `manifest` there are."""
        return int((np.searchsorted(self._ends, self._rows, side="right") == manifest).sum())

    def divide_cache(self, count: int) -> None:
        """Keeps less in memory: one of `count` processes that share it."""
        self._free_bytes //= count

    def leave_out(self, indices: Collection[int]) -> None:
        """Forgets the utterances at `indices`; those after them move up. Before any features are loaded."""
        assert not self._cache
        kept = [index for index in range(len(self)) if index not in indices]
        self._choose(self._rows[kept])
        self.frames, self.spare = [self.frames[i] for i in kept], [self.spare[i] for i in kept]
        if self.shards is not None:
            self.shards = [self.shards[i] for i in kept]

    def record(self, index: int) -> dict[str, Any]:
        """What the manifest says of an utterance, without its transcript."""
        row = int(self._rows[index])
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._manifests[number].record(row - int(self._ends[number - 1] if number else 0))

    def cut(self, index: int) -> Any:
        """Lhotse's cut, with its features, but without transcript."""
        from lhotse import MonoCut

        return MonoCut.from_dict(self.record(index))

    def _read(self, index: int, start: int) -> Tensor:
        """Raw features (T, F) of an utterance from frame `start` on, from its storage or its audio."""
        record = self.record(index)
        if is_computed(record):
            place = record.get("custom") or {}
            audio = self._reader.read(place) if "shard" in place else None
            return compute_frames(record, start, self.frames[index], audio)
        return read_frames(self.cut(index), start, self.frames[index])

    def load(self, index: int, start: int = 0) -> Tensor:
        """Features (T, F) of one utterance from frame `start` on, T = `frames[index]`, normalised over these frames.

        Raises:
            UserError: its stored features are missing or damaged.
        """
        return self._cached(index, start, torch.bfloat16, normalize)

    def load_changed(self, index: int, change: Change, start: int = 0) -> Tensor:
        """Features like those of `load`, normalised after `change` has worked on the raw ones.

        Raises:
            UserError: the stored features are missing or damaged.
        """
        # Stored values lie within 16 of 0 and have errors of up to 1/64: float16 (1/256 there) is fine enough.
        return normalize(change(self._cached(index, start, torch.float16, lambda features: features)))

    def _cached(self, index: int, start: int, dtype: torch.dtype, make: Change) -> Tensor:
        """What `make` makes of stored features, float32; whole utterances are kept in memory as `dtype`."""
        key = (index, dtype)
        if key in self._cache:
            return self._cache[key].float()
        features = make(self._read(index, start)).to(dtype)
        size = features.numel() * features.element_size()
        if self.spare[index]:
            return features.float()
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._cache[key] = features
        elif self._free_bytes:
            self._free_bytes = 0
            hours = sum(len(kept) for kept in self._cache.values()) / FRAMES_PER_SECOND / 3600
            logger.info(f"features of {hours:.1f} of {self.hours:.1f} h fit in memory; the rest is read from disk")
        return features.float()

    def batch(self, indices: Sequence[int], encode: Callable[[str], list[int]] | None = None) -> SpeechBatch:
        """The utterances at `indices` as a batch, with tokens where `encode` turns text into them."""
        return self.joined([[index] for index in indices], encode)

    def joined(
        self,
        groups: Sequence[Sequence[int]],
        encode: Callable[[str], list[int]] | None = None,
        starts: Sequence[int] | None = None,
        change: Change | None = None,
        padded: int = 0,
    ) -> SpeechBatch:
        """A batch in which the utterances of a group follow one another as if they were one.

        Args:
            groups: indices of the utterances of each.
            encode: text to tokens; None for a batch without.
            starts: first frame of each utterance of the dataset, where crops begin; None: 0.
            change: augmentation of raw features.
            padded: least frames of the batch.
        """

        def load(index: int) -> Tensor:
            start = 0 if starts is None else starts[index]
            return self.load(index, start) if change is None else self.load_changed(index, change, start)

        ids = ["+".join(self.ids[i] for i in group) for group in groups]
        features = [torch.cat([load(i) for i in group]) if len(group) > 1 else load(group[0]) for group in groups]
        texts = [" ".join(self.texts[i] for i in group if self.texts[i]) for group in groups]
        return collate(ids, features, None if encode is None else [encode(text) for text in texts], padded)


def shards_file(manifest: Path) -> Path:
    """Beside `cuts_train.jsonl.gz`: `shards_train.json`, how many of its cuts lie in each shard, in order."""
    return manifest.with_name(manifest.name.replace("cuts_", "shards_", 1).removesuffix(".jsonl.gz") + ".json")


def read_frames(cut: Any, start: int, frames: int) -> Tensor:
    """Raw features (T, F) float32 of a cut's `frames` frames from `start` on; no others are read where it is stored.

    Raises:
        UserError: the stored features are missing or damaged.
    """
    if frames < cut.num_frames:
        cut = cut.truncate(offset=start * cut.frame_shift, duration=frames * cut.frame_shift, preserve_id=True)
    try:
        features = torch.from_numpy(cut.load_features())
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        place = cut.features.storage_path
        raise UserError(f"{cut.id}: cannot read its features from {place}: make them again") from error
    if len(features) != frames or not math.isfinite(float(features.sum())):
        raise UserError(f"{cut.id}: its features in {cut.features.storage_path} are damaged: make them again")
    return features


def cuts_with_features(manifest: Path) -> list[Any]:
    """All cuts of a manifest.

    Raises:
        UserError: the manifest is missing, damaged, or has no features.
    """
    check_manifest(manifest)
    cuts = list(read_cuts(manifest))
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
        if manifest.name == "cuts_pseudo.jsonl.gz":
            raise UserError(f"{manifest} does not exist: give the folder that `w2vbert pseudo-label` made")
        raise UserError(f"{manifest} does not exist: run `w2vbert features` for this split first")
    try:
        with gzip.open(manifest, "rt", encoding="utf-8") as file:
            first = json.loads(file.readline() or "{}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{manifest} is no gzipped manifest of cuts ({error})") from error
    if not first:
        raise UserError(f"{manifest} is empty")
    if "features" not in first:
        raise UserError(f"{manifest} holds cuts without features: give the folder that `w2vbert features` made")
