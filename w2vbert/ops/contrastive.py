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
    context, targets = context.float(), targets.float()
    scale, target_scale = _inverse_norms(context) / temperature, _inverse_norms(targets)  # (B, M)
    frames = torch.arange(context.shape[1], device=context.device)
    with torch.autocast(context.device.type, enabled=False):
        products = context @ targets.transpose(1, 2)  # (B, M, M)
    joint = _joint(codes)  # (B, M)
    if distractors is None:
        unusable = (joint[:, :, None] == joint[:, None]) | (frames >= counts[:, None])[:, None]  # (B, M, M)
        own, shown = frames, ~unusable | torch.eye(len(frames), dtype=torch.bool, device=context.device)
        logits = products * scale[..., None] * target_scale[:, None]
        positive = logits.diagonal(dim1=1, dim2=2)  # (B, M)
    else:
        same_code = _frames_of(joint[..., None], distractors)[..., 0] == joint[..., None]  # (B, M, K)
        unusable = same_code | (distractors >= counts[:, None, None])
        own, shown = torch.zeros_like(frames), F.pad(~unusable, (1, 0), value=True)  # (B, M, 1 + K)
        index = torch.cat([frames[:, None].expand(*scale.shape, 1), distractors], dim=2)  # (B, M, 1 + K)
        logits = products.gather(2, index) * scale[..., None] * _frames_of(target_scale[..., None], index)[..., 0]
        positive = logits[..., 0]
    logits = logits.masked_fill(~shown, -torch.inf)
    usable = (~unusable).sum(-1)  # (B, M)
    taking_part = (frames < counts[:, None]) & (usable > 0)
    loss = logits.logsumexp(2) - positive  # (B, M)
    return ContrastiveLoss(
        loss=loss.masked_fill(~taking_part, 0.0).sum(),
        correct=((logits.argmax(2) == own) & taking_part).sum(),
        count=taking_part.sum(),
        chance=(1.0 / (1.0 + usable)).masked_fill(~taking_part, 0.0).sum(),
    )


def _inverse_norms(x: Tensor) -> Tensor:
    """1 / |x| over the last dimension. Lengths stay out of the vectors: they scale products, of which there are few."""
    return 1.0 / torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-12)


def _joint(codes: Tensor) -> Tensor:
    """One number (B, M) for the codes of all codebooks (B, M, G): its own for up to 3 codebooks of a million codes.

    More codebooks wrap around 2^64, where a collision, which leaves out one distractor, is next to impossible.
    """
    joint = codes[..., 0]
    for further in codes.unbind(-1)[1:]:
        joint = joint * 1_000_003 + further
    return joint


def _frames_of(x: Tensor, index: Tensor) -> Tensor:
    """Frames `index` (B, M, K) of `x` (B, M, G) -> (B, M, K, G)."""
    flat = index.flatten(1)[..., None].expand(-1, -1, x.shape[2])  # (B, M K, G)
    return x.gather(1, flat).view(*index.shape, x.shape[2])
