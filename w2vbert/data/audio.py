"""Plain audio files: finding them, and reading them as mono of any sampling rate, whole or block by block."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from w2vbert.data.audio_files import AUDIO_SUFFIXES, MAX_AMPLITUDE, can_resample, lacks_samples
from w2vbert.errors import UserError
from w2vbert.files import list_files
from w2vbert.log import logger

if TYPE_CHECKING:
    from soundfile import SoundFile

BLOCK_SECONDS = 30.0
"""Audio that is read and resampled at once."""


def find_audio(inputs: Sequence[Path], suffixes: Sequence[str] = AUDIO_SUFFIXES) -> list[Path]:
    """Files among `inputs`, and those with one of `suffixes` below those that are folders, in order.

    Raises:
        UserError: an input does not exist, or nothing was found.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files += [p for p in list_files(path) if p.suffix.lower() in suffixes]
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path} does not exist")
    if not files:
        raise UserError(f"no audio in {', '.join(map(str, inputs))}: looked for {' '.join(suffixes)}")
    return files


def read_audio(path: Path, rate_hz: int) -> Tensor:
    """Samples (N,) float32 of a file at `rate_hz`, the mean of its channels.

    Raises:
        UserError: as `read_blocks`.
    """
    return torch.cat(list(read_blocks(path, rate_hz)))


def read_blocks(path: Path, rate_hz: int, channel: int | None = None, name: str | None = None) -> Iterator[Tensor]:
    """Blocks (n,) float32 of a file at `rate_hz`, one after the other; joined they are the same as resampled whole.

    Args:
        path: audio file.
        rate_hz: sampling rate wanted.
        channel: which channel, from 0; None: the mean of all.
        name: what errors call the file; None: `path`.

    Raises:
        UserError: the file cannot be decoded, ends before its header says (a WAV is read as far as it goes, with a
            warning), is empty, holds NaN, lacks the channel, or has a sampling rate that cannot be used. What was read
            before the damage has been yielded by then.
    """
    import soundfile

    name = name or str(path)
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # as bytes: names need not be UTF-8
            if not can_resample(file.samplerate):
                raise UserError(f"{name} has a sampling rate of {file.samplerate} Hz, which cannot be used")
            if channel is not None and channel >= file.channels:
                raise UserError(f"{name} has no channel {channel}: it has {file.channels}, counted from 0")
            yield from resample_blocks(_decode(file, name, channel), file.samplerate, rate_hz)
    except (soundfile.SoundFileError, OSError, TypeError, MemoryError) as error:
        if path.is_file() and not path.stat().st_size:
            raise UserError(f"{name} is an empty file") from error
        reason = getattr(error, "error_string", "") or str(error)  # libsndfile's names the path in bytes
        raise UserError(f"{name} cannot be decoded: {reason}") from error


def _decode(file: "SoundFile", name: str, channel: int | None) -> Iterator[Tensor]:
    """Checked blocks at the file's own rate."""
    expected, size, count = len(file), int(BLOCK_SECONDS * file.samplerate), 0
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        samples = torch.from_numpy(block)  # (n, channels)
        count += len(samples)
        yield check_samples(samples.mean(1) if channel is None else samples[:, channel], name)
    if lacks_samples(file):
        logger.warning(f"{name} ends before its header says: read as far as it goes, {count / file.samplerate:.2f} s")
    if count < expected:
        raise UserError(f"{name} is truncated: {count} of {expected} samples")
    if not count:
        raise UserError(f"{name} holds no samples")


def check_samples(samples: Tensor, name: object) -> Tensor:
    """Returns samples that can be audio.

    Raises:
        UserError: some are not finite, or far beyond -1 and 1.
    """
    if not bool(samples.isfinite().all()):
        raise UserError(f"{name} holds samples that are not finite")
    loudest = float(samples.abs().max()) if len(samples) else 0.0
    if loudest > MAX_AMPLITUDE:
        raise UserError(f"{name} holds samples up to {loudest:.3g}: audio lies within -1 and 1")
    return samples


def resample_blocks(blocks: Iterable[Tensor], from_hz: int, to_hz: int) -> Iterator[Tensor]:
    """Blocks (n,) at another rate: joined, they equal the joined blocks resampled at once."""
    if from_hz == to_hz:
        yield from blocks
        return
    import torchaudio

    common = math.gcd(from_hz, to_hz)
    step, out_step = from_hz // common, to_hz // common  # `step` samples become `out_step`
    resample = torchaudio.transforms.Resample(from_hz, to_hz)
    margin = step * math.ceil(resample.width / step)  # what the filter needs on each side, in whole steps
    size = max(step * round(BLOCK_SECONDS * from_hz / step), margin)
    kept, before, read = torch.zeros(0), 0, 0  # samples at hand, how many of them have been resampled before
    for block in blocks:
        read += len(block)
        kept = torch.cat([kept, block])
        while len(kept) >= before + size + margin:
            skipped = before // step * out_step
            yield resample(kept[: before + size + margin])[skipped : skipped + size // step * out_step]
            kept = kept[before + size - margin :]
            before = margin
    done = (read - len(kept) + before) // step * out_step
    skipped = before // step * out_step
    yield resample(kept)[skipped : skipped + math.ceil(read * out_step / step) - done]
