"""RNN-T losses against the numbers of k2 1.23.4 and 1.24.4, in tests/data/rnnt_golden: values, gradients, ranges."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from w2vbert.ops import rnnt_loss as rnnt

GOLDEN = Path(__file__).parents[1] / "data" / "rnnt_golden"
HAS_K2 = rnnt.backend_reason().startswith("k2")
BACKENDS = ["native", pytest.param("k2", marks=pytest.mark.skipif(not HAS_K2, reason=rnnt.backend_reason()))]
OPS = ["simple", "smoothed", "joint", "ranges", "pruned", "mi", "e2e"]

Case = dict[str, Any]
Results = dict[str, Any]  # tensors by the names that the golden files give them


class Golden:
    """The stored cases of k2 1.23.4 and of 1.24.4, with inputs and outputs as tensors."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.sets: dict[str, dict[str, Any]] = {}
        self.tensors: dict[str, Tensor] = {}
        for name in ("golden", "golden_new"):
            manifest = json.loads((GOLDEN / f"{name}.json").read_text())
            self.cases += manifest["cases"]
            self.sets.update(manifest["sets"])
            arrays = load_file(GOLDEN / f"{name}.safetensors")
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


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def golden_tolerance(case: Case, want: Tensor) -> float:
    if case["dtype"] == "f32":
        return 3e-5
    if case.get("delay", 0.0) > 0.0:
        return 1e-7  # k2 computes the penalty in float32 even for float64 scores
    return 1e-12 if want.dtype == torch.float64 else 1.2e-7  # the gradients of logits are stored in float32


def run_additive(case: Case, inputs: dict[str, Tensor], blank: int, backend: str) -> Results:
    options: dict[str, Any] = {"rnnt_type": case["type"], "delay_penalty": case.get("delay", 0.0), "backend": backend}
    function: Any = rnnt.rnnt_loss_simple
    if case["op"] == "smoothed":
        function = rnnt.rnnt_loss_smoothed
        options |= {"lm_only_scale": case["lm_scale"], "am_only_scale": case["am_scale"]}
    scales = (case.get("lm_scale", 0.0), case.get("am_scale", 0.0))
    arguments = (inputs["lm"], inputs["am"], inputs["symbols"], blank)
    px, py, boundary = rnnt._additive_arcs(*arguments, inputs.get("boundary"), scales)
    options["boundary"] = inputs.get("boundary")
    loss, (px_grad, py_grad) = function(*arguments, reduction="none", return_grad=True, **options)
    (loss * inputs["w"]).sum().backward()
    return {
        "px": rnnt._finish_px(px, py, boundary, case["type"], case.get("delay", 0.0)),
        "py": py,
        "loss_none": loss,
        "loss_sum": function(*arguments, reduction="sum", **options),
        "loss_mean": function(*arguments, **options),
        "px_grad": px_grad,
        "py_grad": py_grad,
        "d_am": inputs["am"].grad,
        "d_lm": inputs["lm"].grad,
    }


def run_logits(case: Case, inputs: dict[str, Tensor], blank: int, backend: str, ranges: Tensor | None) -> Results:
    options: dict[str, Any] = {"rnnt_type": case["type"], "delay_penalty": case.get("delay", 0.0), "backend": backend}
    options["boundary"] = inputs.get("boundary")
    logits = inputs["logits"]
    positional: tuple[Any, ...] = (inputs["symbols"], blank)
    function: Any = rnnt.rnnt_loss
    if ranges is not None:
        ranges = ranges.long()
        function = rnnt.rnnt_loss_pruned
        index = ranges.unsqueeze(3).expand(*ranges.shape, logits.shape[3])
        logits = logits.gather(2, index).detach().requires_grad_()
        positional = (inputs["symbols"], ranges, blank)
        options["use_hat_loss"] = case.get("hat", False)
    loss = function(logits, *positional, reduction="none", **options)
    (loss * inputs["w"]).sum().backward()
    return {
        "loss_none": loss,
        "loss_sum": function(logits, *positional, reduction="sum", **options),
        "loss_mean": function(logits, *positional, **options),
        "d_logits": logits.grad,
    }


