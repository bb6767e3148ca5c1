"""Pruned RNN-T loss against the loss over the full lattice: time and memory of one training step of the joiner.

    python -m benchmarks.rnnt_loss [--quick] [--device cuda] [--rounds N]

A step is forward and backward from the scores of encoder and prediction network: smoothed loss, ranges, joiner and
pruned loss; against it torchaudio's loss on the full lattice with the same joiner, the step with k2's own functions
where k2 is installed, the joiner alone and the two recursions alone. On a CPU one pinned thread works and its own time
is counted, so that other processes hardly disturb. The variants take turns; each gets one JSON row, and the ratios of
the last row are medians over the rounds.

Letters: B batch, T frames, S symbols, V vocabulary, J joiner dimension, r kept positions a frame.
"""

import argparse
import ctypes
import importlib
import importlib.util
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from w2vbert.ops import rnnt_loss as native
from w2vbert.ops.rnnt_recursion import mutual_information_recursion


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

    def _lattice(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ranges (B, T, r), and the arcs px (B, S, T+1), py (B, S+1, T) of the additive joiner."""
        with torch.no_grad():
            px, py, _ = native._additive_arcs(self.lm, self.am, self.symbols, 0, self.boundary, (0.0, 0.0))
            px = native._finish_px(px, py, self.boundary, "regular", 0.0)
            _, grads = mutual_information_recursion(px, py, self.boundary, True, "native")
        return native.get_rnnt_prune_ranges(*grads, self.boundary, self.sizes.s_range), px, py

    def clear(self) -> None:
        """Drops the gradients of the last run."""
        for leaf in (self.am, self.lm, self.encoder, self.predictor, *self.linear.parameters()):
            leaf.grad = None

    def pruned(self, losses: ModuleType) -> float:
        """The step with the functions of `losses`: this project's (native backend), or k2's. Returns the loss."""
        options = {"backend": "native"} if losses is native else {}
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
        loss = 0.5 * simple + pruned
        loss.backward()
        return float(loss.detach())

    def joiner(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """(..., J) and (..., J), which broadcast -> logits (..., V)."""
        return self.linear(torch.tanh(encoder + predictor))

    def joiner_alone(self) -> float:
        """The joiner on the kept positions, with a gradient of ones."""
        logits = self.joiner(*native.do_rnnt_pruning(self.encoder, self.predictor, self.ranges))
        logits.backward(torch.ones_like(logits))
        return 0.0

    def recursions(self) -> float:
        """Both recursions, forward and backward, from their arcs."""
        px, py = self.px.requires_grad_(), self.py.requires_grad_()
        scores = [mutual_information_recursion(px, py, self.boundary, backend="native") for _ in range(2)]
        total = sum(score.sum() for score in scores if isinstance(score, Tensor))
        assert isinstance(total, Tensor)
        torch.autograd.grad(total, (px, py))
        return float(total.detach())

    def full(self, together: int) -> float:
        """torchaudio's loss on the full lattice of `together` utterances at a time, with the same joiner."""
        functional = importlib.import_module("torchaudio").functional
        total = 0.0
        for encoder, predictor, symbols, boundary in zip(
            *(part.split(together) for part in (self.encoder, self.predictor, self.symbols, self.boundary)), strict=True
        ):
            logits = self.joiner(encoder.unsqueeze(2), predictor.unsqueeze(1))  # (together, T, S+1, V)
            lengths = boundary[:, 3].int(), boundary[:, 2].int()
            loss = functional.rnnt_loss(logits, symbols.int(), *lengths, blank=0, reduction="sum")
            del logits
            loss.backward()
            total += float(loss.detach())
        return total


@dataclass(frozen=True)
class Cost:
    """What one run costs: seconds, the growth of memory at its peak in MB (None where unknown), and its loss."""

    seconds: float
    peak_mb: float | None
    loss: float


def measure(step: Step, run: Callable[[], float], device: torch.device) -> Cost:
    """Runs once, from memory given back to the system."""
    step.clear()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        loss = run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return Cost(seconds, (torch.cuda.max_memory_allocated() - before) / 1e6, loss)
    resident = _restart_peak()
    start = time.process_time()
    loss = run()
    seconds = time.process_time() - start
    peak = None if resident is None else (_status("VmHWM") - resident) / 1e3
    return Cost(seconds, peak, loss)


def _restart_peak() -> int | None:
    """Lets the process's peak of resident memory begin anew (Linux); returns what is resident now, in kB."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return _status("VmRSS")
    except (AttributeError, OSError):
        return None


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{key}:"))


def variants(step: Step, together: int) -> dict[str, Callable[[], float]]:
    """What is compared, by name; k2 where it is installed."""
    found: dict[str, Callable[[], float]] = {
        "pruned": lambda: step.pruned(native),
        "joiner": step.joiner_alone,
        "recursions": step.recursions,
        "full": lambda: step.full(together),
    }
    if native.backend_reason().startswith("k2"):
        k2 = importlib.import_module("k2")
        found["k2"] = lambda: step.pruned(k2)
    return found


def summary(costs: dict[str, list[Cost]], together: int, batch: int) -> dict[str, Any]:
    """Ratios to the pruned step. The memory of the full lattice is that of one pass times the number of passes."""

    def time_ratio(over: str, under: str) -> float:
        pairs = zip(costs[over], costs[under], strict=True)
        return round(statistics.median(one.seconds / other.seconds for one, other in pairs), 4)

    def peak(name: str) -> float:
        return max((cost.peak_mb or 0.0 for cost in costs[name]), default=0.0)

    row: dict[str, Any] = {
        "row": "ratios",
        "full_over_pruned_seconds": time_ratio("full", "pruned"),
        "recursions_share": time_ratio("recursions", "pruned"),
        "joiner_share": time_ratio("joiner", "pruned"),
    }
    passes = -(-batch // together)
    if peak("full"):
        row |= {"full_passes": passes, "pruned_over_full_peak": round(peak("pruned") / (peak("full") * passes), 4)}
    if "k2" in costs:
        row["pruned_over_k2_seconds"] = time_ratio("pruned", "k2")
        if peak("k2"):
            row["pruned_over_k2_peak"] = round(peak("pruned") / peak("k2"), 4)
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full-utterances", type=int, default=1, help="utterances of the full lattice at a time")
    parser.add_argument("--scale", type=float, default=1.0, help="standard deviation of the additive joiner's scores")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torchaudio")
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sizes = QUICK if arguments.quick else Sizes(scale=arguments.scale)
    step = Step(sizes, device)
    together = min(arguments.full_utterances, sizes.batch)
    runs = variants(step, together)
    measure(step, runs["pruned"], device)  # warm: libraries loaded, kernels compiled
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            costs[name].append(measure(step, run, device))
    clock = "wall" if device.type == "cuda" else "CPU"
    print(json.dumps({"row": "set-up", **asdict(sizes), "device": device.type, "clock": clock}))
    for name, measured in costs.items():
        seconds, peaks = [cost.seconds for cost in measured], [cost.peak_mb for cost in measured if cost.peak_mb]
        row = {"row": name, "seconds": round(statistics.median(seconds), 4), "least_seconds": round(min(seconds), 4)}
        print(json.dumps({**row, "peak_mb": round(max(peaks), 1) if peaks else None, "loss": measured[0].loss}))
    print(json.dumps(summary(costs, together, sizes.batch)))


if __name__ == "__main__":
    main()
