"""BEST-RQ (Chiu et al. 2022, arXiv 2202.01855) on w2v-BERT's encoder: masked prediction of random codes.

B batch, T filterbank frames, F mel bins, S filterbank frames for an encoder frame, D model dimension,
N = all masked frames of the batch, G codebooks, V codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2vbert.models.encoder import SpeechEncoder
from w2vbert.models.random_projection import RandomProjectionQuantizer
from w2vbert.models.w2v_bert import PretrainingLoss, W2vBertConfig, count_codes, predict_codes
from w2vbert.ops.lengths import lengths_to_mask, send, zero_padding
from w2vbert.ops.masking import masked_frames, noise_generator, span_mask

NOISE_STD = 0.1  # of what replaces masked filterbanks (section 3.2)


class BestRq(nn.Module):
    """Hides spans of filterbank frames from the encoder and asks for the codes that they have.

    Targets are the codes of the S filterbank frames of an encoder frame side by side (section 3.1). They depend on
    nothing that learns, so they cannot collapse while training goes on. The paper asks for input of mean 0 and variance
    1, which `w2vbert.data.features.normalize` gives.

    Deviation: spans are drawn as for w2v-BERT, in encoder frames. The paper begins a span of 400 ms at each 10 ms with
    probability 0.01, which masks 33 % of the frames; `mask_start_prob: 0.039` with spans of 10 frames does the same.
    """

    def __init__(self, config: W2vBertConfig) -> None:
        super().__init__()
        self.config = config
        subsampling, targets = config.encoder.subsampling, config.random_projection
        self.encoder = SpeechEncoder(config.encoder)
        self.quantizer = RandomProjectionQuantizer(subsampling.stride * subsampling.num_mel_bins, targets)
        self.code_linear = nn.Linear(config.encoder.block.dim, targets.codebooks * targets.codes)

    def forward(
        self, features: Tensor, lengths: Tensor, temperature: float, generator: torch.Generator
    ) -> PretrainingLoss:
        """The loss of one batch.

        Args:
            features: (B, T, F), normalised log-mel filterbanks.
            lengths: int64 (B,), filterbank frames, on the CPU.
            temperature: not used, there is no Gumbel softmax.
            generator: source of masks and noise, on the CPU.

        Returns:
            PretrainingLoss.
        """
        config, stride = self.config, self.config.encoder.subsampling.stride
        codes = config.random_projection.codes
        features = zero_padding(features, lengths_to_mask(send(lengths, features.device), features.shape[1]))
        features = F.pad(features, (0, 0, 0, -features.shape[1] % stride))  # (B, T, F), T a multiple of S
        encoded_lengths = config.encoder.subsampling.output_lengths(lengths)
        encoded_frames = features.shape[1] // stride
        mask = span_mask(encoded_lengths, encoded_frames, config.mask_start_prob, config.mask_span_frames, generator)
        frames = masked_frames(mask).to(features.device)
        source = noise_generator(generator, features.device)
        noise = NOISE_STD * torch.randn(features.shape, generator=source, device=features.device).to(features.dtype)
        hidden = frames.mask.repeat_interleave(stride, dim=1)[..., None]  # (B, T, 1)
        output = self.encoder(torch.where(hidden, noise, features), lengths).output
        stacked = features.view(features.shape[0], encoded_frames, -1)  # (B, T/S, S F)
        ids = self.quantizer(frames.take(stacked))  # (N, G)
        masked = predict_codes(self.code_linear, output, frames, ids)
        return PretrainingLoss(
            total=masked.loss, count=frames.counts.sum(), code_counts=count_codes(ids, codes), masked=masked
        )
