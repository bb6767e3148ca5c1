"""Which symbols the pruned RNN-T loss keeps on each frame, and the joiner's inputs cut to them.

Source: Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training" (2022), section 3; names and results as in
k2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from w2vbert.ops.lengths import send


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """Chooses, for each frame, the window of consecutive symbol positions that the pruned loss keeps.

    Args:
        px_grad: (B, S, T+1) for regular, (B, S, T) for modified and constrained: occupation probabilities of the
            symbols, from `rnnt_loss_simple` or `rnnt_loss_smoothed` with `return_grad=True`.
        py_grad: (B, S+1, T), the same for blanks.
        boundary: (B, 4) int64 [0, 0, symbols, frames]; begins other than 0 are not supported, as in k2. On the CPU it
            saves a wait for the GPU.
        s_range: positions to keep: at least 2 for regular, 1 for modified; constrained needs 2 to have any path.
    Returns:
        (B, T, r) int64, consecutive positions in 0..S. r is S+1 where s_range is larger, and larger than s_range where
        a regular batch has more symbols than s_range windows could pass (k2 >= 1.24.4).
    Raises:
        ValueError: s_range too small, or shapes that do not fit together.
    Deviation: a regular batch whose transcripts are all empty (S = 0) is served with r = 1; k2 refuses it.
    """
    B, S, T1 = px_grad.shape
    T = py_grad.shape[2]
    if py_grad.shape != (B, S + 1, T) or T1 not in (T, T + 1) or boundary.shape != (B, 4):
        shapes = f"{tuple(px_grad.shape)}, {tuple(py_grad.shape)}, {tuple(boundary.shape)}"
        raise ValueError(f"px_grad (B, S, T+1 or T), py_grad (B, S+1, T) and boundary (B, 4) do not fit: {shapes}")
    regular = T1 == T + 1
    if s_range < (2 if regular else 1):
        raise ValueError(f"s_range must be at least {2 if regular else 1} here, not {s_range}")
    if regular:  # step * (frames - 1) + r - 1 >= symbols, or no path would be left
        needed = torch.div(boundary[:, 2] - 1, boundary[:, 3].clamp(min=1), rounding_mode="trunc").max() + 2
        s_range = max(s_range, int(needed))
    s_range = min(s_range, S + 1)
    end_s, end_t = send(boundary[:, 2:], px_grad.device).split(1, dim=1)  # (B, 1) each

    blanks = py_grad.unfold(1, s_range, 1).sum(dim=3)  # (B, S+2-r, T)
    inflow = torch.zeros_like(blanks)
    inflow[:, 1:] = px_grad[:, : S + 1 - s_range, :T]
    start = torch.argmax(blanks - inflow, dim=1)  # (B, T), lowest on ties
    frames = torch.arange(T, device=px_grad.device)
    start = torch.where(frames < end_t - 1, start, (end_s - s_range + 1).clamp(min=0))
    start = _make_legal(start, step=s_range - 1 if regular else 1)
    return start.unsqueeze(2) + torch.arange(s_range, device=px_grad.device)  # (B, T, r)


def state_occupation(px_grad: Tensor, py_grad: Tensor, rnnt_type: str) -> tuple[Tensor, Tensor]:
    """Where the paths of a modified or constrained lattice stand, in the form that `get_rnnt_prune_ranges` reads.

    There a symbol uses up its frame, so that a frame's blanks alone do not sum to 1: where it surely emits a symbol
    they are rounding errors, k2's choice is arbitrary, and one low window pulls down all before it (decision 0019).
    Whatever a path takes from its position, it stands there.

    Deviation: k2 and icefall choose by the blanks in every lattice.

    Args:
        px_grad: (B, S, T), occupation probabilities of the symbols.
        py_grad: (B, S+1, T), of the blanks.
        rnnt_type: modified or constrained.
    Returns:
        Zeros like px_grad, and (B, S+1, T) probabilities that the loss reads a position on a frame. They sum to 1 for
        each frame; if constrained, a symbol reads the position after it, too, for its blank there.
    """
    read = py_grad + F.pad(px_grad, (0, 0, 0, 1))
    if rnnt_type == "constrained":
        read = read + F.pad(px_grad, (0, 0, 1, 0))
    return torch.zeros_like(px_grad), read


def _make_legal(start: Tensor, step: int) -> Tensor:
    """Windows that begin at 0, never go down and move up by at most `step` a frame, changed from the back. (B, T)"""
    ramp = step * torch.arange(start.shape[1], device=start.device)
    start = start.flip(1).cummin(dim=1).values.flip(1)
    start = (start - ramp).flip(1).cummax(dim=1).values.flip(1) + ramp
    return torch.minimum(start, ramp)


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts the joiner's projected inputs to the kept positions.

    Args:
        am: (B, T, D) from the encoder.
        lm: (B, S+1, D) from the prediction network.
        ranges: (B, T, r) int64 from `get_rnnt_prune_ranges`.
    Returns:
        am_pruned (B, T, r, D), a view of am repeated over r, and lm_pruned (B, T, r, D) with
        lm_pruned[b, t, j] = lm[b, ranges[b, t, j]].
    """
    B, T, r = ranges.shape
    S1 = lm.shape[1]
    if am.shape[:2] != (B, T) or lm.shape[0] != B:
        raise ValueError(
            f"am (B, T, D), lm (B, S+1, D) and ranges (B, T, r) do not fit: "
            f"{tuple(am.shape)}, {tuple(lm.shape)}, {tuple(ranges.shape)}"
        )
    am_pruned = am.unsqueeze(2).expand(B, T, r, am.shape[2])
    rows = ranges + S1 * torch.arange(B, device=ranges.device)[:, None, None]  # (B, T, r)
    lm_pruned = torch.nn.functional.embedding(rows, lm.reshape(B * S1, lm.shape[2]))  # (B, T, r, D)
    return am_pruned, lm_pruned
