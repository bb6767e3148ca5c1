"""Feature encoder: 100 Hz filterbanks to 25 Hz by two strided convolutions (w2v-BERT, section 2.1), or by stacking."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from w2vbert.ops.lengths import lengths_to_mask, send, subsampled_lengths, zero_padding


@dataclass(frozen=True)
class SubsamplingConfig:
    """Feature encoder.

    Attributes:
        num_mel_bins: F, filterbank bins (80: paper).
        channels: channels of the first and of the second convolution (unknown in the paper; 128 and 32 in its family).
        kind: convolution (paper), or stack: neighbouring frames side by side (w2v-bert-2.0).
        stacked_frames: how many frames are stacked (2: w2v-bert-2.0).
    """

    num_mel_bins: int = 80
    channels: tuple[int, int] = (128, 32)
    kind: Literal["convolution", "stack"] = "convolution"
    stacked_frames: int = 2

    def __post_init__(self) -> None:
        if self.num_mel_bins < 4 or min(self.channels) < 1:
            raise ValueError("num_mel_bins must be at least 4 and channels at least 1")
        if not 1 <= self.stacked_frames <= 8:
            raise ValueError(f"stacked_frames must lie in 1 to 8 (10 to 80 ms), not {self.stacked_frames}")

    @property
    def output_dim(self) -> int:
        """C: channels times mel bins that are left, or stacked frames times mel bins."""
        if self.kind == "stack":
            return self.stacked_frames * self.num_mel_bins
        return self.channels[1] * ((self.num_mel_bins + 3) // 4)

    @property
    def stride(self) -> int:
        """Filterbank frames (10 ms) for one encoder frame."""
        return self.stacked_frames if self.kind == "stack" else 4

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Encoder frames of utterances with `lengths` filterbank frames, int64 (B,) -> (B,).

        Convolutions round up. Stacking drops a rest of less than one stack, as w2v-bert-2.0's features do.
        """
        return lengths // self.stacked_frames if self.kind == "stack" else subsampled_lengths(lengths)


class FeatureEncoder(nn.Module):
    """Two 3x3 convolutions with stride 2 in time and frequency, each followed by a ReLU.

    Deviation: the output is normalised to mean 0 and variance 1 over each frame (wav2vec 2.0 does so, the w2v-BERT
    paper is silent). Masks can then be filled with N(0, 1) vectors of exactly the scale that they replace, and the
    quantizer's logits keep their scale whatever the convolutions learn.
    """

    def __init__(self, config: SubsamplingConfig) -> None:
        super().__init__()
        first, second = config.channels
        self.conv1 = nn.Conv2d(1, first, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.output_dim = config.output_dim

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Subsamples by 4.

        Args:
            features: (B, T, F), log-mel filterbanks; padding may hold anything.
            lengths: int64 (B,), on the CPU.

        Returns:
            (B, T/4, C) and lengths int64 (B,), rounded up; padded frames are zero.
        """
        x = self._zero_padding(features[:, None], lengths)  # (B, 1, T, F)
        x = F.relu(self.conv1(x))  # (B, C1, T/2, F/2)
        x = self._zero_padding(x, (lengths + 1) // 2)
        x = F.relu(self.conv2(x))  # (B, C2, T/4, F/4)
        lengths = subsampled_lengths(lengths)
        x = x.permute(0, 2, 1, 3).flatten(2)  # (B, T/4, C)
        x = F.layer_norm(x.float(), (self.output_dim,))
        return zero_padding(x, lengths_to_mask(send(lengths, x.device), x.shape[1])), lengths

    @staticmethod
    def _zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
        """Zeros the padded frames of (B, C, T, F)."""
        mask = lengths_to_mask(send(lengths, x.device), x.shape[2])  # (B, T)
        return x.masked_fill(~mask[:, None, :, None], 0.0)


class FrameStacking(nn.Module):
    """Puts neighbouring frames side by side and normalises each stack to mean 0 and variance 1.

    w2v-bert-2.0's scale and shift after the normalisation are part of the linear layer that follows.
    """

    def __init__(self, config: SubsamplingConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Subsamples by `stacked_frames`, S.

        Args:
            features: (B, T, F), log-mel filterbanks; padding may hold anything.
            lengths: int64 (B,), on the CPU.

        Returns:
            (B, T/S, S F) and lengths int64 (B,), rounded down; padded frames are zero.
        """
        batch, frames, _ = features.shape
        stack = self.config.stacked_frames
        x = features[:, : frames // stack * stack].reshape(
            batch, frames // stack, self.config.output_dim
        )  # (B, T/S, S F)
        lengths = self.config.output_lengths(lengths)
        x = F.layer_norm(x.float(), (self.config.output_dim,))
        return zero_padding(x, lengths_to_mask(send(lengths, x.device), x.shape[1])), lengths


def make_feature_encoder(config: SubsamplingConfig) -> nn.Module:
    """The module of the config's kind; it maps (B, T, F) and lengths (B,) to (B, T/stride, C) and lengths (B,)."""
    return FrameStacking(config) if config.kind == "stack" else FeatureEncoder(config)
