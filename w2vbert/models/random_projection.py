"""The frozen random-projection quantizer of BEST-RQ (Chiu et al. 2022, arXiv 2202.01855, section 3.1).

N frames, C input dimension, G codebooks, V codes in each, E dimension of a code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomProjectionConfig:
    """Random projections and codebooks.

    Attributes:
        codebooks: G (1: BEST-RQ; USM, arXiv 2303.01037, has several, each with a projection and a softmax of its own).
        codes: V, codes in each codebook (8192: BEST-RQ).
        dim: E, dimension of a projected frame and of a code (16: BEST-RQ).
    """

    codebooks: int = 1
    codes: int = 8192
    dim: int = 16

    def __post_init__(self) -> None:
        if self.codebooks < 1 or self.codes < 2 or self.dim < 1:
            raise ValueError("random_projection needs codebooks and dim of at least 1 and codes of at least 2")


class RandomProjectionQuantizer(nn.Module):
    """Nearest code of a projected frame, both on the unit sphere.

    Nothing of it learns: projections (Xavier's uniform distribution) and codes (normal vectors) are buffers.
    """

    def __init__(self, input_dim: int, config: RandomProjectionConfig) -> None:
        super().__init__()
        projection = torch.empty(config.codebooks, input_dim, config.dim)
        for matrix in projection:
            nn.init.xavier_uniform_(matrix)
        codebook = F.normalize(torch.randn(config.codebooks, config.codes, config.dim), dim=-1)
        self.projection: Tensor
        self.codebook: Tensor
        self.register_buffer("projection", projection)
        self.register_buffer("codebook", codebook)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Codes of frames `x` (N, C), int64 (N, G). On the unit sphere the nearest code has the largest product."""
        with torch.autocast(x.device.type, enabled=False):
            projected = torch.einsum("nc,gce->gne", x.float(), self.projection)  # (G, N, E)
            products = F.normalize(projected, dim=-1) @ self.codebook.transpose(1, 2)  # (G, N, V)
        return products.argmax(-1).transpose(0, 1)  # (N, G)
