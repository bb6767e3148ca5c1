"""bin/setup: one clear line for what is missing, before anything is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = "bash dirname awk sed grep cat sleep df flock rm tail".split()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with only what the set-up reads, and a folder `path` that is all of PATH."""
    project = tmp_path / "project"
    (project / "bin").mkdir(parents=True)
    for name in ("bin/setup", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, project / name)
    (tmp_path / "path").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found:
            (tmp_path / "path" / tool).symlink_to(found)
    return project


def script(project: Path, name: str, body: str) -> None:
    path = project.parent / "path" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def setup(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(project.parent / "path"), "HOME": str(project.parent)}
    command = [str(project / "bin" / "setup"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def add_python(project: Path) -> None:
    script(project, "python3", f'exec "{os.path.realpath(sys.executable)}" "$@"')


def test_missing_parts_are_one_line_and_leave_nothing(project: Path) -> None:
    def problem() -> str:
        result = setup(project)
        assert result.returncode == 2 and not (project / ".venv").exists()
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        return result.stderr

    assert "no Python on PATH" in problem()
    script(project, "python3", "echo 'it is version 3.9, and 3.11 or newer is needed'")
    assert "python3 will not do: it is version 3.9" in problem()
    script(project, "python3", "exit 127")
    assert "it does not start" in problem()
    add_python(project)
    assert "no C++ compiler" in problem()
    script(project, "g++", "")
    assert "no make on PATH" in problem()
    script(project, "make", "")
    script(project, "df", "echo head; echo / 9 9 2097152 9 /")
    assert "2 GB of disk are free" in problem()


def test_unknown_option_and_help(project: Path) -> None:
    result = setup(project, "--foo")
    assert result.returncode == 2 and result.stderr == "error: no such option: --foo (try bin/setup --help)\n"
    assert "bin/setup [--dev]" in setup(project, "--help").stdout
