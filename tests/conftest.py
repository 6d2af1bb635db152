"""What all the tests share."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch as th

# `make test &` in a script starts with SIGINT ignored, as the programs that the tests start and
# interrupt would be.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Ray makes its workers nice, and they starve where another test keeps a core busy.
os.environ.setdefault("RAY_worker_niceness", "0")

# Environments' processes are forked from one that has imported this, instead of importing it each.
multiprocessing.set_forkserver_preload(["stable_baselines3"])

UNIT = Path(__file__).parent / "unit"


#: Files of tests that take longest, in the order in which they begin.
LONGEST = (
    "test_sweep.py",
    "test_tuning.py",
    "test_tutorial.py",
    "test_ray_vec_env.py",
    "test_compile.py",
    "test_wheel.py",
    "test_mpo.py",
    "test_faults.py",
    "test_programs.py",
    "test_discrete.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its tier: slow and gpu are written at the test, unit is what lies in unit/."""
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            if not th.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        elif item.get_closest_marker("slow") is None:
            item.add_marker("unit" if UNIT in item.path.parents else "integration")
    # The longest first: at the end one worker would wait for the other.
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads are slower at these sizes, and may sum in another order."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(threads)
