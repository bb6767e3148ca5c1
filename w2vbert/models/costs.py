"""What a model costs: floating-point operations of matrix products and convolutions, and bytes of its states.

B batch, T filterbank frames, N encoder frames, D model dimension, C feature encoder dimension. Products count two
operations for each multiplication with its addition; pointwise operations and the Adam step are left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from w2vbert.models.conformer import ConformerBlock, ConformerConfig
from w2vbert.models.encoder import EncoderConfig
from w2vbert.models.subsampling import SubsamplingConfig, make_feature_encoder
from w2vbert.models.transducer import TransducerConfig
from w2vbert.models.w2v_bert import W2vBertConfig

STATE_BYTES_PER_PARAMETER = 16
"""Weight, gradient and the two moments of Adam, float32."""


@dataclass(frozen=True)
class Flops:
    """Operations of an utterance.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass.
    """

    forward: float
    backward: float

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def scaled(self, factor: float) -> "Flops":
        """So many times these."""
        return Flops(self.forward * factor, self.backward * factor)

    @property
    def total(self) -> float:
        """Forward and backward pass."""
        return self.forward + self.backward


def product(rows: float, inputs: float, outputs: float, input_gradient: bool = True) -> Flops:
    """(rows, inputs) times (inputs, outputs); the backward pass has such a product for each factor with a gradient."""
    forward = 2.0 * rows * inputs * outputs
    return Flops(forward, forward * (2 if input_gradient else 1))


def add_up(parts: Iterable[Flops]) -> Flops:
    """Sum."""
    return sum(parts, Flops(0.0, 0.0))


def feature_encoder_flops(config: SubsamplingConfig, frames: int) -> Flops:
    """Two 3x3 convolutions on (T, F) filterbanks; stacking frames costs nothing."""
    if config.kind == "stack":
        return Flops(0.0, 0.0)
    first, second = config.channels
    places = ((frames + 1) // 2) * ((config.num_mel_bins + 1) // 2)
    fewer_places = ((frames + 3) // 4) * ((config.num_mel_bins + 3) // 4)
    return product(places, 9, first, input_gradient=False) + product(fewer_places, 9 * first, second)


def block_flops(config: ConformerConfig, frames: int) -> Flops:
    """One conformer block on N frames."""
    dim, inner = config.dim, config.feed_forward_dim
    linear = product(frames, dim, 4 * inner + 4 * dim + 3 * dim)  # feed-forward twice, attention, convolution
    depthwise = product(frames, config.kernel, dim)
    attention = product(frames, dim, 2 * frames)  # scores and values
    if config.positions == "relative_key":
        attention += product(frames, dim, sum(config.span_frames) + 1)
    return linear + depthwise + attention


def encoder_flops(config: EncoderConfig, frames: int) -> Flops:
    """The whole encoder on T filterbank frames, unmasked."""
    encoded = count_frames(config, frames)
    learned = config.subsampling.kind == "convolution"
    return add_up(
        [
            feature_encoder_flops(config.subsampling, frames),
            product(encoded, config.subsampling.output_dim, config.block.dim, input_gradient=learned),
            block_flops(config.block, encoded).scaled(config.contrastive_blocks + config.masked_blocks),
        ]
    )


def count_frames(config: EncoderConfig, frames: int) -> int:
    """Encoder frames of T filterbank frames."""
    return int(config.subsampling.output_lengths(torch.tensor(frames)))


def pretraining_flops(config: W2vBertConfig, frames: int) -> Flops:
    """Encoder, targets and heads on T filterbank frames. Targets and heads work on masked frames only."""
    encoder, dim = config.encoder, config.encoder.block.dim
    masked = expected_mask_share(config) * count_frames(encoder, frames)
    flops = encoder_flops(encoder, frames)
    if config.objective == "best-rq":
        frozen = config.random_projection
        inputs = encoder.subsampling.stride * encoder.subsampling.num_mel_bins
        forward = product(masked, frozen.dim, frozen.codebooks * (inputs + frozen.codes)).forward
        return flops + Flops(forward, 0.0) + product(masked, dim, frozen.codebooks * frozen.codes)
    targets = config.quantizer
    flops += product(masked, encoder.subsampling.output_dim, targets.codebooks * targets.codes)
    if config.objective != "no-contrastive":
        flops += product(masked, dim, targets.dim) + product(masked, targets.dim, masked)
        flops += Flops(0.0, 2.0 * masked * targets.dim * targets.codes)  # straight-through gradient of the look-up
    if config.objective != "w2v-conformer":
        flops += product(masked, dim, targets.codebooks * targets.codes)
    return flops


def expected_mask_share(config: W2vBertConfig) -> float:
    """Share of frames in some span: 1 - (1 - p)^span (48.9 % in the paper)."""
    return float(1.0 - (1.0 - config.mask_start_prob) ** config.mask_span_frames)


def kept_bytes(module: nn.Module, x: Tensor, *others: object) -> int:
    """Bytes that autograd keeps for the backward pass of `module(x, *others)`, parameters not counted."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = module(x, *others)
    del output
    return sum(size for size, _ in kept.values())


def encoder_activation_bytes(config: EncoderConfig, frames: int, dtype: torch.dtype) -> int:
    """Bytes that the encoder keeps for the backward pass of T filterbank frames, with products in `dtype`.

    Its parts run on tensors without data, so the answer follows the code. It is meant for a GPU: the states between the
    blocks are float32, as LayerNorm leaves them there, attention is fused, and dropout keeps a byte for each place.
    Weights cast to another type, which are kept for any number of frames, are left out.
    """
    encoded, block_config = count_frames(config, frames), config.block
    blocks = config.contrastive_blocks + config.masked_blocks

    def measure(frames: int, encoded: int) -> int:
        encoder = make_feature_encoder(config.subsampling)
        block = ConformerBlock(replace(block_config, dropout_prob=0.0))
        features = torch.empty(1, frames, config.subsampling.num_mel_bins)
        x = torch.empty(1, encoded, block_config.dim, requires_grad=True)
        return kept_bytes(encoder, features, torch.tensor([frames])) + blocks * kept_bytes(block, x, None)

    with FakeTensorMode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        kept = measure(frames, encoded) - measure(config.subsampling.stride, 1)
    places = 4 * block_config.dim + 2 * block_config.feed_forward_dim if block_config.dropout_prob else 0
    return kept + blocks * encoded * places


def transducer_flops(config: TransducerConfig, frames: int, prune_range: int) -> Flops:
    """Encoder and heads of a transducer on T filterbank frames; what grows with the labels alone is left out."""
    encoded, dim = count_frames(config.encoder, frames), config.encoder.block.dim
    flops = encoder_flops(config.encoder, frames)
    flops += product(encoded, config.projection_dim, dim + config.joiner_dim)
    flops += product(encoded, config.joiner_dim, config.vocab_size * (1 + prune_range))
    return flops + product(encoded, dim, config.vocab_size) if config.ctc else flops