def run_ranges(case: Case, inputs: dict[str, Tensor]) -> Results:
    grads = inputs["px_grad_x1024"].double() / 1024, inputs["py_grad_x1024"].double() / 1024
    ranges = rnnt.get_rnnt_prune_ranges(*grads, inputs["boundary"], case["s_range"])
    am_pruned, lm_pruned = rnnt.do_rnnt_pruning(inputs["am"], inputs["lm"], ranges)
    return {"ranges": ranges, "am_pruned": am_pruned, "lm_pruned": lm_pruned}


def run_recursion(case: Case, inputs: dict[str, Tensor], boundary: Any, backend: str) -> Results:
    boundary = None if boundary is None else torch.tensor(boundary)
    scores, (px_grad, py_grad) = rnnt.mutual_information_recursion(
        inputs["px"], inputs["py"], boundary, return_grad=True, backend=backend
    )
    (scores * inputs["w"]).sum().backward()
    grads = {"d_px": inputs["px"].grad, "d_py": inputs["py"].grad, "px_grad": px_grad, "py_grad": py_grad}
    return {"scores": scores, **grads}


def run_joiner(case: Case, inputs: dict[str, Tensor], blank: int, backend: str) -> Results:
    """A whole step: heads, smoothed loss, ranges, joiner, pruned loss, gradients of all weights."""
    common = {"rnnt_type": case["type"], "delay_penalty": case.get("delay", 0.0), "backend": backend}
    i, symbols, boundary = inputs, inputs["symbols"], inputs["boundary"]
    simple, (px_grad, py_grad) = rnnt.rnnt_loss_smoothed(
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
    ranges = rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, case["s_range"])
    am, lm = rnnt.do_rnnt_pruning(i["enc"] @ i["w_enc"].T, i["dec"] @ i["w_dec"].T, ranges)
    logits = torch.tanh(am + lm) @ i["w_out"].T + i["b_out"]
    pruned = rnnt.rnnt_loss_pruned(logits, symbols, ranges, blank, boundary, reduction="sum", **common)
    (0.5 * simple + pruned).backward()
    grads = {f"d_{name}": value.grad for name, value in inputs.items() if value.is_floating_point()}
    return {"loss_simple": simple, "loss_pruned": pruned, "ranges": ranges, **grads}


def run_case(golden: Golden, case: Case, backend: str) -> Results:
    inputs, properties = golden.inputs(case), golden.sets[case["set"]]
    if case["op"] == "mi":
        return run_recursion(case, inputs, properties["boundary"], backend)
    if case["op"] == "ranges":
        return run_ranges(case, inputs)
    if case["op"] == "e2e":
        return run_joiner(case, inputs, properties["blank"], backend)
    if case["op"] in ("simple", "smoothed"):
        return run_additive(case, inputs, properties["blank"], backend)
    ranges = golden.outputs(case).get("ranges")
    return run_logits(case, inputs, properties["blank"], backend, ranges)


def test_golden_cases_are_all_there(golden: Golden) -> None:
    assert len(golden.cases) == 434
    assert {case["op"] for case in golden.cases} == set(OPS)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_as_golden(golden: Golden, backend: str, op: str) -> None:
    for case in golden.cases:
        if case["op"] != op:
            continue
        got = run_case(golden, case, backend)
        for name, want in golden.outputs(case).items():
            if op == "pruned" and name == "ranges":
                continue  # an input here
            if name == "d_logits" and not case["finite"]:
                assert got[name].count_nonzero() == 0, case["name"]  # k2's is meaningless where no path is left
                continue
            assert got[name].shape == want.shape, (case["name"], name)
            have, want64 = got[name].detach().double(), want.double()
            finite = torch.isfinite(want64)
            assert torch.equal(have[~finite], want64[~finite]), (case["name"], name)
            error = ((have - want64).abs() / want64.abs().clamp(min=1.0))[finite]
            assert bool((error <= golden_tolerance(case, want)).all()), (case["name"], name, error.max())
