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
    low = [torch.bfloat16] if torch.cpu._is_avx512_bf16_supported() else []
    monkeypatch.setattr(products, "_FEWEST_WEIGHTS", 0)
    monkeypatch.setattr(products, "ONEDNN_TYPES", (torch.float32, *low) if request.param else ())
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 1e-2)], ids=str)
def test_other_types(library: bool, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 8).to(dtype), torch.randn(5, 8).to(dtype), torch.randn(5).to(dtype)
    for shift in (None, bias):
        found, expected = product(x, weight, shift), F.linear(x.double(), weight.double())
        torch.testing.assert_close(
            found.double(), expected if shift is None else expected + shift, atol=tolerance, rtol=tolerance
        )
        assert found.dtype == dtype
