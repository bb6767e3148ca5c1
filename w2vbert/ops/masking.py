"""Span masks for masked prediction (w2v-BERT, section 2.3; wav2vec 2.0, section 3.1).

B batch, T encoder frames, M the largest number of masked frames of an utterance in the batch, N all masked frames of
the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from w2vbert.ops.lengths import lengths_to_mask, send


@dataclass(frozen=True)
class MaskedFrames:
    """Which frames of a batch are masked.

    Attributes:
        mask: bool (B, T), True on masked frames; never on padding.
        index: int64 (B, M), the masked frames of each utterance in order of time, padded with 0.
        counts: int64 (B,), masked frames of each utterance.
        frames: int64 (N,), the masked frames among the B T of the batch, utterance by utterance.
        places: int64 (N,), where these stand among the B M places of `index`.
    """

    mask: Tensor
    index: Tensor
    counts: Tensor
    frames: Tensor
    places: Tensor

    def to(self, device: torch.device) -> "MaskedFrames":
        """The same on another device."""
        tensors = (self.mask, self.index, self.counts, self.frames, self.places)
        return MaskedFrames(*(send(tensor, device) for tensor in tensors))

    def take(self, x: Tensor) -> Tensor:
        """The masked frames of (B, T, D) -> (N, D). A mask as index would make the host wait for a GPU to count."""
        return x.flatten(0, 1).index_select(0, self.frames)

    def spread(self, x: Tensor) -> Tensor:
        """Masked frames (N, D) by utterance -> (B, M, D), zeros where an utterance has no more."""
        places = x.new_zeros(self.index.numel(), x.shape[1])
        return places.index_copy(0, self.places, x).view(*self.index.shape, x.shape[1])


def span_mask(lengths: Tensor, max_length: int, start_prob: float, span: int, generator: torch.Generator) -> Tensor:
    """Draws spans of masked frames inside each utterance's own length.

    Each frame starts a span with `start_prob`; spans may overlap and are cut at the ends of the utterance. An
    utterance in which no span began gets one at a random place, so every utterance takes part in the loss.

    Deviation: spans may also begin up to `span - 1` frames before the utterance. Without this its first frames
    would be masked less often, and a short utterance less than a long one; with it every frame is masked with
    probability 1 - (1 - start_prob) ** span, which is the 48.9 % of the paper's 0.065 and 10.

    Args:
        lengths: int64 (B,), on the CPU.
        max_length: T.
        start_prob: probability that a frame starts a span.
        span: length of a span in frames.
        generator: source of randomness, on the CPU.

    Returns:
        bool (B, T), on the CPU.
    """
    batch = lengths.shape[0]
    starts = torch.rand(batch, max_length + span - 1, generator=generator) < start_prob  # column c: frame c - span + 1
    begun = torch.nn.functional.pad(starts.cumsum(1), (1, 0))  # (B, T + span): spans begun before column c
    mask = begun[:, span:] > begun[:, :-span]  # (B, T): one began in the last `span` frames
    mask &= lengths_to_mask(lengths, max_length)

    place = torch.rand(batch, generator=generator) * (lengths - span + 1).clamp(min=1)
    frames = torch.arange(max_length)
    rescue = (frames >= place.long()[:, None]) & (frames < place.long()[:, None] + span)  # (B, T)
    rescue &= lengths_to_mask(lengths, max_length)
    return torch.where(mask.any(1, keepdim=True), mask, rescue)


def masked_frames(mask: Tensor) -> MaskedFrames:
    """Lists the masked frames of each utterance. `mask` bool (B, T) on the CPU -> MaskedFrames on the CPU."""
    counts = mask.sum(1)
    widest = max(int(counts.max()), 1)
    index = torch.argsort(mask.int(), dim=1, descending=True, stable=True)[:, :widest]  # (B, M)
    valid = lengths_to_mask(counts, widest)  # (B, M)
    frames, places = (x.flatten().nonzero().squeeze(1) for x in (mask, valid))
    return MaskedFrames(mask, index.masked_fill(~valid, 0), counts, frames, places)


def noise_generator(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Source of noise on `device`, which follows from the state of `generator`, on the CPU: that itself on the CPU."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def gather_frames(x: Tensor, index: Tensor) -> Tensor:
    """Frames `index` (B, M) of `x` (B, T, D) -> (B, M, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))  # (B, M, D)
