"""The speech encoder: feature encoder and two stacks of conformer blocks (w2v-BERT, section 2.1).

B batch, T filterbank frames, F mel bins, C feature encoder dimension, D model dimension. T/4 stands for the encoder's
frames; where the feature encoder stacks frames they are T/2.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from w2vbert.models.conformer import ConformerBlock, ConformerConfig
from w2vbert.models.subsampling import SubsamplingConfig, make_feature_encoder
from w2vbert.ops.dropout import dropout
from w2vbert.ops.lengths import padding_mask, send


@dataclass(frozen=True)
class EncoderConfig:
    """Feature encoder and conformer blocks; the defaults are w2v-BERT XL's.

    Attributes:
        subsampling: feature encoder.
        block: every conformer block.
        contrastive_blocks: blocks of the contrastive module (12: paper); 0 where the objective has none.
        masked_blocks: blocks of the masked-prediction module (12 in XL, 30 in XXL: paper); 0 where it has none.
    """

    subsampling: SubsamplingConfig = field(default_factory=SubsamplingConfig)
    block: ConformerConfig = field(default_factory=ConformerConfig)
    contrastive_blocks: int = 12
    masked_blocks: int = 12

    def __post_init__(self) -> None:
        if min(self.contrastive_blocks, self.masked_blocks) < 0 or not self.contrastive_blocks + self.masked_blocks:
            raise ValueError("contrastive_blocks and masked_blocks must not be negative, and one of them above 0")


@dataclass(frozen=True)
class EncoderOutput:
    """Encoder states.

    Attributes:
        features: (B, T/4, C), the feature encoder's output, unmasked.
        context: (B, T/4, D), output of the contrastive module.
        output: (B, T/4, D), output of the masked-prediction module.
        lengths: int64 (B,), encoder frames.
    """

    features: Tensor
    context: Tensor
    output: Tensor
    lengths: Tensor


class SpeechEncoder(nn.Module):
    """Feature encoder, contrastive module and masked-prediction module without their losses (section 2.1)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_encoder = make_feature_encoder(config.subsampling)
        self.input_linear = nn.Linear(config.subsampling.output_dim, config.block.dim)
        self.dropout_prob = config.block.dropout_prob
        self.contrastive_blocks = nn.ModuleList(ConformerBlock(config.block) for _ in range(config.contrastive_blocks))
        self.masked_blocks = nn.ModuleList(ConformerBlock(config.block) for _ in range(config.masked_blocks))

    def blocks(self) -> list[nn.Module]:
        """The conformer blocks, from input to output."""
        return [*self.contrastive_blocks, *self.masked_blocks]

    def layers(self) -> list[list[nn.Module]]:
        """All that learns, from input to output: what stands before the blocks, then each block."""
        return [[self.feature_encoder, self.input_linear], *([block] for block in self.blocks())]

    def forward(self, features: Tensor, lengths: Tensor) -> EncoderOutput:
        """Encodes without masking. `features` (B, T, F), `lengths` int64 (B,) on the CPU."""
        encoded, lengths = self.feature_encoder(features, lengths)
        return self.contextualize(encoded, encoded, lengths)

    def contextualize(self, encoded: Tensor, masked: Tensor, lengths: Tensor) -> EncoderOutput:
        """Runs the blocks on `masked` (B, T/4, C), which is `encoded` with its masked frames replaced."""
        mask = padding_mask(lengths, encoded.shape[1])
        mask = None if mask is None else send(mask, encoded.device)
        x = dropout(self.input_linear(masked), self.dropout_prob, self.training)
        for block in self.contrastive_blocks:
            x = block(x, mask)
        context = x
        for block in self.masked_blocks:
            x = block(x, mask)
        return EncoderOutput(encoded, context, x, lengths)
