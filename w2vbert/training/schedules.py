"""Learning rates as functions of the step and of the run's length."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule for one group of parameters.

    Attributes:
        learning_rate: peak, reached after the warm-up (2e-3 in pre-training, 3e-4 encoder and 1e-3 decoder in
            fine-tuning: paper and family; small models take more).
        warmup_steps: steps of linear rise from 0 (25 000; 5 000 and 1 500).
        schedule: after the warm-up: inverse_sqrt (paper), cosine or linear to `final_share` at the last step, constant.
        final_share: learning rate at the end of cosine and linear, as a share of the peak.
        freeze_steps: steps at the start in which the rate of this group is 0.
        weight_decay: decoupled, on matrices only.
    """

    learning_rate: float = 2e-3
    warmup_steps: int = 25_000
    schedule: Literal["inverse_sqrt", "cosine", "linear", "constant"] = "inverse_sqrt"
    final_share: float = 0.0
    freeze_steps: int = 0
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.learning_rate <= 0.0 or self.warmup_steps < 0 or self.freeze_steps < 0:
            raise ValueError("learning_rate must be positive, warmup_steps and freeze_steps not negative")
        if not 0.0 <= self.final_share <= 1.0 or self.weight_decay < 0.0:
            raise ValueError("final_share must lie in [0, 1], and weight_decay not be negative")

    def at(self, step: int, max_steps: int) -> float:
        """Learning rate of step `step` (0-based) of a run of `max_steps`."""
        step -= self.freeze_steps
        max_steps = max(max_steps - self.freeze_steps, 1)
        if step < 0:
            return 0.0
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "inverse_sqrt":
            return self.learning_rate * math.sqrt(max(self.warmup_steps, 1) / (step + 1))
        done = min((step - self.warmup_steps) / max(max_steps - self.warmup_steps, 1), 1.0)
        shape = 0.5 * (1.0 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0 - done
        return self.learning_rate * (self.final_share + (1.0 - self.final_share) * shape)
