"""What a task gives to the trainer. The trainer knows nothing else of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from w2vbert.training.optim import ParamGroup


@dataclass(frozen=True)
class StepOutput:
    """Loss of one batch.

    Attributes:
        loss: scalar, a sum, with gradient.
        count: scalar, what the sum over batches is divided by; 0 when the batch teaches nothing.
        sums: detached tensors that are added up until the next line of the log.
    """

    loss: Tensor
    count: Tensor
    sums: Mapping[str, Tensor]


class Task(Protocol):
    """A thing to train."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    best_metric: str
    """Name in `validate`'s result by which the best model is kept; lower is better.

    A validation without it keeps no model; the last one of a run must have it.
    """

    def param_groups(self) -> Sequence[ParamGroup]:
        """Groups of parameters with their schedules."""

    def blocks(self) -> Sequence[nn.Module]:
        """Modules of one code that do most of the model's work, to be compiled; none where there are no such."""

    def train_step(self, batch: Any, step: int, generator: torch.Generator) -> StepOutput:
        """Loss of a batch at step `step` (0-based); all randomness but dropout comes from `generator`.

        Every batch goes through `model`, once: where weights are shared out, that is what brings them together.
        """

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from the sums of all batches since the last line of the log."""

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Metrics of `model` (the running average where there is one) on the dev split, after `step` steps."""


class Watch(Protocol):
    """Looks at a run after each line of the log. Needs no state: what it does hangs on the step and the sums alone."""

    def look(self, step: int, sums: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """May warn, change weights and the optimizer's state (alike in all processes), or end the run.

        Args:
            step: steps done.
            sums: of all batches, of all processes, since the last line of the log.
            optimizer: of the run.

        Raises:
            UserError: the run should not go on.
        """


class BatchSource(Protocol):
    """An endless stream of batches whose position can be saved."""

    batch_seconds: float
    """Most audio in a batch; 0 where there is none."""

    def next_batch(self) -> Any:
        """The next batch. It has `seconds` (of audio), `ids` and `size` (in words)."""

    def largest(self) -> Any:
        """The batch that takes most memory, or one like it; the position stays."""

    def share(self, index: int, count: int) -> None:
        """From now on `next_batch` gives the first, second ... batch of every `count`, by `index`, and passes all."""

    def state_dict(self) -> dict[str, int]:
        """Position, after the last batch given and those of the others that share; the same for all of them."""

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on at a saved position, at no cost, however many share."""
