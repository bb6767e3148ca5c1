"""Additive noise: recordings of a folder, whose features are mixed into those of speech at a random level."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from w2vbert.data.audio import find_audio, read_audio
from w2vbert.data.datasets import MIN_FRAMES, Change, cuts_with_features, read_frames
from w2vbert.errors import UserError
from w2vbert.log import logger

if TYPE_CHECKING:
    from lhotse import MonoCut


NOISE_FILE = "cuts_noise.jsonl.gz"
"""Manifest of noise in a folder of features."""


@dataclass(frozen=True)
class NoiseConfig:
    """How noise is mixed into speech; the defaults but `prob` are icefall's.

    Attributes:
        prob: share of the utterances that get noise; 0: none.
        min_snr_db, max_snr_db: level of the speech above the noise, uniform between them.
    """

    prob: float = 0.0
    min_snr_db: float = 10.0
    max_snr_db: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.prob <= 1.0 or self.min_snr_db > self.max_snr_db:
            raise ValueError("noise needs prob in [0, 1] and min_snr_db of at most max_snr_db")


def mix_noise(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Log-mel energies of speech and noise together: the energies add, as those of unrelated signals do on average.

    Args:
        speech, noise: (T, F), natural logarithms of energies.
        snr_db: mean energy of the speech over that of the noise, in decibels.

    Returns:
        (T, F).
    """
    ratio = speech.exp().mean().log() - noise.exp().mean().log()  # scalar
    return torch.logaddexp(speech, noise + ratio - snr_db * math.log(10.0) / 10.0)


class NoiseMixer:
    """Recordings of noise with stored features, and how they are mixed into speech."""

    def __init__(self, manifest: Path, config: NoiseConfig) -> None:
        """Reads the manifest; features stay on disk.

        Args:
            manifest: of `w2vbert features` with the key `noise`.
            config: how much.

        Raises:
            UserError: there is no such manifest, or no noise of 0.1 s in it.
        """
        if not manifest.is_file():
            raise UserError(f"{manifest} does not exist: noise.prob needs `w2vbert features` with --set noise=FOLDER")
        self.config = config
        self._cuts = [cut for cut in cuts_with_features(manifest) if cut.num_frames >= MIN_FRAMES]
        if not self._cuts:
            raise UserError(f"{manifest}: no noise is longer than 0.1 s")

    def changes(self, generator: torch.Generator) -> Change:
        """A function that mixes noise into raw features (T, F), with what it draws from `generator` at each call."""
        return lambda features: self._change(features, generator)

    def _change(self, features: Tensor, generator: torch.Generator) -> Tensor:
        chance, which, level, begin = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        if chance >= self.config.prob:
            return features
        cut, frames = self._cuts[int(which * len(self._cuts))], len(features)
        if cut.num_frames > frames:
            noise = read_frames(cut, int(begin * (cut.num_frames - frames + 1)), frames)
        else:
            whole = read_frames(cut, 0, cut.num_frames)
            first = int(begin * cut.num_frames)
            noise = whole[(first + torch.arange(frames)) % cut.num_frames]  # (T, F), again and again
        low, high = self.config.min_snr_db, self.config.max_snr_db
        return mix_noise(features, noise, low + level * (high - low))


def noise_cuts(folder: Path, rate_hz: int) -> "Iterator[MonoCut]":
    """Cuts of all audio under a folder at `rate_hz`, the first channel of each; what cannot be decoded is named.

    Raises:
        UserError: the folder does not exist, or holds no audio that can be decoded.
    """
    import soundfile
    from lhotse import AudioSource, MonoCut, Recording

    found = 0
    for path in find_audio([folder]):
        try:
            read_audio(path, rate_hz)
        except UserError as error:
            logger.warning(f"noise left out: {error}")
            continue
        found += 1
        about = soundfile.info(path)
        name = "-".join(("noise", *path.relative_to(folder).with_suffix("").parts))
        source = AudioSource("file", list(range(about.channels)), str(path.resolve()))
        recording = Recording(name, [source], about.samplerate, about.frames, about.frames / about.samplerate)
        recording = recording.resample(rate_hz)
        yield MonoCut(name, 0.0, recording.duration, 0, [], recording=recording)
    if not found:
        raise UserError(f"{folder} holds no audio that can be decoded")
