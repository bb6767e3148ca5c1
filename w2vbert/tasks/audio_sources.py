"""What `w2vbert decode` is given: files, folders, patterns, standard input, manifests, as a stream of recordings."""

import glob
import gzip
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2vbert.data.audio import BLOCK_SECONDS, check_samples, find_audio, read_blocks, resample_blocks
from w2vbert.data.audio_files import AUDIO_SUFFIXES, can_resample
from w2vbert.data.lhotse_audio import libsndfile
from w2vbert.errors import UserError

STANDARD_INPUT = Path("-")
MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")
OTHER_SUFFIXES = (".aif", ".aiff", ".au", ".caf", ".oga", ".rf64", ".sph", ".w64")
"""Further formats that are read."""
FOREIGN_SUFFIXES = (".aac", ".amr", ".ape", ".m4a", ".mka", ".mkv", ".mp4", ".webm", ".wma", ".wv")
"""Formats that are not read: such files in a folder are named, not passed over."""
LISTED_SUFFIXES = AUDIO_SUFFIXES + OTHER_SUFFIXES + FOREIGN_SUFFIXES


@dataclass(frozen=True)
class Source:
    """A recording to decode, or the cut of one.

    Attributes:
        id: path as it was given, `-`, or id of Lhotse's cut or recording.
        name: id without folders and suffix.
        item: path, or Lhotse's cut.
        recording_id: of the recording that times in Lhotse's manifests are counted in.
        offset_seconds: where in it the cut begins.
        channel: which channel is read, from 0; None: the mean of all.
    """

    id: str
    name: str
    item: Any
    recording_id: str
    offset_seconds: float = 0.0
    channel: int | None = None

    def read(self, rate_hz: int) -> Iterator[Tensor]:
        """Blocks (n,) float32 at `rate_hz`.

        Raises:
            UserError: it cannot be read, or not to its end.
        """
        if isinstance(self.item, Path):
            if self.item.suffix.lower() in FOREIGN_SUFFIXES:
                raise UserError(f"{self.id} cannot be decoded: convert {self.item.suffix} to FLAC or WAV")
            return read_blocks(self.item, rate_hz, self.channel, self.id)
        return _read_cut(self.item, rate_hz, self.channel)


class Sources:
    """The recordings of a command's inputs, in order: files are listed, manifests read as they are gone through."""

    def __init__(self, inputs: Sequence[Path], channel: int | None = None) -> None:
        """Lists files and checks manifests.

        Args:
            inputs: files, folders, patterns with `*`, `?` or `[`, manifests of Lhotse's cuts or recordings, `-`.
            channel: which channel to read, from 0; None: the mean of all.

        Raises:
            UserError: an input is missing or damaged, or has no audio.
        """
        self.channel = channel
        self.parts: list[Path] = []  # each a file, a manifest, or standard input
        self._count = 0
        for path in inputs:
            for part in _expand(path):
                self._count += _count_cuts(part) if _is_manifest(part) else 1
                self.parts.append(part)
        if self.parts.count(STANDARD_INPUT) > 1:
            raise UserError("standard input (-) can be read once")
        if STANDARD_INPUT in self.parts and (sys.stdin is None or sys.stdin.isatty()):
            state = "closed" if sys.stdin is None else "a terminal"
            raise UserError(f"standard input (-) is {state}: pipe a WAV or FLAC file into it")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Source]:
        for part in self.parts:
            if part == STANDARD_INPUT:
                yield from self._read_standard_input()
            elif _is_manifest(part):
                yield from (_source_of_cut(cut, self.channel) for cut in _read_manifest(part))
            else:
                yield source_of_file(part, self.channel)

    def _read_standard_input(self) -> Iterator[Source]:
        """A file of its own: libsndfile must be able to go back and forth in it."""
        with tempfile.NamedTemporaryFile(prefix="w2vbert-stdin-") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
            yield Source("-", "stdin", Path(file.name), "stdin", channel=self.channel)


def source_of_file(path: Path, channel: int | None = None) -> Source:
    """An audio file as a recording."""
    return Source(str(path), path.stem, path, path.stem, channel=channel)


