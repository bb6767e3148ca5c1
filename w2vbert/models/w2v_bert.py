"""w2v-BERT (Chung et al. 2021, arXiv 2108.06209): contrastive learning and masked prediction, end to end.

Also its two relatives that need no more than parts of it: the contrastive loss alone (`w2v-conformer`, the paper's
baseline), and masked prediction without the contrastive loss (`no-contrastive`, the paper's ablation).

B batch, T filterbank frames, F mel bins, C feature encoder dimension, D model dimension, M masked frames,
N = all masked frames of the batch, G codebooks, V codes.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2vbert.models.encoder import EncoderConfig, EncoderOutput, SpeechEncoder
from w2vbert.models.quantizer import GumbelQuantizer, QuantizerConfig, QuantizerOutput, diversity_loss, information_gap
from w2vbert.models.random_projection import RandomProjectionConfig
from w2vbert.ops.contrastive import ContrastiveLoss, contrastive_loss, draw_distractors
from w2vbert.ops.lengths import send
from w2vbert.ops.masking import MaskedFrames, gather_frames, masked_frames, noise_generator, span_mask

Objective = Literal["w2v-bert", "w2v-conformer", "no-contrastive", "best-rq"]


@dataclass(frozen=True)
class W2vBertConfig:
    """Pre-training model and losses; the defaults are w2v-BERT XL's.

    Attributes:
        encoder: the part that fine-tuning keeps.
        quantizer: targets of all objectives but best-rq.
        objective: which losses stand on the encoder. `w2v-bert`: contrastive after the first blocks, masked prediction
            after the rest. `w2v-conformer`: contrastive on top of all blocks (the paper's baseline).
            `no-contrastive`: masked prediction and diversity on top of all blocks (the paper's ablation).
            `best-rq`: masked prediction of codes that a frozen random projection gives (see `BestRq`).
        random_projection: targets of best-rq.
        mask_start_prob: probability that a frame starts a masked span (0.065: paper).
        mask_span_frames: encoder frames (40 ms) in a span (10: paper).
        num_distractors: K (100: wav2vec 2.0). Where no utterance of a batch has more than K other masked frames, all of
            them serve.
        contrastive_temperature: kappa (0.1: wav2vec 2.0).
        contrastive_weight: beta, of L_c = L_w + diversity_weight L_d (1: paper).
        diversity: what pushes towards even use of the codes. `perplexity`: the paper's L_d. `information`: log V minus
            what the codes tell of a frame, in nats. Deviation: L_d pulls the less the fewer codes are in use, and is
            content with frames of which each might be any code; both let codes collapse on real speech
            (docs/collapse.md).
        diversity_weight: alpha. The paper has 0.1, with `perplexity`; 0.25 with `information` kept the codes in use on
            all that was tried (docs/collapse.md).
        masked_prediction_weight: gamma, of L_m (1: paper).
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    objective: Objective = "w2v-bert"
    random_projection: RandomProjectionConfig = field(default_factory=RandomProjectionConfig)
    mask_start_prob: float = 0.065
    mask_span_frames: int = 10
    num_distractors: int = 100
    contrastive_temperature: float = 0.1
    contrastive_weight: float = 1.0
    diversity: Literal["information", "perplexity"] = "information"
    diversity_weight: float = 0.25
    masked_prediction_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_start_prob < 1.0 or self.mask_span_frames < 1 or self.num_distractors < 1:
            raise ValueError("mask_start_prob must lie in (0, 1), mask_span_frames and num_distractors be at least 1")
        if self.contrastive_temperature <= 0.0:
            raise ValueError(f"contrastive_temperature must be above 0, not {self.contrastive_temperature}")
        if min(self.contrastive_weight, self.diversity_weight, self.masked_prediction_weight) < 0.0:
            raise ValueError("weights of the losses must not be negative")
        first, rest = self.encoder.contrastive_blocks, self.encoder.masked_blocks
        if self.objective == "w2v-bert" and not first:
            raise ValueError("objective w2v-bert needs encoder.contrastive_blocks of at least 1")
        if self.objective == "w2v-conformer" and rest:
            raise ValueError(
                "objective w2v-conformer has its loss on top of all blocks: "
                f"set encoder.contrastive_blocks to {first + rest} and encoder.masked_blocks to 0"
            )
        if self.objective in ("no-contrastive", "best-rq") and first:
            raise ValueError(
                f"objective {self.objective} has no contrastive module: "
                f"set encoder.contrastive_blocks to 0 and encoder.masked_blocks to {first + rest}"
            )

    def unused_keys(self) -> list[str]:
        """Keys with a value of their own that the objective does not look at."""
        contrastive = ["num_distractors", "contrastive_temperature"]
        weights = ["contrastive_weight", "diversity", "diversity_weight", "masked_prediction_weight"]
        unused = {
            "w2v-bert": ["random_projection"],
            "w2v-conformer": ["random_projection", "masked_prediction_weight"],
            "no-contrastive": ["random_projection", *contrastive],
            "best-rq": ["quantizer", *contrastive, *weights],
        }
        default = W2vBertConfig()
        return [key for key in unused[self.objective] if getattr(self, key) != getattr(default, key)]


@dataclass(frozen=True)
class MaskedPredictionLoss:
    """Sums over the masked frames, means over codebooks.

    Attributes:
        loss: scalar, L_m: cross-entropies in nats.
        correct: scalar, right predictions.
    """

    loss: Tensor
    correct: Tensor


@dataclass(frozen=True)
class CodeUse:
    """How the Gumbel quantizer spreads masked frames over its codes; each a scalar, times the number of frames.

    Attributes:
        diversity: L_d of the paper.
        penalty: what the total has of it, with gradient: L_d or the gap of the information.
        batch_entropy: entropy in nats of the mean distribution over the batch, mean over codebooks.
        frame_entropy: mean entropy in nats of the single frame's distribution.
    """

    diversity: Tensor
    penalty: Tensor
    batch_entropy: Tensor
    frame_entropy: Tensor


@dataclass(frozen=True)
class PretrainingLoss:
    """Sums over the masked frames of a batch; divide by the counts after adding up batches and processes.

    Attributes:
        total: scalar, with gradient: beta (L_w + alpha L_d) + gamma L_m, or what of it the objective has, summed over
            `count` masked frames.
        count: scalar int64, masked frames.
        code_counts: int64 (G, V), how often each code was a target.
        contrastive: L_w and its accuracy; None without it.
        masked: L_m and its accuracy; None without it.
        use: of the codes; None where the quantizer does not learn.
    """

    total: Tensor
    count: Tensor
    code_counts: Tensor
    contrastive: ContrastiveLoss | None = None
    masked: MaskedPredictionLoss | None = None
    use: CodeUse | None = None


def predict_codes(linear: nn.Linear, output: Tensor, frames: MaskedFrames, ids: Tensor) -> MaskedPredictionLoss:
    """Cross-entropy of the codes `ids` (N, G) of the masked frames, predicted from `output` (B, T/4, D)."""
    logits = linear(frames.take(output)).float().view(*ids.shape, linear.out_features // ids.shape[1])  # (N, G, V)
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum")
    return MaskedPredictionLoss(loss / ids.shape[1], (logits.argmax(-1) == ids).sum() / ids.shape[1])


def count_codes(ids: Tensor, codes: int) -> Tensor:
    """How often each of `codes` codes occurs: int64 (N, G) -> int64 (G, V)."""
    counts = ids.new_zeros(ids.shape[1], codes)
    return counts.scatter_add_(1, ids.t(), torch.ones_like(ids.t()))  # (G, V)


class W2vBert(nn.Module):
    """Pre-training model: encoder, quantizer and the heads of its losses (section 2)."""

    def __init__(self, config: W2vBertConfig) -> None:
        super().__init__()
        self.config = config
        dim, quantizer = config.encoder.block.dim, config.quantizer
        self.encoder = SpeechEncoder(config.encoder)
        self.quantizer = GumbelQuantizer(config.encoder.subsampling.output_dim, quantizer)
        self.context_linear = self.code_linear = None
        if config.objective == "no-contrastive":
            self.quantizer.codebook.requires_grad_(False)  # nobody looks at the vectors, only at the ids
        else:
            self.context_linear = nn.Linear(dim, quantizer.dim)
        if config.objective != "w2v-conformer":
            self.code_linear = nn.Linear(dim, quantizer.codebooks * quantizer.codes)

    def forward(
        self, features: Tensor, lengths: Tensor, temperature: float, generator: torch.Generator
    ) -> PretrainingLoss:
        """The losses of one batch.

        Args:
            features: (B, T, F), normalised log-mel filterbanks.
            lengths: int64 (B,), filterbank frames, on the CPU.
            temperature: Gumbel temperature.
            generator: source of masks, distractors and Gumbel noise, on the CPU.

        Returns:
            PretrainingLoss.
        """
        config = self.config
        encoded, encoded_lengths = self.encoder.feature_encoder(features, lengths)  # (B, T/4, C)
        mask = span_mask(encoded_lengths, encoded.shape[1], config.mask_start_prob, config.mask_span_frames, generator)
        frames = masked_frames(mask)
        distractors = self._draw_distractors(frames, generator)
        frames = frames.to(encoded.device)
        # Unknown in the paper: the distribution of the random vectors. N(0, 1) has the scale of the normalised frames.
        source = noise_generator(generator, encoded.device)
        noise = torch.randn(encoded.shape, generator=source, device=encoded.device).to(encoded.dtype)
        masked = torch.where(frames.mask[..., None], noise, encoded)
        output = self.encoder.contextualize(encoded, masked, encoded_lengths)
        quantized = self.quantizer(frames.take(encoded), temperature, source)
        return self._losses(output, quantized, frames, distractors)

    def _draw_distractors(self, frames: MaskedFrames, generator: torch.Generator) -> Tensor | None:
        max_count = frames.index.shape[1]
        if max_count - 1 <= self.config.num_distractors:
            return None
        return draw_distractors(frames.counts, max_count, self.config.num_distractors, generator)

    def _losses(
        self, output: EncoderOutput, quantized: QuantizerOutput, frames: MaskedFrames, distractors: Tensor | None
    ) -> PretrainingLoss:
        config = self.config
        count = frames.counts.sum()
        use = self._measure_use(quantized, count)
        total = config.contrastive_weight * config.diversity_weight * use.penalty
        contrastive = masked = None
        if self.context_linear is not None:
            contrastive = self._contrastive(self.context_linear, output.context, quantized, frames, distractors)
            total = total + config.contrastive_weight * contrastive.loss
        if self.code_linear is not None:
            masked = predict_codes(self.code_linear, output.output, frames, quantized.ids)
            total = total + config.masked_prediction_weight * masked.loss
        return PretrainingLoss(
            total, count, count_codes(quantized.ids, config.quantizer.codes), contrastive, masked, use
        )

    def _measure_use(self, quantized: QuantizerOutput, count: Tensor) -> CodeUse:
        diversity = diversity_loss(quantized.mean_probs)
        gap = information_gap(quantized.mean_probs, quantized.entropy)
        frame_entropy = quantized.entropy.detach()
        return CodeUse(
            diversity=diversity.detach() * count,
            penalty=(gap if self.config.diversity == "information" else diversity) * count,
            batch_entropy=(math.log(self.config.quantizer.codes) - gap.detach() + frame_entropy) * count,
            frame_entropy=frame_entropy * count,
        )

    def _contrastive(
        self,
        linear: nn.Linear,
        context: Tensor,
        quantized: QuantizerOutput,
        frames: MaskedFrames,
        distractors: Tensor | None,
    ) -> ContrastiveLoss:
        queries = linear(gather_frames(context, frames.index))  # (B, M, E)
        targets, codes = frames.spread(quantized.vectors), frames.spread(quantized.codes)  # (B, M, E), (B, M, G)
        temperature = self.config.contrastive_temperature
        if distractors is not None:
            distractors = send(distractors, context.device)
        return contrastive_loss(queries, targets, codes, frames.counts, distractors, temperature)
