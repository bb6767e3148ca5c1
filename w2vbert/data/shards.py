"""Audio in shards: tar files in Lhotse's Shar layout, for storage that is fast only when it is read in order.

A shard holds about an hour of utterances of similar lengths, so its batches need little padding. An epoch goes through
the shards of each of `LANES` lanes one after the other, and takes its batches from the lanes in turn; process r of n
takes every n-th batch, so where n divides `LANES` it reads the shards of its own lanes and hardly any others.
"""

import gzip
import io
import json
import tarfile
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from w2vbert.data.batches import FRAMES_PER_SECOND
from w2vbert.data.buckets import FixedPlan, find_buckets
from w2vbert.data.features import FeatureConfig
from w2vbert.data.joining import Integers
from w2vbert.data.lhotse_audio import libsndfile
from w2vbert.data.on_the_fly import describe_features
from w2vbert.errors import UserError
from w2vbert.log import logger

if TYPE_CHECKING:
    from lhotse import MonoCut

LANES = 16
LENGTH_GROUPS = 32
"""Of utterances of similar lengths; each shard is filled from one of them."""

ATTEMPTS = 3
"""To fetch a shard, with one and then two seconds between them."""


@dataclass(frozen=True)
class ShardConfig(FeatureConfig):
    """What `w2vbert shards` writes: audio, and how its filterbanks will be computed.

    Attributes:
        hours: of audio in a shard (1: 60 to 70 MB of FLAC).
        seed: decides which utterances meet in a shard.
        location: where the folder `audio` of OUT will be read from: a URL (http, https, or what smart_open knows, such
            as s3) to which you copy it; "": where it is written.
    """

    hours: float = 1.0
    seed: int = 0
    location: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hours <= 0.0:
            raise ValueError(f"hours must be positive, not {self.hours}")


@dataclass(frozen=True)
class ShardJob:
    """One shard to write.

    Attributes:
        source: file of cuts as JSON lines.
        offsets: where in it the cuts of the shard begin.
        folder: to write into.
        name: of the shard, such as 000012.
        config: filterbanks.
        config_file: where they will be described.
        place: path or URL that the tar file will have.
    """

    source: Path
    offsets: tuple[int, ...]
    folder: Path
    name: str
    config: FeatureConfig
    config_file: Path
    place: str


def assign_shards(seconds: Sequence[float], hours: float, seed: int) -> list[list[int]]:
    """Indices of the utterances of each shard: similar lengths, at random among these."""
    lengths = np.maximum(np.round(np.asarray(seconds) * FRAMES_PER_SECOND).astype(int), 1)
    ends = find_buckets(lengths.tolist(), LENGTH_GROUPS)
    groups = np.searchsorted(ends, lengths)
    random = np.random.default_rng(seed)
    shards: list[list[int]] = []
    for group in range(len(ends)):
        members = random.permutation(np.flatnonzero(groups == group))
        until = np.cumsum(lengths[members]) / FRAMES_PER_SECOND / 3600
        count = max(round(float(until[-1]) / hours), 1) if len(members) else 0
        number = np.minimum((until / until[-1] * count).astype(int), count - 1) if count else members
        shards += [members[number == n].tolist() for n in range(count) if (number == n).any()]
    return shards


def write_shard(job: ShardJob) -> int:
    """Writes `recording.NAME.tar` and `cuts.NAME.jsonl.gz` of a job; returns how many cuts are in it.

    A FLAC file that a cut takes whole is copied; other audio is written as 16-bit FLAC.

    Raises:
        UserError: audio cannot be read, or has another sampling rate than the config.
    """
    from lhotse import MonoCut
    from lhotse.shar.utils import to_shar_placeholder
    from lhotse.shar.writers import TarWriter
    from lhotse.utils import fastcopy

    tar, cuts = job.folder / f"recording.{job.name}.tar", []
    with job.source.open("rb") as lines, TarWriter(tar, shard_size=None) as writer:
        for offset in job.offsets:
            lines.seek(offset)
            cut = MonoCut.from_dict(json.loads(lines.readline()))
            name = cut.id.replace("/", "_")
            recording = to_shar_placeholder(cut.recording, cut)
            recording.sources[0].channels = recording.channel_ids = [0]
            writer.write(f"{name}.flac", io.BytesIO(_flac_of(cut)))
            writer.write(f"{name}.json", io.BytesIO(json.dumps(recording.to_dict()).encode()), count=False)
            cuts.append(fastcopy(cut, start=0.0, channel=0, recording=recording))
    with tarfile.open(tar) as file:
        members = [member for member in file if member.name.endswith(".flac")]
    described = describe_features(cuts, job.config, job.config_file)
    with gzip.open(job.folder / f"cuts.{job.name}.jsonl.gz", "wt", encoding="utf-8") as manifest:
        for cut, member in zip(described, members, strict=True):
            place = {"shard": job.place, "offset": member.offset_data, "bytes": member.size}
            manifest.write(json.dumps(cut.to_dict() | {"custom": place}, ensure_ascii=False) + "\n")
    return len(cuts)


