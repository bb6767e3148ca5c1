"""Layers that keep their input for the backward pass, and compute what is pointwise in it again.

A matrix product keeps what it multiplies: the outputs of LayerNorm, Swish, GLU, BatchNorm and dropout before it. These
cost little beside the product, so the functions here keep what went into them, and no matrix product is done twice.
Under autocast the products are in its data type, everything kept in the type that it came in.

B batch, T frames, D and E dimensions, K taps of a convolution.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from w2vbert.ops.dropout import keep_mask
from w2vbert.ops.products import product


def norm_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """`linear(layer_norm(x))`: (..., D) -> (..., E); keeps `x`."""
    return _NormLinear.apply(x, norm_weight, norm_bias, eps, *_cast(x, weight, bias))


def swish_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dropout_prob: float = 0.0) -> Tensor:
    """`linear(dropout(silu(x)))`: (..., D) -> (..., E); keeps `x`, and which entries dropout kept."""
    return _SwishLinear.apply(x, *_cast(x, weight, bias), dropout_prob)


def glu_convolution(x: Tensor, weight: Tensor, left: int, mask: Tensor | None) -> Tensor:
    """Gated linear unit and a depthwise convolution over time; keeps `x`.

    Args:
        x: (B, T, 2 D), values and gates.
        weight: (D, 1, K).
        left: taps before the frame itself, at least (K - 1) / 2; frames outside are zeros.
        mask: bool (B, T), True on real frames, or None; the others are zeroed before and after the convolution.

    Returns:
        (B, T, D).
    """
    return _GluConvolution.apply(x, weight.to(compute_dtype(x)), left, mask)


def batch_norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalises channels by given statistics (D,), each frame alone. (..., D) -> (..., D), without gradient."""
    return torch.native_batch_norm(x.flatten(0, -2), weight, bias, mean, var, False, 0.0, eps)[0].view(x.shape)


