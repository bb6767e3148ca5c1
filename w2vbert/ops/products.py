"""Matrix products of linear layers, by the library that is fastest at them where they run.

B batch, T frames, D and E dimensions.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_FEWEST_ROWS = 32  # below, oneDNN's preparation costs more than it saves
_FEWEST_WEIGHTS = 2**17  # in float32: oneDNN prepares for each new number of rows, which small products do not bring in


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, without gradient. (..., D), (E, D) and (E,) -> (..., E), all of the same type.

    On a CPU PyTorch gives float32 products to MKL, which on AMD's processors takes up to a third longer than oneDNN's
    linear layer, which PyTorch has as well; in bfloat16 it writes the bias into the result first, which costs a tenth.
    """
    if _by_onednn(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.device.type != "cpu" or x.dtype not in ONEDNN_TYPES or torch.compiler.is_compiling():
        return False
    if x.dtype == torch.float32:
        slow = weight.numel() >= _FEWEST_WEIGHTS
    else:
        slow = bias is not None
    return slow and x.dim() > 1 and x.numel() >= _FEWEST_ROWS * x.shape[-1]


def _onednn_types() -> tuple[torch.dtype, ...]:
    """Types of which oneDNN's linear layer is preferred on this processor."""
    processors = Path("/proc/cpuinfo")
    if not processors.exists() or "AuthenticAMD" not in processors.read_text(encoding="utf-8"):
        return ()
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    return (torch.float32, torch.bfloat16) if torch.cpu._is_avx512_bf16_supported() else (torch.float32,)


ONEDNN_TYPES = _onednn_types()
