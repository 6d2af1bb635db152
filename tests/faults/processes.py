"""Processes that are killed: at a moment, or at a write.

They are forked, so that an attempt costs no import: what is killed is a process of its own all the
same, by SIGKILL, and what it leaves is on the disk.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Events of Python's audit hooks that change what is on the disk.
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile"}

Job = Callable[[], Any]


def run(job: Job, log: Path, before: Job | None = None) -> int:
    """Run a job to its end in a process of its own; return its exit status, or minus a signal."""
    return _wait(_start(job, log, before))


def killed_after(seconds: float, job: Job, log: Path) -> int:
    """Kill a job after a while; return as :func:`run` does."""
    pid = _start(job, log, None)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return _wait(pid)


def killed_at_write(number: int, folder: Path, job: Job, log: Path) -> int:
    """Kill a job at its write of that number, from 0, before it is done; return as ``run`` does.

    :param folder: writes elsewhere are not counted.
    """
    return run(job, log, lambda: _count_writes(folder, lambda count, _: count == number and _die()))


def writes_of(job: Job, folder: Path, log: Path) -> list[str]:
    """List what a job writes, in order: the event and the name, without what differs by run."""
    told = log.with_suffix(".writes")
    told.unlink(missing_ok=True)

    def note(_: int, what: str) -> None:
        descriptor = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{what}\n".encode())
        os.close(descriptor)

    status = run(job, log, lambda: _count_writes(folder, note))
    assert status == 0, log.read_text()
    return told.read_text().splitlines()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _count_writes(folder: Path, then: Callable[[int, str], Any]) -> None:
    """Call a function at each write below a folder, with how many came before."""
    place, count, busy = str(folder.resolve()), 0, False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, busy
        if busy or not _is_write(event, arguments):
            return
        path = os.path.abspath(os.fsdecode(arguments[-3 if event == "os.rename" else 0]))
        if path.startswith(place) and "writes" not in Path(path).suffix:
            busy = True
            then(count, f"{event} {_kind(path)}")
            busy = False
            count += 1

    sys.addaudithook(hook)


def _is_write(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        path, _, flags = arguments
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        return isinstance(path, (str, bytes)) and bool(flags and flags & writes)
    return event in WRITES and isinstance(arguments[0], (str, bytes, os.PathLike))


def _kind(path: str) -> str:
    """Name a file without numbers, which differ from run to run."""
    name = "".join("#" if each.isdigit() else each for each in Path(path).name)
    if name.startswith(".writing-") and "-#" not in name and not name.startswith(".writing-#"):
        return "a folder aside"
    return name.split("-")[-1] if name.startswith(("#", ".writing")) else name


def _start(job: Job, log: Path, before: Job | None) -> int:
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
        if before is not None:
            before()
        status = int(job() or 0)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status & 0xFF)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
