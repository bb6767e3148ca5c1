"""The Gumbel quantizer against the textbook form, and the diversity loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.tiny import noise
from w2vbert.models.quantizer import GumbelQuantizer, QuantizerConfig, diversity_loss, information_gap, perplexity

GROUPS, CODES, DIM, INPUT, FRAMES = 2, 7, 6, 5, 40


def quantizer(logit_std: float = 1.0) -> GumbelQuantizer:
    torch.manual_seed(0)
    return GumbelQuantizer(INPUT, QuantizerConfig(GROUPS, CODES, DIM, logit_std))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def textbook(module: GumbelQuantizer, x: Tensor, temperature: float, seed: int) -> Tensor:
    """Straight-through Gumbel softmax with one-hot vectors and a full product with the codebook."""
    logits = module.logits(x).view(-1, GROUPS, CODES)
    gumbel = -torch.empty(logits.shape).exponential_(generator=generator(seed)).log()
    soft = ((logits + gumbel) / temperature).softmax(-1)
    one_hot = F.one_hot(soft.argmax(-1), CODES).float()
    straight_through = one_hot - soft.detach() + soft  # (N, G, V)
    products = straight_through[..., None] * module.codebook  # (N, G, V, E)
    return products.sum(2).flatten(1)


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_values_and_gradients_are_the_textbooks(temperature: float) -> None:
    module = quantizer()
    x, weights = noise(FRAMES, INPUT).requires_grad_(), noise(FRAMES, DIM, seed=1)
    inputs = [x, module.logits.weight, module.logits.bias, module.codebook]
    ours = module(x, temperature, generator(3)).vectors
    theirs = textbook(module, x, temperature, 3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    our_grads = torch.autograd.grad((ours * weights).sum(), inputs)
    their_grads = torch.autograd.grad((theirs * weights).sum(), inputs)
    for a, b in zip(our_grads, their_grads, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_ids_are_free_of_noise() -> None:
    module, x = quantizer(), noise(FRAMES, INPUT)
    first, second = module(x, 1.0, generator(0)), module(x, 1.0, generator(1))
    assert torch.equal(first.ids, second.ids)
    assert not torch.equal(first.codes, second.codes)
    module.eval()
    quiet = module(x, 1.0)
    assert torch.equal(quiet.codes, quiet.ids) and torch.equal(quiet.ids, first.ids)


def test_vectors_are_those_of_the_codes() -> None:
    module = quantizer()
    output = module(noise(FRAMES, INPUT), 1.0, generator())
    expected = torch.cat([module.codebook[g, output.codes[:, g]] for g in range(GROUPS)], dim=1)
    assert torch.equal(output.vectors, expected)


def test_temperature_changes_gradients_only() -> None:
    module, x = quantizer(), noise(FRAMES, INPUT)
    outputs = [module(x, temperature, generator()) for temperature in (2.0, 0.1)]
    assert torch.equal(outputs[0].codes, outputs[1].codes) and torch.equal(outputs[0].vectors, outputs[1].vectors)
    assert torch.equal(outputs[0].mean_probs, outputs[1].mean_probs)
    weights = noise(FRAMES, DIM, seed=1)
    grads = [torch.autograd.grad((o.vectors * weights).sum(), [module.logits.weight])[0] for o in outputs]
    assert not torch.allclose(grads[0], grads[1], rtol=0.1)


def test_noise_picks_codes_with_the_probabilities_of_the_softmax() -> None:
    module = quantizer()
    x = noise(1, INPUT).expand(20000, INPUT)
    output = module(x, 1.0, generator())
    shares = F.one_hot(output.codes, CODES).float().mean(0)
    torch.testing.assert_close(shares, output.mean_probs, atol=0.015, rtol=0)


def test_logits_of_normalised_frames_begin_with_the_configured_deviation() -> None:
    torch.manual_seed(0)
    module = GumbelQuantizer(64, QuantizerConfig(codes=128, dim=4, logit_std=10.0))
    assert abs(module.logits(noise(500, 64)).std() - 10.0) < 1.0


def test_results_stay_float32_under_autocast() -> None:
    module, x = quantizer(), noise(FRAMES, INPUT)
    plain = module(x, 1.0, generator())
    with torch.autocast("cpu", torch.bfloat16):
        cast = module(x, 1.0, generator())
    assert torch.equal(plain.vectors, cast.vectors) and torch.equal(plain.ids, cast.ids)


def test_diversity_loss_is_0_for_even_use_and_nearly_1_for_one_code() -> None:
    even = torch.full((GROUPS, CODES), 1 / CODES)
    assert abs(diversity_loss(even)) < 1e-6
    collapsed = F.one_hot(torch.tensor([3, 0]), CODES).float()
    assert math.isclose(float(diversity_loss(collapsed)), 1 - 1 / CODES, rel_tol=1e-6)
    for seed in range(20):
        probs = (5 * noise(GROUPS, CODES, seed=seed)).softmax(-1)
        assert 0.0 < diversity_loss(probs) < 1 - 1 / CODES


def test_diversity_gradient_evens_use_out_and_is_finite_at_collapse() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(diversity_loss(logits.softmax(-1)), logits)
    assert grad[0, 0] > 0 and (grad[0, 1:] < 0).all()
    far = torch.tensor([[500.0, 0.0, 0.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(diversity_loss(far.softmax(-1)), far)
    assert grad.isfinite().all()


def test_the_informations_gradient_does_not_fade_with_the_perplexity() -> None:
    """Of the mean it is that of the diversity loss times V / perplexity: larger the fewer codes are in use."""
    for scale in (0.01, 1.0, 5.0):
        logits = (scale * noise(1, CODES)).requires_grad_()
        losses = diversity_loss(logits.softmax(-1)), information_gap(logits.softmax(-1), torch.zeros(()))
        fading, lasting = (torch.autograd.grad(loss, logits)[0] for loss in losses)
        rate = CODES / float(perplexity(logits.detach().softmax(-1)))
        torch.testing.assert_close(lasting, fading * rate, rtol=1e-4, atol=1e-7)


def test_the_gap_is_what_codes_do_not_tell_of_a_frame() -> None:
    """None where each frame has one code and all codes are used; all where they have one, or any, code."""
    for logits, gap in [
        (50.0 * torch.eye(CODES), 0.0),
        (50.0 * F.one_hot(torch.zeros(CODES, dtype=torch.int64), CODES).float(), math.log(CODES)),
        (torch.zeros(CODES, CODES), math.log(CODES)),
    ]:
        quantizer = GumbelQuantizer(CODES, QuantizerConfig(1, CODES, dim=CODES)).eval()
        with torch.no_grad():
            quantizer.logits.weight.copy_(logits)
            found = quantizer(torch.eye(CODES), 1.0)
        assert math.isclose(float(information_gap(found.mean_probs, found.entropy)), gap, abs_tol=1e-4)


def test_perplexity_counts_codes_in_even_use() -> None:
    probs = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(perplexity(probs), torch.tensor([1.0, 2.0, 4.0]))


def test_entropy_is_that_of_single_frames_and_perplexity_that_of_their_mean() -> None:
    torch.manual_seed(0)
    module = GumbelQuantizer(CODES, QuantizerConfig(1, CODES, DIM))
    with torch.no_grad():
        module.logits.weight.copy_(100 * torch.eye(CODES))
    output = module.eval()(torch.eye(CODES), 1.0)  # sure of each frame, another code each time
    assert output.entropy < 1e-3 and abs(perplexity(output.mean_probs) - CODES) < 1e-3


def test_temperature_falls_exponentially_from_start_to_end() -> None:
    config = QuantizerConfig(temperature_start=2.0, temperature_end=0.5)
    found = [config.temperature(progress) for progress in (-1.0, 0.0, 0.5, 1.0, 2.0)]
    assert found == pytest.approx([2.0, 2.0, 1.0, 0.5, 0.5])


@pytest.mark.parametrize("values", [{"dim": 7, "codebooks": 2}, {"temperature_end": 3.0}, {"codes": 1}])
def test_contradictions_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="dim|temperature|codes"):
        QuantizerConfig(**values)  # type: ignore[arg-type]
