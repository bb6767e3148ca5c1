"""Starts a command in several processes, on one machine or on many: torchrun with our defaults and exit codes."""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from w2vbert.cli.entry import has_nothing_to_do
from w2vbert.errors import REQUEUE_EXIT_CODE
from w2vbert.files import use_utf8

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

FIRST_PORT, PORTS = 20_000, 10_000
"""Where the machines of a job meet: jobs that share a machine have different numbers, so different ports."""

USAGE = """usage: launch [OPTION ...] COMMAND ...

Runs `w2vbert COMMAND ...` in several processes: one for each GPU, or as many as --nproc-per-node says.
The options are those of torchrun, among them:
  --nproc-per-node N   processes on this machine (default: gpu where there are some, else 1)
  --nnodes N --rdzv-backend c10d --rdzv-endpoint HOST:PORT --rdzv-id ID   several machines: the same call on each
                       (`srun launch COMMAND ...` in a job of Slurm finds them itself)
Ends with 0, with 75 when the run has saved its state and is to be started again, with 2 after an error that the
user can mend, else with 1, after a line that names the process that was lost."""


def launch(arguments: Sequence[str]) -> int:
    """Runs a command in several processes until all have ended or one has failed.

    Args:
        arguments: options of torchrun, then a command of w2vbert with its own.

    Returns:
        The exit code; see `USAGE`.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if has_nothing_to_do(arguments):
        return 0
    from torch import cuda
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("multiprocessing.api", "agent.server.api"):  # `_explain` says what they would
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # those that torchrun passes on to its processes
    processes = "gpu" if cuda.is_available() else "1"
    defaults = [f"--signals_to_handle={signals}", f"--nproc-per-node={processes}", *_find_machines(os.environ)]
    options = run.parse_args([*defaults, *arguments])
    if options.nnodes in ("1", "1:1") and not options.rdzv_endpoint:
        options.standalone = True
    options.training_script_args = [options.training_script, *options.training_script_args]
    options.training_script, options.module = "w2vbert", True
    try:
        run.run(options)
    except ChildFailedError as error:
        return _explain(error)
    except SignalException as error:
        if error.sigval in (signal.SIGTERM, signal.SIGUSR1):
            return REQUEUE_EXIT_CODE
        return 128 + error.sigval
    return 0


def _find_machines(environment: Mapping[str, str]) -> list[str]:
    """Options that bring the machines of a Slurm step together; none outside of one, or on one machine."""
    machines, job = environment.get("SLURM_STEP_NUM_NODES", "1"), environment.get("SLURM_JOB_ID", "0")
    if int(machines) == 1:
        return []
    first = environment["SLURM_LAUNCH_NODE_IPADDR"]  # where the job's script runs
    port = FIRST_PORT + int(job) % PORTS
    endpoint = ["--rdzv-backend=c10d", f"--rdzv-endpoint={first}:{port}"]
    return [f"--nnodes={machines}", *endpoint, f"--rdzv-id={job}.{environment.get('SLURM_RESTART_COUNT', 0)}"]


def _explain(error: "ChildFailedError") -> int:
    """The exit code for processes that have failed, after a line about what they could not say themselves."""
    codes = [failure.exitcode for failure in error.failures.values()]
    if REQUEUE_EXIT_CODE in codes:
        return REQUEUE_EXIT_CODE
    rank, first = error.get_first_failure()
    if first.exitcode == 2:
        return 2
    died = first.exitcode < 0
    what = f"was killed by {signal.Signals(-first.exitcode).name}" if died else f"failed with code {first.exitcode}"
    print(f"error: process {rank} {what}, so the run ends: start it again to go on", file=sys.stderr)
    return 1


def main() -> int:
    """Entry point of `w2vbert-launch`."""
    use_utf8()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a training sets its own number of threads
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no warning for each process that DDP looks for unused parts
    return launch(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
