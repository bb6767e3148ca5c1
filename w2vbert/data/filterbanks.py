"""Log-mel filterbanks computed fast, on the CPU or on a GPU, with the values of Lhotse's `Fbank`.

Lhotse removes the mean of each frame, emphasises high frequencies and multiplies with the window, all on overlapping
frames: 400 values for each 160 samples. All three are linear, so emphasis moves before the framing, and what it leaves
of the mean is subtracted with the window. N samples, T frames, L samples in a frame, F mel bins.
"""

import math
import threading
from functools import lru_cache

import torch
from torch import Tensor

from w2vbert.data.features import FeatureConfig

EMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps  # of energies
FRAMES_AT_ONCE = 512  # at most, on a CPU: what is computed with stays in its cache
BLOCK = 16  # mel bins, as many as a CPU multiplies at once; each block looks only at its own lines of the spectrum


class Filterbanks:
    """Computes features of one sort on one device."""

    def __init__(self, config: FeatureConfig, device: torch.device) -> None:
        from lhotse.features.kaldi.layers import create_frame_window, get_mel_banks

        rate = config.sampling_rate_hz
        self.shift = math.floor(config.frame_shift_seconds * rate)
        self.length = math.floor(config.frame_length_seconds * rate)
        self.fft_length = 2 ** math.ceil(math.log2(self.length))
        self.config = config
        self.device = device
        self._local = threading.local()
        self._window = create_frame_window(self.length, window_type="povey").to(device)  # (L,), 0 at its first sample
        self._mean_window = (EMPHASIS - 1.0) * self._window
        mel, _ = get_mel_banks(config.num_mel_bins, self.fft_length, rate, config.low_hz, config.high_hz)
        self._blocks = [_block(mel.float(), bins, device) for bins in torch.arange(len(mel)).split(BLOCK)]

    def __call__(self, samples: Tensor, start: int = 0, frames: int | None = None) -> Tensor:
        """Raw features of one utterance.

        Args:
            samples: (N,) float32 in [-1, 1], on any device.
            start: first frame wanted.
            frames: how many; None: all from `start` on.

        Returns:
            (T, F) float32 on the own device.
        """
        span = self.span(len(samples), start, self.count(len(samples)) - start if frames is None else frames)
        inside = samples[max(span[0], 0) : min(span[1], len(samples))]
        return self.of_span(inside, max(-span[0], 0), max(span[1] - len(samples), 0))

    def count(self, samples: int) -> int:
        """Frames of so many samples."""
        if self.config.snip_edges:
            return 1 + (samples - self.length) // self.shift
        return (samples + self.shift // 2) // self.shift

    def span(self, samples: int, start: int, frames: int) -> tuple[int, int]:
        """First sample, and the one after the last, that `frames` frames from `start` on look at.

        They may lie outside of the `samples` of the utterance: there it is mirrored.
        """
        left = 0 if self.config.snip_edges else (self.length - self.shift) // 2
        first = start * self.shift - left
        return first, first + (frames - 1) * self.shift + self.length

    def of_span(self, samples: Tensor, before: int, after: int) -> Tensor:
        """Raw features (T, F) of a stretch (N,) float32 whose ends are mirrored for `before` and `after` samples."""
        count = (before + len(samples) + after - self.length) // self.shift + 1
        features = torch.empty(count, self.config.num_mel_bins, device=self.device)
        with torch.inference_mode():  # small operations take half as long; `features` is an ordinary tensor
            self._fill(features, self._mirrored(samples, before, after))
        return features

    def _mirrored(self, samples: Tensor, before: int, after: int) -> Tensor:
        """The stretch, scaled, and what is mirrored at its ends."""
        end = before + len(samples)
        signal = self._room("signal", end + after)
        torch.mul(samples.to(self.device), self.config.scale, out=signal[before:end])
        signal[:before] = signal[before : 2 * before].flip(0)
        signal[end:] = signal[end - after : end].flip(0)
        return signal

    def _fill(self, features: Tensor, signal: Tensor) -> None:
        """Writes features (T, F) of a signal (N,), in blocks of equal size, the last of which may begin earlier."""
        count, lines = len(features), self.fft_length // 2 + 1
        step = math.ceil(count / math.ceil(count / FRAMES_AT_ONCE)) if self.device.type == "cpu" else count
        emphasised = self._room("emphasised", len(signal))  # its first value meets the window's 0
        torch.sub(signal[1:], signal[:-1], alpha=EMPHASIS, out=emphasised[1:])
        strided = emphasised.as_strided((count, self.length), (self.shift, 1))
        means = self._frame_means(signal)
        frames = self._room("frames", step * self.fft_length).view(step, self.fft_length)  # 0 from L on
        windowed = frames[:, : self.length]
        power = self._room("power", step * lines).view(step, lines)
        blocks = [(columns, power[:, rows], mel) for columns, rows, mel in self._blocks]
        for start in range(0, count, step):
            begin = min(start, count - step)
            torch.mul(strided[begin : begin + step], self._window, out=windowed)
            windowed.addr_(means[begin : begin + step], self._mean_window)
            real, imaginary = torch.view_as_real(torch.fft.rfft(frames)).square_().unbind(-1)  # (T, lines)
            torch.add(real, imaginary, out=power)
            for columns, seen, mel in blocks:
                torch.mm(seen, mel, out=features[begin : begin + step, columns])
        features.clamp_(min=FLOOR).log_()

    def _frame_means(self, signal: Tensor) -> Tensor:
        """Mean (T,) of the samples of each frame, from sums over the stretches that frames share."""
        part = math.gcd(self.length, self.shift)
        sums = signal[: len(signal) // part * part].view(-1, part).sum(1)  # (parts,)
        return sums.unfold(0, self.length // part, self.shift // part).sum(1) / self.length

    def _room(self, name: str, size: int) -> Tensor:
        """Memory (size,) that this thread uses again and again: new pages take as long as the computing."""
        kept: dict[str, Tensor] = self._local.__dict__
        if name not in kept or len(kept[name]) < size:
            kept[name] = torch.zeros(size, device=self.device)
        return kept[name][:size]


def _block(mel: Tensor, bins: Tensor, device: torch.device) -> tuple[slice, slice, Tensor]:
    """Of neighbouring mel bins: themselves, the lines of the spectrum that they look at, and weights (lines, bins)."""
    lines = torch.nonzero(mel[bins].sum(0))[:, 0]
    columns, rows = slice(int(bins[0]), int(bins[-1]) + 1), slice(int(lines[0]), int(lines[-1]) + 1)
    return columns, rows, mel[columns, rows].T.contiguous().to(device)


@lru_cache(maxsize=4)
def filterbanks(config: FeatureConfig, device: torch.device) -> Filterbanks:
    """The one of this sort and device."""
    return Filterbanks(config, device)
