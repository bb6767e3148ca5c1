"""The lattice recursion under every RNN-T loss, by k2's compiled kernel or by plain PyTorch.

Letters: B batch, S symbols, T frames. A lattice point (s, t) means s symbols written and t frames read.
"""

import importlib
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

BACKENDS = ("auto", "k2", "native")


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
    return f"{'native' if module is None else 'k2'}: {reason}"


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
    if boundary.shape != (B, 4) or boundary.dtype != torch.int64:
        raise ValueError(f"boundary must be int64 ({B}, 4), not {boundary.dtype} {tuple(boundary.shape)}")
    if boundary.device.type == "cpu" and not bool(_is_inside(boundary, S, T)):
        raise ValueError(f"boundary must be within [0, 0, {S}, {T}], ends not before begins: {boundary.tolist()}")
    scores, px_grad, py_grad = _LatticeScore.apply(px, py, boundary, get_backend(backend))
    return (scores, (px_grad, py_grad)) if return_grad else scores


def _is_inside(boundary: Tensor, symbols: int, frames: int) -> Tensor:
    begin, end = boundary[:, :2], boundary[:, 2:]  # (B, 2) each
    return ((begin >= 0) & (begin <= end) & (end <= boundary.new_tensor([symbols, frames]))).all()


class _LatticeScore(torch.autograd.Function):
    """scores = recursion(px, py). The gradient is the occupation probability of each arc, known after the forward."""

    @staticmethod
    def forward(ctx: FunctionCtx, px: Tensor, py: Tensor, boundary: Tensor, backend: str) -> tuple[Tensor, ...]:
        recursion = _k2_recursion if backend == "k2" else _native_recursion
        scores, px_grad, py_grad = recursion(px, py, boundary)
        ctx.save_for_backward(px_grad, py_grad)
        ctx.mark_non_differentiable(px_grad, py_grad)
        return scores, px_grad, py_grad

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, score_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        px_grad, py_grad = ctx.saved_tensors  # type: ignore[attr-defined]
        weight = score_grad[:, None, None]  # (B, 1, 1)
        return px_grad * weight, py_grad * weight, None, None


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
    """The same in plain PyTorch: alpha and beta in one loop over the steps of the lattice, in float64.

    A step is an anti-diagonal s + t = d (regular) or a frame t = d (modified, constrained); in both, the arcs that
    arrive at step d start at step d-1, at s-1 (symbol) and s (blank). Beta is the same recursion on the lattice
    read from its end, so both run together as a batch of 2B. Arcs outside the boundary are -inf.
    """
    B, S, _ = px.shape
    steps, arc_index = _step_index(px.shape[2], py.shape, boundary)
    outside = px.new_full((1,), -torch.inf)
    flat = torch.cat([px.flatten(), py.flatten(), outside]).double()
    # (D, 2, 2B, S+1): symbol and blank arcs that arrive at each point; index_select is many times faster than flat[...]
    arcs = flat.index_select(0, arc_index.flatten()).view(arc_index.shape)

    # score[d, :, s+1] is point s of step d; column 0 stays -inf, so that no symbol arrives at s = 0.
    score = arcs.new_full((steps, 2 * B, S + 2), -torch.inf)
    score[0, :, 1] = 0.0
    width = S + 2
    origins = score.as_strided((steps, 2, 2 * B, S + 1), (2 * B * width, 1, width, 1)).unbind(0)
    targets = score[:, :, 1:].unbind(0)
    sums = arcs.unbind(0)
    by_symbol, by_blank = arcs[:, 0].unbind(0), arcs[:, 1].unbind(0)
    for d in range(1, steps):
        torch.add(origins[d - 1], sums[d], out=sums[d])
        torch.logaddexp(by_symbol[d], by_blank[d], out=targets[d])
    return _occupation(score, arcs, px, py, boundary)


