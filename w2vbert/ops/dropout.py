"""Dropout (Srivastava et al. 2014) whose random numbers do not cost as much as the layer that they follow.

On a CPU PyTorch draws 32 bits for each entry and makes a floating-point number of them. Here 16 bits are drawn and
compared with a threshold: the mask takes a sixth of the time (1.0 against 5.9 ns an entry on an EPYC, Zen 4), the layer
with its backward pass half (`python -m benchmarks.pretrain --rows dropout`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, prob: float, training: bool) -> Tensor:
    """Zeroes entries with probability `prob` and divides the others by 1 - `prob`, in training. (...) -> (...)."""
    if not training or not prob:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, prob)
    return _Dropout.apply(x, prob)


def keep_mask(shape: torch.Size, prob: float, device: torch.device) -> Tensor:
    """Which entries dropout keeps: 1 with probability 1 - `prob` (on a CPU to the next 1/65536), else 0.

    From the default generator of `device`. Returns uint8 on a CPU, bool elsewhere and in compiled code, of `shape`.
    """
    if device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1.0 - prob)
    draws = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return draws[: shape.numel()].ge_(min(round(65536 * prob), 65535) - 32768).to(torch.uint8).view(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, prob: float) -> Tensor:
        """See `dropout`."""
        kept = keep_mask(x.shape, prob, x.device)
        ctx.save_for_backward(kept)
        ctx.scale = 1.0 / (1.0 - prob)
        return (x * ctx.scale).mul_(kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """(...) -> (...)."""
        (kept,) = ctx.saved_tensors
        return (grads[0] * ctx.scale).mul_(kept), None
