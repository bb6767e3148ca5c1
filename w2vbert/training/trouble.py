"""What goes wrong with a batch, said so that it can be mended."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2vbert.errors import UserError
from w2vbert.files import atomic_file
from w2vbert.log import logger
from w2vbert.training.distributed import World

SKIPPED_FILE = "skipped.jsonl"


class SkippedUpdates:
    """Updates that were left out because a gradient was not finite, or nothing was there to learn from.

    The ids of their batches go to `skipped.jsonl` in the run's folder.

    Attributes:
        total: how many there were.
        in_a_row: how many came last, one after the other.
    """

    def __init__(self, run: Path, most_in_a_row: int, world: World) -> None:
        self.run = run
        self.most_in_a_row = most_in_a_row
        self.world = world
        self.total = 0
        self.in_a_row = 0
        self._unseen: list[tuple[int, Tensor, Tensor, list[str]]] = []

    def note(self, step: int, finite: Tensor, count: Tensor, ids: list[str]) -> None:
        """Remembers an update, without looking.

        Args:
            step: its number.
            finite: bool scalar, whether it was done.
            count: scalar, what there was to learn from.
            ids: of its utterances, in this process.
        """
        self._unseen.append((step, finite, count, ids))

    def look(self) -> None:
        """Counts what was noted, and names what was skipped; waits for the device.

        Raises:
            UserError: too many in a row.
        """
        unseen, self._unseen = self._unseen, []
        for step, finite, count, ids in unseen:
            if bool(finite):
                self.in_a_row = 0
            else:
                reason = "gradient is not finite" if bool(count) else "there is nothing to learn from"
                self._tell(step, reason, self.world.gather(ids))

    def _tell(self, step: int, reason: str, ids: Sequence[str]) -> None:
        self.total += 1
        self.in_a_row += 1
        logger.warning(
            f"step {step}: {reason}; update skipped; utterances {', '.join(ids[:5])} ... (all in {SKIPPED_FILE})"
        )
        if self.world.is_first:
            path = self.run / SKIPPED_FILE
            lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
            kept = [line for line in lines if json.loads(line)["step"] < step]  # a resumed run does some again
            with atomic_file(path) as aside:
                new = json.dumps({"step": step, "reason": reason, "ids": list(ids)}, ensure_ascii=False)
                aside.write_text("".join(f"{line}\n" for line in [*kept, new]), encoding="utf-8")
        if self.in_a_row >= self.most_in_a_row:
            raise UserError(
                f"{self.run}: {self.in_a_row} updates in a row were skipped, the last because {reason}: "
                f"lower the learning rate, or look at its utterances {', '.join(ids)}"
            )


@contextmanager
def naming_memory(batch: Any) -> Iterator[None]:
    """Says which batch was too large for the memory.

    Raises:
        UserError: memory was asked for that is not there.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # the CPU's allocator has no error of its own
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory with a batch of {batch.size}, {batch.ids[0]} and others: "
            "lower batch_seconds (and max_seconds, if that is one utterance)"
        ) from error
