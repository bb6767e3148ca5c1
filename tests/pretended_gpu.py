"""A GPU that is not there: tensors that say they lie on one, and obey its rules, with their values on the CPU.

What lies on the GPU and what lies on the CPU may not meet, but for single numbers; what makes the host wait for the GPU
is noted. Some rules by which CUDA's kernels are stricter than those of a CPU are here, too. No speed, no races, and
none of CUDA's own code: what runs is the CPU's.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import w2vbert.models.best_rq
import w2vbert.models.w2v_bert
from w2vbert.ops import rnnt_recursion

aten = torch.ops.aten
GPU = torch.device("cuda", 0)

WAITING = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default),
    *(aten._unique2.default, aten.unique_consecutive.default, aten.unique_dim.default),
}
"""Operations whose result decides what the host does next, or how large a tensor is."""

TAKING_LENGTHS = {aten._ctc_loss.Tensor, aten._ctc_loss_backward.Tensor}
"""Operations that want lengths on the CPU beside all else. (CUDA's CTC loss itself waits when it copies them.)"""

LOW = {"linear", "matmul", "__matmul__", "bmm", "conv1d", "conv2d", "scaled_dot_product_attention"}
FULL = {"layer_norm", "softmax", "log_softmax", "exp", "log", "rsqrt", "pow", "sum", "cumsum", "prod", "nll_loss"}
"""What autocast does in the lower precision, and in float32."""

INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
LAYER_NORMS = {aten.native_layer_norm.default: (0, 2, 3), aten.native_layer_norm_backward.default: (0, 1, 5, 6)}
"""With the places of the arguments that must be of one type (aten/src/ATen/native/cuda/layer_norm_kernel.cu)."""


class OnGpu(Tensor):
    """A tensor on the pretended GPU.

    Attributes:
        values: on the CPU.
    """

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="meta",  # so that PyTorch looks for no driver
        )
        made.values = values
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.values!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the pretended GPU")


class PretendedGpu(TorchDispatchMode):
    """Runs what is asked of the GPU.

    Attributes:
        waits: what made the host wait, and where.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            pinned.is_pinned_here = True
            return pinned
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        target = "cuda" if target == "meta" else target
        if target != "cuda" and not any(isinstance(x, OnGpu) for x in tensors):
            return func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            self._look_at_copy(func, args, kwargs, target)
        else:
            self._look_at_devices(func, tensors)
        _check_types(func, args)
        if func in WAITING or (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
            self._note(func)
        if target == "cuda":
            kwargs["device"] = torch.device("cpu")
        found = func(*tree_map(_open, args), **tree_map(_open, kwargs))
        changed = _changed(func, args, kwargs)
        if changed:
            return None if found is None else changed[0] if isinstance(found, Tensor) else tuple(changed)
        return found if target == "cpu" else tree_map(lambda x: OnGpu(x) if isinstance(x, Tensor) else x, found)

    def _note(self, func: Any) -> None:
        frames = [
            f for f in traceback.extract_stack() if "/w2vbert/" in f.filename and "/site-packages/" not in f.filename
        ]
        where = " < ".join(f"{f.filename.rsplit('/w2vbert/')[-1]}:{f.lineno}" for f in reversed(frames[-3:]))
        self.waits.append(f"{func}: {where}")

    def _look_at_copy(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], target: str | None) -> None:
        """From the host without waiting goes only what is pinned; to the host nothing."""
        source = args[0] if func is aten._to_copy.default else args[1]
        comes_from_gpu = isinstance(source, OnGpu)
        if func is aten._to_copy.default:
            goes_to_gpu = comes_from_gpu if target is None else target == "cuda"
            does_not_wait = bool(kwargs.get("non_blocking"))
        else:
            goes_to_gpu = isinstance(args[0], OnGpu)
            does_not_wait = len(args) > 2 and bool(args[2])
        is_pinned = getattr(source, "is_pinned_here", False)
        if comes_from_gpu != goes_to_gpu and not (goes_to_gpu and does_not_wait and is_pinned):
            self._note(func)

    def _look_at_devices(self, func: Any, tensors: Sequence[Tensor]) -> None:
        strangers = [x for x in tensors if not isinstance(x, OnGpu)]
        if func in INDEXING:
            indices = [x for x in tensors[1:] if x.dtype in (torch.bool, torch.uint8)]
            if indices or strangers:
                self._note(func)
            return
        if func in TAKING_LENGTHS:
            return
        takes_numbers = torch.Tag.pointwise in func.tags or "foreach" in str(func)
        if any(x.dim() or not takes_numbers for x in strangers):
            shapes = [tuple(x.shape) for x in strangers]
            raise RuntimeError(f"{func}: all tensors must be on the same device, but some are on the CPU: {shapes}")


class PretendedAutocast(TorchFunctionMode):
    """Autocast on the pretended GPU, as far as the models here go (aten/src/ATen/autocast_mode.h)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in LOW | FULL and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda") if name in LOW else torch.float32
            args, kwargs = tree_map(lambda x: _cast(x, dtype), (args, kwargs))
        return func(*args, **kwargs)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    is_cast = isinstance(x, OnGpu) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if is_cast else x


def _open(x: Any) -> Any:
    return x.values if isinstance(x, OnGpu) else x


def _changed(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Arguments that an operation changes and returns."""
    pairs = [
        (spec, kwargs.get(spec.name) if place >= len(args) else args[place])
        for place, spec in enumerate(func._schema.arguments)
    ]
    return [value for spec, value in pairs if spec.alias_info is not None and spec.alias_info.is_write]


def _check_types(func: Any, args: Sequence[Any]) -> None:
    """What CUDA's kernels refuse and a CPU's do not."""
    if func in LAYER_NORMS:
        types = {args[place].dtype for place in LAYER_NORMS[func] if args[place] is not None}
        if len(types) > 1:
            raise RuntimeError(f"{func}: expected one scalar type but found {types}")
    if func is aten.native_batch_norm_backward.default and None in (args[5], args[6]):
        raise RuntimeError("save_mean and save_invstd should always be defined")


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """In it `GPU` can be computed on; the random numbers there are those of a CPU."""
    gpu = PretendedGpu()
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # what is made of numbers is brought there afterwards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch._C, "_InferenceMode", lambda is_on: torch.no_grad())  # it has no place for other tensors
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        patch.setattr(rnnt_recursion, "_runs_triton", lambda device: False)
        for module in (w2vbert.models.best_rq, w2vbert.models.w2v_bert):
            patch.setattr(module, "noise_generator", lambda generator, device: generator)
        try:
            with torch.autograd.set_multithreading_enabled(False), gpu, PretendedAutocast():
                yield gpu
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
