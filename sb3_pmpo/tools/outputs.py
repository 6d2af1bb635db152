"""Files that commands write: none takes the place of a file that its command did not write."""

from __future__ import annotations

import os
from pathlib import Path


class OutputError(ValueError):
    """A file that must not be written over; the message is for the one who asked."""


def check_output(path: Path, mark: str) -> None:
    """Refuse to write over what the same command did not write, and where nothing can be written.

    Called before the work, so that none is done in vain.

    :param path: of a file, which may be there.
    :param mark: text that each file of the command holds.
    :raises OutputError: naming the file and the remedy.
    """
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        why = "cannot be written to" if there.is_dir() else "is no folder"
        raise OutputError(f"{path} cannot be written, because {there} {why}: name another path")
    if not path.exists():
        return
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file")
    if mark.encode() not in path.read_bytes():
        raise OutputError(
            f"{path} exists, and this command did not write it: choose another name with -o, or "
            "move it away"
        )
