"""Optimizer over named groups of parameters, clipping, and the running average of the weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from w2vbert.training.schedules import OptimConfig
from w2vbert.training.sharding import whole


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a schedule.

    Attributes:
        name: shown in the log as `lr_NAME` where `scale` is 1; each group has its own.
        modules: where they are.
        config: their learning rate and schedule.
        scale: factor of the learning rate.
    """

    name: str
    modules: Sequence[nn.Module]
    config: OptimConfig
    scale: float = 1.0


def layer_groups(
    name: str, layers: Sequence[Sequence[nn.Module]], config: OptimConfig, decay: float
) -> list[ParamGroup]:
    """Groups whose learning rate falls from layer to layer by `decay`, from the last layer, which keeps its own, down.

    Layer-wise learning-rate decay: Clark et al. 2020 (ELECTRA), section 3.1. A decay of 1 gives one group.

    Args:
        name: of the last layer's group; the others are NAME.0 (the first layer), NAME.1 and so on.
        layers: modules of each layer, the first that sees the input first.
        config: learning rate and schedule of the last layer.
        decay: in (0, 1].
    """
    if decay == 1.0:
        return [ParamGroup(name, [module for layer in layers for module in layer], config)]
    last = len(layers) - 1
    return [
        ParamGroup(name if n == last else f"{name}.{n}", layer, config, decay ** (last - n))
        for n, layer in enumerate(layers)
    ]


def make_optimizer(groups: Sequence[ParamGroup]) -> torch.optim.AdamW:
    """AdamW with beta 0.9, 0.98 (facts: family); weight decay on matrices and kernels only.

    Raises:
        ValueError: a parameter stands in two groups.
    """
    seen: set[int] = set()
    param_groups = []
    for group in groups:
        params = [p for module in group.modules for p in module.parameters() if p.requires_grad]
        if any(id(p) in seen for p in params) or len({id(p) for p in params}) < len(params):
            raise ValueError(f"parameter group {group.name} shares parameters with another")
        seen.update(id(p) for p in params)
        matrices = [p for p in params if p.ndim > 1]
        vectors = [p for p in params if p.ndim <= 1]
        for members, decay in ((matrices, group.config.weight_decay), (vectors, 0.0)):
            if members:
                param_groups.append({"params": members, "weight_decay": decay, "group": group.name})
    return torch.optim.AdamW(param_groups, lr=0.0, betas=(0.9, 0.98), eps=1e-8, fused=True)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, groups: Sequence[ParamGroup], step: int, max_steps: int
) -> dict[str, float]:
    """Sets each group's learning rate for `step` (0-based) and returns those of scale 1 by group name."""
    rates = {group.name: group.scale * group.config.at(step, max_steps) for group in groups}
    for param_group in optimizer.param_groups:
        param_group["lr"] = rates[param_group["group"]]
    return {group.name: rates[group.name] for group in groups if group.scale == 1.0}


def scale_and_clip(params: Sequence[nn.Parameter], count: Tensor, max_norm: float) -> Tensor:
    """Divides the gradients of a summed loss by its count and caps their norm.

    Args:
        params: parameters; those without gradient are left alone.
        count: scalar, what the summed loss is divided by.
        max_norm: cap of the norm over all parameters.

    Returns:
        Scalar, the norm before the cap; not finite when any gradient is not.
    """
    grads = [p.grad for p in params if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(grads)) / count
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0) / count
    torch._foreach_mul_(grads, factor)
    return norm


class WeightAverage:
    """Exponential moving average of a model's weights, itself a model that can be evaluated.

    The decay rises with the number of updates, min(decay, (1 + n) / (10 + n)), so early weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards `model`; buffers (BatchNorm statistics) are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1.0 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
