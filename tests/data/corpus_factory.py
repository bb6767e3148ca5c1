"""Tiny corpora in LibriSpeech's layout, made of noise."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut

from w2vbert.data.features import FeatureConfig, plan_files, store_chunk

RATE_HZ = 16000


def noise(seconds: float, rate_hz: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    """Quiet white noise (N,) float32."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))).astype(np.float32)


def write_utterance(
    subset: Path, name: str, text: str | None, samples: np.ndarray | None = None, rate_hz: int = RATE_HZ
) -> Path:
    """Write one utterance and, unless `text` is None, its line of the chapter's transcripts; returns the audio file."""
    speaker, chapter, _ = name.split("-")
    folder = subset / speaker / chapter
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.flac"
    soundfile.write(path, noise(0.5, rate_hz) if samples is None else samples, rate_hz, subtype="PCM_16")
    if text is not None:
        with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
            file.write(f"{name} {text}\n")
    return path


def write_subset(subset: Path, speakers: tuple[str, ...], utterances: int, labelled: bool = True) -> None:
    """Write `utterances` utterances of each speaker."""
    for speaker in speakers:
        for number in range(utterances):
            text = f"SPEAKER SAYS {'ABCDEFGH'[number]}" if labelled else None
            samples = noise(0.3 + 0.1 * number, seed=int(speaker) + number)
            write_utterance(subset, f"{speaker}-7-{number:04d}", text, samples)


def write_corpus(corpus: Path) -> Path:
    """A sound corpus with subsets a-train, b-train, a-dev, a-test and a-more (unlabelled); returns its folder."""
    write_subset(corpus / "a-train", ("11", "12"), 3)
    write_subset(corpus / "b-train", ("13",), 2)
    write_subset(corpus / "a-dev", ("21",), 2)
    write_subset(corpus / "a-test", ("31",), 2)
    write_subset(corpus / "a-more", ("41", "42"), 2, labelled=False)
    return corpus


def store(
    cuts: Iterable[MonoCut], folder: Path, config: FeatureConfig | None = None, name: str = "train"
) -> list[MonoCut]:
    """Stores features of cuts in a folder; the cuts with features attached."""
    jobs = plan_files(name, list(cuts), folder, config or FeatureConfig())
    return [cut for job in jobs for cut in store_chunk(job, folder)]


def truncate(path: Path, share: float) -> None:
    """Keep only the first `share` of a file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
