"""Processes that are killed by SIGKILL: at a moment, or at a write."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forked import Forked, Job

#: Events of Python's audit hooks that change what is on the disk.
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile"}


def run(job: Job, log: Path) -> int:
    """Run a job to its end in a process of its own; return its exit status, or minus a signal."""
    return Forked(job, log).wait()


def killed_after(seconds: float, job: Job, log: Path) -> int:
    """Kill a job after a while; return as :func:`run` does."""
    process = Forked(job, log)
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def killed_at_write(number: int, folder: Path, job: Job, log: Path) -> int:
    """Kill a job at its write of that number, from 0, before it is done; return as ``run`` does.

    :param folder: writes elsewhere are not counted.
    """

    def dies() -> Any:
        _count_writes(folder, lambda count, _: count == number and _die())
        return job()

    return run(dies, log)


def writes_of(job: Job, folder: Path, log: Path) -> list[str]:
    """List what a job writes, in order: the event and the name, without what differs by run."""
    told = log.with_suffix(".writes")
    told.unlink(missing_ok=True)

    def note(_: int, what: str) -> None:
        descriptor = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{what}\n".encode())
        os.close(descriptor)

    def noted() -> Any:
        _count_writes(folder, note)
        return job()

    status = run(noted, log)
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
