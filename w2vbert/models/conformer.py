"""Conformer blocks (Gulati et al. 2020, section 2), feature-last."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from w2vbert.models.attention import Positions, SelfAttention, normalised
from w2vbert.ops.dropout import dropout
from w2vbert.ops.recompute import batch_norm_swish_linear, glu_convolution, swish_linear


@dataclass(frozen=True)
class ConformerConfig:
    """One conformer block; the defaults are w2v-BERT XL's.

    Attributes:
        dim: D, model dimension (1024: paper).
        heads: H, attention heads (8: paper).
        feed_forward_dim: inner dimension of the half-step feed-forward layers (4096: from the model's size).
        kernel: frames that the depthwise convolution sees, odd (5: paper).
        positions: none (paper's family, medium confidence), rotary, rotary_input or relative_key (see `SelfAttention`).
        dropout_prob: dropout after each sub-layer and in the attention (0.1: family).
        convolution: centred, with BatchNorm and biases (Gulati et al. 2020), or causal, which sees the past only, with
            LayerNorm and no biases (w2v-bert-2.0).
        span_frames: how far to the left and to the right relative_key tells distances apart (64 and 8: w2v-bert-2.0).
    """

    dim: int = 1024
    heads: int = 8
    feed_forward_dim: int = 4096
    kernel: int = 5
    positions: Positions = "none"
    dropout_prob: float = 0.1
    convolution: Literal["centred", "causal"] = "centred"
    span_frames: tuple[int, int] = (64, 8)

    def __post_init__(self) -> None:
        if min(self.dim, self.heads, self.feed_forward_dim, self.kernel) < 1:
            raise ValueError("dim, heads, feed_forward_dim and kernel must be at least 1")
        if not 0.0 <= self.dropout_prob < 1.0:
            raise ValueError(f"dropout_prob must lie in [0, 1), not {self.dropout_prob}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.positions in ("rotary", "rotary_input") and self.dim // self.heads % 2:
            raise ValueError(f"rotary positions need an even number of channels a head, not {self.dim // self.heads}")
        if min(self.span_frames) < 0:
            raise ValueError(f"span_frames must not be negative, not {self.span_frames}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {self.kernel}")


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over the real frames only (B, T, D), so that padding changes nothing (trap 12)."""

    def __init__(self, dim: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Normalises each channel. `x` (B, T, D) with zeros on padding; `mask` bool (B, T) or None -> (B, T, D)."""
        mean, var, _ = self._statistics(x, mask)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return x * scale.to(x.dtype) + (self.bias - mean * scale).to(x.dtype)

    def swish_linear(self, x: Tensor, mask: Tensor | None, linear: nn.Linear) -> Tensor:
        """`linear(silu(self(x, mask)))`, for which only `x` is kept. (B, T, D) -> (B, T, E)."""
        with torch.no_grad():
            mean, var, count = self._statistics(x, mask)
        return batch_norm_swish_linear(
            x, (mean, var), count, self.weight, self.bias, self.eps, linear.weight, linear.bias
        )

    def _statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean and variance (D,), of `x` in training, and then the real frames in it."""
        if not self.training:
            return self.running_mean, self.running_var, None
        x32 = x.float()
        count = x.new_full((), x.shape[0] * x.shape[1], dtype=torch.int64) if mask is None else mask.sum()
        mean = x32.sum((0, 1)) / count
        var = (x32.square().sum((0, 1)) / count - mean.square()).clamp(min=0.0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return mean, var, count


class ConvolutionModule(nn.Module):
    """Pointwise linear and GLU, depthwise convolution, BatchNorm, Swish, pointwise linear (section 2.2).

    The causal form of w2v-bert-2.0 has LayerNorm in BatchNorm's place, and pointwise layers without biases.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        dim, causal = config.dim, config.convolution == "causal"
        padding = config.kernel - 1 if causal else config.kernel // 2
        self.pointwise_in = nn.Linear(dim, 2 * dim, bias=not causal)
        self.depthwise = nn.Conv1d(dim, dim, config.kernel, padding=padding, groups=dim, bias=False)
        self.norm = nn.LayerNorm(dim) if causal else MaskedBatchNorm(dim)
        self.pointwise_out = nn.Linear(dim, dim, bias=not causal)

    def forward(self, x: Tensor, norm: nn.LayerNorm, mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D), `x` first normalised; padded frames are zeroed before the convolution mixes time."""
        x = normalised(x, norm, self.pointwise_in)  # (B, T, 2 D)
        x = glu_convolution(x, self.depthwise.weight, int(self.depthwise.padding[0]), mask)  # (B, T, D)
        if isinstance(self.norm, MaskedBatchNorm):
            return self.norm.swish_linear(x, mask, self.pointwise_out)
        return swish_linear(self.norm(x), self.pointwise_out.weight, self.pointwise_out.bias)


class FeedForward(nn.Module):
    """Linear, Swish, dropout, linear (section 2.3)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.linear_in = nn.Linear(config.dim, config.feed_forward_dim)
        self.linear_out = nn.Linear(config.feed_forward_dim, config.dim)
        self.dropout_prob = config.dropout_prob

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """(..., D) -> (..., D), `x` first normalised."""
        x = normalised(x, norm, self.linear_in)
        dropout_prob = self.dropout_prob if self.training else 0.0
        return swish_linear(x, self.linear_out.weight, self.linear_out.bias, dropout_prob)


class ConformerBlock(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward, LayerNorm; all pre-norm (section 2.4)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm_ff1 = nn.LayerNorm(config.dim)
        self.ff1 = FeedForward(config)
        self.norm_attention = nn.LayerNorm(config.dim)
        self.attention = SelfAttention(
            config.dim, config.heads, config.positions, config.dropout_prob, config.span_frames
        )
        self.norm_convolution = nn.LayerNorm(config.dim)
        self.convolution = ConvolutionModule(config)
        self.norm_ff2 = nn.LayerNorm(config.dim)
        self.ff2 = FeedForward(config)
        self.norm_out = nn.LayerNorm(config.dim)
        self.dropout_prob = config.dropout_prob

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` (B, T, D), `mask` bool (B, T), True on real frames, or None without padding -> (B, T, D)."""
        x = torch.add(x, self._dropout(self.ff1(x, self.norm_ff1)), alpha=0.5)
        x = x + self._dropout(self.attention(x, self.norm_attention, mask))
        x = x + self._dropout(self.convolution(x, self.norm_convolution, mask))
        x = torch.add(x, self._dropout(self.ff2(x, self.norm_ff2)), alpha=0.5)
        return self.norm_out(x).to(x.dtype)  # autocast makes it float32 on CUDA, and not on a CPU

    def _dropout(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout_prob, self.training)
