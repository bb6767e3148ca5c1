"""SpecAugment (Park et al. 2019, section 2) on batches of features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from w2vbert.ops.lengths import send


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks over frequency and time; the defaults are those of the paper's family.

    Attributes:
        frequency_masks: masks over mel bins for each utterance (2).
        frequency_width: most bins in one (27).
        time_masks: masks over time for each utterance (10).
        time_share: most of an utterance that one of them covers (0.05).
    """

    frequency_masks: int = 2
    frequency_width: int = 27
    time_masks: int = 10
    time_share: float = 0.05

    def __post_init__(self) -> None:
        if min(self.frequency_masks, self.frequency_width, self.time_masks) < 0 or not 0.0 <= self.time_share <= 1.0:
            raise ValueError("SpecAugment needs counts and widths of at least 0 and time_share in [0, 1]")


def spec_augment(features: Tensor, lengths: Tensor, config: SpecAugmentConfig, generator: torch.Generator) -> Tensor:
    """Sets random bands to 0, the mean of normalised features.

    Args:
        features: (B, T, F).
        lengths: int64 (B,), on the CPU.
        config: number and width of the masks.
        generator: source of randomness, on the CPU.

    Returns:
        (B, T, F), a copy.
    """
    batch, frames, bins = features.shape
    time_width = (lengths * config.time_share).long()
    time = _bands(config.time_masks, lengths, time_width, frames, generator)  # (B, T)
    all_bins = torch.full((batch,), bins)
    width = torch.full((batch,), min(config.frequency_width, bins))
    frequency = _bands(config.frequency_masks, all_bins, width, bins, generator)  # (B, F)
    time, frequency = send(time, features.device), send(frequency, features.device)
    return features.masked_fill(time[:, :, None] | frequency[:, None], 0.0)


def _bands(count: int, extents: Tensor, widths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """`count` bands of uniform width 0..widths inside 0..extents (both (B,)), as a mask (B, size)."""
    shape = (extents.shape[0], count)
    width = (torch.rand(shape, generator=generator) * (widths[:, None] + 1)).long()
    start = (torch.rand(shape, generator=generator) * (extents[:, None] - width + 1)).long()
    places = torch.arange(size)
    inside = (places >= start[..., None]) & (places < (start + width)[..., None])  # (B, count, size)
    return inside.any(1)
