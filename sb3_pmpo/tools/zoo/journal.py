"""Optuna's journal files, of which a worker that was killed may leave half a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file

#: How much is read at a time to find where the last line begins.
_BLOCK = 4096


class Journal(JournalFileBackend):
    """Optuna's journal file; the unfinished line at its end is dropped before the next is added.

    Optuna would add the next line to the unfinished one, and no worker could read the study again.

    :param path: of the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        with get_lock_file(self._lock):
            drop_unfinished(Path(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines, after the last that is whole."""
        added = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with get_lock_file(self._lock):
            drop_unfinished(Path(self._file_path))
            with open(self._file_path, "ab") as file:
                file.write(added)
                file.flush()
                os.fsync(file.fileno())


def drop_unfinished(path: Path) -> None:
    """Cut off the end of a journal that is no whole line; to be called with its lock."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        begin, last = _last_line(file, end)
        if begin == end or _is_whole(last):
            return
        print(f"{path}: its last line is unfinished and is dropped ({len(last)} bytes)")
        file.truncate(begin)
        file.flush()
        os.fsync(file.fileno())


def _last_line(file: Any, end: int) -> tuple[int, bytes]:
    """Return where the last line begins, and the line."""
    begin, last = end, b""
    while begin > 0:
        begin = max(begin - _BLOCK, 0)
        file.seek(begin)
        last = file.read(end - begin)
        newline = last.rfind(b"\n", 0, -1)
        if newline >= 0:
            return begin + newline + 1, last[newline + 1 :]
    return begin, last


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")
