"""Log-mel filterbanks: stored with Lhotse for a corpus, or computed for one waveform, with equal values.

Stored features are raw log energies, exact to 1/64 (lilcom's compression: 3.5 times smaller than float32 and as fast to
load); `normalize` is applied by whoever reads them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from w2vbert.data.lhotse_audio import libsndfile
from w2vbert.errors import UserError

# torch and lhotse take seconds to import: not before a step knows that it has work to do.
if TYPE_CHECKING:
    import numpy as np
    from lhotse import Fbank, MonoCut
    from torch import Tensor

TICK_POWER = -5  # features are stored with an error of at most half of 2^-5
CUTS_PER_FILE = 200
FEATURES_FILE = "features.yaml"
"""How features were made: lies in a folder of features, and in each model that was trained on it."""

FRAME_SHIFT_SECONDS = 0.01
"""The only one there is: `FRAMES_PER_SECOND` turns frames into seconds everywhere."""

MIN_DEVIATION = 1e-3  # of a mel bin over an utterance; digital silence has none


@dataclass(frozen=True)
class FeatureConfig:
    """Filterbanks as in Kaldi and Lhotse.

    Attributes:
        num_mel_bins: mel bins of a frame.
        frame_length_seconds: of a frame.
        frame_shift_seconds: from one frame to the next: 0.01, by which all durations are counted.
        sampling_rate_hz: audio of other rates is resampled to it.
        low_hz, high_hz: lower edge of the first mel bin, upper edge of the last.
        snip_edges: only frames that lie within the audio; else N / shift frames, with mirrored edges.
        scale: of the samples, which lie in [-1, 1]; it moves the floor of the energies, 1.2e-7.
    """

    num_mel_bins: int = 80
    frame_length_seconds: float = 0.025
    frame_shift_seconds: float = FRAME_SHIFT_SECONDS
    sampling_rate_hz: int = 16000
    low_hz: float = 20.0
    high_hz: float = 7600.0
    snip_edges: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.num_mel_bins < 1:
            raise ValueError("num_mel_bins must be at least 1")
        if not 1000 <= self.sampling_rate_hz <= 384_000:
            raise ValueError(f"sampling_rate_hz must lie in [1000, 384000], not {self.sampling_rate_hz}")
        if self.frame_shift_seconds != FRAME_SHIFT_SECONDS:
            raise ValueError(f"frame_shift_seconds must be {FRAME_SHIFT_SECONDS}, not {self.frame_shift_seconds}")
        if not self.frame_shift_seconds <= self.frame_length_seconds <= 1.0:
            raise ValueError("frame_shift_seconds <= frame_length_seconds <= 1 must hold")
        if not 0 <= self.low_hz < self.high_hz <= self.sampling_rate_hz / 2:
            raise ValueError("0 <= low_hz < high_hz <= sampling_rate_hz / 2 must hold")
        if self.num_mel_bins > self._most_mel_bins():
            raise ValueError(f"num_mel_bins must be at most {self._most_mel_bins()}: more could be empty")
        if not self.scale > 0.0:
            raise ValueError(f"scale must be positive, not {self.scale}")

    def _most_mel_bins(self) -> int:
        """How many triangles on the mel scale are at least as wide, the narrowest too, as the lines of the spectrum.

        mel(f) = 1127 ln(1 + f / 700); the lines lie a power of two of samples, at least a frame, apart.
        """
        line_hz = self.sampling_rate_hz / 2 ** math.ceil(math.log2(self.frame_length_seconds * self.sampling_rate_hz))
        narrowest = math.log1p(line_hz / (700.0 + self.low_hz))
        mels = math.log1p(self.high_hz / 700.0) - math.log1p(self.low_hz / 700.0)
        return int(2 * mels / narrowest) - 1


W2V_BERT_2 = FeatureConfig(high_hz=8000.0, snip_edges=True, scale=32768.0)
"""Of w2v-bert-2.0, as transformers' `SeamlessM4TFeatureExtractor` makes them: of samples scaled like 16-bit numbers."""


@dataclass(frozen=True)
class ExtractionConfig(FeatureConfig):
    """What `w2vbert features` stores, and how: filterbanks as the base class says, and material for augmentation.

    Attributes:
        speeds: the train split gets a copy of each utterance at each of these speeds, beside the original ([0.9, 1.1]:
            Ko et al. 2015; Kaldi, icefall). Tempo and pitch change together.
        noise: folder of recordings (at any depth) whose features are stored beside the splits, for the key `noise` of
            fine-tuning.
        stored: features are stored; false: they are computed from the audio whenever they are read, which takes no disk
            and no time now. Those of noise are stored always.
    """

    stored: bool = True
    speeds: tuple[float, ...] = ()
    noise: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0.5 <= speed <= 2.0 and speed != 1.0 for speed in self.speeds):
            raise ValueError(f"speeds must lie in [0.5, 2] and not be 1, the original: {list(self.speeds)}")
        if len(set(self.speeds)) < len(self.speeds):
            raise ValueError(f"speeds must differ from one another: {list(self.speeds)}")

    @property
    def filterbanks(self) -> FeatureConfig:
        """What models must agree on: without the material for augmentation."""
        return FeatureConfig(**{field.name: getattr(self, field.name) for field in fields(FeatureConfig)})


@dataclass(frozen=True)
class StorageJob:
    """Cuts whose features go into one file."""

    cuts: tuple[MonoCut, ...]
    file: Path  # where it will lie in the end, for the manifest
    config: FeatureConfig


