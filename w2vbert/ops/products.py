"""Matrix products of linear layers, by the library that is fastest at them where they run.

B batch, T frames, D and E dimensions.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_FEWEST_ROWS = 32  # below, oneDNN's preparation costs more than it saves


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, without gradient. (..., D), (E, D) and (E,) -> (..., E), all of the same type.

    PyTorch gives float32 products on a CPU to MKL, which on AMD's processors takes up to a third longer than oneDNN,
    which PyTorch has as well.
    """
    if _by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _by_onednn(x: Tensor) -> bool:
    if not AMD_WITH_ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    return x.dim() > 1 and x.numel() >= _FEWEST_ROWS * x.shape[-1]


def _amd_with_onednn() -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    processors = Path("/proc/cpuinfo")
    return processors.exists() and "AuthenticAMD" in processors.read_text(encoding="utf-8")


AMD_WITH_ONEDNN = _amd_with_onednn()
