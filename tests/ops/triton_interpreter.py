"""Makes the tests of the Triton kernel in Triton's interpreter quick enough to run with the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from torch import Tensor


@contextmanager
def quickened() -> Iterator[list[tuple[Any, ...]]]:
    """In it, scans take log2(n) operations on arrays in place of n on numbers, and no lattice is computed twice.

    Yields the list of the lattices computed, by shapes.
    """
    from triton.runtime.interpreter import ScanOps

    from w2vbert.ops import rnnt_triton

    runs: list[tuple[Any, ...]] = []
    known: dict[tuple[bytes, ...], tuple[Tensor, ...]] = {}
    lattice_flow = rnnt_triton.lattice_flow

    def once(px: Tensor, py: Tensor, boundary: Tensor) -> tuple[Tensor, ...]:
        key = tuple(value.detach().numpy().tobytes() + str(value.shape).encode() for value in (px, py, boundary))
        if key not in known:
            runs.append((tuple(px.shape), tuple(py.shape)))
            known[key] = lattice_flow(px, py, boundary)
        return tuple(value.clone() for value in known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScanOps, "generic_scan", _scan_by_doubling)
        patch.setattr(rnnt_triton, "lattice_flow", once)
        yield runs


def _scan_by_doubling(self: Any, inputs: list[Any]) -> list[Any]:
    """An inclusive scan of one dimension (Hillis and Steele 1986), with the interpreter's own objects."""
    values = [value.handle.data for value in inputs]
    lane = np.arange(values[0].shape[0])
    shift = 1
    while shift < len(lane):
        earlier = [np.roll(value, shift) for value in values]
        arguments = [*zip(earlier, inputs, strict=True), *zip(values, inputs, strict=True)]
        joined = self.combine_fn.fn(*(self.to_tensor(value, like.dtype) for value, like in arguments))
        values = [np.where(lane < shift, v, j.handle.data) for v, j in zip(values, joined, strict=True)]
        shift *= 2
    return [self.to_tensor(value, like.dtype) for value, like in zip(values, inputs, strict=True)]
