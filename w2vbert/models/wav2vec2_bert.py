"""The encoder of w2v-bert-2.0 in the layout of transformers' `Wav2Vec2BertModel`: its settings and weights as ours.

Pure conversion of what `config.json`, `preprocessor_config.json` and `model.safetensors` hold; no files are read here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from w2vbert.models.conformer import ConformerConfig
from w2vbert.models.encoder import EncoderConfig
from w2vbert.models.subsampling import SubsamplingConfig

MODEL_TYPE = "wav2vec2-bert"
PREFIX = "wav2vec2_bert."
"""Before each name where the model was saved with a head, for example as `Wav2Vec2BertForCTC`."""

_POSITIONS = {None: "none", "relative_key": "relative_key", "rotary": "rotary_input"}
_FIXED = {
    "hidden_act": "swish",
    "layer_norm_eps": 1e-5,
    "rotary_embedding_base": 10000,
    "add_adapter": False,
    "use_intermediate_ffn_before_adapter": False,
}
"""Settings that the conformer blocks know one value of; it is also their default."""

_BLOCK = {
    "norm_ff1": "ffn1_layer_norm",
    "ff1.linear_in": "ffn1.intermediate_dense",
    "ff1.linear_out": "ffn1.output_dense",
    "norm_attention": "self_attn_layer_norm",
    "attention.out": "self_attn.linear_out",
    "norm_convolution": "conv_module.layer_norm",
    "convolution.pointwise_in": "conv_module.pointwise_conv1",
    "convolution.depthwise": "conv_module.depthwise_conv",
    "convolution.norm": "conv_module.depthwise_layer_norm",
    "convolution.pointwise_out": "conv_module.pointwise_conv2",
    "norm_ff2": "ffn2_layer_norm",
    "ff2.linear_in": "ffn2.intermediate_dense",
    "ff2.linear_out": "ffn2.output_dense",
    "norm_out": "final_layer_norm",
}
"""Layers of a block that differ in their name alone: ours, and theirs."""


def convert_config(
    settings: Mapping[str, Any], stacked_frames: int, contrastive_blocks: int | None, dropout_prob: float | None
) -> EncoderConfig:
    """The architecture that `config.json` describes.

    Args:
        settings: what is in `config.json`; an absent key has the default of `Wav2Vec2BertConfig`.
        stacked_frames: `stride` of its feature extractor.
        contrastive_blocks: how many of the blocks form the contrastive module; None: half.
        dropout_prob: of every dropout; None: `hidden_dropout`.

    Raises:
        ValueError: it is no Wav2Vec2Bert, or one with a part that is not known here; in one line.
    """
    if settings.get("model_type") != MODEL_TYPE:
        raise ValueError(f"model_type is {settings.get('model_type')!r}, but {MODEL_TYPE!r} is needed")
    for key, known in _FIXED.items():
        if settings.get(key, known) != known:
            raise ValueError(f"{key} is {settings[key]!r}, but only {known!r} is known")
    positions = settings.get("position_embeddings_type", "relative_key")
    if not isinstance(positions, str | None) or positions not in _POSITIONS:
        raise ValueError(f"position_embeddings_type is {positions!r}, but only relative_key, rotary and null are known")
    input_dim, blocks = (
        _read_int(settings, "feature_projection_input_dim", 160),
        _read_int(settings, "num_hidden_layers", 24),
    )
    if input_dim % stacked_frames:
        raise ValueError(
            f"feature_projection_input_dim {input_dim} is not a multiple of {stacked_frames} stacked frames"
        )
    if contrastive_blocks is None:
        contrastive_blocks = (blocks + 1) // 2
    if contrastive_blocks > blocks:
        raise ValueError(f"contrastive_blocks is {contrastive_blocks}, but the model has {blocks} blocks")
    if dropout_prob is None:
        dropout_prob = settings.get("hidden_dropout", 0.0)
    if not isinstance(dropout_prob, int | float):
        raise ValueError(f"hidden_dropout is {dropout_prob!r}, but a number is needed")
    left = _read_int(settings, "left_max_position_embeddings", 64)
    block = ConformerConfig(
        dim=_read_int(settings, "hidden_size", 1024),
        heads=_read_int(settings, "num_attention_heads", 16),
        feed_forward_dim=_read_int(settings, "intermediate_size", 4096),
        kernel=_read_int(settings, "conv_depthwise_kernel_size", 31),
        positions=_POSITIONS[positions],  # type: ignore[arg-type]
        dropout_prob=dropout_prob,
        convolution="causal",
        span_frames=(left, _read_int(settings, "right_max_position_embeddings", 8)),
    )
    subsampling = SubsamplingConfig(input_dim // stacked_frames, kind="stack", stacked_frames=stacked_frames)
    return EncoderConfig(subsampling, block, contrastive_blocks, blocks - contrastive_blocks)


def _read_int(settings: Mapping[str, Any], key: str, default: int) -> int:
    value = settings.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} is {value!r}, but a number is needed")
    return value


def convert_weights(weights: Mapping[str, Tensor], config: EncoderConfig) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a `Wav2Vec2BertModel`, with or without a head, as those of a `SpeechEncoder`.

    Args:
        weights: by transformers' names; of any floating type.
        config: of `convert_config`.

    Returns:
        Weights by our names, float32, and the names that have no place in the encoder (heads, the vector for masks).

    Raises:
        ValueError: names a tensor that is missing, or has another shape than the config says.
    """
    source = _Source({name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})
    dim, input_dim = config.block.dim, config.subsampling.output_dim
    # Their input is scaled and shifted after it is normalised, ours is not: W (g x + b) + c = (W g) x + (W b + c).
    scale = source.take("feature_projection.layer_norm.weight", input_dim)
    shift = source.take("feature_projection.layer_norm.bias", input_dim)
    weight = source.take("feature_projection.projection.weight", dim, input_dim)
    bias = source.take("feature_projection.projection.bias", dim)
    converted = {"input_linear.weight": weight * scale, "input_linear.bias": bias + weight @ shift}
    for number in range(config.contrastive_blocks + config.masked_blocks):
        inner = number - config.contrastive_blocks
        name = f"contrastive_blocks.{number}" if inner < 0 else f"masked_blocks.{inner}"
        for key, tensor in _convert_block(source, f"encoder.layers.{number}", config.block).items():
            converted[f"{name}.{key}"] = tensor
    return converted, source.untaken


