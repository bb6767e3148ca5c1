"""Tells when the codes of pre-training have collapsed, and acts on it. Evidence for the thresholds: docs/collapse.md.

G codebooks, V codes in each, C dimension of the feature encoder's output.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from w2vbert.errors import UserError
from w2vbert.log import logger
from w2vbert.models.objectives import PretrainingModel
from w2vbert.models.quantizer import GumbelQuantizer, perplexity
from w2vbert.models.w2v_bert import W2vBertConfig

OnCollapse = Literal["warn", "stop", "reseed"]

MIN_PERPLEXITY_SHARE = 1 / 10
"""Perplexity of the target codes, as a share of the codebook, below which they count as collapsed."""

MIN_INFORMATION = 0.1
"""Nats that a frame's code distribution tells beyond the batch's; below it the quantizer does not look at the frame."""

MIN_FRAMES_PER_CODE = 8
"""With fewer masked frames between two lines of the log nothing is said: a few frames cannot use many codes."""

DEAD_SHARE = 0.01
"""A code is dead when it is used less than this share of even use."""

SPLIT_NOISE = 0.3
"""Noise on a reseeded code's logits, as a share of its donor's root mean square."""


def find_collapse(sums: Mapping[str, Tensor], config: W2vBertConfig) -> str | None:
    """One line that names a collapse and what to try, or None where there is none.

    Args:
        sums: of a stretch of training or of a validation, with `count`, `code_counts` (G, V), and where the quantizer
            learns `batch_entropy` and `frame_entropy`.
        config: of the model.
    """
    count = float(sums["count"])
    codes = sums["code_counts"].shape[1]
    if count < MIN_FRAMES_PER_CODE * codes:
        return None
    shares = sums["code_counts"].float() / count  # (G, V)
    worst = int(perplexity(shares).argmin())
    found = float(perplexity(shares)[worst])
    if found < MIN_PERPLEXITY_SHARE * codes:
        top = float(shares[worst].max())
        facts = f"perplexity {found:.1f} of {codes}, the most frequent code has {top:.0%} of the masked frames"
        return f"the codes have collapsed ({facts}; accuracies mean nothing now): {_remedies(config)}"
    if "batch_entropy" in sums:
        information = float(sums["batch_entropy"] - sums["frame_entropy"]) / count
        if information < MIN_INFORMATION:
            facts = f"a frame's own code distribution tells {information:.2f} nats"
            return f"the codes do not depend on the frames ({facts}): {_remedies(config)}"
    return None


def _remedies(config: W2vBertConfig) -> str:
    if config.objective == "best-rq":
        return "frozen codes follow the features: look for silence or features that are not normalised"
    remedies = [f"model.diversity_weight above {config.diversity_weight:g}"]
    if config.diversity != "information":
        remedies = ["model.diversity=information"]
    if config.objective == "no-contrastive":
        remedies.insert(0, "model.objective=w2v-bert")
    return f"try {', '.join(remedies)}, a lower optim.learning_rate, or less silence in the data"


class CollapseWatch:
    """Looks at a run after each line of the log. Keeps nothing that a resumed run would need."""

    def __init__(self, model: PretrainingModel, action: OnCollapse, seed: int) -> None:
        self.model = model
        self.action = action
        self.seed = seed
        self.collapsed = False

    def look(self, step: int, sums: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Warns once when the codes collapse; reseeds dead ones each time that they are found collapsed.

        Raises:
            UserError: they have collapsed, and the run is to stop.
        """
        found = find_collapse(sums, self.model.config)
        if found is None:
            if self.collapsed:
                logger.info(f"step {step}: the codes have recovered")
            self.collapsed = False
            return
        if self.action == "stop":
            raise UserError(f"step {step}: {found}; stopped, the checkpoints before this step are kept")
        if not self.collapsed:
            logger.warning(f"step {step}: {found}")
        self.collapsed = True
        if self.action == "reseed" and isinstance(self.model.quantizer, GumbelQuantizer):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            reseeded = reseed_dead_codes(self.model.quantizer, sums["code_counts"], optimizer, generator)
            logger.warning(f"step {step}: {reseeded} dead codes begin anew beside codes in use")


@torch.no_grad()
def reseed_dead_codes(
    quantizer: GumbelQuantizer, counts: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> int:
    """Gives each dead code a share of the frames of a live one, and forgets what the optimizer knew of it.

    Its row of the logits becomes that of a code in use, drawn by how often it is used, plus noise; its vector is drawn
    like a fresh one.

    Args:
        quantizer: with G codebooks of V codes.
        counts: int64 (G, V), how often each code was used.
        optimizer: with the quantizer's parameters.
        generator: source of the draws, on the CPU.

    Returns:
        How many codes were dead.
    """
    weight, bias, codebook = quantizer.logits.weight, quantizer.logits.bias, quantizer.codebook
    groups, codes = counts.shape
    shares = counts.cpu().float() / counts.sum(1, keepdim=True).cpu().clamp(min=1)
    reseeded = 0
    for group in range(groups):
        dead = (shares[group] < DEAD_SHARE / codes).nonzero().squeeze(1)
        if not len(dead) or not shares[group].any():
            continue
        donors = torch.multinomial(shares[group], len(dead), replacement=True, generator=generator)
        rows, donor_rows = (group * codes + dead).to(weight.device), (group * codes + donors).to(weight.device)
        noise = torch.randn(len(dead), weight.shape[1], generator=generator).to(weight)
        scale = weight[donor_rows].square().mean(1, keepdim=True).sqrt()  # (dead, 1)
        weight[rows] = weight[donor_rows] + SPLIT_NOISE * scale * noise
        bias[rows] = bias[donor_rows]
        codebook[group, dead.to(codebook.device)] = torch.randn(len(dead), codebook.shape[2], generator=generator).to(
            codebook
        )
        for parameter, index in ((weight, rows), (bias, rows)):
            _forget(optimizer, parameter, index)
        _forget(optimizer, codebook, torch.full_like(dead, group).to(codebook.device), dead.to(codebook.device))
        reseeded += len(dead)
    return reseeded


def _forget(optimizer: torch.optim.Optimizer, parameter: Tensor, *index: Tensor) -> None:
    """Sets the optimizer's moments of some rows to 0."""
    for moment in optimizer.state.get(parameter, {}).values():
        if torch.is_tensor(moment) and moment.shape == parameter.shape:
            moment[index] = 0.0
