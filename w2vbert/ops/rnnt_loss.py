"""RNN-T losses with the names, arguments and results of k2: simple, smoothed, pruned and full.

Letters: B batch, S symbols, T frames, C classes (with the blank), r kept symbol positions a frame.
A `boundary` is int64 (B, 4) [begin_s, begin_t, end_s, end_t], ends exclusive; in training [0, 0, symbols, frames].
`rnnt_type` is "regular" (any number of symbols on a frame), "modified" (a symbol uses up its frame) or "constrained"
(modified, and the frame of a symbol also pays for a blank in the new context).

An utterance whose end cannot be reached (modified and constrained: more symbols than frames; pruned: a range too
narrow) has the loss +inf and a gradient of exactly zero. Find such utterances with `torch.isinf(loss)` under
`reduction="none"`.

Sources: Graves, "Sequence transduction with recurrent neural networks" (2012); Kuang et al., "Pruned RNN-T for fast,
memory-efficient ASR training" (2022); HAT: Variani et al., "Hybrid autoregressive transducer" (2020).
Deviation: k2's arguments are kept, so some functions here take more than eight.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from w2vbert.ops.rnnt_pruning import do_rnnt_pruning, get_rnnt_prune_ranges, state_occupation
from w2vbert.ops.rnnt_recursion import (
    NEGLIGIBLE,
    backend_reason,
    end_writing,
    full_boundary,
    get_backend,
    mutual_information_recursion,
    pruned_recursion,
)

__all__ = [
    "backend_reason",
    "do_rnnt_pruning",
    "get_backend",
    "get_rnnt_prune_ranges",
    "mutual_information_recursion",
    "rnnt_loss",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
    "state_occupation",
]

RNNT_TYPES = ("regular", "modified", "constrained")
REDUCTIONS = ("none", "mean", "sum")

# The largest piece of logits, in elements, that is worked on at a time: fits a CPU's cache, fills a GPU.
_CPU_BLOCK_ELEMENTS = 2**17
_GPU_BLOCK_ELEMENTS = 2**25

LossAndGrads = tuple[Tensor, tuple[Tensor, Tensor]]


def rnnt_loss_simple(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
    backend: str = "auto",
) -> Tensor | LossAndGrads:
    """The RNN-T loss of the joiner `am[t] + lm[s]`, in memory of order B*(S*T + (S+T)*C).

    Args:
        lm: (B, S+1, C) scores from the prediction network, not normalised.
        am: (B, T, C) scores from the encoder, not normalised.
        symbols: (B, S) int64; the value of padding does not matter.
        termination_symbol: id of the blank, 0..C-1.
        boundary: see the module; None means [0, 0, S, T].
        rnnt_type: "regular", "modified" or "constrained".
        delay_penalty: adds `delay_penalty * ((end_t - 1) / 2 - t)` to the score of a symbol on frame t, so that early
            is better; 0 or more.
        reduction: "none", "sum", or "mean" over utterances.
        return_grad: also return the occupation probabilities that `get_rnnt_prune_ranges` takes.
        backend: "auto", "k2" or "native".
    Returns:
        The loss, () or (B,); with return_grad (loss, (px_grad (B, S, T+1 or T), py_grad (B, S+1, T))).
    Raises:
        ValueError: unknown names, or shapes that do not fit together.
    """
    scales = (0.0, 0.0)
    px, py, boundary = _additive_arcs(lm, am, symbols, termination_symbol, boundary, scales)
    return _lattice_loss(px, py, boundary, rnnt_type, delay_penalty, reduction, return_grad, backend)


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
    backend: str = "auto",
) -> Tensor | LossAndGrads:
    """`rnnt_loss_simple` with log-probs mixed with those of the prediction network alone and the encoder alone.

    Each arc has `(1 - l - a) * simple + l * lm_only + a * am_only`. The encoder alone is normalised with the batch's
    mean prediction, over padding too: with am_only_scale > 0 an utterance's loss depends on the rest of its batch.

    Args:
        lm_only_scale: l, 0..1.
        am_only_scale: a, 0..1.
        The others, what is returned and what is raised: as in `rnnt_loss_simple`.
    """
    scales = (lm_only_scale, am_only_scale)
    px, py, boundary = _additive_arcs(lm, am, symbols, termination_symbol, boundary, scales)
    return _lattice_loss(px, py, boundary, rnnt_type, delay_penalty, reduction, return_grad, backend)


def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """The RNN-T loss over the full lattice.

    Args:
        logits: (B, T, S+1, C) from the joiner, not normalised.
        The others: as in `rnnt_loss_simple`.
    Returns:
        The loss, () or (B,).
    """
    B, T, S1, C = logits.shape
    _check(B, T, symbols, C, termination_symbol)
    if symbols.shape[1] + 1 != S1:
        raise ValueError(f"logits {tuple(logits.shape)} must have S+1 rows for symbols {tuple(symbols.shape)}")
    boundary = _boundary_or_full(boundary, symbols, T)
    next_symbol = _next_symbol(symbols, boundary, termination_symbol).unsqueeze(1).expand(B, T, S1)
    write, blank = _arc_logprobs(logits, next_symbol, termination_symbol, use_hat_loss=False)  # (B, T, S+1) each
    px, py = write[:, :, : S1 - 1].transpose(1, 2), blank.transpose(1, 2)  # (B, S, T), (B, S+1, T)
    loss = _lattice_loss(px, py, boundary, rnnt_type, delay_penalty, reduction, False, backend)
    assert isinstance(loss, Tensor)
    return loss


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    use_hat_loss: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The RNN-T loss over the kept positions of the lattice; with ranges of width S+1 equal to `rnnt_loss`.

    Args:
        logits: (B, T, r, C) from the joiner on what `do_rnnt_pruning` returns, not normalised.
        ranges: (B, T, r) int64 from `get_rnnt_prune_ranges`; no gradient flows through them.
        use_hat_loss: the blank is a Bernoulli of its own, `sigmoid(logits[0])`, apart from the softmax of the others;
            needs termination_symbol 0.
        The others: as in `rnnt_loss_simple`.
    Returns:
        The loss, () or (B,).
    """
    B, T, r, C = logits.shape
    _check(B, T, symbols, C, termination_symbol)
    if ranges.shape != (B, T, r):
        raise ValueError(f"ranges must be (B, T, r) like logits {tuple(logits.shape)}, not {tuple(ranges.shape)}")
    if use_hat_loss and termination_symbol != 0:
        raise ValueError(f"use_hat_loss needs termination_symbol 0, not {termination_symbol}")
    _check_options(rnnt_type, delay_penalty, reduction)
    boundary = _boundary_or_full(boundary, symbols, T)
    next_symbol = _next_symbol(symbols, boundary, termination_symbol)  # (B, S+1)
    kept = next_symbol.gather(1, ranges.reshape(B, T * r)).view(B, T, r)
    write, blank = _arc_logprobs(logits, kept, termination_symbol, use_hat_loss)  # (B, T, r) each
    if rnnt_type == "constrained":
        write = write + torch.nn.functional.pad(blank[:, :, 1:], (0, 1), value=-torch.inf)
    if delay_penalty > 0.0:
        write = write + _delay(write, boundary, T, delay_penalty).unsqueeze(2)
    regular = rnnt_type == "regular"
    return _reduced(-pruned_recursion(write, blank, ranges, symbols.shape[1], boundary, regular, backend), reduction)


