"""Cutting of long recordings into pieces that a model takes: at digital silence, at pauses, or in overlapping windows.

A model normalises features over a piece and looks at all of it, so what it hears in a piece depends on where the piece
ends. Digital silence (runs of zeros, as between recordings that were joined) is therefore no part of any piece: the
recordings on both sides are decoded as they are alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 0.5 / 32768
"""Samples below half a step of 16-bit audio are digital silence."""

FRAME_SECONDS = 0.01
"""Width of the frames whose energies say where nobody speaks."""

QUIET_SHARE = 0.35
"""Quiet frames have levels in this lowest part of the range from the 5th to the 95th percentile of all levels."""

MIN_RANGE_DB = 12.0
"""With a smaller range of levels, as in music or noise, no frame is quiet."""

MIN_PAUSE_SECONDS = 0.1
"""Shorter pauses lie within words."""

EDGE_SECONDS = 0.3
"""What is left of a long pause at the end and the begin of the pieces beside it."""


@dataclass(frozen=True)
class CuttingConfig:
    """Where recordings are cut that are longer than a piece may be.

    Attributes:
        silence_seconds: digital silence (zeros) of this length parts a recording.
        pause_seconds: a part that is still too long is cut at each pause of this length; what then is still too long,
            at its longest pause, be it as short as 0.1 s.
        overlap_seconds: where there is no pause, pieces overlap by this much, by a quarter of a piece at most.
    """

    silence_seconds: float = 0.2
    pause_seconds: float = 0.6
    overlap_seconds: float = 4.0

    def __post_init__(self) -> None:
        if not self.silence_seconds >= FRAME_SECONDS or not self.pause_seconds >= MIN_PAUSE_SECONDS:
            raise ValueError("silence_seconds must be at least 0.01, and pause_seconds at least 0.1")
        if not self.overlap_seconds >= 0.0:
            raise ValueError(f"overlap_seconds must not be negative: {self.overlap_seconds:g}")


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording that is decoded in one go.

    Attributes:
        start: its first sample in the recording.
        samples: (N,) float32.
        overlaps: whether its begin is the end of the piece before it.
    """

    start: int
    samples: Tensor
    overlaps: bool = False


def cut(blocks: Iterable[Tensor], rate_hz: int, max_seconds: float, config: CuttingConfig) -> Iterator[Piece]:
    """Pieces of a recording that comes in blocks (n,) float32, in order; no more of it is kept than a piece needs.

    A recording of at most `max_seconds` is one piece, as it is. One of digital silence alone has no piece.
    """
    cutter = _Cutter(rate_hz, max_seconds, config)
    for block in blocks:
        cutter.add(block)
        yield from cutter.take(ended=False)
    yield from cutter.take(ended=True)


