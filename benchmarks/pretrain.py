"""Figures of pre-training: `python -m benchmarks.pretrain [--rows NAME,...] [--rounds N] [--quick]`.

Prints a table line and a JSON line for each figure; benchmarks/README.md says what each row measures.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.encoders import Encoder, Shape, contestants
from benchmarks.steps import gpu_rows, step_row
from benchmarks.textbook import gathered_contrastive_loss, one_hot_look_up
from benchmarks.timing import Row, alternate, kept_bytes, median_ratio, milliseconds, pin_to_one_thread
from w2vbert.models.quantizer import straight_through_look_up
from w2vbert.ops.attention import attention
from w2vbert.ops.contrastive import contrastive_loss, draw_distractors
from w2vbert.ops.dropout import dropout


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: of each comparison.
        frames: of each of the 4 utterances (375 of 40 ms: 15 s).
        encoder: blocks compared with other toolkits' and the trunk of the whole step.
        wide: a few blocks of XL's width, from which the whole of it is scaled.
    """

    rounds: int = 7
    frames: int = 375
    encoder: Shape = Shape(blocks=12, dim=256, heads=4)
    wide: Shape = Shape(blocks=2, dim=1024, heads=8)


QUICK = Size(rounds=1, frames=30, encoder=Shape(2, 32, 4), wide=Shape(2, 64, 4))
BATCH, GROUPS, CODES, DISTRACTORS = 4, 2, 320, 100  # 640 codes in 2 groups
DROPOUT = 0.1


def check_equal(ours: list[Tensor], textbook: list[Tensor]) -> None:
    """Values and gradients of both forms are the same."""
    for a, b in zip(ours, textbook, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.detach().abs().max()), rtol=1e-4)


def against_textbook(
    name: str, forms: Mapping[str, Callable[[], Tensor]], inputs: list[Tensor], rounds: int, faster: float
) -> Iterator[Row]:
    """Time and memory of `ours` and the `textbook` form, both forward and backward."""

    def values_and_gradients(form: Callable[[], Tensor]) -> list[Tensor]:
        value = form()
        weights = torch.linspace(-1.0, 1.0, value.numel()).view_as(value) if value.ndim else torch.ones(())
        return [value, *torch.autograd.grad(value, inputs, weights)]

    check_equal(*(values_and_gradients(forms[form]) for form in ("ours", "textbook")))
    seconds = alternate({form: partial(values_and_gradients, run) for form, run in forms.items()}, rounds)
    yield Row(f"{name}/times_faster", median_ratio(seconds, "textbook", "ours"), faster, True, milliseconds(seconds))
    kept = {form: float(kept_bytes(run, inputs)) for form, run in forms.items()}
    details = {f"{form}_bytes": value for form, value in kept.items()}
    yield Row(f"{name}/times_less_kept", kept["textbook"] / kept["ours"], 50.0, True, details)


def look_up_rows(size: Size) -> Iterator[Row]:
    """Code look-up: 1500 frames, D = 256."""
    frames = BATCH * size.frames
    probs = torch.randn(frames, GROUPS, CODES).softmax(-1).requires_grad_()
    codebook = torch.randn(GROUPS, CODES, 256 // GROUPS).requires_grad_()
    codes = torch.randint(CODES, (frames, GROUPS))
    forms = {
        "ours": partial(straight_through_look_up, probs, codebook, codes),
        "textbook": partial(one_hot_look_up, probs, codebook, codes),
    }
    yield from against_textbook("look-up", forms, [probs, codebook], size.rounds, 40.0)


def contrastive_rows(size: Size) -> Iterator[Row]:
    """Contrastive loss: 4 x 375 masked frames, D = 256, K = 100."""
    context, targets = (torch.randn(BATCH, size.frames, 256).requires_grad_() for _ in range(2))
    codes = torch.randint(CODES, (BATCH, size.frames, GROUPS))
    counts = torch.full((BATCH,), size.frames)
    distractors = draw_distractors(counts, size.frames, DISTRACTORS, torch.Generator().manual_seed(0))
    forms: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: contrastive_loss(context, targets, codes, counts, distractors, 0.1).loss,
        "textbook": partial(gathered_contrastive_loss, context, targets, codes, distractors, 0.1),
    }
    yield from against_textbook("contrastive", forms, [context, targets], size.rounds, 100.0)


