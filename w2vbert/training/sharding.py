"""Weights, gradients and moments shared out among processes (PyTorch's FSDP2), for models that no single GPU holds.

Each process keeps a part of every tensor; a block's weights are brought together when it computes. Checkpoints hold
whole tensors under the same names as ever, so any number of processes, with or without this, goes on from them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, device: torch.device, processes: int) -> None:
    """Shares out a module's parameters in place; the members of its lists (blocks) are brought together one by one."""
    mesh = init_device_mesh(device.type, (processes,))
    for inner in reversed(list(module.modules())):
        for block in inner if isinstance(inner, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is shared out; others as they are. All processes take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, one after the other.

    Args:
        tensors: by name; shared out or not.
        keep: whether this process wants them; all take part.
    """
    gathered = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if keep:
            gathered[name] = value.cpu()
    return gathered


def gather_moments(optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors; empty without `keep`. All processes take part."""
    state = optimizer.state_dict()
    moments = {number: gather(values, keep) for number, values in state["state"].items()}
    return {**state, "state": moments} if keep else {}


def load_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], params: Iterable[nn.Parameter]) -> None:
    """Gives an optimizer over shared-out parameters its part of whole moments.

    Args:
        optimizer: new, over `params`.
        state: `state_dict()` of one over the whole parameters, in the same order.
        params: the optimizer's, in its order.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for number, param in enumerate(params):
        values = state["state"].get(number, {})
        moments[number] = {name: _like(value, param) for name, value in values.items()}
    optimizer.load_state_dict({**state, "state": {number: values for number, values in moments.items() if values}})


def _like(value: Tensor, param: nn.Parameter) -> Tensor:
    """A moment shared out like its parameter; a count of steps as it is."""
    if not isinstance(param, DTensor) or value.shape != param.shape:
        return value
    return distribute_tensor(value.to(param.device), param.device_mesh, param.placements)


def params_of(optimizer: torch.optim.Optimizer) -> Sequence[nn.Parameter]:
    """An optimizer's parameters, in the order of its state."""
    return [param for group in optimizer.param_groups for param in group["params"]]
