"""The lattice recursion as two Triton kernels, one program an utterance.

Importing it needs a GPU, or the variable TRITON_INTERPRET=1 for Triton's interpreter.

Letters: B batch, S symbols, T frames. Conventions of the lattice: `rnnt_recursion.py`.

A program goes through its lattice row by row (s), with a lane for each column u = t - lean * s, where lean is 0 for
regular and 1 for modified and constrained: in both, a symbol leads straight to the next row of the same lane, and a
blank to the next lane. So a row is a first-order recurrence along u, one parallel scan; rows are read and written
coalesced, the last row stays in registers, and there are S + 1 steps in place of the S + T anti-diagonals.

The forward stores, for each point, the share of its probability that arrives by a symbol. The backward passes the
probability 1 from the end to the begin by these shares: nothing is lost on the way, whatever the rounding of the
scores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LANES_PER_WARP = 128  # each thread holds four neighbouring lanes
_MAX_WARPS = 16
_ANY = ["S", "T", "px_frames"]  # one kernel for all of their values: else it would be compiled anew for 1, 16, 32 ...


def lattice_flow(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and occupation probabilities; arguments and results as in `rnnt_recursion`.

    Args:
        px: (B, S, T+1) for regular, (B, S, T) otherwise; float64 is computed in float64, all else in float32.
        py: (B, S+1, T).
        boundary: int64 (B, 4); what lies outside [0, 0, S, T] is not looked at.

    Returns:
        scores (B,), px_grad and py_grad like px and py.
    """
    B, S, px_frames = px.shape
    T = py.shape[2]
    px, py, boundary = px.contiguous(), py.contiguous(), boundary.to(px.device).contiguous()
    dtype = torch.float64 if px.dtype == torch.float64 else torch.float32
    scores, shares = px.new_empty(B, dtype=dtype), px.new_empty(B, S + 1, T + 1, dtype=dtype)
    px_grad, py_grad = torch.zeros_like(px), torch.zeros_like(py)
    lanes = triton.next_power_of_2(T + 1)
    options = {"LEAN": T + 1 - px_frames, "LANES": lanes, "num_warps": count_warps(lanes)}
    with torch.cuda.device_of(px):
        _forward[(B,)](px, py, boundary, scores, shares, S, T, px_frames, **options)
        _backward[(B,)](shares, scores, boundary, px_grad, py_grad, S, T, px_frames, **options)
    return scores.to(px.dtype), px_grad, py_grad


def count_warps(lanes: int) -> int:
    """Warps of the program that has so many lanes, a power of 2."""
    return max(1, min(lanes // _LANES_PER_WARP, _MAX_WARPS))


@triton.jit
def _log_chain(blank, score, next_blank, next_score):  # type: ignore[no-untyped-def]
    """Two neighbouring stretches of `score[u] = logadd(score[u-1] + blank[u], score[u])` as one."""
    arrived = score + next_blank
    unreachable = (arrived == float("-inf")) & (next_score == float("-inf"))
    total = tl.maximum(arrived, next_score) + tl.log(1.0 + tl.exp(-tl.abs(arrived - next_score)))
    return blank + next_blank, tl.where(unreachable, float("-inf"), total)


@triton.jit
def _chain(share, flow, next_share, next_flow):  # type: ignore[no-untyped-def]
    """Two neighbouring stretches of `flow[i] = flow[i-1] * share[i] + flow[i]` as one."""
    return share * next_share, flow * next_share + next_flow


@triton.jit
def _bounds(boundary, utterance, S, T):  # type: ignore[no-untyped-def]
    """begin_s, begin_t, and the numbers of symbols and frames, within the tensors; int32."""
    begin_s = tl.maximum(tl.load(boundary + utterance * 4), 0).to(tl.int32)
    begin_t = tl.maximum(tl.load(boundary + utterance * 4 + 1), 0).to(tl.int32)
    end_s = tl.minimum(tl.load(boundary + utterance * 4 + 2), S).to(tl.int32)
    end_t = tl.minimum(tl.load(boundary + utterance * 4 + 3), T).to(tl.int32)
    return begin_s, begin_t, end_s - begin_s, end_t - begin_t


@triton.jit(do_not_specialize=_ANY)
def _forward(px, py, boundary, scores, shares, S, T, px_frames, LEAN: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """scores (B,), and shares (B, S+1, T+1): of point (s, u), the part that arrived by a symbol."""
    utterance = tl.program_id(0).to(tl.int64)
    begin_s, begin_t, symbols, frames = _bounds(boundary, utterance, S, T)
    last = frames - LEAN * symbols  # the end's lane; below 0: more symbols than frames
    lane = tl.arange(0, LANES)
    inside = lane <= last
    px += (utterance * S + begin_s) * px_frames + begin_t  # of lane 0 in the row; a pointer a lane would need registers
    py += (utterance * (S + 1) + begin_s) * T + begin_t - 1
    shares += utterance * (S + 1) * (T + 1)
    score = tl.full((LANES,), float("-inf"), scores.dtype.element_ty)
    arriving = tl.where(lane == 0, 0.0, score)
    left = symbols
    while left >= 0:
        blank = tl.load(py + lane, mask=inside & (lane > 0), other=float("-inf")).to(score.dtype)
        _, score = tl.associative_scan((blank, arriving), 0, _log_chain)
        share = tl.where(arriving == float("-inf"), 0.0, tl.exp(arriving - score))
        tl.store(shares + lane, share, mask=inside)
        symbol = tl.load(px + lane, mask=inside & (left > 0), other=float("-inf")).to(score.dtype)
        arriving = score + symbol
        px += px_frames + LEAN
        py += T + LEAN
        shares += T + 1
        left -= 1
    tl.store(scores + utterance, float("-inf"), mask=last < 0)
    tl.store(scores + utterance + lane * 0, score, mask=lane == last)


@triton.jit(do_not_specialize=_ANY)
def _backward(shares, scores, boundary, px_grad, py_grad, S, T, px_frames, LEAN: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """px_grad, py_grad: the probability of each arc; what lies outside the boundary, or cannot be reached, stays 0."""
    utterance = tl.program_id(0).to(tl.int64)
    begin_s, begin_t, symbols, frames = _bounds(boundary, utterance, S, T)
    last = frames - LEAN * symbols
    lane = last - tl.arange(0, LANES)  # from the end, so that the scan runs to the begin
    inside = lane >= 0
    shares += (utterance * (S + 1) + symbols) * (T + 1)
    column = begin_t + LEAN * symbols
    px_grad += (utterance * S + begin_s + symbols - 1) * px_frames + column - LEAN
    py_grad += (utterance * (S + 1) + begin_s + symbols) * T + column
    at_end = tl.where(tl.load(scores + utterance) == float("-inf"), 0.0, 1.0)
    by_symbol = tl.where(lane == last, at_end, 0.0).to(scores.dtype.element_ty)
    s = symbols
    while s >= 0:
        by_blank = 1.0 - tl.load(shares + lane + 1, mask=inside & (lane < last), other=1.0)
        _, flow = tl.associative_scan((by_blank, by_symbol), 0, _chain)
        blank = tl.maximum(flow - by_symbol, 0.0).to(py_grad.dtype.element_ty)
        tl.store(py_grad + lane, blank, mask=inside & (lane < last))
        by_symbol = flow * tl.load(shares + lane, mask=inside, other=0.0)
        tl.store(px_grad + lane, by_symbol.to(px_grad.dtype.element_ty), mask=inside & (s > 0))
        shares -= T + 1
        px_grad -= px_frames + LEAN
        py_grad -= T + LEAN
        s -= 1
