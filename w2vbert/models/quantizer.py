"""Gumbel-softmax product quantizer (wav2vec 2.0, section 3.1; vq-wav2vec, section 3.1).

N frames, C input dimension, G codebooks, V codes in each, E dimension of a code.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class QuantizerConfig:
    """Quantizer; the defaults are w2v-BERT XL's.

    Attributes:
        codebooks: G (1: paper).
        codes: V, codes in each codebook (1024: paper).
        dim: dimension of a quantised vector over all codebooks (1024: paper).
        logit_std: standard deviation of the logits at the start. Unknown in the paper; fairseq's initialisation gives
            about 25. Small values leave the argmax at the mercy of small drifts and the Gumbel noise in charge.
        temperature_start, temperature_end: Gumbel temperature, falling exponentially over the run, whatever its
            length (unknown in the paper; 2.0 to 0.1 in Meta's replication).
    """

    codebooks: int = 1
    codes: int = 1024
    dim: int = 1024
    logit_std: float = 10.0
    temperature_start: float = 2.0
    temperature_end: float = 0.1

    def __post_init__(self) -> None:
        if min(self.dim, self.codebooks) < 1 or self.logit_std <= 0.0:
            raise ValueError("quantizer dim and codebooks must be at least 1, and logit_std above 0")
        if self.dim % self.codebooks:
            raise ValueError(f"quantizer dim {self.dim} is not a multiple of codebooks {self.codebooks}")
        if not 0.0 < self.temperature_end <= self.temperature_start:
            raise ValueError("temperatures must be positive and fall: 0 < temperature_end <= temperature_start")
        if self.codes < 2:
            raise ValueError(f"a codebook needs at least 2 codes, not {self.codes}")

    def temperature(self, progress: float) -> float:
        """Temperature after a share `progress` (0 to 1) of the run's steps."""
        return self.temperature_start * (self.temperature_end / self.temperature_start) ** min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class QuantizerOutput:
    """What the quantizer says of N frames.

    Attributes:
        vectors: (N, G * E), quantised vectors, with straight-through gradients.
        codes: int64 (N, G), codes of `vectors`: argmax of the noisy logits in training.
        ids: int64 (N, G), argmax of the noise-free logits: the targets of masked prediction (trap 4).
        mean_probs: (G, V), mean over the frames of the softmax of the noise-free logits.
        entropy: scalar, mean entropy in nats of the single frame's softmax, over frames and codebooks.
    """

    vectors: Tensor
    codes: Tensor
    ids: Tensor
    mean_probs: Tensor
    entropy: Tensor


def straight_through_look_up(probs: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
    """Code vectors by index, with the gradient that the softmax would have had in the place of its argmax.

    Equal in value and gradient to `(onehot - p.detach() + p) @ codebook`, without making (N, G, V, E) products.

    Args:
        probs: (N, G, V); only their gradient matters.
        codebook: (G, V, E).
        codes: int64 (N, G).

    Returns:
        (N, G, E).
    """
    return _StraightThroughLookup.apply(probs, codebook, codes)


class _StraightThroughLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probs: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
        """See `straight_through_look_up`."""
        ctx.save_for_backward(codebook, codes)
        groups = torch.arange(codebook.shape[0], device=codes.device)
        return codebook[groups, codes]  # (N, G, E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of probs and codebook."""
        codebook, codes = ctx.saved_tensors
        (grad,) = grads  # (N, G, E)
        grad_probs = torch.einsum("nge,gve->ngv", grad, codebook)
        grad_codebook = torch.zeros_like(codebook)
        offset = torch.arange(codebook.shape[0], device=codes.device) * codebook.shape[1]
        grad_codebook.flatten(0, 1).index_add_(0, (codes + offset).flatten(), grad.flatten(0, 1))
        return grad_probs, grad_codebook, None


class GumbelQuantizer(nn.Module):
    """Maps frames of the unmasked feature encoder to codes."""

    def __init__(self, input_dim: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.logits = nn.Linear(input_dim, config.codebooks * config.codes)
        self.codebook = nn.Parameter(torch.empty(config.codebooks, config.codes, config.dim // config.codebooks))
        nn.init.normal_(self.logits.weight, std=config.logit_std / input_dim**0.5)
        nn.init.zeros_(self.logits.bias)
        nn.init.normal_(self.codebook)

    def forward(self, x: Tensor, temperature: float, generator: torch.Generator | None = None) -> QuantizerOutput:
        """Quantises frames; in training with Gumbel noise.

        Args:
            x: (N, C), frames of mean 0 and variance 1.
            temperature: of the Gumbel softmax; only the gradient depends on it.
            generator: source of the noise, on the device of `x`.

        Returns:
            QuantizerOutput.
        """
        shape = (x.shape[0], self.config.codebooks, self.config.codes)
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x.float()).view(shape)  # (N, G, V)
            noisy = logits
            if self.training:
                exponential = torch.empty(shape, device=x.device).exponential_(generator=generator)
                noisy = logits - exponential.clamp_(min=1e-10).log_()
            codes = noisy.argmax(-1)  # (N, G)
            vectors = straight_through_look_up((noisy / temperature).softmax(-1), self.codebook, codes)
            log_probs = logits.log_softmax(-1)  # (N, G, V)
            probs = log_probs.exp()
            frame_entropy = -(probs * log_probs).sum(-1)  # (N, G)
            frames = max(x.shape[0], 1)  # without a masked frame there is no mean
        return QuantizerOutput(
            vectors=vectors.flatten(1),  # (N, G * E)
            codes=codes,
            ids=logits.argmax(-1),
            mean_probs=probs.sum(0) / frames,
            entropy=frame_entropy.mean(-1).sum() / frames,
        )


def perplexity(probs: Tensor) -> Tensor:
    """exp(entropy) of distributions (..., V) -> (...): how many codes are used as if evenly."""
    return torch.exp(-(probs * probs.clamp(min=1e-10).log()).sum(-1))


def diversity_loss(mean_probs: Tensor) -> Tensor:
    """L_d of wav2vec 2.0, equation 4: (G V - sum of perplexities) / (G V), 0 when all codes are used evenly."""
    groups, codes = mean_probs.shape
    return 1.0 - perplexity(mean_probs).sum() / (groups * codes)


def information_gap(mean_probs: Tensor, frame_entropy: Tensor) -> Tensor:
    """Nats that the codes could tell of a frame and do not, mean over codebooks; 0 when all are used evenly and surely.

    What they tell is the mutual information of frame and code: the entropy of the mean distribution less the mean
    entropy of the single frame's (Krause et al. 2010, "Discriminative clustering by regularized information
    maximization", equation 3). Its gradient does not fade when few codes are in use, as that of `diversity_loss` does,
    and it is not satisfied by frames of which each might be any code.

    Args:
        mean_probs: (G, V).
        frame_entropy: scalar, mean over frames and codebooks.
    """
    batch_entropy = -(mean_probs * mean_probs.clamp(min=1e-10).log()).sum(-1)  # (G,)
    return math.log(mean_probs.shape[1]) - batch_entropy.mean() + frame_entropy
