"""What all tests begin with."""

import multiprocessing
import multiprocessing.forkserver
import signal
from multiprocessing.context import ForkServerContext

import pytest

# A shell lets what it starts in the background ignore Ctrl-C, and so would the commands whose interruption is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def processes() -> ForkServerContext:
    """Where child processes come from: each begins with all loaded that a training imports, in 30 ms.

    There is one such server in a process, and the first use decides what it loads, so it is made before all tests.
    """
    context = multiprocessing.get_context("forkserver")
    tasks = ["w2vbert.tasks.pretrain", "w2vbert.tasks.finetune", "w2vbert.tasks.train_lm"]
    context.set_forkserver_preload([*tasks, "tensorboardX", "torch._dynamo", "matplotlib.pyplot"])
    multiprocessing.forkserver.ensure_running()
    return context
