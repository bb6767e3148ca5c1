"""Feature encoder: two strided convolutions, 100 Hz filterbanks to 25 Hz (w2v-BERT, section 2.1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2vbert.ops.lengths import lengths_to_mask, subsampled_lengths, zero_padding


@dataclass(frozen=True)
class SubsamplingConfig:
    """Feature encoder.

    Attributes:
        num_mel_bins: F, filterbank bins (80: paper).
        channels: channels of the first and of the second convolution (unknown in the paper; 128 and 32 in its family).
    """

    num_mel_bins: int = 80
    channels: tuple[int, int] = (128, 32)

    def __post_init__(self) -> None:
        if self.num_mel_bins < 4 or min(self.channels) < 1:
            raise ValueError("num_mel_bins must be at least 4 and channels at least 1")

    @property
    def output_dim(self) -> int:
        """C: channels times mel bins that are left."""
        return self.channels[1] * ((self.num_mel_bins + 3) // 4)


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
        return zero_padding(x, lengths_to_mask(lengths.to(x.device), x.shape[1])), lengths

    @staticmethod
    def _zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
        """Zeros the padded frames of (B, C, T, F)."""
        mask = lengths_to_mask(lengths.to(x.device), x.shape[2])  # (B, T)
        return x.masked_fill(~mask[:, None, :, None], 0.0)


def is_too_short(lengths: Tensor) -> Tensor:
    """Utterances without one whole receptive field (7 filterbank frames, 85 ms): bool (B,)."""
    return lengths < torch.tensor(7, device=lengths.device)
