"""Blocks of a model compiled where they stand (torch.compile). Why so: docs/decisions/0016."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

from w2vbert.errors import UserError
from w2vbert.log import logger

Compile = Literal["auto", "on", "off"]

BACKEND = "inductor"

FORMS = 64
"""Of one block, that are compiled at most: with padding and without, frozen, of a batch of one, of fixed and of any
size. PyTorch's own limit is 8 for all blocks together, which run the same code; behind it nothing is compiled."""

MOST_SECONDS = 600.0
"""That one process may compile longer than another."""


class CompiledBlocks:
    """Blocks that are compiled, each by itself, when they are first called.

    Names of weights stay as they are, and a copy of the model is plain.

    Attributes:
        blocks: that are compiled; none where nothing is.
    """

    def __init__(self, blocks: Sequence[nn.Module], wanted: Compile, device: torch.device) -> None:
        """Compiles nothing yet.

        Args:
            blocks: of the same code; compiled once for all of them.
            wanted: see `TrainConfig.compile`.
            device: where they are.
        """
        self.is_forced = wanted == "on"
        self.blocks: Sequence[nn.Module] = ()
        if not blocks or wanted == "off" or (wanted == "auto" and device.type != "cuda"):
            return
        import torch._dynamo

        self.blocks = blocks
        torch._dynamo.config.recompile_limit = FORMS
        torch._dynamo.config.optimize_ddp = False  # DDP's gradients are sent block by block anyway
        for block in blocks:
            block.compile(backend=BACKEND)

    @property
    def most_seconds(self) -> float:
        """How long a step may take because it compiles; 0 where nothing is compiled."""
        return MOST_SECONDS if self.blocks else 0.0

    def try_out(self, step: Callable[[], object]) -> None:
        """Does a step whose traces are removed; once more without the compiler, where that fails and is not forced.

        Raises:
            UserError: it fails and is forced.
        """
        if not self.blocks:
            step()
            return
        from torch._dynamo.exc import TorchDynamoException

        try:
            step()
            return
        except TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            reason = f"{type(cause).__name__}: {next(iter(str(cause).strip().splitlines()), '')}"
            if self.is_forced:
                raise UserError(f"torch.compile fails here, set train.compile=off: {reason}") from error
        logger.warning(f"torch.compile fails here, training is slower without it (train.compile=off): {reason}")
        for block in self.blocks:
            block._compiled_call_impl = None
        self.blocks = ()
        step()

    def plain(self) -> AbstractContextManager[object]:
        """Inside, blocks run as they are written: nothing is compiled for shapes that only a validation has."""
        return torch.compiler.set_stance("force_eager") if self.blocks else nullcontext()
