"""The Triton kernel: in the interpreter on the golden cases, on a GPU against plain PyTorch; imported where it runs.

The interpreter is chosen by a variable that must be set before Triton is imported: hence the processes of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from w2vbert.ops import rnnt_native

ROOT = Path(__file__).parents[2]
WITHOUT_TRITON = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import triton"], capture_output=True).returncode != 0,
    reason="Triton is not installed",
)
WITHOUT_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def python(*arguments: str, interpret: bool) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@WITHOUT_TRITON
@pytest.mark.slow
def test_golden_cases_in_the_interpreter() -> None:
    tests = ["tests/ops/test_rnnt_golden.py", "-k", "golden and not k2"]
    done = python("-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", *tests, interpret=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "9 passed" in done.stdout


@WITHOUT_TRITON
def test_interpreter_and_doctor_agree_on_the_kernel() -> None:
    script = "from w2vbert.ops.rnnt_loss import backend_reason; print(backend_reason())"
    assert "by a Triton kernel on the CPU" in python("-c", script, interpret=True).stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_on_a_cpu_nothing_imports_triton() -> None:
    script = (
        "import sys, torch; from w2vbert.ops import rnnt_loss as rnnt; torch_alone = 'triton' in sys.modules; "
        "rnnt.mutual_information_recursion(torch.randn(1, 2, 4), torch.randn(1, 3, 3)); "
        "print(torch_alone, 'triton' in sys.modules, 'w2vbert.ops.rnnt_triton' in sys.modules)"
    )
    before, after, kernel = python("-c", script, interpret=False).stdout.split()
    assert after == before and kernel == "False"


@WITHOUT_TRITON
@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ampere and Hopper, each type, both lattices; up to 1024 lanes (41 s) nothing spills out of the registers."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = ["80:fp32/fp32:0:512", "90:bf16/fp32:1:1024", "90:fp32/fp32:0:2", "90:fp64/fp64:1:4096"]
    done = python("-m", "tests.ops.compile_kernels", *kinds, interpret=False)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(kernel["for"], kernel["kernel"]) for kernel in made] == [
        (kind, name) for kind in kinds for name in ("_forward", "_backward")
    ]
    assert all(kernel["spilled_bytes"] == 0 for kernel in made[:-2])
    assert all(kernel["shared_bytes"] < 48 * 1024 for kernel in made)


@WITHOUT_GPU
@WITHOUT_TRITON
@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("symbols", "frames"), [(0, 3), (1, 1), (7, 4), (30, 200), (300, 2500), (1100, 1500)])
def test_on_a_gpu_same_as_plain_pytorch(symbols: int, frames: int, dtype: torch.dtype, regular: bool) -> None:
    from w2vbert.ops import rnnt_triton

    B, generator = 4, torch.Generator().manual_seed(0)
    px = torch.randn(B, symbols, frames + regular, generator=generator, dtype=dtype) - 3
    py = torch.randn(B, symbols + 1, frames, generator=generator, dtype=dtype) - 1
    ends = [(symbols, frames), (symbols // 2, frames), (0, frames), (symbols, max(1, frames // 2))]
    boundary = torch.tensor([[0, 0, s, t] for s, t in ends])
    boundary[1, 1] = frames // 3
    wanted = rnnt_native.lattice_flow(px.double(), py.double(), boundary)
    got = rnnt_triton.lattice_flow(px.cuda(), py.cuda(), boundary.cuda())
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-3}
    for have, want in zip(got, wanted, strict=True):
        assert have.dtype == dtype
        torch.testing.assert_close(have.cpu().double(), want, **tolerance)
