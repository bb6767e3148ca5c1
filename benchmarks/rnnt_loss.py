"""Pruned RNN-T loss against the loss over the full lattice: time and memory of one training step of the joiner.

    python -m benchmarks.rnnt_loss [--quick] [--device cuda] [--rounds N] [--json]

A step is forward and backward from the scores of encoder and prediction network: smoothed loss, ranges, joiner and
pruned loss. Against it: torchaudio's loss on the full lattice with the same joiner; the step with k2's own functions,
where k2 is installed; and, as shares of it, the joiner and the two recursions alone. The full lattice of the whole
batch needs 9 GB, so it is that of `--full-utterances` of its equally long utterances, times as many as there are.

Letters: B batch, T frames, S symbols, V vocabulary, J joiner dimension, r kept positions a frame.
"""

import argparse
import ctypes
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from benchmarks.timing import Row, alternate, median_ratio, milliseconds, pin_to_one_thread
from w2vbert.ops import rnnt_loss as native
from w2vbert.ops.rnnt_recursion import mutual_information_recursion, pruned_recursion


@dataclass(frozen=True)
class Sizes:
    """Sizes of the step.

    Attributes:
        batch: B.
        frames: T, of the encoder.
        symbols: S.
        vocab: V, with the blank.
        joiner_dim: J.
        s_range: r.
        scale: standard deviation of the scores of the additive joiner.
    """

    batch: int = 16
    frames: int = 400
    symbols: int = 100
    vocab: int = 1024
    joiner_dim: int = 512
    s_range: int = 5
    scale: float = 1.0


QUICK = Sizes(batch=2, frames=24, symbols=6, vocab=16, joiner_dim=8)


