"""w2v-BERT (Chung et al. 2021, arXiv 2108.06209): contrastive learning and masked prediction, end to end.

B batch, T filterbank frames, F mel bins, C feature encoder dimension, D model dimension, M masked frames,
N = all masked frames of the batch, G codebooks, V codes.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2vbert.models.encoder import EncoderConfig, SpeechEncoder
from w2vbert.models.quantizer import GumbelQuantizer, QuantizerConfig, QuantizerOutput, diversity_loss
from w2vbert.ops.contrastive import ContrastiveLoss, contrastive_loss, draw_distractors
from w2vbert.ops.masking import MaskedFrames, gather_frames, masked_frames, span_mask


@dataclass(frozen=True)
class W2vBertConfig:
    """Pre-training model and losses; the defaults are w2v-BERT XL's.

    Attributes:
        encoder: the part that fine-tuning keeps.
        quantizer: targets.
        mask_start_prob: probability that a frame starts a masked span (0.065: paper).
        mask_span_frames: encoder frames (40 ms) in a span (10: paper).
        num_distractors: K (100: wav2vec 2.0). Where no utterance of a batch has more than K other masked frames, all of
            them serve.
        contrastive_temperature: kappa (0.1: wav2vec 2.0).
        contrastive_weight: beta, of L_c = L_w + diversity_weight L_d (1: paper).
        diversity_weight: alpha (0.1: paper).
        masked_prediction_weight: gamma, of L_m (1: paper).
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    mask_start_prob: float = 0.065
    mask_span_frames: int = 10
    num_distractors: int = 100
    contrastive_temperature: float = 0.1
    contrastive_weight: float = 1.0
    diversity_weight: float = 0.1
    masked_prediction_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_start_prob < 1.0 or self.mask_span_frames < 1 or self.num_distractors < 1:
            raise ValueError("mask_start_prob must lie in (0, 1), mask_span_frames and num_distractors be at least 1")


@dataclass(frozen=True)
class W2vBertLoss:
    """Sums over the masked frames of a batch; divide by the counts after adding up batches and processes.

    Attributes:
        total: scalar, beta (L_w + alpha L_d) + gamma L_m, summed over `count` masked frames.
        count: scalar int64, masked frames.
        contrastive: L_w and its accuracy.
        masked_loss: scalar, sum of the cross-entropies of masked prediction, mean over codebooks.
        masked_correct: scalar, sum of right predictions, mean over codebooks.
        diversity: scalar, L_d times `count`.
        code_counts: (G, V), how often each code was a target.
        frame_entropy: scalar, sum of the entropies of the single frame's code distribution, in nats.
    """

    total: Tensor
    count: Tensor
    contrastive: ContrastiveLoss
    masked_loss: Tensor
    masked_correct: Tensor
    diversity: Tensor
    code_counts: Tensor
    frame_entropy: Tensor


class W2vBert(nn.Module):
    """Pre-training model: encoder, quantizer and the heads of both losses (section 2)."""

    def __init__(self, config: W2vBertConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.block.dim
        self.encoder = SpeechEncoder(config.encoder)
        self.quantizer = GumbelQuantizer(config.encoder.subsampling.output_dim, config.quantizer)
        self.context_linear = nn.Linear(dim, config.quantizer.dim)
        self.code_linear = nn.Linear(dim, config.quantizer.codebooks * config.quantizer.codes)

    def forward(self, features: Tensor, lengths: Tensor, temperature: float, generator: torch.Generator) -> W2vBertLoss:
        """The losses of one batch.

        Args:
            features: (B, T, F), normalised log-mel filterbanks.
            lengths: int64 (B,), filterbank frames, on the CPU.
            temperature: Gumbel temperature.
            generator: source of masks, distractors and Gumbel noise, on the CPU.

        Returns:
            W2vBertLoss.
        """
        config = self.config
        encoded, encoded_lengths = self.encoder.feature_encoder(features, lengths)  # (B, T/4, C)
        mask = span_mask(encoded_lengths, encoded.shape[1], config.mask_start_prob, config.mask_span_frames, generator)
        frames = masked_frames(mask)
        distractors = self._draw_distractors(frames, generator)
        frames = frames.to(encoded.device)
        # Unknown in the paper: the distribution of the random vectors. N(0, 1) has the scale of the normalised frames.
        noise = torch.randn(encoded.shape, generator=generator).to(encoded)
        masked = torch.where(frames.mask[..., None], noise, encoded)
        output = self.encoder.contextualize(encoded, masked, encoded_lengths)
        targets = gather_frames(encoded, frames.index)[frames.valid]  # (N, C)
        quantized = self.quantizer(targets, temperature, generator)
        contrastive = self._contrastive(output.context, quantized, frames, distractors)
        return self._losses(output.output, quantized, frames, contrastive)

    def _draw_distractors(self, frames: MaskedFrames, generator: torch.Generator) -> Tensor | None:
        max_count = frames.index.shape[1]
        if max_count - 1 <= self.config.num_distractors:
            return None
        return draw_distractors(frames.counts, max_count, self.config.num_distractors, generator).to(frames.mask.device)

    def _contrastive(
        self, context: Tensor, quantized: QuantizerOutput, frames: MaskedFrames, distractors: Tensor | None
    ) -> ContrastiveLoss:
        queries = self.context_linear(gather_frames(context, frames.index))  # (B, M, E)
        targets = queries.new_zeros(queries.shape).to(quantized.vectors.dtype)
        targets[frames.valid] = quantized.vectors
        codes = quantized.codes.new_zeros(*frames.index.shape, quantized.codes.shape[1])  # (B, M, G)
        codes[frames.valid] = quantized.codes
        temperature = self.config.contrastive_temperature
        if distractors is not None:
            distractors = distractors.to(context.device)
        return contrastive_loss(queries, targets, codes, frames.counts, distractors, temperature)

    def _losses(
        self, output: Tensor, quantized: QuantizerOutput, frames: MaskedFrames, contrastive: ContrastiveLoss
    ) -> W2vBertLoss:
        config = self.config
        predicted = gather_frames(output, frames.index)[frames.valid]  # (N, D)
        logits = self.code_linear(predicted).float().view(*quantized.ids.shape, -1)  # (N, G, V)
        masked_loss = F.cross_entropy(logits.flatten(0, 1), quantized.ids.flatten(), reduction="sum")
        groups = config.quantizer.codebooks
        count = frames.counts.sum()
        diversity = diversity_loss(quantized.mean_probs) * count
        masked_loss = masked_loss / groups
        contrastive_part = contrastive.loss + config.diversity_weight * diversity
        one_hot = F.one_hot(quantized.ids, config.quantizer.codes)  # (N, G, V)
        return W2vBertLoss(
            total=config.contrastive_weight * contrastive_part + config.masked_prediction_weight * masked_loss,
            count=count,
            contrastive=contrastive,
            masked_loss=masked_loss.detach(),
            masked_correct=(logits.argmax(-1) == quantized.ids).sum() / groups,
            diversity=diversity.detach(),
            code_counts=one_hot.sum(0),
            frame_entropy=quantized.entropy * count,
        )
