"""The lattice recursion in plain PyTorch: scores forward, probability flow back.

Letters: B batch, S symbols, T frames, D steps, W columns. Conventions of the lattice: `rnnt_recursion.py`.

Points are worked on in steps: the anti-diagonal s + t = d (regular), or the frame t = d (modified, constrained). In
both, an arc that leaves (s, t) arrives at step t + 1 + slope * s, where slope is 1 for regular and 0 otherwise, and
comes from the step before: from the point s - 1 (a symbol) or s (a blank).
"""

import torch
from torch import Tensor


def lattice_flow(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and occupation probabilities; arguments and results as in `rnnt_recursion`. Scores are summed in float64.

    Args:
        px: (B, S, T+1) for regular, (B, S, T) otherwise.
        py: (B, S+1, T).
        boundary: int64 (B, 4).

    Returns:
        scores (B,), px_grad and py_grad like px and py.
    """
    px_outside, py_outside = _outside(px, py, boundary)
    arcs = px.new_full(_shape(px, py), -torch.inf)
    symbols, blanks = _views(arcs, px, py)
    symbols.copy_(px).masked_fill_(px_outside, -torch.inf)
    blanks.copy_(py).masked_fill_(py_outside, -torch.inf)
    _join_ends(arcs, boundary, slope=px.shape[2] - py.shape[2])

    begin_s, end_s = boundary[:, :1], boundary[:, 2:3]
    total = _forward(arcs, begin_s, end_s)
    at_end = torch.where(total == -torch.inf, 0.0, 1.0 + 0.0 * total)  # NaN where the score is
    _backward(arcs, end_s, at_end.to(arcs.dtype))
    px_grad, py_grad = torch.empty_like(px).copy_(symbols), torch.empty_like(py).copy_(blanks)
    return total.squeeze(1).to(px.dtype), px_grad, py_grad.masked_fill_(py_outside, 0.0)


def _outside(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor]:
    """Which arcs of px and py do not lie within the boundary: bool, like px and py."""
    begin_s, begin_t, end_s, end_t = (column[:, None, None] for column in boundary.unbind(1))  # (B, 1, 1) each
    s, t = torch.arange(py.shape[1], device=px.device)[:, None], torch.arange(px.shape[2], device=px.device)
    rows, columns = (s >= begin_s) & (s <= end_s), (t >= begin_t) & (t < end_t)  # (B, S+1, 1), (B, 1, T+1 or T)
    symbol_rows = rows[:, :-1] & (s[:-1] < end_s)
    symbol_columns = (t >= begin_t) & (t < end_t + px.shape[2] - py.shape[2])
    return ~(symbol_rows & symbol_columns), ~(rows & columns[:, :, : py.shape[2]])


def _shape(px: Tensor, py: Tensor) -> tuple[int, int, int, int]:
    """(D, 2, B, W): arcs by the step and the point at which they arrive, symbols before blanks; the last of the W = S+2
    points does not exist, and nothing arrives there."""
    B, S, px_frames = px.shape
    slope = px_frames - py.shape[2]
    return py.shape[2] + 1 + slope * S, 2, B, S + 2


def _views(arcs: Tensor, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Views of arcs (D, 2, B, W) that are laid out like px and py."""
    _, _, B, W = arcs.shape
    step = 2 * B * W
    strides = (W, step * (px.shape[2] - py.shape[2]) + 1, step)
    return arcs.as_strided(px.shape, strides, step + 1), arcs.as_strided(py.shape, strides, step + B * W)


def _join_ends(arcs: Tensor, boundary: Tensor, slope: int) -> None:
    """Leads from the first step to every utterance's begin, and from its end to the last step, by blanks of score 0.

    So all utterances begin and end together, whatever their boundaries.
    """
    step = torch.arange(arcs.shape[0], device=arcs.device)[:, None]
    begin_s, begin_t, end_s, end_t = boundary.unbind(1)
    before, after = step <= begin_t + slope * begin_s, step > end_t + slope * end_s  # (D, B)
    blanks = arcs[:, 1]
    for row, outside in ((begin_s, before), (end_s, after)):
        index = row[:, None].expand(*outside.shape, 1)  # (D, B, 1)
        blanks.scatter_(2, index, blanks.gather(2, index).masked_fill(outside.unsqueeze(2), 0.0))


def _forward(arcs: Tensor, begin_s: Tensor, end_s: Tensor) -> Tensor:
    """Scores (B, 1) of all paths from begin to end, float64.

    In place of the symbol arcs leaves, for each point, the log of the odds that it was reached by a symbol.
    """
    D, _, B, W = arcs.shape
    scores = arcs.new_full((B, W + 1), -torch.inf, dtype=torch.float64)  # point s in column s+1; none before s = 0
    scores.scatter_(1, begin_s + 1, 0.0)
    origins, points = scores.as_strided((2, B, W), (1, W + 1, 1)), scores[:, 1:]
    arrived = torch.empty_like(origins, memory_format=torch.contiguous_format)
    by_symbol, by_blank = arrived.unbind(0)
    steps, log_odds = arcs.unbind(0), arcs[:, 0].unbind(0)
    for d in range(1, D):
        torch.add(origins, steps[d], out=arrived)
        torch.logaddexp(by_symbol, by_blank, out=points)
        torch.sub(by_symbol, by_blank, out=log_odds[d])
    return points.gather(1, end_s)


def _backward(arcs: Tensor, end_s: Tensor, at_end: Tensor) -> None:
    """Turns arcs (D, 2, B, W), as `_forward` leaves them, into the probabilities that a path takes them.

    The probability `at_end` (B, 1) flows back: a point's is the sum over the arcs that leave it, and is split among
    those that arrive, so that none is lost by rounding. Points that cannot be reached have no odds, and nothing flows
    there.
    """
    D, _, B, W = arcs.shape
    arcs[:, 0].sigmoid_().nan_to_num_(0.0)
    flow = arcs.new_zeros(B, W).scatter_(1, end_s, at_end)
    target = flow[:, :-1]
    by_symbol, by_blank = arcs[:, 0].unbind(0), arcs[:, 1].unbind(0)
    symbol_left, blank_left = arcs[:, 0, :, 1:].unbind(0), arcs[:, 1, :, :-1].unbind(0)
    for d in range(D - 1, 0, -1):
        torch.mul(by_symbol[d], flow, out=by_symbol[d])
        torch.sub(flow, by_symbol[d], out=by_blank[d])
        torch.add(symbol_left[d], blank_left[d], out=target)
