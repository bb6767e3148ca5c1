"""RNN-T losses against the numbers of k2 1.23.4 and 1.24.4, in tests/data/rnnt_golden: values, gradients, ranges.

With TRITON_INTERPRET=1 the Triton kernel is what they are compared with (test_rnnt_triton.py starts that).
"""

import math
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.ops import triton_interpreter
from tests.ops.rnnt_cases import OPS, Case, Golden, Losses, difference, k2_losses, tolerance
from w2vbert.ops import rnnt_loss as rnnt

WITHOUT_K2 = pytest.mark.skipif(not rnnt.backend_reason().startswith("k2"), reason=rnnt.backend_reason())
IMPLEMENTATIONS = ["native", *(pytest.param(name, marks=WITHOUT_K2) for name in ("k2", "k2 itself"))]


def our_arcs(case: Case, inputs: dict[str, Tensor], blank: int) -> tuple[Tensor, Tensor]:
    scales = (case.get("lm_scale", 0.0), case.get("am_scale", 0.0))
    px, py, boundary = rnnt._additive_arcs(
        inputs["lm"], inputs["am"], inputs["symbols"], blank, inputs.get("boundary"), scales
    )
    return rnnt._finish_px(px, py, boundary, case["type"], delay_penalty=0.0), py


def losses_of(implementation: str) -> Losses:
    """Ours with a backend, or k2's own functions."""
    if implementation == "k2 itself":
        return k2_losses(pytest.importorskip("k2"))
    return Losses(rnnt, our_arcs, {"backend": implementation})


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """With TRITON_INTERPRET=1: the interpreter made quick, and the certainty that the kernel was run."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    with triton_interpreter.quickened() as runs:
        yield
    assert runs


def test_golden_cases_are_all_there(golden: Golden) -> None:
    assert len(golden.cases) == 434
    assert {case["op"] for case in golden.cases} == set(OPS)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_same_as_golden(golden: Golden, implementation: str, op: str) -> None:
    losses = losses_of(implementation)
    for case in golden.cases:
        if case["op"] != op:
            continue
        try:
            got = golden.run(case, losses)
        except (AssertionError, TypeError):  # what an older k2 refuses
            assert implementation == "k2 itself" and case["name"] in golden.refused[0], case["name"]
            continue
        for name, want in golden.outputs(case).items():
            if name == "d_logits" and not case["finite"]:
                if implementation != "k2 itself":  # whose gradient is meaningless where no path is left
                    assert got[name].count_nonzero() == 0, case["name"]
                continue
            error = difference(got[name], want)
            assert error <= tolerance(case, want), (case["name"], name, error)


def test_differences_are_found() -> None:
    want = torch.tensor([1.0, 100.0, math.inf])
    assert difference(want.clone(), want) == 0.0
    assert difference(torch.tensor([1.0, 101.0, math.inf]), want) == pytest.approx(0.01)
    assert difference(torch.tensor([1.0, 100.0, 5.0]), want) == math.inf
    assert difference(torch.tensor([math.nan, 100.0, math.inf]), want) != 0.0
    assert difference(want[:2], want) == math.inf