class _Cutter:
    """What of a recording has come in, and not been cut off yet."""

    def __init__(self, rate_hz: int, max_seconds: float, config: CuttingConfig) -> None:
        self.rate_hz = rate_hz
        self.longest = int(max_seconds * rate_hz)
        self.silence = int(config.silence_seconds * rate_hz)
        self.pause = int(config.pause_seconds * rate_hz)
        self.overlap = min(int(config.overlap_seconds * rate_hz), self.longest // 4)
        self.edge = min(int(EDGE_SECONDS * rate_hz), self.pause // 2, self.longest // 4)
        self.kept = torch.zeros(0)
        self.start = 0  # place of `kept` in the recording
        self.silent: list[tuple[int, int]] = []  # runs of digital silence in the recording
        self.is_cut = False  # what was before `kept` belongs to the same part
        self.overlaps = False

    def add(self, block: Tensor) -> None:
        """Takes what comes next, (n,)."""
        offset = self.start + len(self.kept)
        runs = _runs(block.abs() < SMALLEST)  # (R, 2)
        goes_on = (runs[:, 0] == 0) | (runs[:, 1] == len(block))
        for begin, end in (runs[goes_on | (runs[:, 1] - runs[:, 0] >= self.silence)] + offset).tolist():
            if self.silent and self.silent[-1][1] == begin:
                begin = self.silent.pop()[0]
            self.silent.append((begin, end))
        self.kept = torch.cat([self.kept, block])

    def take(self, ended: bool) -> Iterator[Piece]:
        """The pieces that can be cut off; `ended`: no more will come."""
        while len(self.kept) > (0 if ended else self.longest + max(self.silence, self.pause)):
            begin, end = self._next_silence()
            if begin == 0 and end > 0:
                self.is_cut = False
                self._drop(end)
            elif self.start == 0 and len(self.kept) <= self.longest:
                yield self._cut(len(self.kept))
            else:
                fits = begin <= self.longest and (ended or begin < len(self.kept))
                if fits and not self.is_cut:
                    yield self._cut(begin)
                    continue
                self.is_cut = True
                piece = self._cut_at_pause(begin, fits)
                if piece is not None:
                    yield piece

    def _next_silence(self) -> tuple[int, int]:
        """Begin and end in `kept` of the next digital silence that parts it; its length, twice, if there is none."""
        size = len(self.kept)
        self.silent = [run for run in self.silent if run[1] >= self.start]  # one that ends here may go on
        for first, last in self.silent:
            begin, end = max(first - self.start, 0), last - self.start
            if end > 0 and (last - first >= self.silence or end - begin == size):
                return begin, end
        return size, size

    def _cut_at_pause(self, end: int, fits: bool) -> Piece | None:
        """Cuts at a long pause in the first `end` samples; if they do not fit into a piece, somewhere in any case."""
        pauses = self._find_pauses(end)
        if len(pauses) and int(pauses[0, 0]) == 0:
            if int(pauses[0, 1]) > self.pause:
                self._drop(int(pauses[0, 1]) - self.edge)
                return None
            pauses = pauses[1:]
        lengths = pauses[:, 1] - pauses[:, 0]
        long = pauses[(lengths >= self.pause) & (pauses[:, 0] <= self.longest - self.edge)]
        if len(long):
            first, last = (int(place) for place in long[0])
            return self._cut(first + self.edge, end if last == end else last - self.edge)
        if fits:
            return self._cut(end)
        middles = pauses.sum(1) // 2
        usable = (middles >= self.longest // 3) & (middles <= self.longest)
        if bool(usable.any()):
            return self._cut(int(middles[usable][lengths[usable].argmax()]))
        return self._cut(self.longest, self.longest - self.overlap)

    def _find_pauses(self, end: int) -> Tensor:
        """int64 (R, 2), begin and end of each pause in the first `end` samples, as far as a piece may reach."""
        width = int(FRAME_SECONDS * self.rate_hz)
        seen = min(end, self.longest + self.pause)
        frames = self.kept[: seen // width * width].view(-1, width)
        levels = 10.0 * frames.square().mean(1).clamp(min=SMALLEST**2).log10()  # (n,)
        low, high = (float(value) for value in levels.quantile(torch.tensor([0.05, 0.95])))
        if high - low < MIN_RANGE_DB:
            return torch.zeros(0, 2, dtype=torch.int64)
        runs = _runs(levels < low + QUIET_SHARE * (high - low)) * width
        runs[runs == len(frames) * width] = seen
        return runs[runs[:, 1] - runs[:, 0] >= int(MIN_PAUSE_SECONDS * self.rate_hz)]

    def _cut(self, end: int, goes_on: int | None = None) -> Piece:
        """Cuts off a piece; the next begins at `goes_on`, default its end."""
        piece = Piece(self.start, self.kept[:end].clone(), self.overlaps)
        self._drop(end if goes_on is None else goes_on)
        self.overlaps = goes_on is not None and goes_on < end
        return piece

    def _drop(self, count: int) -> None:
        self.kept, self.start = self.kept[count:], self.start + count
        self.overlaps = False


def _runs(mask: Tensor) -> Tensor:
    """int64 (R, 2): begin and end of each run of true values in bool (N,)."""
    edge = torch.zeros(1, dtype=torch.int8)
    return torch.diff(torch.cat([edge, mask.to(torch.int8), edge])).nonzero().view(-1, 2)  # (R, 2)
