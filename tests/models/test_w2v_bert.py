"""The pre-training model: padding, which loss reaches which part, small and odd batches."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.models.tiny import ENCODER, MELS, PRETRAINING, ROTARY, noise, unsettle
from w2vbert.models import w2v_bert
from w2vbert.models.encoder import EncoderConfig, SpeechEncoder
from w2vbert.models.w2v_bert import PretrainingLoss, W2vBert, W2vBertConfig

LENGTHS = torch.tensor([160, 103, 90, 41])
ENCODER_PARTS = ("feature_encoder", "input_linear", "contrastive_blocks", "masked_blocks")
PARTS = (*ENCODER_PARTS, "quantizer", "context_linear", "code_linear")
# Sections 2.1 to 2.4 of the paper. The feature encoder learns from every loss: through frames that are not masked,
# and through the quantizer.
CONTRASTIVE = {"feature_encoder", "input_linear", "contrastive_blocks", "quantizer", "context_linear"}
MASKED = {"feature_encoder", "input_linear", "contrastive_blocks", "masked_blocks", "code_linear"}
DIVERSITY = {"feature_encoder", "quantizer"}


def model(config: W2vBertConfig = PRETRAINING) -> W2vBert:
    torch.manual_seed(0)
    module = W2vBert(config)
    unsettle(module)
    return module


def noise_like(lengths: Tensor) -> Tensor:
    return noise(len(lengths), int(lengths.max()), MELS)


def run(module: W2vBert, lengths: Tensor = LENGTHS, seed: int = 0, temperature: float = 1.0) -> PretrainingLoss:
    return module(noise_like(lengths), lengths, temperature, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [ENCODER.block, ROTARY], ids=["none", "rotary"])
def test_encoder_gives_the_same_frames_alone_or_padded(block: object) -> None:
    torch.manual_seed(0)
    encoder = SpeechEncoder(replace(ENCODER, block=block))  # type: ignore[arg-type]
    unsettle(encoder)
    encoder.eval()
    features = noise(4, 170, MELS)
    together = encoder(features, LENGTHS)
    for row, (n, m) in enumerate(zip(LENGTHS.tolist(), together.lengths.tolist(), strict=True)):
        alone = encoder(features[row : row + 1, :n], LENGTHS[row : row + 1])
        for name in ("features", "context", "output"):
            expected = getattr(alone, name)[0]
            torch.testing.assert_close(getattr(together, name)[row, :m], expected, atol=1e-5, rtol=0)


def test_padding_changes_no_loss_and_no_statistic_in_training() -> None:
    results = []
    for scale in (1.0, 30.0):
        module = model().train()
        features = noise(4, 160, MELS)
        for row, n in zip(features, LENGTHS.tolist(), strict=True):
            row[n:] *= scale
        loss = module(features, LENGTHS, 1.0, torch.Generator().manual_seed(0))
        loss.total.backward()
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        results.append([loss.total.detach(), *module.buffers(), *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def reached(config: W2vBertConfig) -> set[str]:
    """Parts of the model that get a gradient from the total loss."""
    module = model(config).train()
    run(module).total.backward()
    named = [(name, p.grad) for name, p in module.named_parameters()]
    return {part for part in PARTS for name, grad in named if part in name and grad is not None and grad.any()}


def weighted(contrastive: float, diversity: float, masked: float) -> W2vBertConfig:
    return replace(
        PRETRAINING,
        contrastive_weight=contrastive,
        diversity_weight=diversity,
        masked_prediction_weight=masked,
    )


def test_each_loss_reaches_the_parts_that_the_paper_says() -> None:
    assert reached(weighted(1.0, 0.0, 0.0)) == CONTRASTIVE
    assert reached(weighted(0.0, 0.0, 1.0)) == MASKED
    only_contrastive, with_diversity = (
        {name: p.grad for name, p in trained(weighted(1.0, weight, 0.0)).named_parameters()} for weight in (0.0, 1.0)
    )
    changed = {
        part
        for part in PARTS
        for name, grad in with_diversity.items()
        if part in name and grad is not None and not same(grad, only_contrastive[name])
    }
    assert changed == DIVERSITY
    assert reached(PRETRAINING) == set(PARTS)


def trained(config: W2vBertConfig) -> W2vBert:
    module = model(config).train()
    run(module).total.backward()
    return module


def same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def test_every_parameter_learns() -> None:
    module = trained(PRETRAINING)
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_total_is_the_weighted_sum_of_its_parts() -> None:
    loss = run(model(weighted(0.7, 0.3, 1.9)))
    assert loss.contrastive is not None and loss.masked is not None and loss.use is not None
    expected = 0.7 * (loss.contrastive.loss + 0.3 * loss.use.penalty) + 1.9 * loss.masked.loss
    torch.testing.assert_close(loss.total, expected)


def test_sums_count_masked_frames() -> None:
    loss = run(model())
    groups, codes = PRETRAINING.quantizer.codebooks, PRETRAINING.quantizer.codes
    assert loss.code_counts.shape == (groups, codes)
    assert loss.code_counts.sum() == loss.count * groups
    assert loss.contrastive is not None and loss.masked is not None and loss.use is not None
    assert 0 < loss.contrastive.count <= loss.count and 0 <= loss.masked.correct <= loss.count
    assert 0 <= loss.use.diversity <= loss.count * (1 - 1 / codes)


@pytest.mark.parametrize("training", [True, False])
def test_equal_generators_give_equal_losses(training: bool) -> None:
    module = model().train(training)
    first, again, other = run(module, seed=4), run(module, seed=4), run(module, seed=5)
    assert torch.equal(first.total, again.total) and torch.equal(first.code_counts, again.code_counts)
    assert not torch.equal(first.total, other.total)


def test_no_randomness_comes_from_elsewhere() -> None:
    module = model().train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run(module)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lengths", [[160], [10], [160, 10], [10, 10], [1], [6000]], ids=str)
def test_odd_batches_give_finite_losses_and_gradients(lengths: list[int], training: bool) -> None:
    module = model().train(training)
    loss = run(module, torch.tensor(lengths))
    loss.total.backward()
    assert loss.total.isfinite() and loss.count >= len(lengths)
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_one_masked_frame_trains_the_masked_prediction_alone() -> None:
    module = model(replace(PRETRAINING, mask_start_prob=1e-9, mask_span_frames=1)).train()
    loss = run(module)
    loss.total.backward()
    assert loss.contrastive is not None and loss.masked is not None
    assert loss.count == len(LENGTHS) and loss.contrastive.count == 0 and loss.contrastive.loss == 0
    assert loss.masked.loss > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("without", [[1], [0, 1, 2, 3]], ids=str)
def test_utterances_without_a_masked_frame_do_no_harm(without: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def some_mask(lengths: Tensor, max_length: int, *_: object) -> Tensor:
        mask = torch.arange(max_length).expand(len(lengths), -1) < 6
        return mask.index_fill(0, torch.tensor(without), False)

    monkeypatch.setattr(w2v_bert, "span_mask", some_mask)
    module = model().train()
    loss = run(module)
    loss.total.backward()
    assert loss.count == 6 * (len(LENGTHS) - len(without)) and loss.total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert loss.count > 0 or loss.total == 0


def test_accumulated_batches_equal_the_joined_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four batches of one utterance each, and one of all four: equal sums, equal gradients.

    In evaluation, with equal masks and without the diversity loss: BatchNorm's statistics and the mean distribution of
    the codes belong to the batch, in every toolkit.
    """
    frames = torch.arange(1000)
    monkeypatch.setattr(
        w2v_bert, "span_mask", lambda lengths, size, *_: (frames[:size] % 5 < 2) & (frames[:size] < lengths[:, None])
    )
    config = replace(PRETRAINING, diversity_weight=0.0, num_distractors=1000)
    features, generator = noise_like(LENGTHS), torch.Generator()
    joined, accumulated = model(config).eval(), model(config).eval()
    monkeypatch.setattr(torch, "randn", lambda shape, generator, device: torch.zeros(shape))
    together = joined(features, LENGTHS, 1.0, generator)
    together.total.backward()
    total, count = torch.zeros(()), 0
    for row, n in enumerate(LENGTHS.tolist()):
        alone = accumulated(features[row : row + 1, :n], LENGTHS[row : row + 1], 1.0, generator)
        alone.total.backward()
        total, count = total + alone.total.detach(), count + int(alone.count)
    assert count == together.count > 20
    torch.testing.assert_close(total, together.total.detach(), rtol=1e-5, atol=1e-5)
    for (name, expected), found in zip(joined.named_parameters(), accumulated.parameters(), strict=True):
        if expected.grad is not None:
            assert found.grad is not None
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_masked_frames_are_hidden_from_the_context() -> None:
    """What stands at masked frames reaches the targets, never the blocks."""
    module = model(replace(weighted(0.0, 0.0, 1.0), mask_start_prob=0.5, mask_span_frames=1)).eval()
    calls: list[tuple[Tensor, Tensor]] = []
    original = module.encoder.contextualize

    def watch(encoded: Tensor, masked: Tensor, lengths: Tensor) -> object:
        calls.append((encoded, masked))
        return original(encoded, masked, lengths)

    module.encoder.contextualize = watch  # type: ignore[assignment,method-assign]
    loss = run(module, torch.tensor([160]))
    (encoded, masked) = calls[0]
    replaced = (encoded != masked).any(-1)
    assert replaced.sum() == loss.count and 0 < loss.count < encoded.shape[1]
    assert abs(masked[replaced].std() - 1.0) < 0.15  # the scale of what was replaced (trap 3)


def test_distractors_are_sampled_when_there_are_many_masked_frames() -> None:
    few, many = (model(replace(PRETRAINING, num_distractors=k)) for k in (3, 1000))
    a, b = run(few), run(many)
    assert a.contrastive is not None and b.contrastive is not None
    assert a.contrastive.chance / a.contrastive.count > 1 / 4 - 1e-6
    assert b.contrastive.chance / b.contrastive.count < 1 / 4


@pytest.mark.parametrize("values", [{"mask_start_prob": 0.0}, {"mask_span_frames": 0}, {"num_distractors": 0}])
def test_contradictions_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        W2vBertConfig(**values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contrastive_blocks"):
        EncoderConfig(contrastive_blocks=0, masked_blocks=0)
