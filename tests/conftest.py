"""What all the tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch as th

# `make test &` in a script starts with SIGINT ignored, as the programs that the tests start and
# interrupt would be.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads are slower at these sizes, and may sum in another order."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(threads)