class Step:
    """Random inputs of a batch without padding, and what is timed on them."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes = sizes
        generator = torch.Generator().manual_seed(0)

        def leaf(*shape: int, scale: float) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(device).requires_grad_()

        B, T, S, V, J = sizes.batch, sizes.frames, sizes.symbols, sizes.vocab, sizes.joiner_dim
        self.am, self.lm = leaf(B, T, V, scale=sizes.scale), leaf(B, S + 1, V, scale=sizes.scale)
        self.encoder, self.predictor = leaf(B, T, J, scale=1.0), leaf(B, S + 1, J, scale=1.0)
        torch.manual_seed(0)
        self.linear = nn.Linear(J, V).to(device)
        self.symbols = torch.randint(1, V, (B, S), generator=generator).to(device)
        self.boundary = native.full_boundary(B, S, T, device)
        self.ranges, self.px, self.py = self._lattice()
        written = nn.functional.pad(self.px[:, :, :T], (0, 0, 0, 1))  # (B, S+1, T)
        self.write, self.blank = (arcs.transpose(1, 2).gather(2, self.ranges) for arcs in (written, self.py))

    def _lattice(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ranges (B, T, r), and the arcs px (B, S, T+1), py (B, S+1, T) of the additive joiner."""
        with torch.no_grad():
            px, py, _ = native._additive_arcs(self.lm, self.am, self.symbols, 0, self.boundary, (0.0, 0.0))
            px = native._finish_px(px, py, self.boundary, "regular", 0.0)
            _, (px_grad, py_grad) = mutual_information_recursion(px, py, self.boundary, True, "native")
        return native.get_rnnt_prune_ranges(px_grad, py_grad, self.boundary, self.sizes.s_range), px, py

    def _clear(self) -> None:
        """Drops the gradients of the last run."""
        for leaf in (self.am, self.lm, self.encoder, self.predictor, *self.linear.parameters()):
            leaf.grad = None

    def pruned(self, losses: ModuleType) -> None:
        """The step with the functions of `losses`: this project's (native backend), or k2's."""
        self._clear()
        options: dict[str, Any] = {"backend": "native"} if losses is native else {}
        simple, grads = losses.rnnt_loss_smoothed(
            self.lm,
            self.am,
            self.symbols,
            0,
            lm_only_scale=0.25,
            am_only_scale=0.0,
            boundary=self.boundary,
            reduction="sum",
            return_grad=True,
            **options,
        )
        ranges = losses.get_rnnt_prune_ranges(*grads, self.boundary, self.sizes.s_range)
        logits = self.joiner(*losses.do_rnnt_pruning(self.encoder, self.predictor, ranges))
        pruned = losses.rnnt_loss_pruned(logits, self.symbols, ranges, 0, self.boundary, reduction="sum", **options)
        del logits  # as in training, where no name keeps it
        (0.5 * simple + pruned).backward()

    def joiner(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """(..., J) and (..., J), which broadcast -> logits (..., V)."""
        return self.linear(torch.tanh(encoder + predictor))

    def joiner_alone(self) -> None:
        """The joiner on the kept positions, with a gradient of ones."""
        self._clear()
        logits = self.joiner(*native.do_rnnt_pruning(self.encoder, self.predictor, self.ranges))
        logits.backward(torch.ones_like(logits))

    def recursions(self) -> None:
        """Both recursions, over the whole lattice and over what is kept, forward and backward, from their arcs."""
        arcs = self.px.requires_grad_(), self.py.requires_grad_()
        scores = mutual_information_recursion(*arcs, self.boundary, backend="native")
        assert isinstance(scores, Tensor)
        torch.autograd.grad(scores.sum(), arcs)
        arcs = self.write.requires_grad_(), self.blank.requires_grad_()
        scores = pruned_recursion(*arcs, self.ranges, self.sizes.symbols, self.boundary, True, "native")
        torch.autograd.grad(scores.sum(), arcs)

    def full(self, together: int) -> None:
        """torchaudio's loss on the full lattice of the first `together` utterances, with the same joiner."""
        self._clear()
        encoder, predictor, symbols = self.encoder[:together], self.predictor[:together], self.symbols[:together].int()
        logits = self.joiner(encoder.unsqueeze(2), predictor.unsqueeze(1))  # (together, T, S+1, V)
        lengths = self.boundary[:together, 3].int(), self.boundary[:together, 2].int()
        loss = torchaudio.functional.rnnt_loss(logits, symbols, *lengths, blank=0, reduction="sum")
        del logits
        loss.backward()


def peak_mb(run: Callable[[], object], device: torch.device) -> float | None:
    """Growth of memory at the peak of one run, in MB: of the GPU, or resident in the process (Linux; else None)."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except (AttributeError, OSError):
        return None
    before = _resident_kb("VmRSS")
    run()
    return (_resident_kb("VmHWM") - before) / 1e3


def _resident_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def compare(sizes: Sizes, device: torch.device, rounds: int, together: int) -> list[Row]:
    """All rows. `together`: utterances of the full lattice at a time, which must divide the batch."""
    step = Step(sizes, device)
    runs: dict[str, Callable[[], None]] = {
        "pruned": lambda: step.pruned(native),
        "joiner": step.joiner_alone,
        "recursions": step.recursions,
        "full": lambda: step.full(together),
    }
    if native.backend_reason().startswith("k2"):
        k2 = importlib.import_module("k2")
        runs["k2"] = lambda: step.pruned(k2)
    peaks = {name: peak_mb(run, device) for name, run in runs.items()}
    times = sizes.batch // together
    seconds = alternate(runs, rounds)
    speed, details = times * median_ratio(seconds, "full", "pruned"), milliseconds(seconds)
    rows = [Row("rnnt-loss/full-lattice-time", speed, 15.0, True, {**details, "full_times": float(times)})]
    pruned, full = peaks["pruned"], peaks["full"]
    megabytes = {f"{name}_mb": peak for name, peak in peaks.items() if peak is not None}
    if pruned is not None and full:
        ratio = pruned / (times * full)
        rows.append(
            Row("rnnt-loss/full-lattice-memory", ratio, 1 / 6, False, {**megabytes, "full_times": float(times)})
        )
    share = median_ratio(seconds, "recursions", "pruned")
    joiner = {"joiner_share": median_ratio(seconds, "joiner", "pruned")}
    rows.append(Row("rnnt-loss/recursions-share", share, 0.04, False, joiner))
    if "k2" in runs:
        rows.append(Row("rnnt-loss/k2-time", median_ratio(seconds, "pruned", "k2"), 1.05, False))
        if pruned is not None and peaks["k2"]:
            rows.append(Row("rnnt-loss/k2-memory", pruned / peaks["k2"], 1.0, False))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full-utterances", type=int, default=1, metavar="N", help="must divide the batch")
    parser.add_argument("--scale", type=float, default=1.0, help="standard deviation of the additive joiner's scores")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torchaudio")
    sizes = QUICK if arguments.quick else Sizes(scale=arguments.scale)
    if sizes.batch % arguments.full_utterances:
        parser.error(f"--full-utterances must divide the batch of {sizes.batch}, not be {arguments.full_utterances}")
    if arguments.device == "cpu":
        pin_to_one_thread()
    rows = compare(sizes, torch.device(arguments.device), arguments.rounds, arguments.full_utterances)
    for row in rows:
        print(row.json_line() if arguments.json else row.table_line())


if __name__ == "__main__":
    main()
