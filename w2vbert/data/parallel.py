"""One function over many items in several processes, results in the order of the items."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from w2vbert.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def map_in_processes(function: Callable[[T], R], items: Sequence[T], jobs: int, fresh: bool = False) -> Iterator[R]:
    """Yields `function(item)` for each item, in order, as soon as it is there.

    Args:
        function: a function of a module, so that another process can find it.
        jobs: number of processes, at least 1; with 1 everything runs in this process unless `fresh`.
        fresh: give every item a process of its own, for libraries with hidden state.

    Raises:
        UserError: a process was killed. Exceptions of `function` come through as they are.
    """
    if jobs < 1:
        raise UserError(f"the number of processes must be at least 1, got {jobs}")
    if (jobs == 1 and not fresh) or not items:
        yield from map(function, items)
        return
    # Processes come from a clean server that has imported only the function's module: a fork of this process could
    # inherit locks that threads of other libraries hold.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", function.__module__])
    pool = ProcessPoolExecutor(
        min(jobs, len(items)),
        mp_context=context,
        initializer=_die_with_parent,
        max_tasks_per_child=1 if fresh else None,
    )
    chunk = 1 if fresh else max(1, min(32, len(items) // (64 * jobs)))  # few items wait for one slow process
    try:
        yield from pool.map(function, items, chunksize=chunk)
    except BrokenProcessPool as error:
        raise UserError(f"a process of {function.__name__} was killed: out of memory? Try fewer processes") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """Ends this process when its parent is gone: killed without warning, the parent leaves us waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