def _convert_block(source: "_Source", layer: str, config: ConformerConfig) -> dict[str, Tensor]:
    """The weights of one block by our names."""
    dim, inner = config.dim, config.feed_forward_dim
    shapes: dict[str, tuple[int, ...]] = {
        "ff1.linear_in": (inner, dim),
        "ff1.linear_out": (dim, inner),
        "attention.out": (dim, dim),
        "convolution.pointwise_in": (2 * dim, dim, 1),
        "convolution.depthwise": (dim, 1, config.kernel),
        "convolution.pointwise_out": (dim, dim, 1),
        "ff2.linear_in": (inner, dim),
        "ff2.linear_out": (dim, inner),
    }
    weights = {}
    for ours, theirs in _BLOCK.items():
        shape = shapes.get(ours, (dim,))
        weights[f"{ours}.weight"] = source.take(f"{layer}.{theirs}.weight", *shape)
        if len(shape) < 3:  # their convolutions have no biases
            weights[f"{ours}.bias"] = source.take(f"{layer}.{theirs}.bias", shape[0])
    for name in ("convolution.pointwise_in.weight", "convolution.pointwise_out.weight"):
        weights[name] = weights[name].squeeze(2)  # (2 D, D), (D, D)
    for kind, shape in (("weight", (dim, dim)), ("bias", (dim,))):
        parts = [source.take(f"{layer}.self_attn.linear_{part}.{kind}", *shape) for part in "qkv"]
        weights[f"attention.qkv.{kind}"] = torch.cat(parts)  # (3 D, D), (3 D,)
    if config.positions == "relative_key":
        distances, channels = sum(config.span_frames) + 1, dim // config.heads
        keys = source.take(f"{layer}.self_attn.distance_embedding.weight", distances, channels)
        weights["attention.distance_keys"] = keys
    return weights


class _Source:
    """Tensors by name, taken one by one."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def untaken(self) -> list[str]:
        """Names that nobody has asked for."""
        return sorted(self._tensors)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of a name as float32; it must have a shape.

        Raises:
            ValueError: it is missing or has another.
        """
        if name not in self._tensors:
            raise ValueError(f"{name} is missing")
        tensor = self._tensors.pop(name)
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but config.json says {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has type {tensor.dtype}, but floating-point numbers are needed")
        return tensor.float()
