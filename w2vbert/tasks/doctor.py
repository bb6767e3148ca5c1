"""What is installed here, what is missing, and what to type to get it."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import shutil
from pathlib import Path
from typing import Any

from w2vbert import __version__
from w2vbert.machine import usable_cores

# Compiled packages that can be installed and still not load.
_COMPILED = ("torch", "torchaudio", "kenlm", "sentencepiece", "soundfile")
_BOOST = " ".join(f"libboost-{part}-dev" for part in ("program-options", "system", "thread", "test"))
_LMPLZ = [
    f"sudo apt-get install cmake g++ zlib1g-dev {_BOOST}",
    "pip download --no-deps kenlm==0.3.0 && tar xf kenlm-0.3.0.tar.gz",
    "cmake -S kenlm-0.3.0 -B kenlm-build && cmake --build kenlm-build --target lmplz build_binary",
    "export PATH=$PWD/kenlm-build/bin:$PATH",
]
_K2 = ["pip install k2    # a wheel that was built for this torch: see k2's installation page"]
_LOW_DISK_GB = 2.0  # the demo's data and models take about half of it


def diagnose() -> dict[str, Any]:
    """Versions, devices, the active RNN-T loss, optional parts and free disk; `advice` has a line for each lack."""
    packages = {name: _version(name) for name in _requirements()}
    problems = {name: _import_problem(name) for name in _COMPILED if packages.get(name, "")}
    broken = {name: problem for name, problem in problems.items() if problem is not None}
    torch_works = _import_problem("torch") is None
    diagnosis: dict[str, Any] = {
        "w2vbert": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "broken": broken,
        "devices": _devices() if torch_works else {"cpu_cores": usable_cores(), "gpus": []},
        "rnnt_loss": _rnnt_loss() if torch_works else {"backend": None, "reason": "none: torch does not load"},
        "optional": {
            "k2": _version("k2"),
            "lmplz": shutil.which("lmplz"),
            **{name: _version(name) for name in _requirements("dev")},
        },
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }
    diagnosis["advice"] = _advice(diagnosis)
    return diagnosis


def render(diagnosis: dict[str, Any]) -> str:
    """The diagnosis as text for a terminal."""
    devices, loss = diagnosis["devices"], diagnosis["rnnt_loss"]
    lines = [
        f"w2vbert {diagnosis['w2vbert']}, Python {diagnosis['python']}, {diagnosis['platform']}",
        f"processors: {devices['cpu_cores']} cores; GPUs: {', '.join(devices['gpus']) or 'none'}",
        f"RNN-T loss: {loss['reason']}",
        f"free disk:  {diagnosis['free_disk_gb']} GB here",
        "",
        *_table("packages", diagnosis["packages"]),
        "",
        *_table("optional", diagnosis["optional"]),
        "",
    ]
    if not diagnosis["advice"]:
        return "\n".join([*lines, "Nothing is missing."])
    for number, advice in enumerate(diagnosis["advice"], 1):
        lines += [f"{number}. {advice['what']}", *(f"   {command}" for command in advice["type"])]
    return "\n".join(lines)


def _table(title: str, versions: dict[str, str | None]) -> list[str]:
    return [f"{title}:", *(f"  {name:<18} {version or 'not found'}" for name, version in versions.items())]


def _requirements(extra: str | None = None) -> list[str]:
    """Names of the distributions that this project needs, or those of one of its extras."""
    try:
        lines = importlib.metadata.requires("w2vbert") or []
    except importlib.metadata.PackageNotFoundError:  # run from the sources without an installation
        lines = []
    names = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        found = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if (found.group(1) if found else None) == extra:
            names.append(re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0])
    return names


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_problem(module: str) -> str | None:
    """Why a module cannot be imported; None if it can."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        return str(error)
    return None


def _devices() -> dict[str, Any]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(f"{properties.name} ({properties.total_memory / 1e9:.0f} GB)")
    return {"cpu_cores": usable_cores(), "gpus": gpus, "cuda_of_torch": torch.version.cuda}


def _rnnt_loss() -> dict[str, str]:
    from w2vbert.ops.rnnt_loss import backend_reason, get_backend

    return {"backend": get_backend(), "reason": backend_reason()}


def _advice(diagnosis: dict[str, Any]) -> list[dict[str, Any]]:
    """What is missing and what to type, the needed before the optional."""
    optional = diagnosis["optional"]
    missing = [name for name, version in diagnosis["packages"].items() if version is None]
    advice: list[dict[str, Any]] = []
    if not diagnosis["packages"]:
        advice.append({"what": "w2vbert is run from its sources and not installed.", "type": ["bin/setup"]})
    if missing:
        advice.append({"what": f"Needed packages are missing: {', '.join(missing)}.", "type": ["bin/setup"]})
    for name, problem in diagnosis["broken"].items():
        what = f"{name} is installed but does not load: {problem}"
        advice.append({"what": what, "type": [f"pip install --force-reinstall --no-deps {name}"]})
    if diagnosis["free_disk_gb"] < _LOW_DISK_GB:
        advice.append({"what": "Little disk is free.", "type": ["du -sh recipes/*/exp recipes/*/data"]})
    if optional["lmplz"] is None:
        what = "lmplz is not on PATH: n-gram models are estimated by the built-in, slower estimator."
        advice.append({"what": what, "type": _LMPLZ})
    if optional["k2"] is None:
        advice.append({"what": "k2 is not installed: the built-in RNN-T loss is used.", "type": _K2})
    elif diagnosis["rnnt_loss"]["backend"] == "native":
        what = f"k2 is installed but not used. {diagnosis['rnnt_loss']['reason']}"
        advice.append({"what": what, "type": _K2})
    if None in [version for name, version in optional.items() if name not in ("k2", "lmplz")]:
        advice.append({"what": "Tools for development are missing.", "type": ["bin/setup --dev"]})
    return advice
