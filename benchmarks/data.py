"""From FLAC files to batches, and how much of a batch is padding.

    python -m benchmarks.data AUDIO [--rounds 7] [--buckets 48] [--json] [--check]

AUDIO is a folder in LibriSpeech's layout (16 kHz FLAC). One thread, one core. Times are those of the processor, side
by side in one process, medians over alternating rounds; a figure is seconds of audio over seconds of time. Read from
the disk's cache, decoded, filterbanks, normalised, padded: `lhotse` is its own on-the-fly path (soundfile, `Fbank`,
collation), `stored` reads what `w2vbert features` stores, `on-the-fly` is `--set stored=false`.

Padding: 281 241 lengths, as many as LibriSpeech has, drawn from those in AUDIO and jittered by 0.15 s.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.timing import Row, alternate, median_ratio, pin_to_one_thread
from w2vbert.data.batches import SpeechBatch
from w2vbert.data.buckets import find_buckets, plan_fixed_shapes
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.features import ExtractionConfig, FeatureConfig, normalize
from w2vbert.data.filterbanks import filterbanks
from w2vbert.data.loaders import group_by_seconds, plan_epoch
from w2vbert.data.on_the_fly import CPU, decode_flac
from w2vbert.tasks.prepare import extract_features

GOAL = 3000.0  # times real time
PADDING_GOAL = 0.01
LIBRISPEECH_UTTERANCES = 281_241
BATCH_SECONDS = 512.0
AUDIO_SECONDS = 1800.0  # of AUDIO that are used


class Pipelines:
    """The same utterances to the same batches, on several ways."""

    def __init__(self, audio: Path, work: Path) -> None:
        """Makes manifests and features of the first half hour of `audio` in `work`."""
        from lhotse import CutSet, Fbank, FbankConfig
        from lhotse.dataset.input_strategies import OnTheFlyFeatures

        self.cuts = CutSet.from_cuts(find_cuts(audio))
        (work / "manifests").mkdir()
        self.cuts.to_file(work / "manifests" / "cuts_train.jsonl.gz")
        for name in ("stored", "computed"):
            extract_features(work / "manifests", work / name, ExtractionConfig(stored=name == "stored"))
        self.data = {name: open_data(work / name) for name in ("stored", "computed")}
        self.seconds = sum(cut.duration for cut in self.cuts)
        frames = self.data["computed"].frames
        order = sorted(range(len(frames)), key=frames.__getitem__)
        self.groups = group_by_seconds(order, frames, BATCH_SECONDS)
        self.lhotse_batches = [CutSet.from_cuts([self.cuts[i] for i in group]) for group in self.groups]
        self.inputs = OnTheFlyFeatures(Fbank(FbankConfig(high_freq=7600.0)))
        self.files = [cut.recording.sources[0].source for cut in self.cuts]
        self.samples = [decode_flac(file, 0) for file in self.files]
        self.raw = [filterbanks(FeatureConfig(), CPU)(samples) for samples in self.samples]

    def lhotse(self) -> None:
        """Lhotse's own path, with our normalisation."""
        from lhotse.audio.backend import LibsndfileBackend, audio_backend

        with audio_backend(LibsndfileBackend()):
            for batch in self.lhotse_batches:
                features, lengths = self.inputs(batch)
                for row, length in zip(features, lengths.tolist(), strict=True):
                    row[:length] = normalize(row[:length])

    def stored(self) -> list[SpeechBatch]:
        """Features from the store."""
        return [self.data["stored"].batch(group) for group in self.groups]

    def on_the_fly(self) -> list[SpeechBatch]:
        """Features from the audio."""
        return [self.data["computed"].batch(group) for group in self.groups]

    def decoding(self) -> None:
        """Decoding alone."""
        for file in self.files:
            decode_flac(file, 0)

    def soundfile_decoding(self) -> None:
        """Decoding alone, with libsndfile."""
        import soundfile

        for file in self.files:
            soundfile.read(file, dtype="float32")

    def filterbanks(self) -> None:
        """Filterbanks alone."""
        for samples in self.samples:
            filterbanks(FeatureConfig(), CPU)(samples)

    def lhotse_filterbanks(self) -> None:
        """Lhotse's filterbanks alone."""
        for samples in self.samples:
            self.inputs.extractor.extract(samples, 16000)

    def largest_difference(self) -> tuple[float, float]:
        """Raw features from Lhotse's: the largest difference, and the share of values more than 1e-4 apart."""
        pairs = zip(self.samples, self.raw, strict=True)
        apart = torch.cat([(raw - self.inputs.extractor.extract(x, 16000)).abs().flatten() for x, raw in pairs])
        return float(apart.max()), float((apart > 1e-4).float().mean())


def find_cuts(audio: Path) -> list[Any]:
    """Cuts of the first half hour of FLAC files under a folder."""
    from lhotse import MonoCut, Recording

    cuts, seconds = [], 0.0
    for path in sorted(audio.rglob("*.flac")):
        recording = Recording.from_file(path)
        cuts.append(MonoCut(path.stem, 0.0, recording.duration, 0, recording=recording))
        seconds += recording.duration
        if seconds > AUDIO_SECONDS:
            break
    return cuts


