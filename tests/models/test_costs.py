"""The cost model: what torch counts and keeps."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.models.tiny import noise
from w2vbert.models.conformer import ConformerConfig
from w2vbert.models.costs import (
    Flops,
    encoder_activation_bytes,
    encoder_flops,
    expected_mask_share,
    kept_bytes,
    pretraining_flops,
    transducer_flops,
)
from w2vbert.models.encoder import EncoderConfig, SpeechEncoder
from w2vbert.models.objectives import make_pretraining_model
from w2vbert.models.quantizer import QuantizerConfig
from w2vbert.models.random_projection import RandomProjectionConfig
from w2vbert.models.subsampling import SubsamplingConfig
from w2vbert.models.transducer import PredictorConfig, Transducer, TransducerConfig
from w2vbert.models.w2v_bert import W2vBertConfig

BLOCK = ConformerConfig(dim=48, heads=4, feed_forward_dim=96, dropout_prob=0.0)
ENCODER = EncoderConfig(SubsamplingConfig(40, (16, 8)), BLOCK, 1, 2)
STACKING = EncoderConfig(
    SubsamplingConfig(40, kind="stack"), replace(BLOCK, positions="relative_key", convolution="causal"), 2, 1
)
QUANTIZER = QuantizerConfig(codebooks=2, codes=24, dim=32)
FRAMES = 800
LENGTHS = torch.tensor([FRAMES, FRAMES])


@pytest.fixture(autouse=True)
def products_that_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2vbert.ops.products.ONEDNN_TYPES", ())


@pytest.mark.parametrize("config", [ENCODER, STACKING], ids=["convolution", "stack"])
def test_operations_of_the_encoder_are_what_torch_counts(config: EncoderConfig) -> None:
    model = SpeechEncoder(config).train()
    features = noise(2, FRAMES, 40)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel of the CPU is not counted
        with FlopCounterMode(display=False) as forward:
            output = model(features, LENGTHS).output
        with FlopCounterMode(display=False) as backward:
            output.sum().backward()
    expected = encoder_flops(config, FRAMES).scaled(2)
    assert forward.get_total_flops() == pytest.approx(expected.forward, rel=0.01)
    assert backward.get_total_flops() == pytest.approx(expected.backward, rel=0.03)


@pytest.mark.parametrize("objective", ["w2v-bert", "w2v-conformer", "no-contrastive", "best-rq"])
def test_operations_of_a_pre_training_step_are_what_torch_counts(objective: str) -> None:
    blocks = {"w2v-bert": (1, 2), "w2v-conformer": (3, 0)}.get(objective, (0, 3))
    encoder = replace(ENCODER, contrastive_blocks=blocks[0], masked_blocks=blocks[1])
    targets = RandomProjectionConfig(codebooks=2, codes=64, dim=8)
    config = W2vBertConfig(encoder, QUANTIZER, objective, targets)  # type: ignore[arg-type]
    model = make_pretraining_model(config).train()
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model(noise(2, FRAMES, 40), LENGTHS, 1.0, torch.Generator().manual_seed(0))
        with FlopCounterMode(display=False) as backward:
            loss.total.backward()
    expected = pretraining_flops(config, FRAMES).scaled(2)
    assert forward.get_total_flops() == pytest.approx(expected.forward, rel=0.03)
    assert backward.get_total_flops() == pytest.approx(expected.backward, rel=0.05)


def test_operations_of_a_transducer_are_what_torch_counts_but_for_the_labels() -> None:
    config = TransducerConfig(ENCODER, 50, 24, PredictorConfig(dim=4, layers=1), 20, ctc=True)
    model = Transducer(config)
    tokens, lengths = torch.ones(2, 1, dtype=torch.int64), torch.tensor([1, 1])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        model(noise(2, FRAMES, 40), LENGTHS, tokens, lengths, 2)
    assert forward.get_total_flops() == pytest.approx(transducer_flops(config, FRAMES, 2).forward * 2, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [ENCODER, STACKING], ids=["convolution", "stack"])
def test_kept_bytes_are_those_of_a_real_encoder(config: EncoderConfig, dtype: torch.dtype) -> None:
    model = SpeechEncoder(config).train()

    def measure(frames: int) -> int:
        encoded = int(config.subsampling.output_lengths(torch.tensor(frames)))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            kept = kept_bytes(model.feature_encoder, noise(1, frames, 40), torch.tensor([frames]))
            for block in [*model.contrastive_blocks, *model.masked_blocks]:
                kept += kept_bytes(block, noise(1, encoded, 48).requires_grad_(), None)
        return kept

    real = measure(FRAMES) - measure(config.subsampling.stride)
    assert encoder_activation_bytes(config, FRAMES, dtype) == pytest.approx(real, rel=0.01)


def test_an_encoder_as_a_whole_keeps_little_more_than_its_parts() -> None:
    class Output(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = SpeechEncoder(ENCODER)

        def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return self.encoder(features, lengths).output

    whole = kept_bytes(Output(), noise(1, FRAMES, 40), torch.tensor([FRAMES]))
    assert encoder_activation_bytes(ENCODER, FRAMES, torch.float32) == pytest.approx(whole, rel=0.05)


def test_what_is_kept_counts_storages_once_and_no_parameters() -> None:
    class Squares(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * x * self.weight).sin()

    assert kept_bytes(Squares(), noise(7).requires_grad_()) == 3 * 7 * 4  # x, its square, the argument of the sine


def test_dropout_keeps_a_byte_for_each_place() -> None:
    dropping = replace(ENCODER, block=replace(BLOCK, dropout_prob=0.1))
    plain, more = (encoder_activation_bytes(config, FRAMES, torch.float32) for config in (ENCODER, dropping))
    assert more - plain == (4 * 48 + 2 * 96) * 3 * FRAMES // 4


def test_long_utterances_cost_more_a_second() -> None:
    assert encoder_flops(ENCODER, 2 * FRAMES).total > 2.1 * encoder_flops(ENCODER, FRAMES).total
    assert Flops(1.0, 2.0).scaled(3.0) + Flops(1.0, 1.0) == Flops(4.0, 7.0)
    assert expected_mask_share(W2vBertConfig()) == pytest.approx(0.489, abs=0.001)