def _expand(path: Path) -> list[Path]:
    """The files that an argument stands for."""
    if path == STANDARD_INPUT or _is_manifest(path):
        return [path]
    if not path.exists() and glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if not found:
            raise UserError(f"no file matches {path}")
        return [file for match in found for file in (_expand(match) if match.is_file() else _list_folder(match))]
    return find_audio([path], LISTED_SUFFIXES)


def _list_folder(folder: Path) -> list[Path]:
    """Audio below a folder that matches a pattern; it may hold none."""
    try:
        return find_audio([folder], LISTED_SUFFIXES)
    except UserError:
        return []


def _is_manifest(path: Path) -> bool:
    return path.name.endswith(MANIFEST_SUFFIXES)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                item = json.loads(line)
                if not isinstance(item, dict):
                    raise ValueError("not an object")
                yield item
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is no manifest of cuts or recordings, or a damaged one") from error


def _count_cuts(path: Path) -> int:
    """Number of cuts or recordings of a manifest; all of it is looked at before anything is decoded."""
    count = 0
    for item in _read_lines(path):
        count += 1
        has_audio = "sources" in item or "recording" in item or item.get("type") == "MixedCut"
        if not has_audio or "id" not in item:
            raise UserError(f"{path} is no manifest of cuts with recordings, or of recordings (line {count})")
    if not count:
        raise UserError(f"{path} is no manifest of cuts or recordings: it is empty")
    return count


def _read_manifest(path: Path) -> Iterator[Any]:
    """Lhotse's cuts, one after the other; recordings become cuts."""
    from lhotse import Recording
    from lhotse.serialization import deserialize_item

    for number, item in enumerate(_read_lines(path), 1):
        try:
            cut = deserialize_item(item)
            cut = cut.to_cut() if isinstance(cut, Recording) else cut
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise UserError(f"{path}:{number} is damaged: no cut or recording of Lhotse's") from error
        if not cut.has_recording:
            raise UserError(f"{path}:{number} is a cut without a recording")
        yield cut


def _source_of_cut(cut: Any, channel: int | None) -> Source:
    from lhotse.cut import MixedCut

    recording_id = cut.id if isinstance(cut, MixedCut) else cut.recording_id
    offset_seconds = 0.0 if isinstance(cut, MixedCut) else float(cut.start)
    return Source(cut.id, cut.id, cut, recording_id, offset_seconds, channel)


def _read_cut(cut: Any, rate_hz: int, channel: int | None) -> Iterator[Tensor]:
    """Blocks (n,) at `rate_hz` of a cut: the mean of its channels, or one of them."""
    if not can_resample(cut.sampling_rate):
        raise UserError(f"{cut.id} has a sampling rate of {cut.sampling_rate} Hz, which cannot be used")
    return resample_blocks(_load_windows(cut, channel), cut.sampling_rate, rate_hz)


def _load_windows(cut: Any, channel: int | None) -> Iterator[Tensor]:
    """Blocks (n,) of a cut at its own rate."""
    for part in [track.cut for track in getattr(cut, "tracks", ())] or [cut]:
        for source in part.recording.sources if part.has_recording else ():  # padding has none
            if source.type == "file" and not Path(source.source).is_file():
                raise UserError(f"{cut.id} cannot be read: {source.source} does not exist")
    begin = 0.0
    while cut.duration - begin >= 1.0 / cut.sampling_rate:
        seconds = min(10 * BLOCK_SECONDS, cut.duration - begin)
        window = cut
        if seconds < cut.duration:
            window = cut.truncate(offset=begin, duration=seconds, preserve_id=True)
        try:
            with libsndfile():
                samples = torch.from_numpy(window.load_audio())  # (channels, n)
        except OSError as error:
            raise UserError(f"{cut.id} cannot be read: {error}") from error
        if channel is not None and channel >= len(samples):
            raise UserError(f"{cut.id} has no channel {channel}: it has {len(samples)}, counted from 0")
        yield check_samples(samples.mean(0) if channel is None else samples[channel], cut.id)
        begin += seconds
