"""Run jobs in processes of their own, a few at a time; one that fails does not stop the others.

Not multiprocessing's Pool, which waits for ever for a worker that was killed, nor the executor of
concurrent.futures, which gives up all jobs with it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

Job = tuple[Any, ...]


def run_all(function: Callable[..., Any], jobs: Sequence[Job], workers: int) -> dict[int, int]:
    """Call the function with the arguments of each job, in order, in a fresh process each.

    A failing process prints its traceback. Stopping this one stops them all.

    :param workers: processes at a time.
    :return: exit codes of the jobs that failed, by index; negative for a signal.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(enumerate(jobs))
    running: dict[Any, tuple[int, BaseProcess]] = {}
    failed = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                index, job = waiting.popleft()
                process = context.Process(target=_call, args=(function, job), daemon=True)
                process.start()
                running[process.sentinel] = (index, process)
            for sentinel in wait(list(running)):
                index, process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    failed[index] = process.exitcode
    finally:
        for _, process in running.values():
            process.terminate()
    return failed


def _call(function: Callable[..., Any], job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it terminates this
    function(*job)
