"""Makes the golden values of tests/data/rnnt_golden again with the k2 that is installed, into another folder.

    python -m tests.make_rnnt_golden FOLDER [--only NAME_PART]

Runs in any environment with k2, torch, numpy and safetensors; this project need not be installed. Inputs are those that
are stored. FOLDER gets golden.json and golden.safetensors with every case that this k2 computes; the manifest has its
version, and the cases that it refuses with its message. Prints how far the values are from the stored ones.
"""

import argparse
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.ops.rnnt_cases import Case, Golden, difference, k2_losses, tolerance


def make(golden: Golden, k2: Any, part: str = "") -> tuple[dict[str, Any], dict[str, Tensor], dict[str, float]]:
    """Runs the cases whose names contain `part` on k2.

    Returns:
        the manifest, its tensors (inputs and outputs), and for each case the largest difference from what is stored,
        divided by what is tolerated.
    """
    losses = k2_losses(k2)
    cases: list[Case] = []
    refused: list[dict[str, str]] = []
    tensors = {key: value for key, value in golden.tensors.items() if key.startswith("in/")}
    excess: dict[str, float] = {}
    for case in golden.cases:
        if part not in case["name"]:
            continue
        try:
            got = golden.run(case, losses)
        except (AssertionError, RuntimeError, TypeError) as error:
            refused.append({"name": case["name"], "why": f"{type(error).__name__}: {error}"})
            continue
        cases.append(case)
        for name, want in golden.outputs(case).items():
            value = got[name].detach().to(want.dtype).contiguous().clone()
            tensors[f"out/{case['name']}/{name}"] = value
            if name == "d_logits" and not case["finite"]:
                continue  # k2's is meaningless where no path is left
            relative = difference(value, want) / tolerance(case, want)
            excess[case["name"]] = max(excess.get(case["name"], 0.0), relative)
    versions = {"torch": torch.__version__, "python": platform.python_version(), "k2": metadata.version("k2")}
    return {"versions": versions, "sets": golden.sets, "cases": cases, "refused": refused}, tensors, excess


def main() -> int:
    """Command line; 1 if a value is further from the stored one than is tolerated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", metavar="NAME_PART", help="only the cases whose names contain this")
    arguments = parser.parse_args()
    try:
        import k2
    except (ImportError, OSError) as error:
        print(f"k2 cannot be imported ({error}): install a wheel that was built for this torch", file=sys.stderr)
        return 2
    manifest, tensors, excess = make(Golden(), k2, arguments.only)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, arguments.folder / "golden.safetensors")
    (arguments.folder / "golden.json").write_text(json.dumps(manifest, indent=1))
    worst = max(excess, key=lambda name: excess[name], default=None)
    print(f"{len(manifest['cases'])} cases made, {len(manifest['refused'])} refused by k2 {manifest['versions']['k2']}")
    if worst is not None:
        print(f"largest difference from the stored values: {excess[worst]:.2g} of what is tolerated ({worst})")
    return int(any(not value <= 1.0 for value in excess.values()))


if __name__ == "__main__":
    raise SystemExit(main())
