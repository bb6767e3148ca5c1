"""The lattice recursion under every RNN-T loss: by k2's compiled kernel, or by our own: Triton on CUDA, else PyTorch.

Letters: B batch, S symbols, T frames. A lattice point (s, t) means s symbols written and t frames read.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache, partial
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import hardshrink

from w2vbert.ops import rnnt_native

BACKENDS = ("auto", "k2", "native")

# Probabilities below it are zero: they change no sum, and the denormal numbers that their products with others would
# be make the matrix products of a CPU up to 200 times slower.
NEGLIGIBLE = 1e-30

# From log-probabilities of symbols and blanks to scores (B,) and the probabilities that a path takes the arcs.
Recursion = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@lru_cache(maxsize=1)
def _import_k2() -> tuple[ModuleType | None, str]:
    """Tries to import k2 once. Returns (module, reason); an installed but broken k2 counts as absent."""
    try:
        k2 = importlib.import_module("k2")
    except (ImportError, OSError) as error:
        return None, f"k2 cannot be imported ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    if not hasattr(k2, "mutual_information_recursion"):
        return None, "k2 has no mutual_information_recursion"
    return k2, "k2 can be imported"


def get_backend(requested: str = "auto") -> str:
    """Resolves a backend's name to "k2" or "native".

    Args:
        requested: "auto" takes k2 where it can be imported, "native" otherwise.
    Raises:
        ValueError: an unknown name, or "k2" where it cannot be imported.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {requested!r}")
    if requested == "native":
        return "native"
    module, reason = _import_k2()
    if module is not None:
        return "k2"
    if requested == "k2":
        raise ValueError(f"backend 'k2' was asked for, but {reason}; use 'auto' or 'native'")
    return "native"


def backend_reason() -> str:
    """One line for `w2vbert doctor`: which backend "auto" means here, and why."""
    module, reason = _import_k2()
    if module is not None:
        return f"k2: {reason}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kernel = "a Triton kernel" if _runs_triton(device) else "plain PyTorch"
    return f"native, by {kernel} on {'CUDA' if device == 'cuda' else 'the CPU'}: {reason}"


