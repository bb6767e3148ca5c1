"""Layers that keep only their input, against the plain layers: values, gradients, what is kept."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from w2vbert.ops.dropout import keep_mask
from w2vbert.ops.recompute import batch_norm_swish_linear, glu_convolution, norm_linear, swish_linear

EPS = 1e-5
MASK = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]  # (3, 9)
Layer = Callable[..., Tensor]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def vectors(dim: int, count: int) -> list[Tensor]:
    return [noise(dim, seed=10 + i) for i in range(count)]


def normed(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return norm_linear(x, norm_weight, norm_bias, EPS, weight, bias)


def plain_normed(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    return F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, EPS), weight, bias)


def plain_swish(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(F.silu(x), weight, bias)


def convolution(left: int, mask: Tensor | None) -> tuple[Layer, Layer]:
    """Ours and the plain one, with `left` taps before the frame."""
    hidden = torch.zeros(3, 9, 1, dtype=torch.bool) if mask is None else ~mask[..., None]

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        y = F.glu(x).masked_fill(hidden, 0.0).transpose(1, 2)
        y = F.pad(y, (left, weight.shape[2] - 1 - left))
        return F.conv1d(y, weight, groups=weight.shape[0]).transpose(1, 2).masked_fill(hidden, 0.0)

    return lambda x, weight: glu_convolution(x, weight, left, mask), plain


def batch_normed(mask: Tensor | None, learns: bool) -> tuple[Layer, Layer]:
    """Ours and the plain one, with statistics of `x` (`learns`) or given ones."""
    real = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        if not learns:
            return torch.full((4,), 0.3, dtype=x.dtype), torch.full((4,), 2.0, dtype=x.dtype)
        return x[real].mean(0), x[real].var(0, unbiased=False)

    def ours(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.masked_fill(~real[..., None], 0.0)
        count = real.sum() if learns else None
        return batch_norm_swish_linear(x, statistics(x), count, norm_weight, norm_bias, EPS, weight, bias)

    def plain(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.masked_fill(~real[..., None], 0.0)
        mean, var = statistics(x)
        return F.linear(F.silu((x - mean) * (var + EPS).rsqrt() * norm_weight + norm_bias), weight, bias)

    return ours, plain


X = noise(3, 9, 4)
CASES: dict[str, tuple[Layer, Layer, list[Tensor]]] = {
    "norm": (normed, plain_normed, [X, *vectors(4, 2), noise(6, 4), noise(6)]),
    "norm, no bias": (normed, plain_normed, [X, *vectors(4, 2), noise(6, 4)]),
    "swish": (swish_linear, plain_swish, [X, noise(6, 4), noise(6)]),
    "swish, no bias": (lambda x, weight: swish_linear(x, weight, None), plain_swish, [X, noise(6, 4)]),
    "convolution": (*convolution(2, None), [noise(3, 9, 8), noise(4, 1, 5)]),
    "convolution, mask": (*convolution(2, MASK), [noise(3, 9, 8), noise(4, 1, 5)]),
    "causal": (*convolution(4, None), [noise(3, 9, 8), noise(4, 1, 5)]),
    "causal, mask": (*convolution(4, MASK), [noise(3, 9, 8), noise(4, 1, 5)]),
    "more taps than frames": (*convolution(12, MASK), [noise(3, 9, 8), noise(4, 1, 25)]),
    "batch norm": (*batch_normed(None, True), [X, *vectors(4, 2), noise(6, 4), noise(6)]),
    "batch norm, mask": (*batch_normed(MASK, True), [X, *vectors(4, 2), noise(6, 4), noise(6)]),
    "batch norm, given": (*batch_normed(MASK, False), [X, *vectors(4, 2), noise(6, 4), noise(6)]),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_layers(case: str) -> None:
    ours, plain, inputs = CASES[case]
    found, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    weights = noise(*found.shape, seed=1).detach()
    our_grads = torch.autograd.grad((found * weights).sum(), inputs)
    their_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip(our_grads, their_grads, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_small_differences(case: str) -> None:
    ours, _, inputs = CASES[case]
    assert torch.autograd.gradcheck(ours, inputs, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_as_near_to_float32_as_plain_layers_under_autocast(case: str) -> None:
    ours, plain, inputs = CASES[case]
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    errors = []
    for layer in (ours, plain):
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(*inputs)
        expected = plain(*inputs)
        grads = torch.autograd.grad(found.float().sum(), inputs), torch.autograd.grad(expected.sum(), inputs)
        assert found.dtype == torch.bfloat16 and [g.dtype for g in grads[0]] == [torch.float32] * len(inputs)
        pairs = [(found, expected), *zip(*grads, strict=True)]
        errors.append(torch.stack([(a - b).norm() / b.norm().clamp(min=1.0) for a, b in pairs]))
    assert (errors[0] < 2.0 * errors[1] + 4e-3).all(), errors


def test_dropout_has_the_gradient_of_what_it_kept() -> None:
    x, weight = noise(50, 40), noise(6, 40)
    torch.manual_seed(0)
    found = swish_linear(x, weight, None, dropout_prob=0.25)
    torch.manual_seed(0)
    expected = F.linear(F.silu(x) * keep_mask(x.shape, 0.25, x.device) / 0.75, weight)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), [x, weight]) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_long_input_on_two_threads(two_threads: None) -> None:
    """oneDNN once took minutes here for each new length."""
    x, weight = torch.randn(1, 801, 288, dtype=torch.bfloat16), torch.randn(144, 1, 15)
    ours = glu_convolution(x, weight.bfloat16(), 7, None)
    plain = F.conv1d(F.glu(x.float()).transpose(1, 2), weight, padding=7, groups=144).transpose(1, 2)
    assert torch.allclose(ours.float(), plain, rtol=0.05, atol=0.05)
