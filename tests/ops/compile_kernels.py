"""Compiles the Triton kernels for GPUs that are not here: python -m tests.ops.compile_kernels ARCH:TYPES:LEAN:LANES ...

TYPES is that of px, py and their gradients, and that of scores, such as bf16/fp32. Prints a line of JSON for each
kernel: registers of a thread, bytes that spill, bytes of shared memory.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from w2vbert.ops import rnnt_triton

ARCS, SCORES, NUMBERS = ("px", "py", "px_grad", "py_grad"), ("scores", "shares"), ("S", "T", "px_frames")


def compile_kernel(kernel: Any, arch: int, types: str, lean: int, lanes: int) -> dict[str, Any]:
    """Compiles one kernel down to the machine's code, as `lattice_flow` would have it compiled."""
    arcs, scores = types.split("/")
    known = {"boundary": "*i64", "LEAN": "constexpr", "LANES": "constexpr"}
    known |= dict.fromkeys(ARCS, f"*{arcs}") | dict.fromkeys(SCORES, f"*{scores}") | dict.fromkeys(NUMBERS, "i32")
    signature = {name: known[name] for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if signature[name][0] == "*"}
    source = ASTSource(kernel, signature, {"LEAN": lean, "LANES": lanes}, aligned)
    options = {"num_warps": rnnt_triton.count_warps(lanes)}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return {"shared_bytes": compiled.metadata.shared, **ask_assembler(compiled.asm["ptx"])}


def ask_assembler(ptx: str) -> dict[str, int]:
    """What the assembler says of a kernel: registers of a thread, and bytes that do not fit into them."""
    target = re.search(r"\.target\s+(\w+)", ptx)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target[1]}", str(path), "-o", f"{path}.out"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    assert found is not None and registers is not None, said
    return {"registers": int(registers[1]), "spilled_bytes": int(found[1]) + int(found[2])}


def main() -> None:
    for wanted in sys.argv[1:]:
        arch, types, lean, lanes = wanted.split(":")
        for name in ("_forward", "_backward"):
            made = compile_kernel(getattr(rnnt_triton, name), int(arch), types, int(lean), int(lanes))
            print(json.dumps({"kernel": name, "for": wanted, **made}), flush=True)


if __name__ == "__main__":
    main()
