"""Dropout: how much it drops, independence, gradient, seeds."""

import pytest
import torch

from w2vbert.ops.dropout import dropout, keep_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize("prob", [0.001, 0.1, 0.5, 0.9])
def test_as_many_entries_are_dropped_as_asked_and_independently(prob: float) -> None:
    torch.manual_seed(0)
    kept = keep_mask(torch.Size((1000, 999)), prob, CPU).double()
    error = (prob * (1 - prob) / kept.numel()) ** 0.5
    assert kept.mean().item() == pytest.approx(1 - prob, abs=4 * error + 1e-5)
    centred = kept.flatten() - kept.mean()
    for apart in (1, 2, 3, 4, 999):  # four entries come from one draw
        correlation = (centred[apart:] * centred[:-apart]).mean() / centred.square().mean()
        assert abs(correlation) < 5 / kept.numel() ** 0.5


def test_all_but_nothing_may_be_dropped() -> None:
    assert keep_mask(torch.Size((1000,)), 1 - 1e-9, CPU).sum() < 10


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (0, 4)])
def test_masks_have_any_shape(shape: tuple[int, ...]) -> None:
    kept = keep_mask(torch.Size(shape), 0.3, CPU)
    assert kept.shape == shape and bool(((kept == 0) | (kept == 1)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_kept_entries_and_their_gradients_are_scaled_and_others_zero(dtype: torch.dtype) -> None:
    x = torch.randn(40, 50, dtype=dtype).requires_grad_()
    torch.manual_seed(3)
    y = dropout(x, 0.2, training=True)
    torch.manual_seed(3)
    kept = keep_mask(x.shape, 0.2, CPU).bool()
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.where(kept, x * 1.25, 0.0))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(kept, 1.25, 0.0).to(dtype))


def test_seeds_repeat_and_calls_differ() -> None:
    x = torch.ones(1000)
    torch.manual_seed(1)
    first, second = (dropout(x, 0.5, training=True) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5, training=True), first) and not torch.equal(first, second)


def test_nothing_is_dropped_outside_of_training_or_with_probability_0() -> None:
    x = torch.randn(10)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x
