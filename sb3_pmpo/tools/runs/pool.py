"""Jobs in processes of their own, a few at a time; one that fails does not stop the others.

Not multiprocessing's Pool, which waits for ever for a worker that was killed, nor the executor of
concurrent.futures, which gives up all jobs with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

#: How often Ray begins a job again after its node or process died. Each time goes on from the last
#: checkpoint, so many deaths are no harm; the bound stops one that kills its process each time.
MAX_RETRIES = 10

T = TypeVar("T")


def run_locally(
    function: Callable[[T], Any], jobs: Sequence[T], workers: int
) -> Iterator[tuple[T, str | None]]:
    """Call the function with each job, in order, in a fresh process each.

    :param workers: processes at a time.
    :return: each job when it has ended, with None, or why it failed.
    :raises KeyboardInterrupt: after it has ended the processes.
    """
    context = multiprocessing.get_context("spawn")
    queue = list(jobs)
    running: dict[Any, tuple[SpawnProcess, T]] = {}
    try:
        while queue or running:
            while queue and len(running) < workers:
                process = context.Process(target=_call, args=(function, queue[0]))
                process.start()
                running[process.sentinel] = process, queue.pop(0)
            for sentinel in wait(list(running)):
                process, job = running.pop(sentinel)
                process.join()
                yield job, _why(process.exitcode)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _call(function: Callable[[T], Any], job: T) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function(job)


def _end_with_parent() -> None:
    # An orphan would write into the folder that the next start goes on in.
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child
    parent.join()
    os._exit(1)


def _why(exit_code: int | None) -> str | None:
    if exit_code == 0:
        return None
    if exit_code is not None and exit_code < 0:
        return f"The process was killed by {signal.Signals(-exit_code).name}"
    return f"The process ended with exit code {exit_code}"


def run_on_ray(
    function: Callable[[T], Any], jobs: Sequence[T], workers: int | None, address: str
) -> Iterator[tuple[T, str | None]]:
    """Do the same in Ray tasks of one core; those of a node that dies begin again on another.

    :param workers: tasks at a time; None for as many as there is room for.
    :param address: see :func:`sb3_pmpo.tools.ray_vec_env.connect`.
    """
    from sb3_pmpo.tools.ray_vec_env import connect  # says what to do where Ray is missing

    # isort: split
    import ray

    connect(address)
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(function)
    queue = list(jobs)
    running: dict[ray.ObjectRef, T] = {}
    while queue or running:
        while queue and len(running) < (workers or len(jobs)):
            job = queue.pop(0)
            running[task.remote(job)] = job
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            job, why = running.pop(reference), None
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                why = f"Ray could not complete the run: {error}"
            yield job, why