def _flac_of(cut: "MonoCut") -> bytes:
    """A FLAC file of the samples of a cut.

    Raises:
        UserError: its audio cannot be read, or is not that of which the manifest tells.
    """
    import soundfile

    recording = cut.recording
    source = recording.sources[0]
    whole = cut.start == 0.0 and cut.num_samples == recording.num_samples and recording.num_channels == 1
    try:
        if whole and source.type == "file" and source.source.endswith(".flac") and not recording.transforms:
            data = Path(source.source).read_bytes()
            with libsndfile():
                info = soundfile.info(io.BytesIO(data))
            if (info.frames, info.samplerate) != (recording.num_samples, recording.sampling_rate):
                raise OSError(f"{info.frames} samples in place of {recording.num_samples}")
            return data
        with libsndfile():
            samples = cut.load_audio()[0]
    except OSError as error:
        raise UserError(f"{source.source} cannot be read (any more), prepare the corpus again: {error}") from error
    stream = io.BytesIO()
    integers = np.round(samples * 32768.0).clip(-32768, 32767).astype(np.int16)  # exact for 16-bit recordings
    soundfile.write(stream, integers, recording.sampling_rate, format="FLAC")
    return stream.getvalue()


class ShardReader:
    """Recordings out of shards: those on disk one by one, those behind a URL shard by shard, which stay for a while."""

    def __init__(self, kept: int = LANES + 2) -> None:
        self._shards: OrderedDict[str, bytes] = OrderedDict()
        self._kept = kept

    def read(self, custom: dict[str, Any]) -> bytes:
        """The file of a recording, by what its cut says of its place.

        Raises:
            UserError: the shard cannot be read, or ends before it.
        """
        place, offset, size = custom["shard"], custom["offset"], custom["bytes"]
        if "://" in place or place.startswith("pipe:"):
            data = self._fetch(place)[offset : offset + size]
        else:
            try:
                with open(place, "rb") as file:
                    file.seek(offset)
                    data = file.read(size)
            except OSError as error:
                raise UserError(f"{place} cannot be read ({error.strerror}): make the shards again") from error
        if len(data) < size:
            raise UserError(f"{place} is truncated: copy or make it again")
        return data

    def _fetch(self, place: str) -> bytes:
        if place in self._shards:
            self._shards.move_to_end(place)
            return self._shards[place]
        for attempt in range(ATTEMPTS):
            try:
                data = _download(place)
                break
            except (OSError, ValueError, HTTPException) as error:
                if attempt == ATTEMPTS - 1:
                    raise UserError(f"{place} cannot be fetched: {error}") from error
                logger.warning(f"{place} cannot be fetched, once more: {error}")
                time.sleep(1.0 + attempt)
        self._shards[place] = data
        while len(self._shards) > self._kept:
            self._shards.popitem(last=False)
        return data


def _download(place: str) -> bytes:
    if place.startswith(("http://", "https://")):
        with urllib.request.urlopen(place, timeout=60.0) as answer:
            return bytes(answer.read())
    from lhotse.serialization import open_best

    with open_best(place, "rb") as file:  # says itself that smart_open is missing
        return bytes(file.read())


def plan_shards(
    frames: Sequence[int] | Integers,
    shards: Sequence[int] | Integers,
    batch_seconds: float,
    place: tuple[int, int],
    ends: Sequence[int] = (),
) -> FixedPlan:
    """All batches of an epoch, none of them over two shards, in an order in which shards can be read one by one.

    Args:
        frames: filterbank frames of each utterance.
        shards: shard of each utterance.
        batch_seconds: most audio in a batch, padding counted; a longer utterance is a batch of its own.
        place: seed and epoch, which decide the order.
        ends: of `find_buckets`, to which batches are padded; none: their longest utterance decides.
    """
    generator = torch.Generator().manual_seed(place[0] * 1_000_003 + place[1])
    lengths, owners = np.asarray(frames), np.asarray(shards)
    if len(ends):
        lengths = np.asarray(ends)[np.searchsorted(np.asarray(ends), lengths)]
    jitter = 1.0 + 0.1 * (torch.rand(len(lengths), generator=generator).numpy() - 0.5)
    rank = torch.randperm(int(owners.max()) + 1, generator=generator).numpy()  # in which order shards come
    batches: list[list[int]] = []
    padded: list[int] = []
    owner: list[int] = []
    limit = batch_seconds * FRAMES_PER_SECOND
    for index in np.lexsort((lengths * jitter, rank[owners])).tolist():
        longest = max(int(lengths[index]), padded[-1]) if batches else 0
        if not batches or owner[-1] != owners[index] or longest * (len(batches[-1]) + 1) > limit:
            batches.append([])
            padded.append(0)
            owner.append(int(owners[index]))
            longest = int(lengths[index])
        batches[-1].append(index)
        padded[-1] = longest
    order = _interleave(owner, generator)
    return FixedPlan([batches[i] for i in order], [padded[i] if len(ends) else 0 for i in order])


def _interleave(owner: Sequence[int], generator: torch.Generator) -> list[int]:
    """Order of batches, given shard by shard: at random within a shard, and from `LANES` lanes in turn."""
    borders = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
    lanes: list[list[int]] = [[] for _ in range(LANES)]
    for begin, end in zip(borders, borders[1:], strict=False):
        shuffled = torch.randperm(end - begin, generator=generator) + begin
        min(lanes, key=len).extend(shuffled.tolist())
    steps = max(map(len, lanes))
    return [lane[step] for step in range(steps) for lane in lanes if step < len(lane)]
