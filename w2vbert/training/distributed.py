"""The processes of a run: what they add up, what they agree on, and who is missing.

One process is the rule; several are started by `bin/launch` (torchrun), which sets RANK, WORLD_SIZE and so on. A batch
is the unit: statistics inside it (BatchNorm, the mean code distribution of the diversity loss) are those of one batch
of one process, just as with accumulated batches, and losses are sums over all batches of all processes, divided by the
global count. So 1 process x 4 batches, 2 x 2 and 4 x 1 have the same gradient.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from w2vbert.errors import UserError
from w2vbert.log import logger
from w2vbert.training.task import StepOutput, Task

COLLECTIVE_TIMEOUT = timedelta(hours=3)
"""Longest wait in a collective: the others wait while the first process validates. Hangs are found by `Watchdog`."""

BEAT_SECONDS = 2.0
"""Between two signs of life of a process."""

WAITING, LOADING, COMPUTING, ALONE = 3, 0, 1, 2
"""Where in a step a process is; `ALONE`: the first one validates or saves, while the others wait."""

_PHASES = {LOADING: "loading data", COMPUTING: "computing", ALONE: "validating or saving", WAITING: "waiting"}


@dataclass
class World:
    """This process among the others.

    Attributes:
        rank: number of this process.
        size: number of processes.
        mark: step and phase that this process is in, for the watchdog; step -1 before the first.
    """

    rank: int = 0
    size: int = 1
    mark: tuple[int, int] = (-1, WAITING)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and lines."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of numbers over all processes, in double precision, on the CPU."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their sums over all processes."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def average_buffers(self, module: nn.Module) -> None:
        """Replaces floating-point buffers (BatchNorm's running statistics) by their means over all processes."""
        if self.size > 1:
            buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
            self.sum_tensors(buffers)
            for buffer in buffers:
                buffer.div_(self.size)

    def from_first(self, values: Sequence[bool]) -> list[bool]:
        """The first process's values."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values)
        dist.broadcast(tensor, 0)
        return [bool(value) for value in tensor.tolist()]

    def gather(self, items: list[str]) -> list[str]:
        """Items of all processes, in the order of their ranks."""
        if self.size == 1:
            return items
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.size > 1:
            dist.barrier()

    def seed_step(self, seed: int, step: int, generator: torch.Generator) -> None:
        """Gives each process and step its own randomness, so that no generator's state need be saved.

        One process goes on with the state that it has.
        """
        if self.size > 1:
            states = np.random.SeedSequence((seed, step, self.rank)).generate_state(2, np.uint64)
            generator.manual_seed(int(states[0]) >> 1)
            torch.manual_seed(int(states[1]) >> 1)

    @contextmanager
    def watched(self, hang_seconds: float, behind_seconds: float = 0.0) -> Iterator[None]:
        """Looks for processes that are lost while the work inside goes on; see `Watchdog`.

        Args:
            hang_seconds: most time without a sign of life, or behind the others.
            behind_seconds: most time behind the others, where that is more.

        Raises:
            UserError: the connection to another process broke.
        """
        if self.size == 1:
            yield
            return
        self.wait()
        watchdog = Watchdog(self, hang_seconds, max(hang_seconds, behind_seconds))
        watchdog.start()
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "onnection" not in str(error):
                raise
            step = self.mark[0]
            raise UserError(f"process {self.rank} lost the connection to another one at step {step}") from error
        finally:
            watchdog.stop()


def join_world() -> World:
    """Meets the other processes that the launcher has started, if there are any, and takes this one's GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if not dist.is_initialized():
        _end_with_launcher()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size())


def _end_with_launcher() -> None:
    """A launcher that is killed takes this process along, which else would hold the run's folder a little longer."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)


class Replica:
    """A task's step in this process, whose gradients become means over all processes (PyTorch's DDP)."""

    def __init__(self, task: Task, world: World, is_sharded: bool = False) -> None:
        """With several processes, gives all of them the first one's weights, unless these are shared out already."""
        self._step: Any = task.train_step
        self._replicated: DistributedDataParallel | None = None
        if world.size > 1 and not is_sharded:
            # Parts of a model may take no part in a step: a transducer while only its CTC head learns.
            self._step = self._replicated = DistributedDataParallel(
                _StepModule(task), broadcast_buffers=False, find_unused_parameters=True
            )

    def train_step(self, batch: Any, step: int, generator: torch.Generator) -> StepOutput:
        """See `Task.train_step`."""
        return self._step(batch, step, generator)

    def alone(self) -> AbstractContextManager[None]:
        """Inside, gradients are added up in this process only; the next backward outside brings all together."""
        return nullcontext() if self._replicated is None else self._replicated.no_sync()


class _StepModule(nn.Module):
    """A task's step as a module's forward, which is what DDP wraps."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._task = task

    def forward(self, batch: Any, step: int, generator: torch.Generator) -> StepOutput:
        return self._task.train_step(batch, step, generator)


@dataclass
class _Seen:
    """What is known of a process: its last sign of life, where it was, when it was heard, since when it lags behind."""

    heard: float
    behind: float
    beat: str = ""
    mark: tuple[int, int] = (-1, LOADING)


class Watchdog:
    """Ends this process, with a line that names the culprit, when another one is dead or hangs.

    Each process tells the launcher's store every `BEAT_SECONDS` that it lives, and where it is. Lost is who has said
    nothing for `hang_seconds` (stopped, or its machine is gone), or who has been at one place for `behind_seconds`
    while another one was farther on. The first process looks at all, the others at the first. The launcher ends
    the run when one process has ended.
    """

    def __init__(self, world: World, hang_seconds: float, behind_seconds: float) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=hang_seconds))
        self.world = world
        self.hang_seconds = hang_seconds
        self.behind_seconds = behind_seconds
        self.beats = 0
        self._seen: dict[int, _Seen] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Looks no more."""
        self._stopped.set()
        self._thread.join(timeout=self.hang_seconds)

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            try:
                complaint = self._beat()
            except (dist.DistError, RuntimeError) as error:
                complaint = f"the launcher is gone ({str(error).splitlines()[0]})"
            if complaint and not self._stopped.is_set():
                logger.error(f"process {self.world.rank}: {complaint}; this run ends")
                os._exit(1)

    def _beat(self) -> str:
        """Says that this process lives; returns what is wrong with another one, or ""."""
        self.beats += 1
        step, phase = self.world.mark
        self.store.set(f"w2vbert/beat/{self.world.rank}", f"{self.beats} {step} {phase}")
        watched = range(self.world.size) if self.world.is_first else [0]
        return "; ".join(filter(None, map(self._judge, watched)))

    def _judge(self, rank: int) -> str:
        key = f"w2vbert/beat/{rank}"
        beat = self.store.get(key).decode() if self.store.check([key]) else ""
        now = time.monotonic()
        seen = self._seen.setdefault(rank, _Seen(heard=now, behind=now))
        if beat and beat != seen.beat:
            step, phase = map(int, beat.split()[1:])
            if (step, phase) != seen.mark:
                seen.behind = now
            seen.beat, seen.mark, seen.heard = beat, (step, phase), now
        step, phase = seen.mark
        if phase == ALONE or seen.mark >= max(other.mark for other in self._seen.values()):
            seen.behind = now
        place = f"at step {step}, {_PHASES[phase]}"
        if now - seen.heard > self.hang_seconds:
            return f"process {rank} has not been heard of for {now - seen.heard:.0f} s ({place})"
        if now - seen.behind > self.behind_seconds:
            return f"process {rank} hangs: {now - seen.behind:.0f} s {place}"
        return ""
