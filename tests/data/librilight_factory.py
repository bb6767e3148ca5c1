"""Audio in Libri-Light's layout: the utterances of each chapter of LibriSpeech's layout, joined to one long file.

python -m tests.data.librilight_factory CORPUS OUT SUBSET...     # makes OUT/small out of CORPUS/SUBSET
"""

import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile

PAUSE_SECONDS = 0.5


def arrange(corpus: Path, out: Path, subsets: Sequence[str], most_seconds: float = 1800.0) -> Path:
    """Writes OUT/SPEAKER/CHAPTER/NUMBER.flac with its JSON; returns OUT."""
    for subset in subsets:
        files = sorted((corpus / subset).rglob("*.flac"))
        for chapter, paths in groupby(files, key=lambda path: path.parent):
            speaker = chapter.parent.name
            target = out / speaker / f"{chapter.name}_{subset.replace('-', '_')}"
            _join(list(paths), speaker, target, most_seconds)
    return out


def _join(paths: Sequence[Path], speaker: str, target: Path, most_seconds: float) -> None:
    groups: list[list[Path]] = [[]]
    seconds = 0.0
    for path in paths:
        seconds += soundfile.info(path).duration + PAUSE_SECONDS
        if seconds > most_seconds and groups[-1]:
            groups.append([])
            seconds = 0.0
        groups[-1].append(path)
    for number, group in enumerate(groups, start=1):
        write_long(
            target / f"{number:02d}_chapter.flac", speaker, [soundfile.read(path, dtype="float32") for path in group]
        )


def write_long(path: Path, speaker: str, parts: Sequence[tuple[np.ndarray, int]]) -> Path:
    """Writes parts (samples, rate) with pauses between them, and JSON that tells where they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate_hz = parts[0][1]
    pause = np.zeros(round(PAUSE_SECONDS * rate_hz), dtype=np.float32)
    pieces, spans, samples = [], [], 0
    for part, _ in parts:
        pieces += [part, pause]
        spans.append([samples / rate_hz, (samples + len(part)) / rate_hz])
        samples += len(part) + len(pause)
    soundfile.write(path, np.concatenate(pieces), rate_hz, subtype="PCM_16")
    known = {
        "speaker": speaker,
        "book_meta": {"id": path.parent.name, "genre": []},
        "snr": 10.0,
        "voice_activity": spans,
    }
    path.with_suffix(".json").write_text(json.dumps(known))
    return path


if __name__ == "__main__":
    arrange(Path(sys.argv[1]), Path(sys.argv[2]) / "small", sys.argv[3:])