def open_data(folder: Path) -> SpeechDataset:
    """A data set that reads everything anew each time."""
    return SpeechDataset([folder / "cuts_train.jsonl.gz"], 40.0, cache_bytes=0)


def measure_speed(audio: Path, rounds: int) -> list[Row]:
    """The whole way and its parts."""
    with tempfile.TemporaryDirectory() as work:
        ways = Pipelines(audio, Path(work))
        contestants = {
            "lhotse": ways.lhotse,
            "stored": ways.stored,
            "on-the-fly": ways.on_the_fly,
            "decoding": ways.decoding,
            "decoding/soundfile": ways.soundfile_decoding,
            "filterbanks": ways.filterbanks,
            "filterbanks/lhotse": ways.lhotse_filterbanks,
        }
        seconds = alternate(contestants, rounds)
        largest, share = ways.largest_difference()
    speeds = {f"{name}_x": ways.seconds / median(times) for name, times in seconds.items()}
    ratio = median_ratio(seconds, "lhotse", "on-the-fly")
    details = speeds | {"audio_seconds": ways.seconds}
    apart = {"share_over_1e-4": share}
    return [
        Row("flac-to-batch", speeds["on-the-fly_x"], GOAL, True, details),
        Row("flac-to-batch/lhotse", ratio, GOAL / 1400, True),
        Row("largest-difference/lhotse", largest, 5e-3, False, apart),
    ]


def librispeech_lengths(audio: Path) -> list[int]:
    """Frames of as many utterances as LibriSpeech has, drawn from the lengths of those under a folder."""
    import soundfile

    seconds = [soundfile.info(path).duration for path in sorted(audio.rglob("*.flac"))]
    random = np.random.default_rng(0)
    drawn = random.choice(seconds, LIBRISPEECH_UTTERANCES) + random.normal(0.0, 0.15, LIBRISPEECH_UTTERANCES)
    return np.round(100 * drawn.clip(0.8, 35.0)).astype(int).tolist()


def padding_share(frames: list[int], batches: list[list[int]], padded: list[int] | None = None) -> float:
    """Places of all batches that hold no frame; `padded` are the lengths that batches are padded to."""
    longest = padded or [max(frames[i] for i in batch) for batch in batches]
    places = sum(length * len(batch) for length, batch in zip(longest, batches, strict=True))
    return 1 - sum(frames[i] for batch in batches for i in batch) / places


def shapes(frames: list[int], batches: list[list[int]]) -> float:
    """Different (B, T) of all batches."""
    return float(len({(len(batch), max(frames[i] for i in batch)) for batch in batches}))


def lhotse_batches(frames: list[int]) -> list[list[int]]:
    """An epoch of Lhotse's dynamic sampler with its usual 30 buckets."""
    from lhotse import CutSet, MonoCut
    from lhotse.dataset import DynamicBucketingSampler
    from lhotse.testing.dummies import dummy_recording

    recording = dummy_recording(0, duration=40.0)
    cuts = CutSet([MonoCut(str(i), 0.0, n / 100, 0, recording=recording) for i, n in enumerate(frames)])
    sampler = DynamicBucketingSampler(cuts, max_duration=BATCH_SECONDS, num_buckets=30, shuffle=True, seed=0)
    return [[int(cut.id) for cut in batch] for batch in sampler]


def measure_padding(audio: Path, buckets: int) -> list[Row]:
    """Padding of each sampler on LibriSpeech's lengths."""
    frames = librispeech_lengths(audio)
    order = np.random.default_rng(0).permutation(len(frames)).tolist()
    plain = plan_epoch(frames, BATCH_SECONDS, 1, 0)
    ours = plan_fixed_shapes(frames, BATCH_SECONDS, 1, 0, find_buckets(frames, buckets))
    loose = {"at random": group_by_seconds(order, frames, BATCH_SECONDS), "lhotse": lhotse_batches(frames)}
    rows = [
        Row(f"padding/{name}", padding_share(frames, batches), 1.0, False, {"shapes": shapes(frames, batches)})
        for name, batches in (loose | {"by length": plain}).items()
    ]
    places = {(len(batch), length) for batch, length in zip(ours.batches, ours.padded, strict=True)}
    share = padding_share(frames, ours.batches, ours.padded)
    return [*rows, Row(f"padding/{buckets} buckets", share, PADDING_GOAL, False, {"shapes": float(len(places))})]


def main() -> None:
    """Measures, prints, and fails if a goal is missed and --check is given."""
    parser = argparse.ArgumentParser(description="From FLAC to batches, and padding.")
    parser.add_argument("audio", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--buckets", type=int, default=48)
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a goal is missed")
    arguments = parser.parse_args()
    pin_to_one_thread()
    rows = measure_padding(arguments.audio, arguments.buckets) + measure_speed(arguments.audio, arguments.rounds)
    for row in rows:
        print(row.json_line() if arguments.json else row.table_line())
    if arguments.check and not all(row.reached for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
