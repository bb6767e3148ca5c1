"""Typed batches.

B batch, T filterbank frames, F mel bins, U labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from w2vbert.ops.lengths import send

FRAMES_PER_SECOND = 100
"""Filterbank frames: a hop of 10 ms."""


@dataclass(frozen=True)
class SpeechBatch:
    """Utterances, padded with zeros at their ends.

    Attributes:
        ids: B cut ids.
        features: float32 (B, T, F), normalised log-mel filterbanks.
        lengths: int64 (B,), filterbank frames; on the CPU always.
        tokens: int64 (B, U), word pieces, padded with 0, the blank; None without transcripts.
        token_lengths: int64 (B,), on the CPU always; None without transcripts.
    """

    ids: tuple[str, ...]
    features: Tensor
    lengths: Tensor
    tokens: Tensor | None = None
    token_lengths: Tensor | None = None

    @property
    def seconds(self) -> float:
        """Seconds of audio, without padding."""
        return int(self.lengths.sum()) / FRAMES_PER_SECOND

    @property
    def size(self) -> str:
        """Its shape in words."""
        return f"{len(self.ids)} utterances of up to {int(self.lengths.max()) / FRAMES_PER_SECOND:.1f} s"

    def to(self, device: torch.device) -> "SpeechBatch":
        """Moves what the model computes with; lengths stay on the CPU, where they decide shapes."""
        tokens = None if self.tokens is None else send(self.tokens, device)
        return replace(self, features=send(self.features, device), tokens=tokens)


def collate(
    ids: Sequence[str], features: Sequence[Tensor], tokens: Sequence[Sequence[int]] | None, frames: int = 0
) -> SpeechBatch:
    """Pads utterances to one batch.

    Args:
        ids: of the utterances.
        features: (T_i, F) each.
        tokens: U_i each; None for a batch without.
        frames: least T of the batch; 0: that of the longest.
    """
    lengths = torch.tensor([len(f) for f in features])
    padded = pad_sequence(list(features), batch_first=True)  # (B, T, F)
    if padded.shape[1] < frames:
        padded = pad(padded, (0, 0, 0, frames - padded.shape[1]))
    if tokens is None:
        return SpeechBatch(tuple(ids), padded, lengths)
    padded_tokens = pad_sequence([torch.tensor(t, dtype=torch.int64) for t in tokens], batch_first=True)  # (B, U)
    return SpeechBatch(tuple(ids), padded, lengths, padded_tokens, torch.tensor([len(t) for t in tokens]))
