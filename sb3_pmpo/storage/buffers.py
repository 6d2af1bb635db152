"""Replay buffers as columns of numbers with a JSON header; a class of the user's as a pickle."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import open_path

from sb3_pmpo.storage import containers, pickles
from sb3_pmpo.storage.containers import Columns, Container
from sb3_pmpo.storage.models import decode_items
from sb3_pmpo.storage.names import is_stateful
from sb3_pmpo.storage.pickles import Pickled
from sb3_pmpo.storage.plain import NotPlainError, encode

_KIND = "replay buffer"


def save_buffer(buffer: ReplayBuffer, path: str | Path | io.BufferedIOBase) -> None:
    """Save a buffer of ours, of SB3's or of a registered class as data, any other as a pickle.

    :param buffer: whose written entries are saved.
    :param path: of the file, or an open one.
    """
    file = open_path(path, "w", suffix="pkl")
    try:
        container = pack_buffer(buffer)
        if container is None:
            containers.write_pickle(file, _KIND, buffer)
        else:
            containers.write(file, _written(buffer, container))
    finally:
        if isinstance(path, (str, Path)):
            file.close()


def load_buffer(path: str | Path | io.BufferedIOBase, *, trust: bool = False) -> ReplayBuffer:
    """Load a buffer that :func:`save_buffer`, an earlier version or SB3 saved.

    :param path: of the file, or an open one.
    :param trust: load any pickle.
    :raises UntrustedFileError: for a pickle that is neither this user's nor harmless.
    :raises ValueError: if there is no buffer in it.
    """
    where, file = containers.opened(path), open_path(path, "r", suffix="pkl")
    try:
        found = containers.read(file, _KIND, where)
    finally:
        if isinstance(path, (str, Path)):
            file.close()
    if isinstance(found, Pickled):
        buffer = pickles.load(found, where, trust=trust)
    else:
        buffer = unpack_buffer(found, where, trust=trust)
    if not isinstance(buffer, ReplayBuffer):
        raise ValueError(f"{where} must hold a ReplayBuffer, but it holds {type(buffer)}")
    return buffer


def pack_buffer(buffer: ReplayBuffer) -> Container | None:
    """Tell a buffer as data; None if its class or something in it only a pickle can hold.

    The columns are the buffer's own arrays, not copies.
    """
    if not is_stateful(type(buffer)):
        return None
    sink = Columns()
    try:
        told = encode(buffer, sink)
    except NotPlainError:
        return None
    return Container(_KIND, {"buffer": told}, sink.arrays, {})


def unpack_buffer(container: Container, where: str, *, trust: bool = False) -> Any:
    """Make the buffer of which :func:`pack_buffer` told."""
    return decode_items(container.items, where, trust=trust, columns=container.columns)["buffer"]


def written_rows(buffer: ReplayBuffer) -> int:
    """Return how many rows hold something; one more than were stored, as that may be half there.

    A memory-efficient buffer keeps the newest next observation in the row that comes next.
    """
    return buffer.buffer_size if buffer.full else min(buffer.pos + 1, buffer.buffer_size)


def _written(buffer: ReplayBuffer, container: Container) -> Container:
    """Leave out the rows that were never written."""
    size, rows = buffer.buffer_size, written_rows(buffer)
    columns: Mapping[str, np.ndarray] = {
        name: array[:rows] if len(array) == size else array
        for name, array in container.columns.items()
    }
    lengths = {
        name: size for name, array in columns.items() if len(array) != len(container.columns[name])
    }
    return container._replace(columns=columns, lengths=lengths)
