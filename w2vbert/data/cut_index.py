"""What training needs of the cuts of a manifest, without an object in memory for each.

A manifest of a million cuts takes Lhotse minutes and gigabytes to read. Its index is made once, from a stream, and
lies beside it: lengths, which are read at each start, and ids, texts, speakers and a short record of each cut, which
are read when they are asked for.
"""

import gzip
import json
import mmap
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2vbert.data.on_the_fly import is_computed
from w2vbert.errors import UserError
from w2vbert.files import atomic_dir, read_json, write_json
from w2vbert.log import logger, progress
from w2vbert.stages import MADE_AGAIN

FORMAT = 2
KEPT_BYTES = 2 * 2**20
"""Smaller manifests (about 20 000 cuts) are read anew at each start, in a second."""

_STRINGS = ("ids", "texts", "speakers")
_RECORD_KEYS = ("id", "start", "duration", "channel", "features", "type")
_AUDIO_KEYS = (*_RECORD_KEYS, "recording", "custom")  # where features are computed from audio


class Column(Sequence[str]):
    """Strings in a mapped file, each made when it is asked for."""

    def __init__(self, text: bytes | mmap.mmap, ends: Sequence[int]) -> None:
        """Takes them as they are stored.

        Args:
            text: UTF-8, a zero byte after each string.
            ends: where in it these bytes are.
        """
        self._text = text
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # no slices
        begin = int(self._ends[row - 1]) + 1 if row else 0
        return self._text[begin : int(self._ends[row])].decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._text[:-1].decode().split("\0"))


@dataclass(frozen=True)
class CutIndex:
    """The cuts of a manifest, in its order.

    Attributes:
        ids, texts, speakers: of each; "" where there is none.
        frames: filterbank frames of each.
        offsets: int64 (N + 1,), where in `records` each cut's JSON begins.
        records: Lhotse's cuts as JSON, without supervisions, and without recording where features are stored; in memory
            or in a mapped file.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    speakers: Sequence[str]
    frames: Sequence[int]
    offsets: Sequence[int]
    records: bytes | mmap.mmap

    def record(self, row: int) -> dict[str, Any]:
        """What the manifest says of the cut at `row` and its features."""
        record: dict[str, Any] = json.loads(self.records[self.offsets[row] : self.offsets[row + 1]])
        return record


def open_index(manifest: Path) -> CutIndex:
    """The index of a manifest of cuts: the one beside it, or else a new one.

    Raises:
        UserError: the manifest is damaged, or has cuts without features.
    """
    stat = manifest.stat()
    key = {"format": FORMAT, "size": stat.st_size, "changed": stat.st_mtime_ns}
    folder = manifest.parent / MADE_AGAIN / manifest.name
    if (folder / "key.json").is_file() and read_json(folder / "key.json") == key:
        return _load(folder)
    index = _build(manifest)
    if stat.st_size >= KEPT_BYTES:
        try:
            with atomic_dir(folder) as partial:
                _save(index, partial)
                write_json(partial / "key.json", key)
        except (OSError, UserError) as error:
            logger.info(f"no index is kept beside {manifest}, so each start reads it anew ({error})")
    return index


def _build(manifest: Path) -> CutIndex:
    from lhotse.utils import compute_num_frames

    ids, texts, speakers = [], [], []
    speaker_names: dict[str, str] = {}  # one object for each
    frames, offsets, records = array("i"), array("q", [0]), bytearray()
    lines: Iterable[dict[str, Any]] = _read_lines(manifest)
    if manifest.stat().st_size >= KEPT_BYTES:
        lines = progress(lines, desc=f"reading {manifest.name}", unit="cuts")
    for cut in lines:
        if cut.get("features") is None:
            raise UserError(f"{manifest} holds {cut.get('id')} without features: make the features again")
        features = cut["features"]
        said = cut.get("supervisions") or [{}]
        speaker = said[0].get("speaker") or ""
        ids.append(cut["id"])
        texts.append((said[0].get("text") or "").replace("\0", " "))  # a zero byte ends a string in the index
        speakers.append(speaker_names.setdefault(speaker, speaker))
        frames.append(compute_num_frames(cut["duration"], features["frame_shift"], features["sampling_rate"]))
        kept = _AUDIO_KEYS if is_computed(cut) else _RECORD_KEYS
        records += json.dumps({key: cut[key] for key in kept if key in cut}).encode()
        offsets.append(len(records))
    return CutIndex(ids, texts, speakers, frames.tolist(), offsets, bytes(records))


def _read_lines(manifest: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(manifest, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{manifest} is damaged ({error})") from error


def _save(index: CutIndex, folder: Path) -> None:
    for name in _STRINGS:
        strings = [f"{string}\0".encode() for string in getattr(index, name)]
        (folder / name).write_bytes(b"".join(strings))
        np.save(folder / f"{name}_ends.npy", np.cumsum([len(string) for string in strings]) - 1)
    np.save(folder / "frames.npy", np.asarray(index.frames, dtype=np.int32))
    np.save(folder / "offsets.npy", np.asarray(index.offsets, dtype=np.int64))
    (folder / "records").write_bytes(index.records)


def _load(folder: Path) -> CutIndex:
    ids, texts, speakers = (
        Column(_map(folder / name), np.load(folder / f"{name}_ends.npy", mmap_mode="r")) for name in _STRINGS
    )
    frames, offsets = np.load(folder / "frames.npy"), np.load(folder / "offsets.npy", mmap_mode="r")
    return CutIndex(ids, texts, speakers, frames, offsets, _map(folder / "records"))


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
