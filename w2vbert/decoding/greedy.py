"""Greedy search in two forms with the same result: label by label (fast) and frame by frame (plain).

Letters: B utterances, n rows that have not ended, C frames that are looked at together, T encoder frames, J joiner
channels, V labels with the blank.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.model import LabelModel

LOOK_AHEAD_FRAMES = 4  # about the distance of two labels; what is computed behind the next label is thrown away


@dataclass
class _Emissions:
    """Labels in the order in which they were emitted; each tensor (M,)."""

    rows: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor, frames: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        self.rows.append(rows)
        self.frames.append(frames)
        self.tokens.append(tokens)
        self.log_probs.append(log_probs)

    def hypotheses(self, score: Tensor) -> list[Hypothesis]:
        """One for each of `score` (B,)."""
        paths: list[list[tuple[int, int, float]]] = [[] for _ in range(len(score))]
        if self.rows:
            columns = (torch.cat(column).tolist() for column in (self.rows, self.frames, self.tokens, self.log_probs))
            for row, frame, token, log_prob in zip(*columns, strict=True):
                paths[row].append((token, frame, log_prob))
        return [Hypothesis.of_path(path, value, value) for path, value in zip(paths, score.tolist(), strict=True)]


def search_by_labels(model: LabelModel, encoder_out: Tensor, lengths: Tensor, max_symbols: int) -> list[Hypothesis]:
    """Label-looping greedy search (Bataev et al. 2024, "Label-looping", algorithm 2, in one loop).

    In each round every row looks at its next C frames with one call of the joiner. It stops at the first label, or
    goes on behind them; the prediction network runs for the rows that met a label. So there are about as many rounds
    as labels, not as frames, and each has rows of many utterances.

    Args:
        model: what to search.
        encoder_out: float (B, T, J).
        lengths: int64 (B,), frames, on the same device.
        max_symbols: labels that one frame may emit.

    Returns:
        The best hypothesis of each utterance.
    """
    device = encoder_out.device
    out, state = model.start(len(lengths), device)
    score = torch.zeros(len(lengths), device=device)
    frame = torch.zeros_like(lengths)
    symbols = torch.zeros_like(lengths)  # that the row has emitted on its frame
    ahead = torch.arange(LOOK_AHEAD_FRAMES, device=device)
    emissions = _Emissions()
    rows = (lengths > 0).nonzero().squeeze(1)  # (n,)
    while len(rows):
        frames = frame[rows].unsqueeze(1) + ahead  # (n, C)
        left = lengths[rows].unsqueeze(1)
        seen = encoder_out[rows.unsqueeze(1), torch.minimum(frames, left - 1)]  # (n, C, J)
        best, tokens = model.log_probs(seen, out.index_select(0, rows).unsqueeze(1)).max(-1)  # (n, C)
        inside = frames < left
        silent = ((tokens == model.blank) & inside).long().cumprod(1)  # 1 up to the first label or the end
        blanks = silent.sum(1)  # (n,)
        at = blanks.clamp(max=LOOK_AHEAD_FRAMES - 1).unsqueeze(1)
        emits = (blanks < LOOK_AHEAD_FRAMES) & inside.gather(1, at).squeeze(1)
        here = best.gather(1, at).squeeze(1)
        score[rows] += (best * silent).sum(1) + here * emits
        symbols[rows] = torch.where(blanks > 0, 0, symbols[rows]) + emits
        full = symbols[rows] == max_symbols  # the next frame comes without a blank
        frame[rows] += blanks + full
        symbols[rows] *= ~full
        chosen = emits.nonzero().squeeze(1)
        if len(chosen):
            changed, labels = rows[chosen], tokens.gather(1, at)[chosen, 0]
            emissions.add(changed, frames.gather(1, at)[chosen, 0], labels, here[chosen])
            model.read(out, state, changed, labels)
        rows = rows[frame[rows] < lengths[rows]]
    return emissions.hypotheses(score)


def search_by_frames(model: LabelModel, encoder_out: Tensor, lengths: Tensor, max_symbols: int) -> list[Hypothesis]:
    """Frame-synchronous greedy search: the definition that `search_by_labels` follows. Arguments and result are its."""
    device = encoder_out.device
    out, state = model.start(len(lengths), device)
    score = torch.zeros(len(lengths), device=device)
    emissions = _Emissions()
    for frame in range(max(lengths.tolist(), default=0)):
        rows = (lengths > frame).nonzero().squeeze(1)
        for _ in range(max_symbols):
            best, tokens = model.log_probs(encoder_out[rows, frame], out[rows]).max(-1)
            score[rows] += best
            emitted = (tokens != model.blank).nonzero().squeeze(1)
            if len(emitted) == 0:
                break
            rows, tokens = rows[emitted], tokens[emitted]
            emissions.add(rows, torch.full_like(rows, frame), tokens, best[emitted])
            model.read(out, state, rows, tokens)
    return emissions.hypotheses(score)
