"""What this process may use of its machine."""

import os


def usable_cores() -> int:
    """Processor cores that this process may run on: those of its job or container, not all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_processes() -> int:
    """Processes of this run on this machine, this one counted, as its launcher tells."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
