"""The lattice recursion in plain PyTorch: scores forward, probability flow back.

Letters: B batch, S symbols, T frames, r kept positions a frame, D steps, W columns. Conventions of the lattice:
`rnnt_recursion.py`.

Points are worked on in steps: the anti-diagonal s + t = d (regular), or the frame t = d (modified, constrained). In
both, an arc that leaves (s, t) arrives at step t + 1 + slope * s, where slope is 1 for regular and 0 otherwise, and
comes from the step before: from the point s - 1 (a symbol) or s (a blank).

`arcs` (D, 2, W, B) holds arcs by the step and the column at which they arrive, symbols before blanks. The whole lattice
has a column for each s, and a last one where nothing arrives. Of a pruned lattice, whose windows never move down, a
step reaches at most r points, with consecutive s: they share a ring of r columns, point s in column s % r.
"""

import torch
from torch import Tensor


@torch.inference_mode()
def lattice_flow(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and occupation probabilities; arguments and results as in `rnnt_recursion`. Scores are summed in float64.

    Args:
        px: (B, S, T+1) for regular, (B, S, T) otherwise.
        py: (B, S+1, T).
        boundary: int64 (B, 4).

    Returns:
        scores (B,), px_grad and py_grad like px and py.
    """
    B, S, T = px.shape[0], px.shape[1], py.shape[2]
    slope = px.shape[2] - T
    px_outside, py_outside = _outside(px, py, boundary)
    arcs = px.new_full((T + 1 + slope * S, 2, S + 2, B), -torch.inf, dtype=torch.float64)
    for view, scores, outside in zip(_views(arcs, px, py), (px, py), (px_outside, py_outside), strict=True):
        view.copy_(scores.masked_fill(outside, -torch.inf))
    total = _flow(arcs, boundary, slope, px.dtype, ring=False)
    symbols, blanks = _views(arcs, px, py)
    px_grad, py_grad = torch.empty_like(px).copy_(symbols), torch.empty_like(py).copy_(blanks)
    return total.to(px.dtype), px_grad, py_grad.masked_fill_(py_outside, 0.0)


@torch.inference_mode()
def pruned_flow(
    write: Tensor, blank: Tensor, ranges: Tensor, boundary: Tensor, symbols: int, slope: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`lattice_flow` of a lattice of which only `ranges` is kept, from the arcs that leave the kept points.

    Args:
        write: (B, T, r), log-probabilities of the symbols.
        blank: (B, T, r), those of the blanks.
        ranges: int64 (B, T, r), of which `is_staircase` holds.
        boundary: int64 (B, 4).
        symbols: S.
        slope: 1 for regular, 0 otherwise.

    Returns:
        scores (B,), the grads of write and blank, like them.
    """
    B, T, r = ranges.shape
    arcs = write.new_full((T + 1 + slope * symbols, 2, r, B), -torch.inf, dtype=torch.float64)
    places = _places(ranges, boundary, slope)
    for place, scores in zip(places, (write, blank), strict=True):
        arcs.view(-1).scatter_(0, place.view(-1), scores.double().view(-1))
    total = _flow(arcs, boundary, slope, write.dtype, ring=True)
    write_grad, blank_grad = (arcs.view(-1)[place].to(write.dtype) for place in places)
    return total.to(write.dtype), write_grad, blank_grad


def is_staircase(ranges: Tensor, boundary: Tensor) -> bool:
    """Whether ranges (B, T, r) are windows of consecutive positions from 0 that never move down, as
    `get_rnnt_prune_ranges` makes them, and every utterance begins at the origin and has a frame."""
    start, first, frames = ranges[:, :, 0], boundary[:, :2], boundary[:, 3]
    consecutive = (ranges.diff(dim=2) == 1).all()
    upwards = (start[:, 0] == 0).all() & (start.diff(dim=1) >= 0).all()
    return bool(consecutive & upwards & (first == 0).all() & (frames > 0).all())


def _outside(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, Tensor]:
    """Which arcs of px and py do not lie within the boundary: bool, like px and py."""
    begin_s, begin_t, end_s, end_t = (column[:, None, None] for column in boundary.unbind(1))  # (B, 1, 1) each
    s, t = torch.arange(py.shape[1], device=px.device)[:, None], torch.arange(px.shape[2], device=px.device)
    rows, columns = (s >= begin_s) & (s <= end_s), (t >= begin_t) & (t < end_t)  # (B, S+1, 1), (B, 1, T+1 or T)
    symbol_rows = rows[:, :-1] & (s[:-1] < end_s)
    symbol_columns = (t >= begin_t) & (t < end_t + px.shape[2] - py.shape[2])
    return ~(symbol_rows & symbol_columns), ~(rows & columns[:, :, : py.shape[2]])


def _views(arcs: Tensor, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Views of arcs (D, 2, W, B) of the whole lattice that are laid out like px and py."""
    _, _, W, B = arcs.shape
    step = 2 * W * B
    strides = (1, step * (px.shape[2] - py.shape[2]) + B, step)
    return arcs.as_strided(px.shape, strides, step + B), arcs.as_strided(py.shape, strides, step + W * B)


def _places(ranges: Tensor, boundary: Tensor, slope: int) -> tuple[Tensor, Tensor]:
    """Where the symbol and the blank that leave each kept point (B, T, r) arrive, as indices of flattened arcs.

    An arc that lies outside the boundary or leads to a point that is not kept gets a place at step 0, where nothing
    arrives. On the frame after the last, only the end is kept.
    """
    B, T, r = ranges.shape
    end_s, end_t = boundary[:, 2, None, None], boundary[:, 3, None, None]  # (B, 1, 1)
    t = torch.arange(T, device=ranges.device)[:, None]  # (T, 1)
    start = ranges[:, :, :1]  # (B, T, 1)
    next_start = torch.where(t + 1 == end_t, end_s, torch.cat((start[:, 1:], start[:, -1:]), dim=1))
    inside = (ranges <= end_s) & (t < end_t)
    to_start = start if slope else next_start  # of the window that a symbol leads to
    written = ranges + 1
    writes = inside & (written <= end_s) & (written >= to_start) & (written < to_start + r)
    blanks = inside & (ranges >= next_start)
    place = 2 * r * B * (t + 1 + slope * ranges) + torch.arange(B, device=ranges.device)[:, None, None]
    return (place + B * (written % r)) * writes, (place + B * (r + ranges % r)) * blanks


def _flow(arcs: Tensor, boundary: Tensor, slope: int, dtype: torch.dtype, ring: bool) -> Tensor:
    """Scores (B,). In arcs, the probabilities that a path takes them take the place of their scores; 0 at step 0.

    dtype is of the shares that a point's symbols and blanks have in its probability.
    """
    W = arcs.shape[2]
    begin, end = boundary[:, 0] % W, boundary[:, 2] % W  # columns (B,)
    _join_ends(arcs, boundary, begin, end, slope)
    total = _forward(arcs, begin, end, ring)
    share = (arcs[:, 0] - arcs[:, 1]).to(dtype).sigmoid_().nan_to_num_(0.0)  # a point that is not reached has none
    arcs[:, 0] = share
    torch.sub(1.0, arcs[:, 0], out=arcs[:, 1])
    at_end = torch.where(total == -torch.inf, 0.0, 1.0 + 0.0 * total)  # NaN where the score is
    _backward(arcs, end, at_end, ring)
    return total


def _join_ends(arcs: Tensor, boundary: Tensor, begin: Tensor, end: Tensor, slope: int) -> None:
    """Leads from the first step to every utterance's begin, and from its end to the last step, by blanks of score 0.

    So all utterances begin and end together, whatever their boundaries.
    """
    step = torch.arange(arcs.shape[0], device=arcs.device)[:, None]
    begin_s, begin_t, end_s, end_t = boundary.unbind(1)
    before, after = step <= begin_t + slope * begin_s, step > end_t + slope * end_s  # (D, B)
    blanks = arcs[:, 1]
    for column, outside in ((begin, before), (end, after)):
        index = column.expand(outside.shape).unsqueeze(1)  # (D, 1, B)
        blanks.scatter_(1, index, blanks.gather(1, index).masked_fill(outside.unsqueeze(1), 0.0))


def _forward(arcs: Tensor, begin: Tensor, end: Tensor, ring: bool) -> Tensor:
    """Scores (B,) of all paths from begin to end. Adds to every arc the score of the point that it comes from."""
    _, _, W, B = arcs.shape
    scores = arcs.new_full((W + 1, B), -torch.inf)  # column w in row w + 1; in row 0, in a ring, the last once more
    scores[1:].scatter_(0, begin[None], 0.0)
    origins, points = scores.as_strided((2, W, B), (B, B, 1)), scores[1:]
    before, last = scores[0], scores[W]
    steps, by_symbol, by_blank = arcs.unbind(0), arcs[:, 0].unbind(0), arcs[:, 1].unbind(0)
    for d in range(1, len(steps)):
        if ring:
            before.copy_(last)
        steps[d].add_(origins)
        torch.logaddexp(by_symbol[d], by_blank[d], out=points)
    return points.gather(0, end[None]).squeeze(0)


def _backward(arcs: Tensor, end: Tensor, at_end: Tensor, ring: bool) -> None:
    """Turns arcs, which hold the share of each in the probability of the point where it arrives, into probabilities.

    The probability `at_end` (B,) flows back: a point's is the sum over the arcs that leave it.
    """
    _, _, W, B = arcs.shape
    points = arcs.new_zeros(W, B).scatter_(0, end[None], at_end[None])
    left, last = points[:-1], points[-1]
    by_symbol, by_blank = arcs[:, 0], arcs[:, 1]
    steps, symbols, blanks = arcs.unbind(0), by_symbol[:, 1:].unbind(0), by_blank[:, :-1].unbind(0)
    around = (by_symbol[:, 0].unbind(0), by_blank[:, -1].unbind(0)) if ring else None
    for d in range(len(steps) - 1, 0, -1):
        steps[d].mul_(points)
        torch.add(symbols[d], blanks[d], out=left)
        if around:
            torch.add(around[0][d], around[1][d], out=last)
    arcs[0] = 0.0
