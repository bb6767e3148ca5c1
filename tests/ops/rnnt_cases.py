"""The golden cases of k2's RNN-T losses in tests/data/rnnt_golden, and how to run one on whatever has k2's functions.

Imports neither this project nor k2, so that tests/make_rnnt_golden.py runs where only k2 is installed.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "data" / "rnnt_golden"
FILES = ("golden", "golden_new")  # k2 1.23.4; k2 1.24.4, where 1.23.4 refuses
OPS = ["simple", "smoothed", "joint", "ranges", "pruned", "mi", "e2e"]

Case = dict[str, Any]
Results = dict[str, Any]  # tensors by the names that the golden files give them


@dataclass(frozen=True)
class Losses:
    """What the cases are run on.

    Attributes:
        module: has the functions under k2's names.
        arcs: log-probs px, py of an additive case before the delay penalty, from the case, its inputs and the blank.
        options: what the functions that run the recursion are also given.
    """

    module: Any
    arcs: Callable[[Case, dict[str, Tensor], int], tuple[Tensor, Tensor]]
    options: dict[str, Any] = field(default_factory=dict)


class Golden:
    """The stored cases, with inputs and outputs as tensors."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.refused: list[set[str]] = []  # names, for each file
        self.sets: dict[str, dict[str, Any]] = {}
        self.tensors: dict[str, Tensor] = {}
        for name in FILES:
            manifest = json.loads((FOLDER / f"{name}.json").read_text())
            self.cases += manifest["cases"]
            self.refused.append({case["name"] for case in manifest["refused"]})
            self.sets.update(manifest["sets"])
            arrays = load_file(FOLDER / f"{name}.safetensors")
            self.tensors.update({key: torch.from_numpy(value) for key, value in arrays.items()})

    def inputs(self, case: Case) -> dict[str, Tensor]:
        """Inputs in the case's type; those that are not integers want a gradient."""
        dtype = torch.float64 if case["dtype"] == "f64" else torch.float32
        inputs = {}
        for folder in (case["set"], case.get("q", case["set"])):
            prefix = f"in/{folder}/"
            for key, value in self.tensors.items():
                if key.startswith(prefix):
                    floating = value.is_floating_point()
                    inputs[key[len(prefix) :]] = value.to(dtype, copy=True).requires_grad_() if floating else value
        if not case.get("use_boundary", True):
            del inputs["boundary"]
        return inputs

    def outputs(self, case: Case) -> dict[str, Tensor]:
        return {name: self.tensors[f"out/{case['name']}/{name}"] for name in case["outputs"]}

    def run(self, case: Case, losses: Losses) -> Results:
        """All that the golden file has of the case, and perhaps more."""
        inputs, properties = self.inputs(case), self.sets[case["set"]]
        if case["op"] == "mi":
            return _recursion(inputs, properties["boundary"], losses)
        if case["op"] == "ranges":
            return _ranges(case, inputs, losses)
        if case["op"] == "e2e":
            return _joiner(case, inputs, properties["blank"], losses)
        if case["op"] in ("simple", "smoothed"):
            return _additive(case, inputs, properties["blank"], losses)
        ranges = self.outputs(case).get("ranges")
        return _logits(case, inputs, properties["blank"], losses, ranges)


def _options(case: Case, losses: Losses) -> dict[str, Any]:
    return {"rnnt_type": case["type"], "delay_penalty": case.get("delay", 0.0), **losses.options}


def _additive(case: Case, inputs: dict[str, Tensor], blank: int, losses: Losses) -> Results:
    options = _options(case, losses) | {"boundary": inputs.get("boundary")}
    function = losses.module.rnnt_loss_simple
    if case["op"] == "smoothed":
        function = losses.module.rnnt_loss_smoothed
        options |= {"lm_only_scale": case["lm_scale"], "am_only_scale": case["am_scale"]}
    arguments = (inputs["lm"], inputs["am"], inputs["symbols"], blank)
    loss, (px_grad, py_grad) = function(*arguments, reduction="none", return_grad=True, **options)
    (loss * inputs["w"]).sum().backward()
    px, py = losses.arcs(case, inputs, blank) if "px" in case["outputs"] else (None, None)
    return {
        "px": px,
        "py": py,
        "loss_none": loss,
        "loss_sum": function(*arguments, reduction="sum", **options),
        "loss_mean": function(*arguments, **options),
        "px_grad": px_grad,
        "py_grad": py_grad,
        "d_am": inputs["am"].grad,
        "d_lm": inputs["lm"].grad,
    }