def _check(B: int, T: int, symbols: Tensor, C: int, blank: int) -> None:
    if not 0 <= blank < C:
        raise ValueError(f"termination_symbol must be in 0..{C - 1}, not {blank}")
    if symbols.dim() != 2 or symbols.shape[0] != B or symbols.dtype != torch.int64:
        raise ValueError(f"symbols must be int64 ({B}, S), not {symbols.dtype} {tuple(symbols.shape)}")
    if T < 1:
        raise ValueError("there must be at least one frame")


def _boundary_or_full(boundary: Tensor | None, symbols: Tensor, frames: int) -> Tensor:
    if boundary is None:
        return full_boundary(symbols.shape[0], symbols.shape[1], frames, symbols.device)
    if boundary.shape != (symbols.shape[0], 4):
        raise ValueError(f"boundary must be ({symbols.shape[0]}, 4), not {tuple(boundary.shape)}")
    return boundary


def _at_least_float32(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def _clean_symbols(symbols: Tensor, boundary: Tensor, blank: int) -> Tensor:
    """symbols with the blank in place of padding, which may hold any value, such as -1."""
    padding = torch.arange(symbols.shape[1], device=symbols.device) >= boundary[:, 2:3]
    return symbols.masked_fill(padding, blank)


def _next_symbol(symbols: Tensor, boundary: Tensor, blank: int) -> Tensor:
    """(B, S+1): the symbol that each position may write; the last position writes nothing and holds the blank."""
    return torch.nn.functional.pad(_clean_symbols(symbols, boundary, blank), (0, 1), value=blank)


def _additive_arcs(
    lm: Tensor, am: Tensor, symbols: Tensor, blank: int, boundary: Tensor | None, scales: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the arguments and returns px (B, S, T), py (B, S+1, T) and the boundary, in float32 at least."""
    B, T, C = am.shape
    _check(B, T, symbols, C, blank)
    if lm.shape != (B, symbols.shape[1] + 1, C):
        raise ValueError(f"lm must be (B, S+1, C) like am {tuple(am.shape)} and symbols, not {tuple(lm.shape)}")
    boundary = _boundary_or_full(boundary, symbols, T)
    symbols = _clean_symbols(symbols, boundary, blank)
    with torch.autocast(am.device.type, enabled=False):
        px, py = _additive_logprobs(_at_least_float32(lm), _at_least_float32(am), symbols, blank, scales)
    return px, py, boundary


def _additive_logprobs(
    lm: Tensor, am: Tensor, symbols: Tensor, blank: int, scales: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Log-probs px (B, S, T) and py (B, S+1, T) of the joiner `am + lm`, mixed by scales (lm_only, am_only).

    The normaliser is a matrix product of exponentials, so (B, S+1, T, C) never exists.
    """
    B, T, C = am.shape
    S = symbols.shape[1]
    lm_scale, am_scale = scales
    tiny = torch.finfo(am.dtype).tiny
    lm_max, am_max = lm.detach().amax(2, keepdim=True), am.detach().amax(2, keepdim=True)  # (B, S+1, 1), (B, T, 1)
    lm_exp, am_exp = (lm - lm_max).exp(), (am - am_max).exp()
    am_max = am_max.transpose(1, 2)  # (B, 1, T)
    normaliser = (lm_exp @ am_exp.transpose(1, 2) + tiny).log() + lm_max + am_max  # (B, S+1, T)
    lm_write, lm_blank = lm[:, :S].gather(2, symbols.unsqueeze(2)), lm[:, :, blank].unsqueeze(2)  # (B, S or S+1, 1)
    am_write = am.gather(2, symbols.unsqueeze(1).expand(B, T, S)).transpose(1, 2)  # (B, S, T)
    am_blank = am[:, :, blank].unsqueeze(1)  # (B, 1, T)
    px, py = am_write + lm_write - normaliser[:, :S], am_blank + lm_blank - normaliser
    if lm_scale == 0.0 and am_scale == 0.0:
        return px, py
    px, py = (1.0 - lm_scale - am_scale) * px, (1.0 - lm_scale - am_scale) * py
    lm_sum = lm_exp.sum(2, keepdim=True)  # (B, S+1, 1)
    if lm_scale != 0.0:
        lm_normaliser = lm_sum.log() + lm_max
        px, py = px + lm_scale * (lm_write - lm_normaliser[:, :S]), py + lm_scale * (lm_blank - lm_normaliser)
    if am_scale != 0.0:
        unigram = (lm_exp / lm_sum).mean((0, 1)) + tiny  # (C,)
        am_normaliser = (am_exp @ unigram).log().unsqueeze(1) + am_max  # (B, 1, T)
        log_unigram = unigram.log()
        px = px + am_scale * (am_write + log_unigram[symbols].unsqueeze(2) - am_normaliser)
        py = py + am_scale * (am_blank + log_unigram[blank] - am_normaliser)
    return px, py


def _lattice_loss(
    px: Tensor,
    py: Tensor,
    boundary: Tensor,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str,
    return_grad: bool,
    backend: str,
) -> Tensor | LossAndGrads:
    """Loss from the arcs' log-probs px (B, S, T) and py (B, S+1, T): type, delay penalty, recursion, reduction."""
    _check_options(rnnt_type, delay_penalty, reduction)
    px = _finish_px(px, py, boundary, rnnt_type, delay_penalty)
    scores, grads = mutual_information_recursion(px, py, boundary, return_grad=True, backend=backend)
    assert isinstance(scores, Tensor)
    loss = _reduced(-scores, reduction)
    return (loss, grads) if return_grad else loss


def _check_options(rnnt_type: str, delay_penalty: float, reduction: str) -> None:
    if rnnt_type not in RNNT_TYPES:
        raise ValueError(f"rnnt_type must be one of {', '.join(RNNT_TYPES)}, not {rnnt_type!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    if delay_penalty < 0.0:
        raise ValueError(f"delay_penalty must be 0 or more, not {delay_penalty}")


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    """Loss (B,) -> () for "mean" and "sum"."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def _delay(px: Tensor, boundary: Tensor, frames: int, delay_penalty: float) -> Tensor:
    """What the score of a symbol gets on each frame: (B, T)."""
    middle = (boundary[:, 3:] - 1).to(px.dtype) / 2
    return delay_penalty * (middle - torch.arange(frames, device=px.device))


def _finish_px(px: Tensor, py: Tensor, boundary: Tensor, rnnt_type: str, delay_penalty: float) -> Tensor:
    """px (B, S, T) with what the type and the delay penalty ask for: (B, S, T+1) for regular, (B, S, T) otherwise."""
    if rnnt_type == "constrained":  # write, then be forced to blank in the new context
        px = px + py[:, 1:]
    if delay_penalty > 0.0:
        px = px + _delay(px, boundary, px.shape[2], delay_penalty).unsqueeze(1)
    return end_writing(px, boundary) if rnnt_type == "regular" else px


def _arc_logprobs(logits: Tensor, next_symbol: Tensor, blank: int, use_hat_loss: bool) -> tuple[Tensor, Tensor]:
    """Log-probs of writing `next_symbol` and of the blank, both like next_symbol, from logits (..., C)."""
    write, stay, normaliser = _ArcLogits.apply(logits, next_symbol, blank, 1 if use_hat_loss else 0)
    if use_hat_loss:
        sigmoid = torch.nn.functional.logsigmoid
        return write - normaliser + sigmoid(-stay), sigmoid(stay)
    return write - normaliser, stay - normaliser


class _ArcLogits(torch.autograd.Function):
    """From logits (..., C) only what the loss needs: the symbol's, the blank's, and log-sum-exp over classes >= first.

    The backward makes the gradient in one pass, `softmax * g_normaliser + onehot(symbol) * g_symbol + onehot(blank) *
    g_blank`, so that beside the logits and their gradient no third tensor of that size exists.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, next_symbol: Tensor, blank: int, first: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        rows = logits.reshape(-1, logits.shape[-1])  # (N, C)
        index = next_symbol.reshape(-1, 1)  # (N, 1)
        symbol_logit, blank_logit = rows.gather(1, index).squeeze(1).to(dtype), rows[:, blank].to(dtype)
        normaliser = torch.empty(rows.shape[0], dtype=dtype, device=rows.device)
        for block in _blocks(rows):
            torch.logsumexp(rows[block, first:].to(dtype), dim=1, out=normaliser[block])
        ctx.save_for_backward(rows, index, normaliser)
        ctx.blank, ctx.first, ctx.shape = blank, first, logits.shape  # type: ignore[attr-defined]
        shape = next_symbol.shape
        return symbol_logit.view(shape), blank_logit.view(shape), normaliser.view(shape)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, symbol_grad: Tensor, blank_grad: Tensor, normaliser_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, index, normaliser = ctx.saved_tensors  # type: ignore[attr-defined]
        blank, first, shape = ctx.blank, ctx.first, ctx.shape  # type: ignore[attr-defined]
        grad = torch.empty_like(rows)
        on_symbol, on_blank = symbol_grad.reshape(-1, 1), blank_grad.reshape(-1)
        weight, in_place = normaliser_grad.reshape(-1, 1), grad.dtype == normaliser.dtype
        for block in _blocks(rows):
            piece = grad[block] if in_place else torch.empty_like(grad[block], dtype=normaliser.dtype)
            torch.sub(rows[block], normaliser[block, None], out=piece).exp_().mul_(weight[block])
            piece[:, :first] = 0.0
            torch.hardshrink(piece, NEGLIGIBLE, out=piece)
            piece.scatter_add_(1, index[block], on_symbol[block])
            piece[:, blank] += on_blank[block]
            if not in_place:
                grad[block] = piece
        return grad.view(shape), None, None, None


def _blocks(rows: Tensor) -> list[slice]:
    """Slices of rows (N, C) that keep a working copy small."""
    elements = _CPU_BLOCK_ELEMENTS if rows.device.type == "cpu" else _GPU_BLOCK_ELEMENTS
    size = max(1, elements // rows.shape[1])
    return [slice(start, start + size) for start in range(0, rows.shape[0], size)]
