"""Conformer encoders of the same shape: ours, torchaudio's and two of transformers, the last two where it is installed.

All map (B, T, D) to (B, T, D), in training, without dropout, without padding and without a padding mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from w2vbert.models.conformer import ConformerBlock, ConformerConfig


@dataclass(frozen=True)
class Shape:
    """An encoder.

    Attributes:
        blocks, dim, heads, kernel: of the blocks; feed-forward layers are 4 times as wide as `dim`.
    """

    blocks: int
    dim: int
    heads: int
    kernel: int = 5


@dataclass(frozen=True)
class Encoder:
    """A contestant: its parameters, and its forward pass."""

    module: nn.Module
    forward: Callable[[Tensor], Tensor]


def ours(shape: Shape) -> Encoder:
    """This project's blocks."""
    config = ConformerConfig(shape.dim, shape.heads, 4 * shape.dim, shape.kernel, dropout_prob=0.0)
    blocks = nn.Sequential(*(_WithoutMask(ConformerBlock(config)) for _ in range(shape.blocks)))
    return Encoder(blocks, blocks)


def torchaudios(shape: Shape) -> Encoder:
    """`torchaudio.models.Conformer`, its layers called without the mask that it would make."""
    model = torchaudio.models.Conformer(shape.dim, shape.heads, 4 * shape.dim, shape.blocks, shape.kernel)

    def forward(x: Tensor) -> Tensor:
        x = x.transpose(0, 1)  # (T, B, D)
        for layer in model.conformer_layers:
            x = layer(x, None)
        return x.transpose(0, 1)

    return Encoder(model, forward)


def transformers_encoders(shape: Shape) -> dict[str, Encoder]:
    """Wav2Vec2Conformer's and Wav2Vec2Bert's encoders with their default positions; none without transformers."""
    try:
        from transformers import Wav2Vec2BertConfig, Wav2Vec2ConformerConfig
        from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertEncoder
        from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoder
    except ImportError:
        return {}
    settings: dict[str, Any] = {
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.dim,
        "conv_depthwise_kernel_size": shape.kernel,
        **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "layerdrop"), 0.0),
        "conformer_conv_dropout": 0.0,
        "attn_implementation": "eager",
    }
    wav2vec2 = Wav2Vec2ConformerEncoder(Wav2Vec2ConformerConfig(**settings))
    bert = Wav2Vec2BertEncoder(Wav2Vec2BertConfig(**settings))
    return {
        "Wav2Vec2Conformer": Encoder(wav2vec2, lambda x: wav2vec2(x).last_hidden_state),
        "Wav2Vec2Bert": Encoder(bert, lambda x: bert(x).last_hidden_state),
    }


def contestants(shape: Shape) -> dict[str, Encoder]:
    """All that can be had, in training."""
    torch.manual_seed(0)
    found = {"ours": ours(shape), "torchaudio": torchaudios(shape), **transformers_encoders(shape)}
    for encoder in found.values():
        encoder.module.train()
    return found


class _WithoutMask(nn.Module):
    def __init__(self, block: ConformerBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, None)