def _logits(case: Case, inputs: dict[str, Tensor], blank: int, losses: Losses, ranges: Tensor | None) -> Results:
    options = _options(case, losses) | {"boundary": inputs.get("boundary")}
    logits = inputs["logits"]
    positional: tuple[Any, ...] = (inputs["symbols"], blank)
    function = losses.module.rnnt_loss
    if ranges is not None:
        ranges = ranges.long()
        function = losses.module.rnnt_loss_pruned
        index = ranges.unsqueeze(3).expand(*ranges.shape, logits.shape[3])
        logits = logits.gather(2, index).detach().requires_grad_()
        positional = (inputs["symbols"], ranges, blank)
        if case.get("hat", False):
            options["use_hat_loss"] = True
    loss = function(logits, *positional, reduction="none", **options)
    (loss * inputs["w"]).sum().backward()
    return {
        "ranges": ranges,
        "loss_none": loss,
        "loss_sum": function(logits, *positional, reduction="sum", **options),
        "loss_mean": function(logits, *positional, **options),
        "d_logits": logits.grad,
    }


def _ranges(case: Case, inputs: dict[str, Tensor], losses: Losses) -> Results:
    grads = inputs["px_grad_x1024"].double() / 1024, inputs["py_grad_x1024"].double() / 1024
    ranges = losses.module.get_rnnt_prune_ranges(*grads, inputs["boundary"], case["s_range"])
    am_pruned, lm_pruned = losses.module.do_rnnt_pruning(inputs["am"], inputs["lm"], ranges)
    return {"ranges": ranges, "am_pruned": am_pruned, "lm_pruned": lm_pruned}


def _recursion(inputs: dict[str, Tensor], boundary: Any, losses: Losses) -> Results:
    boundary = None if boundary is None else torch.tensor(boundary)
    scores, (px_grad, py_grad) = losses.module.mutual_information_recursion(
        inputs["px"], inputs["py"], boundary, return_grad=True, **losses.options
    )
    (scores * inputs["w"]).sum().backward()
    grads = {"d_px": inputs["px"].grad, "d_py": inputs["py"].grad, "px_grad": px_grad, "py_grad": py_grad}
    return {"scores": scores, **grads}


def _joiner(case: Case, inputs: dict[str, Tensor], blank: int, losses: Losses) -> Results:
    """A whole step: heads, smoothed loss, ranges, joiner, pruned loss, gradients of all weights."""
    common, module = _options(case, losses), losses.module
    i, symbols, boundary = inputs, inputs["symbols"], inputs["boundary"]
    simple, (px_grad, py_grad) = module.rnnt_loss_smoothed(
        i["dec"] @ i["w_lm"].T,
        i["enc"] @ i["w_am"].T,
        symbols,
        blank,
        lm_only_scale=case["lm_scale"],
        am_only_scale=case["am_scale"],
        boundary=boundary,
        reduction="sum",
        return_grad=True,
        **common,
    )
    ranges = module.get_rnnt_prune_ranges(px_grad, py_grad, boundary, case["s_range"])
    am, lm = module.do_rnnt_pruning(i["enc"] @ i["w_enc"].T, i["dec"] @ i["w_dec"].T, ranges)
    logits = torch.tanh(am + lm) @ i["w_out"].T + i["b_out"]
    pruned = module.rnnt_loss_pruned(logits, symbols, ranges, blank, boundary, reduction="sum", **common)
    (0.5 * simple + pruned).backward()
    grads = {f"d_{name}": value.grad for name, value in inputs.items() if value.is_floating_point()}
    return {"loss_simple": simple, "loss_pruned": pruned, "ranges": ranges, **grads}


def k2_losses(k2: Any) -> Losses:
    """The functions of an installed k2 itself."""
    module = importlib.import_module("k2.rnnt_loss")  # k2.rnnt_loss is the function

    def arcs(case: Case, inputs: dict[str, Tensor], blank: int) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"boundary": inputs.get("boundary"), "rnnt_type": case["type"]}
        arguments = (inputs["lm"], inputs["am"], inputs["symbols"], blank)
        if case["op"] == "simple":
            return module.get_rnnt_logprobs(*arguments, **options)
        scales = {"lm_only_scale": case["lm_scale"], "am_only_scale": case["am_scale"]}
        return module.get_rnnt_logprobs_smoothed(*arguments, **scales, **options)

    return Losses(k2, arcs)


def tolerance(case: Case, want: Tensor) -> float:
    """Largest difference, relative to max(1, |value|)."""
    if case["dtype"] == "f32":
        return 3e-5
    if case.get("delay", 0.0) > 0.0:
        return 1e-7  # k2 computes the penalty in float32 even for float64 scores
    return 1e-12 if want.dtype == torch.float64 else 1.2e-7  # the gradients of logits are stored in float32


def difference(got: Tensor, want: Tensor) -> float:
    """The largest, relative to max(1, |value|); infinite where shapes or infinities differ."""
    have, want = got.detach().double(), want.double()
    finite = torch.isfinite(want)
    if have.shape != want.shape or not torch.equal(have[~finite], want[~finite]):
        return float("inf")
    return float(((have - want).abs() / want.abs().clamp(min=1.0))[finite].max()) if bool(finite.any()) else 0.0
