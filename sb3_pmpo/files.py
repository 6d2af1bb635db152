"""Files that are whole or not there at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(
    path: str | Path | io.BufferedIOBase, suffix: str
) -> Iterator[Path | io.BufferedIOBase]:
    """Write beside a file, then put the result in its place: a crash leaves the old one.

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
    target.parent.mkdir(parents=True, exist_ok=True)
    # The process's number: two of them may save to one place.
    temporary = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
