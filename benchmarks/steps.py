"""The whole pre-training step: against its encoder alone, and on a GPU against its matrix products."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.encoders import Shape
from benchmarks.timing import Row, alternate, milliseconds
from w2vbert.models.conformer import ConformerConfig
from w2vbert.models.costs import pretraining_flops
from w2vbert.models.encoder import EncoderConfig
from w2vbert.models.quantizer import QuantizerConfig
from w2vbert.models.subsampling import SubsamplingConfig
from w2vbert.models.w2v_bert import W2vBert, W2vBertConfig

MEL_BINS, FRAMES_PER_SECOND, CROP_SECONDS = 80, 100, 32


def make_model(shape: Shape) -> W2vBert:
    """A model with half of its blocks before the contrastive loss, without dropout; 1024 codes of dimension D."""
    block = ConformerConfig(shape.dim, shape.heads, 4 * shape.dim, shape.kernel, dropout_prob=0.0)
    first = (shape.blocks + 1) // 2
    encoder = EncoderConfig(SubsamplingConfig(MEL_BINS), block, first, shape.blocks - first)
    torch.manual_seed(0)
    return W2vBert(W2vBertConfig(encoder, QuantizerConfig(codes=1024, dim=shape.dim))).train()


def forward_backward(module: nn.Module, forward: Callable[[], Tensor], dtype: torch.dtype) -> None:
    """One forward and backward pass, of the sum of what `forward` gives."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = forward()
    y.float().sum().backward()
    module.zero_grad(set_to_none=True)


def step_row(
    name: str, shape: Shape, blocks: int, batch: int, frames: int, rounds: int, dtype: torch.dtype, goal: float
) -> Row:
    """Step over encoder, both forward and backward, of a model of `blocks` blocks.

    Args:
        name: of the row.
        shape: of what is timed. Where it has fewer blocks, what all but the blocks cost is taken from it, and the time
            of a block as often as the model has them.
        blocks: of the model that the ratio is for.
        batch, frames: utterances, and encoder frames of each.
        rounds: of the comparison.
        dtype: of autocast.
        goal: highest ratio.
    """
    model = make_model(shape)
    features = torch.randn(batch, 4 * frames, MEL_BINS)
    lengths = torch.full((batch,), 4 * frames)
    x = torch.randn(batch, frames, shape.dim).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    stack = [*model.encoder.contrastive_blocks, *model.encoder.masked_blocks]

    def through_blocks() -> Tensor:
        y = x
        for block in stack:
            y = block(y, None)
        return y

    runs = {
        "step": lambda: model(features, lengths, 1.0, generator).total,
        "encoder": lambda: model.encoder(features, lengths).output,
        "blocks": through_blocks,
    }
    seconds = alternate({key: partial(forward_backward, model, run, dtype) for key, run in runs.items()}, rounds)
    ratios = []
    for step, encoder, timed in zip(*(seconds[key] for key in runs), strict=True):
        ratios.append(1.0 + (step - encoder) / (encoder + timed * (blocks - shape.blocks) / shape.blocks))
    details = milliseconds(seconds) | {"timed_blocks": float(shape.blocks), "blocks": float(blocks)}
    return Row(name, statistics.median(ratios), goal, False, details)


def gpu_rows(rounds: int, utterances: int = 16) -> Iterator[Row]:
    """XL, 32 s crops, bfloat16, with optimizer: share of the GPU's own rate of bfloat16 matrix products."""
    if not torch.cuda.is_available():
        return
    config = W2vBertConfig()
    model = W2vBert(config).train().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    frames = CROP_SECONDS * FRAMES_PER_SECOND
    features = torch.randn(utterances, frames, MEL_BINS, device="cuda")
    lengths = torch.full((utterances,), frames)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(features, lengths, 1.0, generator)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = statistics.median(alternate({"step": step}, rounds)["step"])
    rate = pretraining_flops(config, frames).total * utterances / seconds
    peak = matrix_rate()
    details: dict[str, float | str] = {
        "device": torch.cuda.get_device_name(),
        "step_ms": 1000 * seconds,
        "teraflops": rate / 1e12,
        "matrix_teraflops": peak / 1e12,
        "audio_hours_per_hour": utterances * CROP_SECONDS / seconds,
    }
    yield Row("gpu-xl/share_of_matrix_rate", rate / peak, 0.5, True, details)


def matrix_rate(size: int = 8192, rounds: int = 50) -> float:
    """Operations a second of a large bfloat16 matrix product on the GPU; median over rounds."""
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2.0 * size**3 / statistics.median(seconds)
