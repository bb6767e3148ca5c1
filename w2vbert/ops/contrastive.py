"""The contrastive loss of wav2vec 2.0 (section 3.2, equation 3) over masked frames.

B batch, M masked frames, D dimension, G codebooks, K distractors.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ContrastiveLoss:
    """Sums over the masked frames that have at least one distractor.

    Attributes:
        loss: scalar float32, sum of the cross-entropies in nats.
        correct: scalar int64, frames whose own target scored highest.
        count: scalar int64, frames that took part.
        chance: scalar float32, sum of what guessing would get right, 1 / (1 + usable distractors) a frame.
    """

    loss: Tensor
    correct: Tensor
    count: Tensor
    chance: Tensor


def draw_distractors(counts: Tensor, max_count: int, num_distractors: int, generator: torch.Generator) -> Tensor:
    """Draws, for each masked frame, other masked frames of the same utterance, uniformly and with replacement.

    Args:
        counts: int64 (B,), masked frames of each utterance, on the CPU.
        max_count: M.
        num_distractors: K.
        generator: source of randomness, on the CPU.

    Returns:
        int64 (B, M, K), positions among the masked frames; never the frame itself where the utterance has two or
        more. Rows beyond `counts`, and those of utterances with one masked frame, are meaningless.
    """
    batch = counts.shape[0]
    uniform = torch.rand(batch, max_count, num_distractors, generator=generator)
    others = (counts - 1).clamp(min=1)[:, None, None]
    drawn = (uniform * others).long().clamp(max=max(max_count - 1, 0))  # (B, M, K), 0 .. count - 2
    own = torch.arange(max_count)[None, :, None]
    return (drawn + (drawn >= own)).clamp(max=max_count - 1)  # (B, M, K), skips the frame itself


def contrastive_loss(
    context: Tensor,
    targets: Tensor,
    codes: Tensor,
    counts: Tensor,
    distractors: Tensor | None,
    temperature: float,
) -> ContrastiveLoss:
    """Tells each masked frame's own quantised target from distractors of the same utterance.

    All cosines of an utterance come from one batched matrix product, then the K wanted ones are gathered: no
    (B, M, K, D) tensor is made. A distractor with the code of the target counts as -inf (trap 7). Cosines and
    softmax are computed in float32.

    Args:
        context: (B, M, D), context vectors at the masked frames.
        targets: (B, M, D), quantised feature vectors there.
        codes: int64 (B, M, G), their codes.
        counts: int64 (B,), masked frames of each utterance; rows beyond are ignored.
        distractors: int64 (B, M, K) from `draw_distractors`, or None for all other masked frames of the utterance.
        temperature: kappa.

    Returns:
        ContrastiveLoss. Frames without any usable distractor take no part.
    """
    max_count = context.shape[1]
    context = F.normalize(context.float(), dim=-1)
    targets = F.normalize(targets.float(), dim=-1)
    frames = torch.arange(max_count, device=context.device)
    valid = frames < counts[:, None]  # (B, M)
    with torch.autocast(context.device.type, enabled=False):
        cosines = context @ targets.transpose(1, 2) / temperature  # (B, M, M)
    same_code = (codes[:, :, None] == codes[:, None]).all(-1)  # (B, M, M)
    unusable = same_code | ~valid[:, None]
    positive = cosines.diagonal(dim1=1, dim2=2)[..., None]  # (B, M, 1)
    if distractors is None:
        negatives = cosines
    else:
        negatives, unusable = cosines.gather(2, distractors), unusable.gather(2, distractors)  # (B, M, K)
    negatives = negatives.masked_fill(unusable, -torch.inf)
    usable = (~unusable).sum(-1)  # (B, M)
    taking_part = valid & (usable > 0)
    logits = torch.cat([positive, negatives], dim=2)  # (B, M, 1 + K)
    loss = logits.logsumexp(2) - positive.squeeze(2)  # (B, M)
    return ContrastiveLoss(
        loss=loss.masked_fill(~taking_part, 0.0).sum(),
        correct=((logits.argmax(2) == 0) & taking_part).sum(),
        count=taking_part.sum(),
        chance=(1.0 / (1.0 + usable)).masked_fill(~taking_part, 0.0).sum(),
    )
