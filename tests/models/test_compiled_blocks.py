"""Blocks under torch.compile: one whole graph, values and gradients of the plain block, few forms for many shapes."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.models.tiny import BLOCK, noise, unsettle
from w2vbert.models.conformer import ConformerBlock, ConformerConfig
from w2vbert.models.language_model import CausalLmConfig, TransformerBlock

KINDS: dict[str, ConformerConfig] = {
    "paper": BLOCK,
    "rotary": replace(BLOCK, positions="rotary"),
    "w2v-bert-2.0": replace(BLOCK, positions="relative_key", convolution="causal", span_frames=(4, 2)),
    "rotary_input": replace(BLOCK, positions="rotary_input"),
}
SHAPES = [(3, 12), (2, 17), (5, 9)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def mask_of(batch: int, frames: int) -> Tensor:
    """The first utterance is whole, each of the others shorter by one frame more."""
    return torch.arange(frames) < (frames - torch.arange(batch))[:, None]


def go(blocks: nn.ModuleList, x: Tensor, *mask: Tensor) -> dict[str, Tensor]:
    """Output of all blocks, statistics, and the gradients of a sum with weights."""
    blocks.zero_grad()
    x = y = x.clone().requires_grad_()
    for block in blocks:
        y = block(y, *mask)
    (y * noise(*y.shape, seed=1)).sum().backward()
    assert x.grad is not None
    grads = {name: p.grad.clone() for name, p in blocks.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads, **dict(blocks.named_buffers())}


def compare(plain: nn.ModuleList, shapes: list[tuple[int, int]], backend: str, padded: bool = True) -> int:
    """Compiles copies as a training does, holds them against the plain ones, and returns how often it compiled."""
    compiled = copy.deepcopy(plain)
    counter = CompileCounterWithBackend(backend)
    for block in compiled:
        block.compile(backend=counter, fullgraph=True)
    for number, shape in enumerate(shapes):
        x = noise(*shape, 16, seed=number)
        mask = [mask_of(*shape)] if padded else []
        found, expected = go(compiled, x, *mask), go(plain, x, *mask)
        assert found.keys() == expected.keys() and len(found) > 10
        for name in found:
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)
    return int(counter.frame_count)


@pytest.mark.slow
def test_blocks_are_compiled_together_once_for_the_first_shape_and_once_for_all_others() -> None:
    blocks = nn.ModuleList(ConformerBlock(BLOCK) for _ in range(2))
    unsettle(blocks)
    assert compare(blocks, SHAPES, "eager") == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_block_is_one_graph_and_has_the_gradients_of_the_plain_one(kind: str) -> None:
    blocks = nn.ModuleList([ConformerBlock(KINDS[kind])])
    unsettle(blocks)
    assert compare(blocks, SHAPES[:1], "aot_eager" if kind == "paper" else "eager") == 1


def test_a_compiled_transformer_block_has_the_gradients_of_the_plain_one() -> None:
    lm = CausalLmConfig(layers=2, dim=16, heads=2, feed_forward_dim=24, dropout=0.0)
    assert compare(nn.ModuleList([TransformerBlock(lm)]), SHAPES, "eager", padded=False) == 2
