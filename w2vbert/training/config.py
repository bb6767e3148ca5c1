"""Settings of the training loop."""

from dataclasses import dataclass, field
from typing import Literal

from w2vbert.config import HOW_ONLY
from w2vbert.training.compilation import Compile


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Attributes:
        seed: of initialisation, order of the data, masks, dropout and augmentation.
        max_steps: updates in the whole run.
        accumulate: batches of each process added up for one update.
        update_seconds: audio of one update, instead of `accumulate`: so many batches, over all processes, as hold it
            when they are full; 0: see `accumulate`.
        clip_norm: cap of the gradient norm (20: family).
        average_decay: of the running average of the weights, which is what is validated and kept; 0: none.
        log_every_steps: updates from one line of the log to the next.
        validate_every_steps: updates from one validation to the next; there is another at the end of the run.
        save_every_steps: updates from one checkpoint to the next.
        patience: validations in a row without a better model, after which training ends; 0: it never does.
        keep_last: checkpoints that stay.
        keep_best: validated models that stay, the best ones, for `w2vbert average --best`; 1: the best alone.
        precision: of the matrix products; auto is bfloat16 where the hardware has it.
        threads: CPU threads of each process; 0: all cores, shared out among the processes of a machine.
        loader_workers: processes that make batches; 0: a thread of the training process.
        max_bad_steps: updates in a row with a loss or gradient that is not finite, after which the run stops.
        shard_weights: weights, gradients and moments are shared out among the processes (FSDP2), for models that one
            GPU cannot hold.
        hang_seconds: of several processes, how long one may be silent or behind the others before the run ends; where
            blocks are compiled, which may take one longer than another, behind for at least ten minutes.
        compile: the blocks of the model by torch.compile (docs/decisions/0016). auto: on a GPU, and training goes on
            without where that fails; on: on a CPU, too, where it takes minutes; off.
    """

    seed: int = 1
    max_steps: int = 400_000
    accumulate: int = 1
    update_seconds: float = 0.0
    clip_norm: float = 20.0
    average_decay: float = 0.0
    log_every_steps: int = 100
    validate_every_steps: int = 5000
    save_every_steps: int = 1000
    patience: int = 0
    keep_last: int = 2
    keep_best: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = field(default=0, metadata=HOW_ONLY)
    loader_workers: int = field(default=0, metadata=HOW_ONLY)
    max_bad_steps: int = 10
    shard_weights: bool = False
    hang_seconds: float = field(default=60.0, metadata=HOW_ONLY)
    compile: Compile = field(default="auto", metadata=HOW_ONLY)

    def __post_init__(self) -> None:
        intervals = (self.log_every_steps, self.validate_every_steps, self.save_every_steps)
        if min(self.max_steps, self.accumulate, self.keep_last, self.keep_best, *intervals) < 1:
            raise ValueError("max_steps, accumulate, keep_last, keep_best and the intervals must be at least 1")
        if self.clip_norm <= 0.0:
            raise ValueError(f"clip_norm must be positive, not {self.clip_norm}")
        if min(self.threads, self.loader_workers, self.patience, self.update_seconds) < 0:
            raise ValueError("threads, loader_workers, patience and update_seconds must be at least 0")
        if self.threads > 1024 or not 0 <= self.seed < 2**32:
            raise ValueError("threads must be at most 1024, and seed lie in [0, 2^32)")
        if self.update_seconds and self.accumulate > 1:
            raise ValueError("accumulate and update_seconds both say how large an update is: leave one out")
        if self.hang_seconds < 10.0:
            raise ValueError(f"hang_seconds must be at least 10, not {self.hang_seconds}")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(f"average_decay must lie in [0, 1), not {self.average_decay}")
