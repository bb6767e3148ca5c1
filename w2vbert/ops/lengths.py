"""Lengths, masks and padding.

B batch, T frames, D any feature dimension.
"""

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor, max_length: int) -> Tensor:
    """True on the real frames of each utterance.

    Args:
        lengths: int64 (B,).
        max_length: T.

    Returns:
        bool (B, T).
    """
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]  # (B, T)


def subsampled_lengths(lengths: Tensor) -> Tensor:
    """Frames after two convolutions of stride 2: half, rounded up, twice. int64 (B,) -> (B,)."""
    for _ in range(2):
        lengths = (lengths + 1) // 2
    return lengths


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros the padded frames of `x` (B, T, D); `mask` bool (B, T) is True on real frames, None where all are real."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)


def padding_mask(lengths: Tensor, max_length: int) -> Tensor | None:
    """`lengths_to_mask`, or None when no utterance is padded, so that modules can take their unmasked fast path.

    `lengths` must be on the CPU: the answer decides which code runs, and asking a GPU for it would stall the step.
    """
    if bool((lengths == max_length).all()):
        return None
    return lengths_to_mask(lengths, max_length)


def send(x: Tensor, device: torch.device) -> Tensor:
    """`x` on another device; to a GPU from pinned memory, since from other memory the host waits for the GPU."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
