"""Encoders in transformers' layout: the same outputs as transformers, and clear refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.tiny import noise, unsettle
from w2vbert.models.encoder import EncoderConfig, SpeechEncoder
from w2vbert.models.wav2vec2_bert import PREFIX, convert_config, convert_weights

SETTINGS = {
    "model_type": "wav2vec2-bert",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "feature_projection_input_dim": 20,
    "conv_depthwise_kernel_size": 7,
    "left_max_position_embeddings": 5,
    "right_max_position_embeddings": 2,
}
LENGTHS = torch.tensor([46, 31, 9, 2])
POSITIONS = ["relative_key", "rotary", None]


def their_model(**changes: Any) -> Any:
    """transformers' model with unsettled weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**SETTINGS | changes)).eval()
    unsettle(torch.nn.ParameterList(model.parameters()))  # and not the frequencies of the positions, which are buffers
    return model


def our_model(settings: dict[str, Any], weights: dict[str, Tensor]) -> SpeechEncoder:
    config = convert_config(settings, 2, None, None)
    encoder = SpeechEncoder(config)
    encoder.load_state_dict(convert_weights(weights, config)[0])
    return encoder.eval()


@torch.no_grad()
def their_output(model: Any, features: Tensor, lengths: Tensor) -> Tensor:
    """Stacks two frames as `SeamlessM4TFeatureExtractor` does."""
    stacked = features.reshape(len(features), -1, 20)  # (B, T/2, 2 F)
    mask = torch.arange(stacked.shape[1]) < (lengths // 2)[:, None]
    return model(stacked, attention_mask=mask.long()).last_hidden_state


@pytest.mark.parametrize("positions", POSITIONS)
def test_outputs_are_those_of_transformers(positions: str | None) -> None:
    theirs = their_model(position_embeddings_type=positions)
    ours = our_model(theirs.config.to_dict(), theirs.state_dict())
    features = noise(4, 46, 10)
    with torch.no_grad():
        output = ours(features, LENGTHS)
    expected = their_output(theirs, features, LENGTHS)
    assert output.lengths.tolist() == [23, 15, 4, 1] and expected.std() > 0.1
    for row, n in enumerate(output.lengths.tolist()):
        torch.testing.assert_close(output.output[row, :n], expected[row, :n], atol=1e-5, rtol=0)
        with torch.no_grad():
            alone = ours(features[row : row + 1, : 2 * n], torch.tensor([2 * n])).output[0]
        torch.testing.assert_close(alone, expected[row, :n], atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_matter(positions: str | None) -> None:
    """Outputs equal to transformers' mean something only if other positions give others."""
    theirs = their_model(position_embeddings_type=positions)
    others = [their_model(position_embeddings_type=other) for other in POSITIONS if other != positions]
    for other in others:
        other.load_state_dict(theirs.state_dict(), strict=False)
        outputs = [their_output(model, noise(4, 46, 10), LENGTHS)[0] for model in (theirs, other)]
        assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_a_model_with_a_head_in_half_precision_gives_the_same_encoder() -> None:
    theirs = their_model()
    with_head = {f"{PREFIX}{name}": tensor.half() for name, tensor in theirs.state_dict().items()}
    with_head["lm_head.weight"] = torch.zeros(3, 16)
    config = convert_config(SETTINGS, 2, 1, 0.2)
    converted, left_out = convert_weights(with_head, config)
    assert left_out == ["lm_head.weight", "masked_spec_embed"]
    assert (config.contrastive_blocks, config.masked_blocks, config.block.dropout_prob) == (1, 2, 0.2)
    for name, tensor in convert_weights(theirs.state_dict(), config)[0].items():
        assert converted[name].dtype == torch.float32
        torch.testing.assert_close(converted[name], tensor, atol=1e-2, rtol=1e-2)


def test_the_published_settings_give_its_580_million_parameters() -> None:
    config = convert_config({"model_type": "wav2vec2-bert"}, 2, None, None)
    assert (config.contrastive_blocks, config.masked_blocks, config.subsampling.stride) == (12, 12, 2)
    with torch.device("meta"):
        count = sum(p.numel() for p in SpeechEncoder(config).parameters())
        transformers = pytest.importorskip("transformers")
        theirs = sum(p.numel() for p in transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig()).parameters())
    assert count == theirs - 2 * 160 - 1024  # scale and shift of the input are folded, the vector for masks is left out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model_type": "wav2vec2"}, "model_type is 'wav2vec2'"),
        ({"add_adapter": True}, "add_adapter is True, but only False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"position_embeddings_type": "relative"}, "position_embeddings_type is 'relative'"),
        ({"position_embeddings_type": ["relative"]}, r"position_embeddings_type is \['relative'\]"),
        ({"hidden_size": "many"}, "hidden_size is 'many'"),
        ({"hidden_size": 15}, "dim 15 is not a multiple of heads 2"),
        ({"feature_projection_input_dim": 21}, "feature_projection_input_dim 21"),
        ({"hidden_dropout": "no"}, "hidden_dropout is 'no'"),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        convert_config(SETTINGS | changes, 2, None, None)


def test_more_contrastive_blocks_than_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="contrastive_blocks is 4, but the model has 3 blocks"):
        convert_config(SETTINGS, 2, 4, None)


def test_weights_that_do_not_fit_are_named() -> None:
    theirs = their_model()
    config: EncoderConfig = convert_config(SETTINGS, 2, None, None)
    name = "encoder.layers.1.self_attn.linear_k.weight"
    for tensor, line in (
        (None, f"{name} is missing"),
        (torch.zeros(16, 15), rf"{name} has shape \(16, 15\), but config.json says \(16, 16\)"),
        (torch.zeros(16, 16, dtype=torch.int8), f"{name} has type torch.int8"),
    ):
        weights = {key: value for key, value in theirs.state_dict().items() if key != name}
        weights |= {} if tensor is None else {name: tensor}
        with pytest.raises(ValueError, match=line):
            convert_weights(weights, config)
