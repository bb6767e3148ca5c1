"""Multi-head self-attention, without positions or with rotary ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Scaled dot-product attention with one matrix product for queries, keys and values.

    The paper's encoder has no positions in its attention (facts: medium confidence); `rotary` turns queries and keys
    by angles that grow with the frame (RoFormer, Su et al. 2021, equation 34).
    """

    def __init__(self, dim: int, heads: int, rotary: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.rotary = rotary
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attends over all real frames.

        Args:
            x: (B, T, D).
            mask: bool (B, T), True on real frames, or None when there is no padding.

        Returns:
            (B, T, D); padded frames hold finite nonsense.
        """
        batch, frames, dim = x.shape
        qkv = self.qkv(x).view(batch, frames, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        attention_mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, T)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(batch, frames, dim))  # (B, T, D)


def rotate(x: Tensor) -> Tensor:
    """Turns pairs of channels by the angle of their frame. (B, H, T, d) -> (B, H, T, d), d even."""
    frames, dim = x.shape[-2:]
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(frames, device=x.device, dtype=torch.float32)[:, None] * frequencies  # (T, d/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)  # (B, H, T, d)