def features_of_waveform(samples: Tensor, config: FeatureConfig) -> Tensor:
    """Raw features (T, F) float32 of samples (N,) float32 in [-1, 1] at the config's rate.

    T = N / shift, rounded; with `snip_edges` 1 + (N - length) / shift, rounded down.
    They are equal, bit for bit, to those that `store_chunk` writes for the same samples.

    Raises:
        ValueError: samples are not a vector, or are fewer than one frame.
    """
    import lilcom  # type: ignore[import-untyped]
    import torch
    from lhotse import LilcomChunkyWriter
    from lhotse.features.compression import lilcom_compress_chunked

    if samples.ndim != 1:
        raise ValueError(f"samples must be a vector (N,), got {tuple(samples.shape)}")
    if len(samples) < config.frame_length_seconds * config.sampling_rate_hz:
        raise ValueError(f"{len(samples)} samples are fewer than one frame")
    features = _extract(samples.float().cpu().numpy(), config)
    # Compression loses up to half a tick, in a way that depends on all of a chunk: the same chunks as in the store.
    chunks = lilcom_compress_chunked(features, tick_power=TICK_POWER, chunk_size=LilcomChunkyWriter.CHUNK_SIZE)
    return torch.cat([torch.from_numpy(lilcom.decompress(chunk)) for chunk in chunks])


def normalize(features: Tensor) -> Tensor:
    """Features (T, F) with mean 0 and variance 1 of each mel bin over the utterance; a constant bin becomes 0."""
    centred = features - features.mean(dim=0, keepdim=True)
    deviation = centred.square().mean(dim=0, keepdim=True).sqrt()
    return centred.div_(deviation.clamp(min=MIN_DEVIATION))


def add_speeds(cuts: Iterable[MonoCut], speeds: Sequence[float]) -> Iterator[MonoCut]:
    """Each cut and its copies at `speeds`, whose ids are ID_sp0.9 and so on."""
    for cut in cuts:
        yield cut
        for speed in speeds:
            yield cut.perturb_speed(speed)


def plan_files(name: str, cuts: Sequence[MonoCut], folder: Path, config: FeatureConfig) -> list[StorageJob]:
    """The files `NAME-00000.lca` and so on into which the features of cuts go, in order; `folder` holds them then."""
    begins = range(0, max(len(cuts), 1), CUTS_PER_FILE)  # no cuts: an empty file
    return [
        StorageJob(tuple(cuts[begin : begin + CUTS_PER_FILE]), folder / f"{name}-{number:05d}.lca", config)
        for number, begin in enumerate(begins)
    ]


def store_chunk(job: StorageJob, folder: Path) -> list[MonoCut]:
    """Extract the features of a job and store them in `folder`, in a file of the job's name.

    With `snip_edges` the cuts become as short as their frames: Lhotse counts frames by time.

    Returns:
        The cuts with features attached, in their order.

    Raises:
        UserError: audio cannot be read, or has another sampling rate than the config.
    """
    import torch
    from lhotse import Features, LilcomChunkyWriter
    from lhotse.utils import fastcopy

    torch.set_num_threads(1)  # one utterance at a time, several processes: faster than many threads
    config, stored = job.config, []
    with LilcomChunkyWriter(folder / job.file.name, tick_power=TICK_POWER) as writer:
        for cut in job.cuts:
            if cut.sampling_rate != config.sampling_rate_hz:
                raise UserError(f"{cut.id} has {cut.sampling_rate} Hz, the config {config.sampling_rate_hz} Hz")
            try:
                with libsndfile():
                    samples = cut.load_audio()
            except OSError as error:
                source = cut.recording.sources[0].source
                raise UserError(f"{source} cannot be decoded (any more): prepare the corpus again") from error
            features = _extract(samples[0], config)
            if config.snip_edges:
                cut = cut.truncate(duration=len(features) * config.frame_shift_seconds, preserve_id=True)
            manifest = Features(
                type=_make_extractor(config).name,
                num_frames=len(features),
                num_features=config.num_mel_bins,
                frame_shift=config.frame_shift_seconds,
                sampling_rate=config.sampling_rate_hz,
                start=cut.start,
                duration=cut.duration,
                storage_type=writer.name,
                storage_path=str(job.file),
                storage_key=writer.write(cut.id, features),
                channels=cut.channel,
            )
            stored.append(fastcopy(cut, features=manifest))
    return stored


def _extract(samples: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Features (T, F) before compression of samples (N,); fewer samples than one frame are filled up with zeros."""
    import numpy as np

    shortest = round(config.frame_length_seconds * config.sampling_rate_hz)
    samples = np.pad(config.scale * samples, (0, max(shortest - len(samples), 0) if config.snip_edges else 0))
    return _make_extractor(config).extract(samples, config.sampling_rate_hz)


@lru_cache(maxsize=2)
def _make_extractor(config: FeatureConfig) -> Fbank:
    from lhotse import Fbank, FbankConfig

    with warnings.catch_warnings():  # of snip_edges, which `store_chunk` sees to
        warnings.filterwarnings("ignore", ".*snip_edges")
        return Fbank(
            FbankConfig(
                sampling_rate=config.sampling_rate_hz,
                frame_length=config.frame_length_seconds,
                frame_shift=config.frame_shift_seconds,
                num_filters=config.num_mel_bins,
                low_freq=config.low_hz,
                high_freq=config.high_hz,
                snip_edges=config.snip_edges,
            )
        )
