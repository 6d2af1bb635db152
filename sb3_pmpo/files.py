"""Files that are whole or not there at all."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(
    path: str | Path | io.BufferedIOBase, suffix: str
) -> Iterator[Path | io.BufferedIOBase]:
    """Write beside a file, then put the result in its place: a crash leaves the old one.

    As SB3 does, follow links, keep the mode of a file that was there, step aside for a folder.

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
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    # The process's number: two of them may save to one place.
    temporary = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
