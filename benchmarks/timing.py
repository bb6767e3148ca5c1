"""Side-by-side timing, and bytes that autograd keeps."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: row and contestant, such as `encoder-bfloat16/torchaudio`.
        value: a ratio or share.
        goal: the value that is wanted.
        at_least: True where more is better.
        details: what the value was made of, with units in the names.
    """

    name: str
    value: float
    goal: float
    at_least: bool
    details: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether the goal is met."""
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def table_line(self) -> str:
        """For people."""
        sign, state = ("at least" if self.at_least else "at most"), ("yes" if self.reached else "NO")
        details = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.details.items())
        return f"{self.name:40s} {self.value:9.4g}  {sign:8s} {self.goal:<7.4g} {state:3s}  {details}"

    def json_line(self) -> str:
        """For programs."""
        return json.dumps(asdict(self) | {"reached": self.reached})


def pin_to_one_thread() -> None:
    """One thread on one core. Call before any work."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def alternate(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; all run in every round, after one round that is not counted.

    On the CPU the seconds are those that this process used, since other programs disturb them less than the wall
    clock's; on a GPU those of the wall clock until the GPU is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    for _ in range(rounds + 1):
        for name, run in contestants.items():
            if cuda:
                torch.cuda.synchronize()
            started = clock()
            run()
            if cuda:
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
    return {name: values[1:] for name, values in seconds.items()}


def median_ratio(seconds: Mapping[str, list[float]], numerator: str, denominator: str) -> float:
    """Median over the rounds of one contestant's seconds by another's."""
    pairs = zip(seconds[numerator], seconds[denominator], strict=True)
    return statistics.median(a / b for a, b in pairs)


def milliseconds(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of each contestant, by `NAME_ms`."""
    return {f"{name}_ms": 1000 * statistics.median(values) for name, values in seconds.items()}


def kept_bytes(forward: Callable[[], object], without: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps of `forward`, each storage once, not counting `without` (parameters)."""
    given = {tensor.untyped_storage().data_ptr() for tensor in without}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # so that no memory is used twice while counting

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(kept.values())
