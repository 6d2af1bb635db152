"""Files and folders that are whole or not there at all."""

from __future__ import annotations

import io
import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

#: What the name of something begins with while it is written.
WRITING = ".writing-"


def writer() -> str:
    """Name the thread that asks, of all processes: two of them may save to one place."""
    return f"{os.getpid()}.{threading.get_ident()}"


@contextmanager
def interrupts_pass() -> Iterator[None]:
    """Raise Ctrl-C where a writer of files hides it.

    torch's raises a RuntimeError in its place. ``zipfile`` raises a ValueError, of an entry that
    Ctrl-C has left open.
    """
    try:
        yield
    except Exception as error:
        hidden = error.__context__
        while hidden is not None and not isinstance(hidden, KeyboardInterrupt):
            hidden = hidden.__context__
        if hidden is None:
            raise
        raise hidden from None


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Write beside a place, then put the result in it in one step: a crash leaves the old one.

    The content is on the disk before its name is, so that no machine that dies leaves an empty one.

    :param target: of a file, which is replaced and keeps its mode, or of a folder that is not there
        yet. Folders above it are made.
    :return: where to write it: the body makes a file or a folder there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{WRITING}{writer()}-{target.name}")
    _remove(temporary)
    try:
        with interrupts_pass():
            yield temporary
        for path in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.is_file():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        _remove(temporary)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file in one step."""
    with whole(target) as writing:
        shutil.copyfile(source, writing)


def set_aside(folder: Path, patterns: Sequence[str]) -> Path:
    """Link files of a folder, or of its folders, into a new one within, which is returned."""
    aside = Path(mkdtemp(dir=folder, prefix=WRITING))
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        target = aside / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        try:
            os.link(path, target)
        except OSError:  # a file system that has no links
            shutil.copyfile(path, target)
    return aside


def put_back(aside: Path, folder: Path) -> None:
    """Make the files of a folder those again that :func:`set_aside` has linked."""
    for path in [*aside.glob("*"), *aside.glob("*/*")]:
        target = folder / path.relative_to(aside)
        if path.is_file() and not (target.exists() and target.samefile(path)):
            os.replace(path, target)


def clear_unfinished(folder: Path) -> None:
    """Delete what killed processes were writing in a folder."""
    for path in folder.glob(f"{WRITING}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def whole_file(
    path: str | Path | io.BufferedIOBase, suffix: str
) -> Iterator[Path | io.BufferedIOBase]:
    """Take a place as SB3 does and write it as :func:`whole` does.

    Follow links, add a missing suffix, step aside for a folder.

    :param path: where the file shall be; an open file is handed on as it is.
    :param suffix: what SB3 adds to a path without one, ``"zip"`` or ``"pkl"``.
    :return: what to write to.
    """
    if not isinstance(path, (str, Path)):
        yield path
        return
    target = Path(path)
    if not target.suffix:
        target = target.with_name(f"{target.name}.{suffix}")
    if target.is_dir():
        aside = target.with_name(f"{target.name}_2")
        warnings.warn(f"{target} is a folder: saving to {aside} instead", stacklevel=4)
        target = aside
    with whole(Path(os.path.realpath(target))) as temporary:
        yield temporary


@contextmanager
def whole_stream(path: str | Path | io.BufferedIOBase, suffix: str) -> Iterator[io.BufferedIOBase]:
    """Do the same, and open the file; it is closed whatever happens.

    SB3 leaves a file open when writing fails, and one that is deleted while it is open keeps its
    space on the disk.
    """
    with whole_file(path, suffix) as target:
        if isinstance(target, Path):
            with target.open("wb") as file:
                yield file
        else:
            yield target
