"""Products by oneDNN and by torch are the same, for every layout that the layers hand over."""

import pytest
import torch
import torch.nn.functional as F

from w2vbert.ops import products
from w2vbert.ops.products import product


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "AMD_WITH_ONEDNN", request.param)
    return bool(request.param)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (40, 8), (3, 20, 8), (0, 8), (2, 0, 8)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_a_product_is_that_of_torch(library: bool, shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(5, 8), torch.randn(5) if has_bias else None
    torch.testing.assert_close(product(x, weight, bias), F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


def test_layouts(library: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 5).t()
    for x in (torch.randn(8, 40).t(), torch.randn(4, 30, 16)[:, ::2, :8], torch.randn(1, 8).expand(40, 8)):
        torch.testing.assert_close(product(x, weight), x @ weight.t(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types(library: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(40, 8, dtype=dtype), torch.randn(5, 8, dtype=dtype)
    assert torch.equal(product(x, weight), F.linear(x, weight))
