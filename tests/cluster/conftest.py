"""A Slurm of two nodes on loopback, for as long as these tests run.

They are skipped where Slurm is not installed, and where they are not asked for by name.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tasks.conftest import fails, prepared  # noqa: F401  (fixtures)

SCRIPT = Path(__file__).with_name("slurm.sh")
SEARCHED = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Cluster:
    """The cluster, and commands of w2vbert as processes of their own."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """That of a user who has logged in."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        root = str(Path(__file__).parents[2])
        own = {"PATH": path, "PYTHONPATH": root, "SLURM_CONF": str(self.folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        return os.environ | own

    def start(self, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
        """Begins a command of w2vbert."""
        command = [sys.executable, "-m", "w2vbert", *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=cwd, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: object, cwd: Path) -> str:
        """What a command that succeeds logs."""
        code, errors = end(self.start(*arguments, cwd=cwd))
        assert code == 0, errors
        return errors

    def fail(self, *arguments: object, cwd: Path) -> str:
        """The one line `error: ...` of a command that ends with 2."""
        code, errors = end(self.start(*arguments, cwd=cwd))
        assert code == 2 and errors.count("error: ") == 1 and "Traceback" not in errors, errors
        return errors.splitlines()[-1].removeprefix("error: ")

    def ask(self, program: str, *arguments: object) -> str:
        """What a program of Slurm prints."""
        command = [program, *map(str, arguments)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout

    def kill_node(self, name: str) -> None:
        """Takes a node away at once, as a power cut: its daemon, and all that runs there."""
        daemon = int((self.folder / f"slurmd-{name}.pid").read_text())
        os.kill(daemon, signal.SIGKILL)
        (self.folder / f"slurmd-{name}.pid").unlink()
        tasks = [process for process, node in self._tasks() if node == name]
        keepers = {_parent_of(process) for process in tasks} - set(tasks)  # slurmstepd: first, or they tell the end
        for process in [*keepers, *tasks]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def start_node(self, name: str) -> None:
        """Brings a node back."""
        subprocess.run([SCRIPT, "node", self.folder, name], check=True)
        wait_until(lambda: self.ask("sinfo", "-h", "-o", "%D %T").split() == ["2", "idle"], 60)

    def _tasks(self) -> Iterator[tuple[int, str]]:
        """Processes of this cluster's jobs, and their nodes."""
        for folder in Path("/proc").iterdir():
            try:
                lines = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            variables = dict(line.split(b"=", 1) for line in lines if b"=" in line)
            node = variables.get(b"SLURMD_NODENAME")
            if node and variables.get(b"SLURM_CONF") == os.fsencode(self.folder / "slurm.conf"):
                yield int(folder.name), node.decode()


def _parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def end(process: subprocess.Popen[str], seconds: float = 120.0) -> tuple[int, str]:
    """Exit code and log of a command, for whose end this waits."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        pytest.fail(f"no end after {seconds} s: {errors}")
    return process.returncode, errors


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if not any("cluster" in argument for argument in request.config.invocation_params.args):
        pytest.skip("starts the daemons of a Slurm, for minutes: bin/test tests/cluster")
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=SEARCHED)]
    if missing:
        pytest.skip(f"needs {missing[0]} (Debian and Ubuntu: apt install slurm-wlm munge)")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([SCRIPT, "start", folder], check=True)
        yield Cluster(folder)
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)
