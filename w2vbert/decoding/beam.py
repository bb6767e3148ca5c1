"""Bookkeeping of a beam search over tensors: texts, merging of equal ones, back-pointers.

Letters: n utterances that have not ended, K hypotheses of the beam, V labels with the blank, B utterances.
A hypothesis with log-probability -inf is an empty place of the beam.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2vbert.decoding.model import NEVER


@dataclass(frozen=True)
class Texts:
    """The texts of a beam, each tensor (n, K). Equal texts are found by hash, which includes the length."""

    hash: Tensor
    parent_hash: Tensor
    """Hash of the text without its last label."""
    last: Tensor
    """Last label; the blank for the empty text."""
    length: Tensor

    @classmethod
    def empty(cls, batch: int, beam: int, blank: int, device: torch.device) -> Texts:
        zeros = torch.zeros(batch, beam, dtype=torch.long, device=device)
        return cls(hash=zeros, parent_hash=zeros - 1, last=zeros + blank, length=zeros)

    def extend(self, slots: Tensor, tokens: Tensor, emitted: Tensor) -> Texts:
        """The texts of `slots` (n, K), each with its label of `tokens` (n, K) where `emitted` (n, K)."""
        parent, length = self.hash.gather(1, slots), self.length.gather(1, slots)
        mixed = parent * 6364136223846793005 + (tokens + 1) * 1442695040888963407  # modulo 2^64
        mixed = (mixed ^ (mixed >> 32)) * 0x5851F42D4C957F2D + length
        return Texts(
            hash=torch.where(emitted, mixed, parent),
            parent_hash=torch.where(emitted, parent, self.parent_hash.gather(1, slots)),
            last=torch.where(emitted, tokens, self.last.gather(1, slots)),
            length=length + emitted,
        )

    def first(self, running: int) -> Texts:
        return Texts(self.hash[:running], self.parent_hash[:running], self.last[:running], self.length[:running])


@dataclass(frozen=True)
class Step:
    """Back-pointers from the hypotheses after an expansion to those before it; each tensor (n, K)."""

    frame: int
    parent: Tensor
    token: Tensor
    """The emitted label; the blank where none was."""
    log_prob: Tensor


def merge_closed(texts: Texts, keep: Tensor, parent: Tensor) -> tuple[Tensor, Tensor]:
    """Add up the blank of an open hypothesis and a closed one of the same text. keep, parent: (n, K)."""
    k = keep.shape[1]
    alive = keep > NEVER
    earlier = torch.ones(k, k, dtype=torch.bool, device=keep.device).tril(-1)  # [j, i]: i stands before j
    same = (texts.hash.unsqueeze(2) == texts.hash.unsqueeze(1)) & earlier  # (n, K, K)
    same = same & alive.unsqueeze(2) & alive.unsqueeze(1)
    other = torch.where(same.transpose(1, 2), keep.unsqueeze(1), NEVER)  # [i, j]: what j brings to i
    value, slot = other.max(2)
    parent = torch.where(value > keep, slot, parent)
    return torch.logaddexp(keep, value).masked_fill(same.any(2), NEVER), parent


def merge_emissions(
    texts: Texts, keep: Tensor, arcs: Tensor, parent: Tensor, token: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move the label that makes hypothesis i equal to hypothesis j over to j.

    The hypotheses that emit differ from one another, so these are the only equal texts. Times are those of the more
    probable alignment.

    Args:
        texts: of the hypotheses.
        keep: (n, K), log-probability of each hypothesis as it stays.
        arcs: (n, K, K), log-probability of i with the last label of j.
        parent: int64 (n, K), where the best alignment of each comes from.
        token: int64 (n, K), and with which label.

    Returns:
        keep, parent and token with what was moved, and where (n, K, K) it was.
    """
    same = texts.hash.unsqueeze(2) == texts.parent_hash.unsqueeze(1)  # (n, K, K) [i, j]
    same = same & (keep > NEVER).unsqueeze(1)
    value, slot = arcs.masked_fill(~same, NEVER).max(1)  # (n, K)
    better = value > keep
    parent, token = torch.where(better, slot, parent), torch.where(better, texts.last, token)
    return torch.logaddexp(keep, value), parent, token, same


def trace(steps: list[Step], slots: Tensor, blank: int) -> list[list[list[tuple[int, int, float]]]]:
    """Follow the back-pointers from `slots` (B, N) -> for each the emissions: label, frame, log-probability."""
    batch, nbest = slots.shape
    paths: list[list[list[tuple[int, int, float]]]] = [[[] for _ in range(nbest)] for _ in range(batch)]
    slots = slots.to("cpu", copy=True)
    sizes = [len(step.parent) for step in steps]
    columns = ([step.parent for step in steps], [step.token for step in steps], [step.log_prob for step in steps])
    parents, labels, log_probs = (torch.cat(column).cpu().split(sizes) if sizes else () for column in columns)
    for number in range(len(steps) - 1, -1, -1):
        running = sizes[number]
        current = slots[:running]
        tokens = labels[number].gather(1, current)
        where = (tokens != blank).nonzero()
        values = log_probs[number].gather(1, current)
        emitted = (where[:, 0], where[:, 1])
        entries = zip(where.tolist(), tokens[emitted].tolist(), values[emitted].tolist(), strict=True)
        for (b, rank), token, log_prob in entries:
            paths[b][rank].append((token, steps[number].frame, log_prob))
        slots[:running] = parents[number].gather(1, current)
    return [[path[::-1] for path in ranked] for ranked in paths]
