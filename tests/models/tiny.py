"""Configurations small enough for tests, without dropout, and batches of noise."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from w2vbert.models.conformer import ConformerConfig
from w2vbert.models.encoder import EncoderConfig
from w2vbert.models.quantizer import QuantizerConfig
from w2vbert.models.subsampling import SubsamplingConfig
from w2vbert.models.transducer import PredictorConfig, TransducerConfig
from w2vbert.models.w2v_bert import W2vBertConfig

MELS = 8
BLOCK = ConformerConfig(dim=16, heads=2, feed_forward_dim=24, kernel=5, dropout_prob=0.0)
ROTARY = replace(BLOCK, positions="rotary")
SUBSAMPLING = SubsamplingConfig(num_mel_bins=MELS, channels=(6, 4))
ENCODER = EncoderConfig(SUBSAMPLING, BLOCK, contrastive_blocks=2, masked_blocks=2)
PRETRAINING = W2vBertConfig(ENCODER, QuantizerConfig(codes=12, dim=10), num_distractors=8)
LSTM = PredictorConfig(kind="lstm", dim=12, layers=2, dropout_prob=0.0)
STATELESS = PredictorConfig(kind="stateless", dim=12, context=3, dropout_prob=0.0)
TRANSDUCER = TransducerConfig(ENCODER, vocab_size=11, projection_dim=14, predictor=LSTM, joiner_dim=13, ctc=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unsettle(module: nn.Module, seed: int = 0) -> None:
    """Gives every parameter and statistic a value that a fresh module does not have: biases, scales, means."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            shift = torch.rand(buffer.shape, generator=generator)
            buffer.copy_(shift + 0.5 if name.endswith("var") else shift)
