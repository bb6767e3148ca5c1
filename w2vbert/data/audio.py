"""Plain audio files: finding them, reading them as 16 kHz mono, and cutting long ones at quiet places."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from w2vbert.data.corpora import AUDIO_SUFFIXES, MAX_AMPLITUDE, can_resample
from w2vbert.errors import UserError
from w2vbert.files import list_files

QUIET_SECONDS = 0.1
"""Width of the window whose energy says how quiet a place is."""


def find_audio(inputs: Sequence[Path]) -> list[Path]:
    """Audio files among `inputs`, and below those that are folders, in order.

    Raises:
        UserError: an input does not exist, or nothing was found.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files += [p for p in list_files(path) if p.suffix.lower() in AUDIO_SUFFIXES]
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path} does not exist")
    if not files:
        raise UserError(f"no audio in {', '.join(map(str, inputs))}: looked for {' '.join(AUDIO_SUFFIXES)}")
    return files


def read_audio(path: Path, rate_hz: int) -> Tensor:
    """Samples (N,) float32 of a file at `rate_hz`, the mean of its channels.

    Raises:
        UserError: the file cannot be decoded, ends before its header says (FLAC; a WAV is read as far as it goes), is
            empty, holds NaN, or has a sampling rate that cannot be used.
    """
    import soundfile
    import torchaudio

    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # as bytes: names need not be UTF-8
            expected, rate = len(file), file.samplerate
            if not can_resample(rate):
                raise UserError(f"{path} has a sampling rate of {rate} Hz, which cannot be used")
            samples = torch.from_numpy(file.read(dtype="float32", always_2d=True)).mean(1)  # (N,)
    except (soundfile.SoundFileError, OSError, TypeError, MemoryError) as error:
        raise UserError(f"{path} cannot be decoded: {error}") from error
    if len(samples) < expected:
        raise UserError(f"{path} is truncated: {len(samples)} of {expected} samples")
    if not len(samples):
        raise UserError(f"{path} holds no samples")
    if not bool(samples.isfinite().all()):
        raise UserError(f"{path} holds samples that are not finite")
    if float(samples.abs().max()) > MAX_AMPLITUDE:
        raise UserError(f"{path} holds samples up to {float(samples.abs().max()):.3g}: audio lies within -1 and 1")
    return samples if rate == rate_hz else torchaudio.functional.resample(samples, rate, rate_hz)


def cut_at_quiet(samples: Tensor, rate_hz: int, max_seconds: float) -> Iterator[Tensor]:
    """Pieces of at most `max_seconds`, each ended at the quietest place of its last third. (N,) -> pieces (n,).

    Raises:
        UserError: the last third of `max_seconds` is too short to look for a quiet place.
    """
    longest = int(max_seconds * rate_hz)
    window = int(QUIET_SECONDS * rate_hz)
    if longest - 2 * longest // 3 < window:
        raise UserError(f"audio can be cut into pieces of {3 * QUIET_SECONDS:.1f} s and more, not of {max_seconds:g} s")
    while len(samples) > longest:
        tail = samples[2 * longest // 3 : longest]
        energy = torch.nn.functional.avg_pool1d(tail.square()[None], window, stride=window // 2)[0]
        end = 2 * longest // 3 + int(energy.argmin()) * (window // 2) + window // 2
        yield samples[:end]
        samples = samples[end:]
    yield samples