def _step_index(px_frames: int, py_shape: torch.Size, boundary: Tensor) -> tuple[int, Tensor]:
    """Number of steps D and, for each (step, kind, direction and utterance, s), the flat index of the arriving arc.

    Returns:
        (D, index int64 (D, 2, 2B, S+1)) into [px, py, -inf] flattened; kind 0 is a symbol, 1 a blank; the first B
        entries of the batch are read from the begin, the others from the end.
    """
    B, S1, T = py_shape
    S, regular = S1 - 1, px_frames == T + 1
    steps = T + 1 + (S if regular else 0)
    device = boundary.device
    begin_s, begin_t, end_s, end_t = boundary.unbind(1)
    s = torch.arange(S1, device=device)
    d = torch.arange(steps, device=device)[:, None, None]
    t = d - s if regular else d.expand(steps, 1, S1)  # (D, 1, S+1)
    size_s, size_t = (end_s - begin_s).repeat(2)[:, None], (end_t - begin_t).repeat(2)[:, None]  # (2B, 1)
    inside = (s <= size_s) & (t >= 0) & (t <= size_t)  # (D, 2B, S+1)

    # Local (s, t) counts from the begin (sign 1) or from the end (sign -1) of the utterance.
    sign = torch.tensor([1, -1], device=device).repeat_interleave(B)[:, None]
    utterance = torch.arange(B, device=device).repeat(2)[:, None]
    symbol_from = 0 if regular else 1  # frames that a symbol uses up
    row_x, column_x = torch.cat([begin_s - 1, end_s])[:, None], torch.cat([begin_t - symbol_from, end_t])[:, None]
    row_y, column_y = torch.cat([begin_s, end_s])[:, None], torch.cat([begin_t - 1, end_t])[:, None]
    index_x = (s * px_frames + t) * sign + ((utterance * S + row_x) * px_frames + column_x)
    index_y = (s * T + t) * sign + ((utterance * S1 + row_y) * T + column_y) + B * S * px_frames
    nothing = B * S * px_frames + B * S1 * T
    index_x = index_x.masked_fill(~(inside & (s >= 1) & (t >= symbol_from)), nothing)
    index_y = index_y.masked_fill(~(inside & (t >= 1)), nothing)
    return steps, torch.stack([index_x, index_y], dim=1)


def _occupation(
    score: Tensor, arc_and_rest: Tensor, px: Tensor, py: Tensor, boundary: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Total scores (B,), and exp(alpha + arc + beta - total) in the shapes and types of px and py.

    Args:
        score: (D, 2B, S+2) alpha and beta, point s in column s+1.
        arc_and_rest: (D, 2, 2B, S+1); its second half of the batch holds arc + beta of the point that the arc leaves.
    """
    B, S, px_frames = px.shape
    T = py.shape[2]
    slope = 1 if px_frames == T + 1 else 0  # steps taken by a symbol without its frame
    begin_s, begin_t, end_s, end_t = (column[:, None, None] for column in boundary.unbind(1))  # (B, 1, 1)
    utterance = torch.arange(B, device=px.device)[:, None, None]
    size_s, size_t = end_s - begin_s, end_t - begin_t
    last = ((size_t + slope * size_s) * 2 * B + utterance) * (S + 2) + size_s + 1
    total = score.flatten()[last.clamp(0, score.numel() - 1)]  # (B, 1, 1)

    s = torch.arange(S + 1, device=px.device)[:, None]
    t = torch.arange(px_frames, device=px.device)
    from_begin_s, from_begin_t, to_end_s, to_end_t = s - begin_s, t - begin_t, end_s - s, end_t - t
    inside = (from_begin_s >= 0) & (from_begin_t >= 0) & (to_end_s >= 0) & (to_end_t >= 0)
    inside = inside & (total != -torch.inf)  # (B, S+1, T+1 or T)
    alpha_at = ((from_begin_t + slope * from_begin_s) * 2 * B + utterance) * (S + 2) + from_begin_s + 1
    rest_at = ((to_end_t + slope * to_end_s) * 4 * B + B + utterance) * (S + 1) + to_end_s
    alpha = _pick(score, alpha_at, inside) - total  # (B, S+1, T+1 or T)
    symbol_inside, blank_inside = inside[:, :S], inside[:, :, :T]
    symbol_rest = _pick(arc_and_rest, rest_at[:, :S], symbol_inside)
    blank_rest = _pick(arc_and_rest, rest_at[:, :, :T] + 2 * B * (S + 1), blank_inside)
    by_symbol = (alpha[:, :S] + symbol_rest).exp_().masked_fill_(~symbol_inside, 0.0)
    by_blank = (alpha[:, :, :T] + blank_rest).exp_().masked_fill_(~blank_inside, 0.0)
    return total[:, 0, 0].to(px.dtype), by_symbol.to(px.dtype), by_blank.to(py.dtype)


def _pick(values: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    """values flattened, at index; anything where not inside."""
    return values.flatten().index_select(0, index.masked_fill(~inside, 0).flatten()).view(index.shape)
