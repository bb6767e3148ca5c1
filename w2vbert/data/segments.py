"""Where to cut long recordings: at silences, which published segments or the energy of the signal tell."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAMES_PER_SECOND = 50
FRAME_SECONDS = 1 / FRAMES_PER_SECOND
SILENT_SECONDS = 0.3  # shorter pauses are inside of words and phrases
QUIET_FLOOR = 1e-10  # mean square that counts as digital silence
TWO_LEVELS_DB = 10.0  # between the level of the pauses and that of the speech; with less there is but one
RARE_FRAMES = 10  # of speech that takes up less than a twentieth of its recording, at least
RARE_DB = 15.0  # how far these stand out

Span = tuple[float, float]
"""Start and end, in seconds."""


@dataclass(frozen=True)
class CutConfig:
    """How long recordings are cut.

    Attributes:
        max_seconds: longest piece (32: paper).
        min_seconds: shorter pieces are dropped.
        max_pause_seconds: at longer pauses a new piece begins, so that pieces hold little silence.
    """

    max_seconds: float = 32.0
    min_seconds: float = 1.0
    max_pause_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.min_seconds < self.max_seconds or self.max_pause_seconds < 0.0:
            raise ValueError("min_seconds must lie between 0 and max_seconds, and max_pause_seconds not be negative")


class EnergyMeter:
    """Mean square of each frame of a signal that comes block by block."""

    def __init__(self) -> None:
        self._rest = np.empty(0, dtype=np.float32)
        self._count = 0  # frames so far
        self._frames: list[NDArray[np.float64]] = []

    def add(self, block: NDArray[np.float32], rate_hz: int) -> None:
        """Takes the next samples (N,)."""
        samples = np.concatenate((self._rest, block))
        begin = self._count * rate_hz // FRAMES_PER_SECOND
        last = max((begin + len(samples)) * FRAMES_PER_SECOND // rate_hz, self._count)
        # A frame of 11 025 Hz has 220 samples or 221.
        edges = np.arange(self._count, last + 1) * rate_hz // FRAMES_PER_SECOND - begin
        if last > self._count:
            squares = np.square(samples[: edges[-1]], dtype=np.float64)
            self._frames.append(np.add.reduceat(squares, edges[:-1]) / np.diff(edges))
        self._count, self._rest = last, samples[edges[-1] :]

    def energies(self) -> NDArray[np.float64]:
        """Mean squares (T,) of all whole frames so far."""
        return np.concatenate(self._frames) if self._frames else np.empty(0)


def find_speech(energies: NDArray[np.float64]) -> list[Span]:
    """Spans of speech by energy: frames above a threshold between the level of the pauses and that of the speech.

    Pauses under `SILENT_SECONDS` belong to the speech around them. A recording without two levels is speech as a whole,
    but for digital silence, which never is.

    Args:
        energies: mean squares (T,) of frames of `FRAME_SECONDS`.
    """
    active = energies > QUIET_FLOOR
    if not active.any():
        return []
    levels = 10.0 * np.log10(np.maximum(energies, QUIET_FLOOR))
    quiet, loud = np.percentile(levels[active], (5, 95))
    loudest = np.sort(levels)[-RARE_FRAMES:][0]
    if loudest - loud > RARE_DB:  # so little speech that the 95th percentile is a pause
        loud = loudest
    if loud - quiet >= TWO_LEVELS_DB:
        active &= levels > quiet + 0.4 * (loud - quiet)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], active.astype(np.int8), [0]))))
    return _join_near(
        ((start * FRAME_SECONDS, end * FRAME_SECONDS) for start, end in edges.reshape(-1, 2).tolist()), SILENT_SECONDS
    )


def find_extent(energies: NDArray[np.float64], seconds: float) -> Span | None:
    """From the first speech to the last, with a little of the silence around it; None where there is none.

    Args:
        energies: mean squares (T,) of frames of `FRAME_SECONDS`.
        seconds: length of the recording.
    """
    speech = find_speech(energies)
    if not speech:
        return None
    return next(_with_margins([(speech[0][0], min(speech[-1][1], seconds))], seconds))


def cut_at_silences(
    speech: Sequence[Span], seconds: float, energies: NDArray[np.float64], config: CutConfig
) -> Iterator[Span]:
    """Pieces of a recording, in order, that do not overlap: neighbouring spans of speech together, as many as fit.

    A cut lies in the middle of a pause, but no more than half of `SILENT_SECONDS` from the speech. A span that is too
    long for a piece is cut at its quietest place, looked for in the last third of what fits.

    Args:
        speech: spans, in any order; they may overlap or leave the recording.
        seconds: length of the recording.
        energies: mean squares (T,) of frames of `FRAME_SECONDS`.
        config: lengths.
    """
    inside = sorted((max(start, 0.0), min(end, seconds)) for start, end in speech)
    spans = _with_margins(_join_near(((start, end) for start, end in inside if start < end), 0.0), seconds)
    piece: Span | None = None
    for start, end in (part for span in spans for part in _cut_long(span, energies, config)):
        if piece is not None and end - piece[0] <= config.max_seconds and start - piece[1] <= config.max_pause_seconds:
            piece = piece[0], end
            continue
        if piece is not None and piece[1] - piece[0] >= config.min_seconds:
            yield piece
        piece = start, end
    if piece is not None and piece[1] - piece[0] >= config.min_seconds:
        yield piece


def _with_margins(spans: Sequence[Span], seconds: float) -> Iterator[Span]:
    """The spans, each with a little of the pauses around it, which are shared out evenly where they are short."""
    margin = SILENT_SECONDS / 2
    for number, (start, end) in enumerate(spans):
        before = (start - spans[number - 1][1]) / 2 if number else start
        after = (spans[number + 1][0] - end) / 2 if number + 1 < len(spans) else seconds - end
        yield start - min(before, margin), end + min(after, margin)


def _cut_long(span: Span, energies: NDArray[np.float64], config: CutConfig) -> Iterator[Span]:
    start, end = span
    while end - start > config.max_seconds:
        last = math.floor((start + config.max_seconds) / FRAME_SECONDS)
        first = math.ceil((start + config.max_seconds * 2 / 3) / FRAME_SECONDS)
        width = round(SILENT_SECONDS / FRAME_SECONDS)
        window = energies[first:last]
        cut = start + config.max_seconds
        if len(window) >= width:
            smooth = np.convolve(window, np.ones(width), mode="valid")
            cut = (first + int(smooth.argmin()) + width / 2) * FRAME_SECONDS
        yield start, cut
        start = cut
    yield start, end


def _join_near(spans: Iterable[Span], pause: float) -> list[Span]:
    """Sorted spans, with those joined that are no further apart than `pause`."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and start - joined[-1][1] <= pause:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined
