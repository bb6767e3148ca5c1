"""Scaled dot-product attention (Vaswani et al. 2017, equation 1) in the form that is fastest where it runs.

B batch, H heads, T frames, d channels of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from w2vbert.ops.dropout import keep_mask

AMX = torch.cpu._is_amx_tile_supported()
_CACHED_WEIGHTS = 3 * 2**18  # of (B, H, T, T) that are computed at once
_MOST_FRAMES = 1024  # for which products are faster than the fused kernel
_MOST_FRAMES_WITH_DROPOUT = 4096  # more would take much memory in any form


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout_prob: float = 0.0) -> Tensor:
    """Each query's mean of the values, weighted by the softmax of its products with the keys over sqrt(d).

    On a CPU PyTorch's fused kernel is slower than plain matrix products in bfloat16 without AMX, and with dropout it
    is not used at all: all weights are kept for the backward pass. For both there is a form of our own in training,
    which computes the weights of as many heads as fit a cache, and once more in the backward pass. In bfloat16 it
    rounds scores before the softmax, as any form of plain products does (docs/decisions/0021). A bias that is added to
    the scores always goes to PyTorch.

    Args:
        q, k, v: (B, H, T, d).
        bias: bool (B, 1, 1, T), True on keys that are seen; or added to the scores, (B, H, T, T); or None.
        dropout_prob: of dropout on the weights.

    Returns:
        (B, H, T, d); queries that see no key hold nonsense.
    """
    if _by_products(q, bias, dropout_prob):
        if bias is not None:
            bias = q.new_zeros(bias.shape).masked_fill_(~bias, torch.finfo(q.dtype).min / 2)
        return _ProductAttention.apply(q, k, v, bias, dropout_prob)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout_prob)


def _by_products(q: Tensor, bias: Tensor | None, dropout_prob: float) -> bool:
    masked_only = bias is None or bias.dtype == torch.bool
    if q.device.type != "cpu" or not masked_only or torch.compiler.is_compiling():
        return False
    if dropout_prob:
        return q.shape[2] <= _MOST_FRAMES_WITH_DROPOUT
    slow_kernel = q.dtype == torch.bfloat16 and not AMX and torch.is_grad_enabled()
    return slow_kernel and q.shape[2] <= _MOST_FRAMES


class _ProductAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout_prob: float) -> Tensor:
        """See `attention`; `bias` (B, 1, 1, T) is added to the scores."""
        batch, heads, frames, dim = q.shape
        q, kept = q * dim**-0.5, None
        if dropout_prob:
            kept = keep_mask(torch.Size((batch, heads, frames, frames)), dropout_prob, q.device)
            v = v / (1.0 - dropout_prob)
        y = q.new_empty(batch, frames, heads, dim).transpose(1, 2)
        for part in _parts(batch, heads, frames):
            weights = _weights(q[part], k[part], None if bias is None else bias[part[0]])
            y[part] = (weights if kept is None else weights.mul_(kept[part])) @ v[part]
        ctx.save_for_backward(q, k, v, bias, kept)
        ctx.dropout_prob = dropout_prob
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """(B, H, T, d) -> three of (B, H, T, d)."""
        q, k, v, bias, kept = ctx.saved_tensors  # q over sqrt(d), v over 1 - dropout_prob
        batch, heads, frames, dim = q.shape
        grad_q, grad_k, grad_v = q.new_empty(batch, frames, 3, heads, dim).permute(2, 0, 3, 1, 4)
        for part in _parts(batch, heads, frames):
            grad = grads[0][part]
            weights = _weights(q[part], k[part], None if bias is None else bias[part[0]])
            grad_weights = grad @ v[part].mT
            if kept is not None:
                grad_weights.mul_(kept[part])
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            if kept is not None:
                weights.mul_(kept[part])
            grad_q[part] = grad_scores @ k[part]
            grad_k[part] = grad_scores.mT @ q[part]
            grad_v[part] = weights.mT @ grad
        grad_q *= dim**-0.5
        if kept is not None:
            grad_v /= 1.0 - ctx.dropout_prob
        return grad_q, grad_k, grad_v, None, None


def _parts(batch: int, heads: int, frames: int) -> Iterator[tuple[slice, slice]]:
    """Utterances and heads whose weights fit a cache together."""
    fitting = max(1, _CACHED_WEIGHTS // max(frames, 1) ** 2)  # pairs of an utterance and a head
    utterances, heads_at_once = max(1, fitting // heads), min(fitting, heads)
    for i in range(0, batch, utterances):
        for j in range(0, heads, heads_at_once):
            yield slice(i, i + utterances), slice(j, j + heads_at_once)


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax of the scores, (..., T, T), of q over sqrt(d) and k (..., T, d)."""
    scores = q @ k.mT
    return (scores if bias is None else scores.add_(bias)).softmax(-1)
