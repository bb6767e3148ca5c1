"""Features that are computed whenever they are read, from the audio file that a cut names or from a shard.

The manifest looks like one of stored features: its cuts have a `Features` entry, whose storage is of type `computed`
and whose path is the `features.yaml` that says how. What is read is the record of a cut, a dict as in the manifest.
"""

import io
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from w2vbert.config import load_config
from w2vbert.data.features import FeatureConfig
from w2vbert.data.filterbanks import Filterbanks, filterbanks
from w2vbert.data.lhotse_audio import libsndfile
from w2vbert.errors import UserError

if TYPE_CHECKING:
    from lhotse import MonoCut

COMPUTED = "computed"
"""Storage type of features that are not stored."""

CPU = torch.device("cpu")


def describe_features(cuts: "Iterable[MonoCut]", config: FeatureConfig, config_file: Path) -> "Iterator[MonoCut]":
    """Cuts with features attached that `compute_frames` will compute.

    Args:
        config_file: where the config will lie.

    Raises:
        UserError: a cut has another sampling rate than the config.
    """
    from lhotse import Features
    from lhotse.utils import fastcopy

    count = filterbanks(config, CPU).count
    for cut in cuts:
        if cut.sampling_rate != config.sampling_rate_hz:
            raise UserError(f"{cut.id} has {cut.sampling_rate} Hz, the config {config.sampling_rate_hz} Hz")
        frames = max(count(cut.num_samples), 1)
        if config.snip_edges:  # as stored features have it: Lhotse counts frames by time
            cut = cut.truncate(duration=frames * config.frame_shift_seconds, preserve_id=True)
        manifest = Features(
            type="kaldi-fbank",
            num_frames=frames,
            num_features=config.num_mel_bins,
            frame_shift=config.frame_shift_seconds,
            sampling_rate=config.sampling_rate_hz,
            start=cut.start,
            duration=cut.duration,
            storage_type=COMPUTED,
            storage_path=str(config_file),
            storage_key="",
            channels=cut.channel,
        )
        yield fastcopy(cut, features=manifest)


def is_computed(record: dict[str, Any]) -> bool:
    """Whether the features of a cut are computed when they are read."""
    return bool(record["features"]["storage_type"] == COMPUTED)


def compute_frames(record: dict[str, Any], start: int, frames: int, audio: bytes | None = None) -> Tensor:
    """Raw features (T, F) float32 of a cut's `frames` frames from `start` on; they do not depend on which are asked.

    Args:
        record: of a cut with features of type `computed`.
        audio: the recording's file; None: it is read from where the recording says.

    Raises:
        UserError: the audio is missing or damaged.
    """
    bank = _read_bank(Path(record["features"]["storage_path"]))
    recording = record["recording"]
    rate = recording["sampling_rate"]
    begin = round(record["start"] * rate)
    count = round(record["duration"] * rate)
    if bank.config.snip_edges:  # the cut is as short as its frames; the last one looks beyond it
        count = recording["num_samples"] - begin
    first, end = bank.span(count, start, frames)
    lower, upper = max(first, 0), min(end, count)
    samples = _read_samples(recording, record["channel"], begin + lower, upper - lower, audio)
    return bank.of_span(samples, lower - first, end - upper)


@lru_cache(maxsize=4)
def _read_bank(config_file: Path) -> Filterbanks:
    return filterbanks(load_config(FeatureConfig, config_file, []), CPU)


def _read_samples(recording: dict[str, Any], channel: int, begin: int, count: int, audio: bytes | None) -> Tensor:
    """Samples (count,) float32 of a recording from `begin` on.

    Raises:
        UserError: it cannot be read, or holds fewer.
    """
    import soundfile

    place = recording["sources"][0]["source"] if audio is None else recording["id"]
    whole = 2 * count > recording["num_samples"]  # decoding all of a FLAC file is faster than seeking in it
    try:
        if audio is None and not _is_plain(recording):
            samples = _read_with_lhotse(recording, channel, begin, count)
        elif whole and (place.lower().endswith(".flac") if audio is None else audio[:4] == b"fLaC"):
            samples = decode_flac(place if audio is None else audio, channel)[begin : begin + count]
        else:
            with soundfile.SoundFile(place if audio is None else io.BytesIO(audio)) as file:
                file.seek(begin)
                samples = torch.from_numpy(file.read(count, dtype="float32", always_2d=True))[:, channel]
    except (OSError, RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = getattr(error, "error_string", "") or str(error)
        raise UserError(f"{place} cannot be decoded (any more), prepare the corpus again: {reason}") from error
    if len(samples) < count:
        raise UserError(f"{place} is damaged: {len(samples)} of {count} samples; prepare the corpus again")
    return samples


def _is_plain(recording: dict[str, Any]) -> bool:
    """Whether a recording is one file that is taken as it is."""
    sources = recording["sources"]
    return len(sources) == 1 and sources[0]["type"] == "file" and not recording.get("transforms")


def decode_flac(source: str | bytes, channel: int) -> Tensor:
    """Samples (N,) float32 of a channel; miniaudio's decoder is 1.5 times as fast as libsndfile's, with equal values.

    Raises:
        ValueError: it is not FLAC, or lacks the channel.
    """
    import miniaudio

    try:
        decoded = miniaudio.flac_read_f32(source) if isinstance(source, bytes) else miniaudio.flac_read_file_f32(source)
    except miniaudio.DecodeError as error:
        raise ValueError(str(error)) from error
    samples = torch.frombuffer(decoded.samples, dtype=torch.float32) if len(decoded.samples) else torch.zeros(0)
    return samples if decoded.nchannels == 1 else samples.view(-1, decoded.nchannels)[:, channel]


def _read_with_lhotse(recording: dict[str, Any], channel: int, begin: int, count: int) -> Tensor:
    """Samples (count,) of a recording that Lhotse changes, or fetches, as it reads."""
    from lhotse import Recording

    rate = recording["sampling_rate"]
    with libsndfile():
        samples = Recording.from_dict(recording).load_audio(channels=channel, offset=begin / rate)
    return torch.from_numpy(samples[0, :count])