def batch_norm_swish_linear(
    x: Tensor,
    statistics: tuple[Tensor, Tensor],
    count: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """`linear(silu(batch_norm(x)))`: (..., D) -> (..., E); keeps `x`.

    Args:
        x: (..., D), zeros on padding.
        statistics: mean and variance (D,) of the real frames; they get no gradient, `x` gets theirs.
        count: scalar, real frames over which the statistics were taken, or None where they do not come from `x`.
        norm_weight, norm_bias: (D,), of the normalised channels.
        eps: added to the variance.
        weight, bias: (E, D) and (E,) or None, of the linear layer.
    """
    mean, var = (s.detach() for s in statistics)
    return _BatchNormSwishLinear.apply(x, mean, var, count, norm_weight, norm_bias, eps, *_cast(x, weight, bias))


def compute_dtype(x: Tensor) -> torch.dtype:
    """Data type of the matrix products: autocast's where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A linear layer's parameters in the type of its product."""
    dtype = compute_dtype(x)
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _beside(x: Tensor, weight: Tensor) -> Tensor:
    """`x` in a type in which LayerNorm takes it beside `weight`: CUDA's kernels want the same one, the CPU's do not."""
    return x if x.device.type == "cpu" else x.to(weight.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return product(x.to(weight.dtype), weight, bias)


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the input, the weight and the bias; `grad` (..., E), and `x` (..., D) is what was multiplied."""
    flat = grad.flatten(0, -2)  # (N, E)
    grad_weight = flat.t() @ x.to(grad.dtype).flatten(0, -2)  # (E, D)
    return product(grad, weight.t()).view(x.shape), grad_weight, flat.sum(0) if has_bias else None


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """See `norm_linear`."""
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        ctx.eps, ctx.has_bias = eps, bias is not None
        x = _beside(x, norm_weight)
        return _linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """(..., E) -> (..., D), and of the parameters."""
        kept, norm_weight, norm_bias, weight = ctx.saved_tensors
        x, shape = _beside(kept, norm_weight), kept.shape[-1:]
        y, mean, rstd = torch.native_layer_norm(x, shape, norm_weight, norm_bias, ctx.eps)
        grad_y, grad_weight, grad_bias = _linear_backward(grads[0], y, weight, ctx.has_bias)
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_y.to(x.dtype), x, shape, mean, rstd, norm_weight, norm_bias, [True, True, True]
        )
        return grad_x.to(kept.dtype), grad_norm_weight, grad_norm_bias, None, grad_weight, grad_bias


class _SwishLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dropout_prob: float) -> Tensor:
        """See `swish_linear`."""
        y, kept = F.silu(x), None
        if dropout_prob:
            kept = keep_mask(x.shape, dropout_prob, x.device)
            y = y.mul_(kept).div_(1.0 - dropout_prob)
        ctx.save_for_backward(x, weight, kept)
        ctx.has_bias, ctx.dropout_prob = bias is not None, dropout_prob
        return _linear(y, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """(..., E) -> (..., D), and of the parameters."""
        x, weight, kept = ctx.saved_tensors
        y = F.silu(x)
        if kept is not None:
            y = y.mul_(kept).div_(1.0 - ctx.dropout_prob)
        grad_y, grad_weight, grad_bias = _linear_backward(grads[0], y, weight, ctx.has_bias)
        if kept is not None:
            grad_y = grad_y.mul_(kept).div_(1.0 - ctx.dropout_prob)
        return torch.ops.aten.silu_backward(grad_y.to(x.dtype), x), grad_weight, grad_bias, None


class _GluConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, left: int, mask: Tensor | None) -> Tensor:
        """See `glu_convolution`."""
        hidden = None if mask is None else ~mask[..., None]  # (B, T, 1)
        ctx.save_for_backward(x, weight, hidden)
        ctx.left = left
        y = _depthwise(_hide(F.glu(x), hidden).to(weight.dtype), weight, left, 0)
        # Not in place: where what a function returns was changed so, torch.compile (2.11) takes wrong gradients.
        return y if hidden is None else y.masked_fill(hidden, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """(B, T, D) -> (B, T, 2 D), and (D, 1, K) of the taps."""
        x, weight, hidden = ctx.saved_tensors
        left, frames, taps = ctx.left, x.shape[1], weight.shape[2]
        grad = grads[0] if hidden is None else grads[0].masked_fill(hidden, 0.0)
        y = _hide(F.glu(x), hidden).to(grad.dtype)
        by_tap = []
        for offset in range(-left, taps - left):  # tap by tap, since cuDNN and oneDNN are slow at this
            first = min(max(0, -offset), frames)
            last = max(first, min(frames, frames - offset))
            products = grad[:, first:last] * y[:, first + offset : last + offset]
            by_tap.append(products.sum((0, 1)))
        grad_y = _depthwise(grad, weight.flip(2), left, 2 * left + 1 - taps)
        grad_x = torch.ops.aten.glu_backward(_hide(grad_y, hidden).to(x.dtype), x, -1)
        return grad_x, torch.stack(by_tap, dim=1)[:, None], None, None


class _BatchNormSwishLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        count: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """See `batch_norm_swish_linear`."""
        ctx.save_for_backward(x, mean, var, count, norm_weight, norm_bias, weight)
        ctx.eps, ctx.has_bias = eps, bias is not None
        return _linear(F.silu(batch_norm(x, mean, var, norm_weight, norm_bias, eps)), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """(..., E) -> (..., D), and of the parameters."""
        x, mean, var, count, norm_weight, norm_bias, weight = ctx.saved_tensors
        normal = batch_norm(x, mean, var, norm_weight, norm_bias, ctx.eps)
        grad_y, grad_weight, grad_bias = _linear_backward(grads[0], F.silu(normal), weight, ctx.has_bias)
        grad_normal = torch.ops.aten.silu_backward(grad_y.to(x.dtype), normal)
        flat, flat_grad = x.flatten(0, -2), grad_normal.flatten(0, -2)  # (N, D)
        rstd = torch.rsqrt(var + ctx.eps)
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_batch_norm_backward(
            flat_grad, flat, norm_weight, mean, var, mean, rstd, False, ctx.eps, [True, True, True]
        )
        if count is not None:  # the way through mean and variance (Ioffe and Szegedy 2015, section 3)
            slope = -norm_weight * rstd.square() * grad_norm_weight / count  # (D,)
            shift = -norm_weight * rstd * grad_norm_bias / count - slope * mean  # (D,)
            grad_x = grad_x.addcmul_(flat, slope.to(x.dtype)).add_(shift.to(x.dtype))
        return (
            *(grad_x.view(x.shape), None, None, None, grad_norm_weight, grad_norm_bias, None),
            *(grad_weight, grad_bias),
        )


def _hide(x: Tensor, hidden: Tensor | None) -> Tensor:
    """Zeroes, in place, the frames of (B, T, D) where `hidden` (B, T, 1) is True."""
    return x if hidden is None else x.masked_fill_(hidden, 0.0)


def _depthwise(x: Tensor, weight: Tensor, padding: int, skip: int) -> Tensor:
    """Convolves each channel of `x` (B, T, D) with its taps of `weight` (D, 1, K), without moving the channels.

    Args:
        x: frames.
        weight: taps.
        padding: zeros on both sides.
        skip: how many of the first outputs are left out.

    Returns:
        (B, T, D): T outputs after the skipped ones.
    """
    # Time is the height of the image: along the width oneDNN unrolls, and with two threads and hundreds of frames it
    # spends minutes on making the code for each new length.
    image = x[:, :, None].permute(0, 3, 1, 2)  # (B, D, T, 1), in memory with the channels last
    taps = weight[..., None].contiguous(memory_format=torch.channels_last)  # (D, 1, K, 1)
    y = F.conv2d(image, taps, padding=(padding, 0), groups=x.shape[2])[..., 0].transpose(1, 2)
    return y[:, skip : skip + x.shape[1]]
