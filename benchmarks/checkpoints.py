"""A run's model, replay buffer and rows on disk, always of one and the same step.

A checkpoint is a folder that gets its name when it is complete; the one before goes after that. So
there is a whole one whenever the process is killed.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import records


def save(folder: Path, model: Any, rows: list[dict[str, Any]]) -> None:
    """Save what a run needs to go on after its last row."""
    temporary = folder / "incomplete"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save(temporary / "model.zip")
    save_buffer(temporary / "buffer.pkl", model.replay_buffer)
    records.write(temporary / "rows.csv", rows)
    before = list_checkpoints(folder)
    os.replace(temporary, folder / f"step-{int(rows[-1]['steps']):09}")
    for old in before:
        shutil.rmtree(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints; the last is the latest."""
    return sorted(folder.glob("step-*"))


def save_buffer(path: Path, buffer: Any) -> None:
    """Pickle the filled part of a replay buffer.

    The whole would write, and so make resident, the memory of a million transitions.
    """
    size = buffer.size()
    state = {
        name: value[:size] if _is_storage(value, buffer) else value
        for name, value in vars(buffer).items()
    }
    with path.open("wb") as file:
        pickle.dump(state, file, protocol=5)


def load_buffer(path: Path, buffer: Any) -> None:
    """Fill a new replay buffer with what was saved."""
    with path.open("rb") as file:
        state = pickle.load(file)
    for name, value in state.items():
        storage = getattr(buffer, name, None)
        if _is_storage(storage, buffer):
            storage[: len(value)] = value
        else:
            setattr(buffer, name, value)


def _is_storage(value: Any, buffer: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 1 and value.shape[0] == buffer.buffer_size


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold a run's folder, so that no two processes train the run; it ends with the process.

    :return: whether the folder was free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
