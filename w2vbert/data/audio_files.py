"""Audio files: which can be used, found by decoding them as a whole, and where in them somebody speaks."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from w2vbert.data.segments import EnergyMeter, Span, find_extent

SAMPLING_RATE_HZ = 16000  # of the manifests; other audio is resampled when it is loaded
AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
READ_SAMPLES = 1 << 20
MAX_AMPLITUDE = 1000.0  # float files may go a little beyond 1; far beyond it they hold something else than audio
SHORT_WAV = re.compile(r"^data *: (\d+) \(should be (\d+)\)", re.MULTILINE)  # libsndfile's log: bytes told, there
STREAMED_BYTES = 0x7FFFF000  # a WAV from a pipe tells at least so many bytes, for nobody knew
MAX_FILTER_SIZE = 10**7  # values in the table of a resampler: 282 240 for 11 025 Hz, 7e8 for 44 101 Hz


@dataclass(frozen=True)
class AudioCheck:
    """What decoding a whole audio file has shown."""

    samples: int
    sampling_rate_hz: int
    problem: str | None  # why it cannot be used; None if it can
    extent: Span | None = None  # of the speech in it, if that was looked for


def check_audio(path: Path, listen: Callable[[NDArray[np.float32], int], None] | None = None) -> AudioCheck:
    """Decode a whole file: the header of a truncated FLAC still tells the full length.

    Args:
        listen: is given each block of samples (N,) and the sampling rate.
    """
    samples = 0
    rate_hz = 0
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # as bytes: names need not be UTF-8
            rate_hz = file.samplerate
            if file.channels != 1:
                return AudioCheck(file.frames, rate_hz, "more than one channel")
            if not can_resample(rate_hz):
                return AudioCheck(file.frames, rate_hz, "sampling rate that cannot be used")
            while len(block := file.read(READ_SAMPLES, dtype="float32")) > 0:
                samples += len(block)
                if listen is not None:
                    listen(block, rate_hz)
                if not np.isfinite(block).all():
                    return AudioCheck(samples, rate_hz, "samples that are no numbers")
                if np.abs(block).max() > MAX_AMPLITUDE:
                    return AudioCheck(samples, rate_hz, "samples far beyond -1 and 1")
            if samples != file.frames or lacks_samples(file):
                return AudioCheck(samples, rate_hz, "truncated")
    except soundfile.LibsndfileError:
        return AudioCheck(samples, rate_hz, _tell_damage(path))
    return AudioCheck(samples, rate_hz, None if samples else "no samples")


def check_extent(path: Path) -> AudioCheck:
    """Decode a whole file, and find where in it the first speech begins and the last ends."""
    meter = EnergyMeter()
    check = check_audio(path, meter.add)
    extent = find_extent(meter.energies(), check.samples / check.sampling_rate_hz) if check.problem is None else None
    return replace(check, extent=extent, problem=check.problem or (None if extent else "digital silence"))


def lacks_samples(file: soundfile.SoundFile) -> bool:
    """Whether a WAV file ends before its header says: libsndfile reads such a file as far as it goes."""
    found = SHORT_WAV.search(file.extra_info)
    return found is not None and int(found[2]) < int(found[1]) < STREAMED_BYTES


def _tell_damage(path: Path) -> str:
    """Why a file cannot be decoded."""
    if not os.access(path, os.R_OK):
        return "no permission to read"
    return "empty file" if path.stat().st_size == 0 else "damaged or truncated"


def can_resample(rate_hz: int) -> bool:
    """Whether the filter that takes audio of a sampling rate to 16 kHz has a size to work with."""
    common = math.gcd(rate_hz, SAMPLING_RATE_HZ)
    return rate_hz >= 1000 and (rate_hz // common) * (SAMPLING_RATE_HZ // common) <= MAX_FILTER_SIZE
