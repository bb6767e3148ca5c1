"""Both forms of attention are the equation, with its gradient; which one runs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.tiny import noise
from w2vbert.ops import attention as attention_module
from w2vbert.ops.attention import attention
from w2vbert.ops.dropout import keep_mask

MASK = torch.arange(9) < torch.tensor([9, 6, 1])[:, None]  # (B, T)


def qkv(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """(3, 2, 9, 4) each, of one projection as in the model."""
    projected = noise(3, 9, 3, 2, 4).to(dtype).detach()
    return [x.transpose(1, 2).requires_grad_() for x in projected.unbind(2)]


def equation(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kept: Tensor | None, prob: float) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1)
    return (weights if kept is None else weights * kept / (1 - prob)) @ v


def check(inputs: list[Tensor], found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    weights = noise(*found.shape).to(found.dtype)
    grads = [torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("cached", [1, 9 * 9, 2 * 9 * 9, 2**20], ids=["head", "also a head", "utterance", "all"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_with_dropout_it_is_the_equation(cached: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "_CACHED_WEIGHTS", cached)
    inputs, mask = qkv(), MASK[:, None, None] if masked else None
    torch.manual_seed(0)
    found = attention(*inputs, mask, dropout_prob=0.3)
    torch.manual_seed(0)
    kept = keep_mask(torch.Size((3, 2, 9, 9)), 0.3, torch.device("cpu"))
    check(inputs, found, equation(*inputs, mask, kept, 0.3), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_without_dropout_it_is_the_equation(dtype: torch.dtype) -> None:
    inputs, mask = qkv(dtype), MASK[:, None, None]
    check(inputs, attention(*inputs, mask), equation(*inputs, mask, None, 0.0), 1e-5)


@pytest.mark.parametrize("amx", [False, True], ids=["products", "kernel"])
def test_bfloat16_is_near_to_float64_for_sharp_scores_too(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "AMX", amx)
    inputs, mask = [(2.0 * x).detach().requires_grad_() for x in qkv(torch.bfloat16)], MASK[:, None, None]
    found = attention(*inputs, mask)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = equation(*exact, mask, None, 0.0)
    weights = noise(*found.shape)
    grads = [torch.autograd.grad((y * weights).sum(), x) for y, x in ((found.double(), inputs), (expected, exact))]
    for a, b in [(found, expected), *zip(*grads, strict=True)]:
        assert (a.double() - b).norm() < (0.01 if amx else 0.03) * b.norm()  # scores of standard deviation 4


def test_a_query_that_sees_no_key_holds_no_nan_with_dropout() -> None:
    inputs = qkv()
    y = attention(*inputs, torch.zeros(3, 1, 1, 9, dtype=torch.bool), dropout_prob=0.1)
    assert all(g.isfinite().all() for g in (y, *torch.autograd.grad(y.sum(), inputs)))


def test_dropout_keeps_no_weights_for_the_backward_pass() -> None:
    inputs = qkv()

    def kept(form: Callable[[], Tensor]) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.setdefault(x.data_ptr(), x.numel() * x.element_size()) and x, lambda x: x
        ):
            form()
        return sum(sizes.values())

    ours = kept(lambda: attention(*inputs, None, dropout_prob=0.1))
    plain = kept(lambda: F.scaled_dot_product_attention(*inputs, dropout_p=0.1))
    weights = 3 * 2 * 9 * 9
    assert ours < 4 * inputs[0].numel() * 8 + 2 * weights < plain


def test_long_utterances_and_inference_go_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *_, **__: seen.append(q.shape[2]) or q)
    monkeypatch.setattr(attention_module, "AMX", False)
    for frames in (1024, 1025, 3000):
        attention(*torch.zeros(3, 1, 1, frames, 2, dtype=torch.bfloat16), None)
    with torch.no_grad():
        attention(*torch.zeros(3, 1, 1, 40, 2, dtype=torch.bfloat16), None)
    assert seen == [1025, 3000, 40]


def test_no_frames() -> None:
    assert attention(*torch.zeros(3, 2, 1, 0, 4), None, dropout_prob=0.5).shape == (2, 1, 0, 4)
