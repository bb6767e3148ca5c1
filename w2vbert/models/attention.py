"""Multi-head self-attention: without positions, with rotary ones, or with a learned key for each distance.

B batch, T frames, D model dimension, H heads, d = D / H channels of a head, P distances.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2vbert.ops.attention import attention
from w2vbert.ops.recompute import norm_linear

Positions = Literal["none", "rotary", "rotary_input", "relative_key"]


class SelfAttention(nn.Module):
    """Scaled dot-product attention with one matrix product for queries, keys and values.

    The paper's encoder has no positions in its attention (facts: medium confidence). The others:
    `rotary` turns queries and keys by angles that grow with the frame (RoFormer, Su et al. 2021, equation 34);
    `rotary_input` turns what is projected to queries and keys, as transformers' Wav2Vec2Bert has it;
    `relative_key` adds to the score of a query with a key its product with a vector learned for their distance
    (Shaw et al. 2018, equation 4, without a_ij^V), the positions of w2v-bert-2.0.
    """

    def __init__(
        self, dim: int, heads: int, positions: Positions, dropout: float, span_frames: tuple[int, int] = (64, 8)
    ) -> None:
        """Makes the layers.

        Args:
            dim: D.
            heads: H.
            positions: see the class.
            dropout: of the attention's weights.
            span_frames: how far to the left and to the right each distance has its own vector in `relative_key`;
                further ones share the last.
        """
        super().__init__()
        self.heads = heads
        self.positions = positions
        self.dropout = dropout
        self.left_frames = span_frames[0]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.distance_keys: nn.Parameter | None = None
        if positions == "relative_key":
            keys = torch.empty(sum(span_frames) + 1, dim // heads)
            self.distance_keys = nn.Parameter(nn.init.normal_(keys, std=(dim // heads) ** -0.5))

    def forward(self, x: Tensor, norm: nn.LayerNorm, mask: Tensor | None) -> Tensor:
        """Attends over all real frames.

        Args:
            x: (B, T, D).
            norm: is applied to `x` first.
            mask: bool (B, T), True on real frames, or None when there is no padding.

        Returns:
            (B, T, D); padded frames hold finite nonsense.
        """
        batch, frames, dim = x.shape
        q, k, v = self._project(x, norm)  # each (B, H, T, d)
        if self.positions == "rotary":
            q, k = rotate(q), rotate(k)
        bias = None if mask is None else mask[:, None, None]  # (B, 1, 1, T)
        if self.distance_keys is not None:
            scores = (q * (dim // self.heads) ** -0.5) @ self.distance_keys.t()  # (B, H, T, P)
            scores = by_distance(scores, self.left_frames)  # (B, H, T, T)
            bias = scores if bias is None else scores.masked_fill(~bias, -torch.inf)
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, bias, dropout)
        return self.out(y.transpose(1, 2).reshape(batch, frames, dim))  # (B, T, D)

    def _project(self, x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, T, d), of `x` (B, T, D)."""
        batch, frames, dim = x.shape
        if self.positions == "rotary_input":
            x = norm(x)
            turned = rotate(x.view(batch, frames, self.heads, -1).transpose(1, 2))  # (B, H, T, d)
            turned = turned.transpose(1, 2).reshape(x.shape)
            (qk_weight, v_weight), (qk_bias, v_bias) = (p.split([2 * dim, dim]) for p in self.qkv.parameters())
            qkv = torch.cat([F.linear(turned, qk_weight, qk_bias), F.linear(x, v_weight, v_bias)], dim=-1)
        else:
            qkv = normalised(x, norm, self.qkv)
        q, k, v = qkv.view(batch, frames, 3, self.heads, dim // self.heads).unbind(2)  # each (B, T, H, d)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def normalised(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """`linear(norm(x))`, for which only `x` is kept. (..., D) -> (..., E)."""
    return norm_linear(x, norm.weight, norm.bias, norm.eps, linear.weight, linear.bias)


def rotate(x: Tensor, places: Tensor | None = None) -> Tensor:
    """Turns pairs of channels by the angle of their frame. (B, H, T, d) -> (B, H, T, d), d even.

    places: of the frames, int64 (..., T), where they are not 0 to T - 1.
    """
    frames, dim = x.shape[-2:]
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    places = torch.arange(frames, device=x.device) if places is None else places
    angles = places.float()[..., None] * frequencies  # (..., T, d/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)  # (B, H, T, d)


def by_distance(scores: Tensor, left: int) -> Tensor:
    """Scores of each query with each distance, laid out by key.

    Args:
        scores: (B, H, T, P); entry p is of the key p - left frames after the query.
        left: largest distance to the left, in frames.

    Returns:
        (B, H, T, T); keys further away than the first or last distance have its score.
    """
    return _ByDistance.apply(scores, left)


class _ByDistance(torch.autograd.Function):
    """`gather` with a backward that adds up the gradients of far keys in one matrix product.

    That of `gather` adds most of a row to the same place, one by one, and on a GPU in an order that changes.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, left: int) -> Tensor:
        """See `by_distance`."""
        batch, heads, frames, distances = scores.shape
        ctx.left, ctx.distances = left, distances
        frame = torch.arange(frames, device=scores.device)
        index = (frame - frame[:, None] + left).clamp(0, distances - 1)  # (T, T)
        return scores.gather(3, index.expand(batch, heads, frames, frames))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """(B, H, T, T) -> (B, H, T, P)."""
        (grad,) = grads
        batch, heads, frames, _ = grad.shape
        left, right = ctx.left, ctx.distances - 1 - ctx.left
        frame = torch.arange(frames, device=grad.device)
        key = frame[:, None] + torch.arange(-left, right + 1, device=grad.device)  # (T, P)
        index = key.clamp(0, frames - 1).expand(batch, heads, frames, ctx.distances)
        near = grad.gather(3, index).masked_fill((key < 0) | (key >= frames), 0.0)  # (B, H, T, P)
        distance = frame - frame[:, None]
        far = torch.stack([distance < -left, distance > right], dim=-1).to(grad.dtype)  # (T, T, 2)
        far_left, far_right = torch.einsum("bhij,ijs->sbhi", grad, far)  # each (B, H, T)
        near[..., 0] += far_left
        near[..., -1] += far_right
        return near, None
