"""Audio files of all kinds, for tests."""

from pathlib import Path

import numpy as np
import soundfile
from lhotse import CutSet, MonoCut, Recording

from tests.data.corpus_factory import RATE_HZ, noise, truncate


def write(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opus = path.suffix == ".opus"
    soundfile.write(path, samples, rate_hz, "OPUS" if opus else subtype, format="OGG" if opus else None)
    return path


def write_recordings(folder: Path) -> list[Path]:
    """One of each kind; names are against the order of their lengths."""
    stereo = np.stack([noise(0.6, seed=5), noise(0.6, seed=6)], axis=1)
    return [
        write(folder / "a.wav", noise(0.5)),
        write(folder / "b.flac", noise(1.2, seed=1)),
        write(folder / "c.mp3", noise(0.9, seed=2)),
        write(folder / "d.ogg", noise(0.4, seed=3)),
        write(folder / "e.opus", noise(0.7, 48000, seed=4), 48000),
        write(folder / "sub" / "f.wav", stereo),
        write(folder / "sub" / "g.WAV", noise(1.0, 8000), 8000, "FLOAT"),
        write(folder / "sub" / "h.flac", noise(0.8, 44100), 44100),
    ]


def damage(folder: Path) -> list[Path]:
    """Files that cannot be decoded, each for another reason."""
    folder.mkdir()
    files = [folder / name for name in ("0.wav", "1.flac", "2.mp3", "3.wav", "4.wav", "5.wav")]
    files[0].write_bytes(b"")
    truncate(write(files[1], noise(2.0)), 0.5)
    files[2].write_text("this is text\n")
    write(files[3], noise(0.05))
    write(files[4], np.full(16000, np.nan, dtype=np.float32), subtype="FLOAT")
    write(files[5], noise(0.0))
    return files


def write_cuts(path: Path, cuts: list[MonoCut]) -> Path:
    CutSet.from_cuts(cuts).to_file(path)
    return path


def cut_of(path: Path) -> MonoCut:
    return Recording.from_file(path).to_cut()
