"""What tests with real processes share."""

import multiprocessing
from multiprocessing.context import ForkServerContext

import pytest


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # What a run imports: each child begins with it loaded, in 30 ms.
    context.set_forkserver_preload(["tests.training.workers", "tensorboardX", "torch._dynamo"])
    return context
