from typing import Any

import pytest
import torch
from torch import nn

from tests.models.tiny import MELS, SUBSAMPLING, noise, unsettle
from w2vbert.models.subsampling import FeatureEncoder, SubsamplingConfig, make_feature_encoder

STACKING = SubsamplingConfig(num_mel_bins=MELS, kind="stack", stacked_frames=3)


def encoder(config: SubsamplingConfig = SUBSAMPLING) -> nn.Module:
    torch.manual_seed(0)
    module = make_feature_encoder(config)
    unsettle(module)
    return module


@pytest.mark.parametrize("mels", [80, 81, 7])
def test_output_has_the_promised_shape(mels: int) -> None:
    config = SubsamplingConfig(mels, (3, 2))
    output, lengths = FeatureEncoder(config)(noise(2, 33, mels), torch.tensor([33, 9]))
    assert output.shape == (2, 9, config.output_dim) and lengths.tolist() == [9, 3]


@pytest.mark.parametrize("config", [SUBSAMPLING, STACKING], ids=["convolution", "stack"])
@pytest.mark.parametrize("garbage", [3.0, float("nan")])
def test_padding_changes_no_real_frame_whatever_it_holds(garbage: float, config: SubsamplingConfig) -> None:
    module = encoder(config)
    lengths = torch.tensor([61, 45, 38, 7, 1])
    features = noise(5, 70, MELS)
    for row, n in zip(features, lengths.tolist(), strict=True):
        row[n:] = garbage
    together, frames = module(features, lengths)
    for row, n, m in zip(range(5), lengths.tolist(), frames.tolist(), strict=True):
        alone, _ = module(features[row : row + 1, :n], lengths[row : row + 1])
        torch.testing.assert_close(together[row, :m], alone[0], atol=1e-5, rtol=0)
        assert not together[row, m:].any()


def test_frames_have_mean_0_and_variance_1() -> None:
    module = FeatureEncoder(SubsamplingConfig(MELS, (32, 32)))  # wide enough that no frame is all zeros
    output, _ = module(noise(1, 200, MELS), torch.tensor([200]))
    torch.testing.assert_close(output.mean(-1), torch.zeros(1, 50), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.var(-1, unbiased=False), torch.ones(1, 50), atol=1e-2, rtol=0)


def test_a_frame_sees_seven_filterbank_frames() -> None:
    features = noise(1, 80, MELS).requires_grad_()
    output, _ = encoder()(features, torch.tensor([80]))
    weights = noise(output.shape[-1])  # the sum of a normalised frame is constant
    (grad,) = torch.autograd.grad((output[0, 10] * weights).sum(), features)
    seen = grad[0].abs().sum(-1).nonzero().squeeze(1).tolist()
    assert seen == list(range(37, 44))


def test_padding_gets_no_gradient() -> None:
    features = noise(2, 40, MELS).requires_grad_()
    output, _ = encoder()(features, torch.tensor([40, 21]))
    (grad,) = torch.autograd.grad((output * noise(*output.shape)).sum(), features)
    assert not grad[1, 21:].any() and grad[1, :21].abs().sum(-1).all()


@pytest.mark.parametrize("config", [SUBSAMPLING, STACKING], ids=["convolution", "stack"])
def test_lengths_agree_with_the_rule_for_all_lengths(config: SubsamplingConfig) -> None:
    lengths = torch.arange(1, 50)
    output, frames = encoder(config)(noise(49, 49, MELS), lengths)
    assert torch.equal(frames, config.output_lengths(lengths)) and output.shape[1] == frames[-1]
    assert config.output_lengths(torch.tensor(2400)) * config.stride == 2400


def test_a_stack_holds_its_frames_one_after_the_other_normalised() -> None:
    features = noise(2, 11, MELS) * 3 + 1
    output, frames = encoder(STACKING)(features, torch.tensor([11, 8]))
    assert output.shape == (2, 3, STACKING.output_dim) and frames.tolist() == [3, 2]
    stack = torch.cat([features[0, 3], features[0, 4], features[0, 5]])
    expected = (stack - stack.mean()) / stack.std(unbiased=False)
    torch.testing.assert_close(output[0, 1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("values", [{"num_mel_bins": 3}, {"stacked_frames": 0}, {"channels": (0, 4)}])
def test_impossible_sizes_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(values)):
        SubsamplingConfig(**values)