def train_encoder(encoder: Encoder, x: Tensor, grad: Tensor, dtype: torch.dtype) -> None:
    """Forward and backward; bfloat16 by autocast, which all contestants share with this project's trainer."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = encoder.forward(x)
    y.backward(grad.to(y.dtype))
    encoder.module.zero_grad(set_to_none=True)


def encoder_rows(dtype: torch.dtype, size: Size) -> Iterator[Row]:
    """Ours against other toolkits."""
    name = f"encoder-{str(dtype).removeprefix('torch.')}"
    x, grad = torch.randn(2, BATCH, size.frames, size.encoder.dim)
    encoders = contestants(size.encoder)
    runs = {key: partial(train_encoder, encoder, x, grad, dtype) for key, encoder in encoders.items()}
    seconds = alternate(runs, size.rounds)
    goals = {
        "torchaudio": 1 / 1.03 if dtype == torch.float32 else 1.1,
        "Wav2Vec2Conformer": 1.3,
        "Wav2Vec2Bert": 1.5,
    }
    for other in list(encoders)[1:]:
        details = {key: value for key, value in milliseconds(seconds).items() if key in ("ours_ms", f"{other}_ms")}
        yield Row(
            f"{name}/times_faster_than_{other}", median_ratio(seconds, other, "ours"), goals[other], True, details
        )


def dropout_rows(size: Size) -> Iterator[Row]:
    """Dropout, and attention with it, times faster than torch's; forward and backward."""
    x, grad = torch.randn(2, BATCH, size.frames, 4 * size.encoder.dim)
    forms = {"ours": partial(dropout, training=True), "torch": F.dropout}
    runs = {name: partial(drop, form, x, grad) for name, form in forms.items()}
    seconds = alternate(runs, size.rounds)
    yield Row("dropout/layer", median_ratio(seconds, "torch", "ours"), 1.0, True, milliseconds(seconds))
    q, grad = torch.randn(2, BATCH, size.encoder.heads, size.frames, size.encoder.dim // size.encoder.heads)
    attentions = {
        "ours": lambda q, k, v: attention(q, k, v, None, DROPOUT),
        "torch": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=DROPOUT),
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = f"dropout/attention-{str(dtype).removeprefix('torch.')}"
        runs = {form: partial(attend, run, q.to(dtype), grad.to(dtype)) for form, run in attentions.items()}
        seconds = alternate(runs, size.rounds)
        yield Row(name, median_ratio(seconds, "torch", "ours"), 1.0, True, milliseconds(seconds))


def drop(form: Callable[..., Tensor], x: Tensor, grad: Tensor) -> None:
    """Forward and backward through dropout."""
    x = x.clone().requires_grad_()
    form(x, DROPOUT).backward(grad)


def attend(form: Callable[..., Tensor], q: Tensor, grad: Tensor) -> None:
    """Forward and backward through attention with dropout, without padding."""
    inputs = [q.clone().requires_grad_() for _ in range(3)]
    form(*inputs).backward(grad)


def kept_rows(size: Size) -> Iterator[Row]:
    """Float32 numbers kept for backward, a frame and block, in units of D."""
    x = torch.randn(BATCH, size.frames, size.encoder.dim).requires_grad_()
    unit = 4 * x.numel() * size.encoder.blocks
    kept = {
        name: kept_bytes(partial(encoder.forward, x), encoder.module.parameters()) / unit
        for name, encoder in contestants(size.encoder).items()
    }
    yield Row("kept/units_of_D", kept["ours"], 25.0, False, kept)


def step_rows(size: Size) -> Iterator[Row]:
    """The whole pre-training step against its encoder alone."""
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        narrow, rounds = size.encoder, size.rounds
        yield step_row(f"step-256/{name}", narrow, narrow.blocks, BATCH, size.frames, rounds, dtype, 1.25)
        yield step_row(f"step-xl/{name}", size.wide, 24, BATCH, size.frames, rounds, dtype, 1.03)


ROWS: dict[str, Callable[[Size], Iterator[Row]]] = {
    "look-up": look_up_rows,
    "contrastive": contrastive_rows,
    "encoder-float32": partial(encoder_rows, torch.float32),
    "encoder-bfloat16": partial(encoder_rows, torch.bfloat16),
    "dropout": dropout_rows,
    "kept": kept_rows,
    "step": step_rows,
    "gpu-xl": lambda size: gpu_rows(size.rounds),
}


def main(arguments: list[str]) -> None:
    """Measures the rows that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrain", description="Speed and memory, measured.")
    parser.add_argument("--rows", default=",".join(ROWS), help="NAME,...; all: %(default)s")
    parser.add_argument("--rounds", type=int, help="of each comparison (default: 7)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.rows.split(",")) - set(ROWS))
    if unknown or (options.rounds is not None and options.rounds < 1):
        parser.error(f"no such rows: {', '.join(unknown)}" if unknown else "--rounds must be at least 1")
    size = QUICK if options.quick else Size()
    if options.rounds:
        size = Size(options.rounds, size.frames, size.encoder, size.wide)
    pin_to_one_thread()
    torch.manual_seed(0)
    lines = []
    for name in options.rows.split(","):
        for row in ROWS[name](size):
            print(row.table_line(), flush=True)
            lines.append(row.json_line())
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
