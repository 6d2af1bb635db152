"""Processes that are forked from the test's, so that they cost no import.

What runs, and what is killed, is a process of its own all the same. Programs that must prove how
they start are started by ``subprocess`` instead: the tutorial's, the wheel's, the help's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = Callable[[], Any]


class Forked:
    """A job in a process of its own, which prints into a file; with what Popen has.

    :param job: what it does; its result is the exit status.
    :param log: where it prints, appended.
    """

    def __init__(self, job: Job, log: Path) -> None:
        self.log = log
        self.returncode: int | None = None
        log.touch()
        self._before = log.stat().st_size
        self.pid = _fork(job, log)

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status, or minus a signal."""
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"it did not end within {timeout} s:\n{self.printed()}")
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode

    def printed(self) -> str:
        with self.log.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._before)
            return file.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        if self.returncode is None:
            self.wait()


def program(log: Path, *arguments: str) -> Forked:
    """Start ``sb3-pmpo`` with arguments in this folder, in a session of its own."""

    def job() -> int:
        from sb3_pmpo.tools.cli import main

        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return main(list(arguments))

    return Forked(job, log)


def _fork(job: Job, log: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which wait for work
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # not pytest's
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        warnings.simplefilter("default")
        status = int(job() or 0)
    except SystemExit as stop:
        status = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status & 0xFF)
