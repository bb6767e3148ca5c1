"""Code look-up and contrastive loss as their equations are usually written, with all products and copies.

N frames, G codebooks, V codes, E dimension of a code, B batch, M masked frames, D dimension, K distractors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot_look_up(probs: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
    """Straight-through one-hot vectors times the codebook. (N, G, V), (G, V, E), (N, G) -> (N, G, E)."""
    one_hot = F.one_hot(codes, codebook.shape[1]).to(probs.dtype)  # (N, G, V)
    straight_through = one_hot - probs.detach() + probs
    return (straight_through[..., None] * codebook).sum(2)  # (N, G, E), from (N, G, V, E)


def gathered_contrastive_loss(
    context: Tensor, targets: Tensor, codes: Tensor, distractors: Tensor, temperature: float
) -> Tensor:
    """InfoNCE with a copy of every distractor's vector: (B, M, D) twice, (B, M, G), (B, M, K) -> scalar, a sum.

    All utterances have M masked frames. A distractor with the code of the target counts as -inf.
    """
    batch, masked, dim = targets.shape
    flat = (distractors + masked * torch.arange(batch)[:, None, None]).flatten()  # (B M K,)
    negatives = targets.flatten(0, 1)[flat].view(batch, masked, -1, dim).permute(2, 0, 1, 3)  # (K, B, M, D)
    candidates = torch.cat([targets[None], negatives])  # (1 + K, B, M, D)
    logits = F.cosine_similarity(context[None], candidates, dim=-1) / temperature  # (1 + K, B, M)
    same = (codes.flatten(0, 1)[flat].view(batch, masked, -1, codes.shape[2]) == codes[:, :, None]).all(-1)
    logits = torch.cat([logits[:1], logits[1:].masked_fill(same.permute(2, 0, 1), -torch.inf)])
    return -logits.log_softmax(0)[0].sum()