def _runs_triton(device: str) -> bool:
    """Whether the Triton kernel serves a device of this type: CUDA, and any in Triton's interpreter (its variable)."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device == "cuda" or interpreted) and importlib.util.find_spec("triton") is not None


def full_boundary(batch: int, symbols: int, frames: int, device: torch.device) -> Tensor:
    """The boundary [0, 0, S, T] of unpadded utterances: int64 (B, 4)."""
    return torch.tensor([0, 0, symbols, frames], dtype=torch.int64, device=device).repeat(batch, 1)


def mutual_information_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, return_grad: bool = False, backend: str = "auto"
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """Log of the summed probability of all paths from the begin to the end of each utterance's lattice.

    With T+1 columns in px (regular) writing a symbol leads from (s, t) to (s+1, t); with T columns (modified,
    constrained) to (s+1, t+1). A blank always leads from (s, t) to (s, t+1).

    Args:
        px: (B, S, T+1) or (B, S, T) floating, log-probabilities of the symbols.
        py: (B, S+1, T), log-probabilities of the blank.
        boundary: (B, 4) int64 [begin_s, begin_t, end_s, end_t], ends exclusive; None means [0, 0, S, T].
        return_grad: also return the occupation probabilities.
        backend: "auto", "k2" or "native".
    Returns:
        scores (B,), differentiable; with return_grad, (scores, (px_grad, py_grad)), where the grads have the shapes of
        px and py, are the probabilities that a path takes an arc, and carry no autograd. Where the end cannot be
        reached the score is -inf and the utterance's grads are zero.
    Raises:
        ValueError: shapes that do not fit together, or a boundary outside the lattice (looked for on a CPU only, since
            it would wait for any other device).
    """
    B, S, T1 = px.shape
    T = py.shape[2]
    if py.shape != (B, S + 1, T) or T1 not in (T, T + 1):
        raise ValueError(f"px (B, S, T+1 or T) and py (B, S+1, T) do not fit: {tuple(px.shape)}, {tuple(py.shape)}")
    if boundary is None:
        boundary = full_boundary(B, S, T, px.device)
    _check_boundary(boundary, B, S, T)
    recursion = _k2_recursion if get_backend(backend) == "k2" else _native_recursion
    scores, px_grad, py_grad = _LatticeScore.apply(px, py, partial(recursion, boundary=boundary))
    return (scores, (px_grad, py_grad)) if return_grad else scores


def pruned_recursion(
    write: Tensor,
    blank: Tensor,
    ranges: Tensor,
    symbols: int,
    boundary: Tensor,
    regular: bool,
    backend: str = "auto",
) -> Tensor:
    """`mutual_information_recursion` of a lattice of which only `ranges` is kept.

    In plain PyTorch the recursion goes through the kept points alone; the compiled kernels go through all.

    Args:
        write: (B, T, r) floating, log-probabilities of the symbols that leave the kept points.
        blank: (B, T, r), those of the blanks.
        ranges: (B, T, r) int64, the s of the kept points.
        symbols: S.
        boundary: as there.
        regular: whether a symbol leads to (s+1, t), and nothing is written after the last frame, or to (s+1, t+1).
        backend: as there.
    Returns:
        scores (B,), differentiable.
    """
    B, T, _ = ranges.shape
    _check_boundary(boundary, B, symbols, T)
    in_pytorch = write.device.type == "cpu" and get_backend(backend) == "native" and not _runs_triton("cpu")
    if in_pytorch and rnnt_native.is_staircase(ranges, boundary):
        recursion = partial(
            rnnt_native.pruned_flow, ranges=ranges, boundary=boundary, symbols=symbols, slope=int(regular)
        )
        scores, _, _ = _LatticeScore.apply(write, blank, recursion)
        return scores
    outside = write.new_full((B, T, symbols + 1), -torch.inf)
    px = outside.scatter(2, ranges, write)[:, :, :-1].transpose(1, 2)  # (B, S, T)
    py = outside.scatter(2, ranges, blank).transpose(1, 2)  # (B, S+1, T)
    whole = mutual_information_recursion(end_writing(px, boundary) if regular else px, py, boundary, backend=backend)
    assert isinstance(whole, Tensor)
    return whole


def end_writing(px: Tensor, boundary: Tensor) -> Tensor:
    """px (B, S, T) of regular with a column more, (B, S, T+1): after the last blank nothing is written."""
    frames = torch.arange(px.shape[2] + 1, device=px.device)
    px = torch.nn.functional.pad(px, (0, 1), value=-torch.inf)
    return px.masked_fill(frames == boundary[:, 3].reshape(-1, 1, 1), -torch.inf)


def _check_boundary(boundary: Tensor, batch: int, symbols: int, frames: int) -> None:
    if boundary.shape != (batch, 4) or boundary.dtype != torch.int64:
        raise ValueError(f"boundary must be int64 ({batch}, 4), not {boundary.dtype} {tuple(boundary.shape)}")
    if boundary.device.type != "cpu":
        return
    begin, end = boundary[:, :2], boundary[:, 2:]  # (B, 2) each
    inside = (begin >= 0) & (begin <= end) & (end <= boundary.new_tensor([symbols, frames]))
    if not bool(inside.all()):
        raise ValueError(
            f"boundary must be within [0, 0, {symbols}, {frames}], ends not before begins: {boundary.tolist()}"
        )


class _LatticeScore(torch.autograd.Function):
    """scores = recursion(px, py). The gradient is the occupation probability of each arc, known after the forward."""

    @staticmethod
    def forward(ctx: FunctionCtx, px: Tensor, py: Tensor, recursion: Recursion) -> tuple[Tensor, ...]:
        scores, px_grad, py_grad = recursion(px, py)
        px_grad, py_grad = hardshrink(px_grad, NEGLIGIBLE), hardshrink(py_grad, NEGLIGIBLE)
        ctx.save_for_backward(px_grad, py_grad)
        ctx.mark_non_differentiable(px_grad, py_grad)
        return scores.clone(), px_grad, py_grad  # made in inference mode: autograd takes copies

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, score_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        px_grad, py_grad = ctx.saved_tensors  # type: ignore[attr-defined]
        weight = score_grad[:, None, None]  # (B, 1, 1)
        return px_grad * weight, py_grad * weight, None


def _k2_recursion(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k2's kernel, with the grads of unreachable utterances (undefined there) set to zero."""
    k2, _ = _import_k2()
    assert k2 is not None
    if px.shape[1] == 0 or px.shape[1] > py.shape[2]:  # refused by k2, or by its older versions
        return _native_recursion(px, py, boundary)
    scores, (px_grad, py_grad) = k2.mutual_information_recursion(
        px.contiguous(), py.contiguous(), boundary.contiguous(), return_grad=True
    )
    unreachable = (scores == -torch.inf)[:, None, None]
    return scores, px_grad.masked_fill(unreachable, 0.0), py_grad.masked_fill(unreachable, 0.0)


def _native_recursion(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if _runs_triton(px.device.type):
        import w2vbert.ops.rnnt_triton as rnnt_triton  # imports Triton, which wants a GPU or its interpreter

        return rnnt_triton.lattice_flow(px, py, boundary)
    return rnnt_native.lattice_flow(px, py, boundary)
