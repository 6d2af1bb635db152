"""One file of a JSON header and columns of numbers: what buffers and statistics are saved as.

It is a zip file that ``numpy.load`` opens, with a column in each ``.npy`` entry.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_pmpo.files import interrupts_pass
from sb3_pmpo.storage import pickles
from sb3_pmpo.storage.models import decode_items, encode_items
from sb3_pmpo.storage.pickles import Pickled

_HEADER, _PICKLE = "header.json", "pickle"

#: The first bytes of a zip file; a pickle begins with another one.
_MAGIC = b"PK\x03\x04"

#: Arrays of up to so many entries are part of the header.
SMALL = 64


class Columns:
    """A sink for :func:`sb3_pmpo.storage.plain.encode`: takes all but small arrays."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(self, path: str, array: np.ndarray) -> str | None:
        """Take an array, unless it is small."""
        if array.size <= SMALL:
            return None
        self.arrays[path] = array
        return path


class Container(NamedTuple):
    """What such a file holds.

    :param kind: of what it is, such as ``"replay buffer"``.
    :param items: by name, as :func:`sb3_pmpo.storage.models.encode_items` made them.
    :param columns: arrays, by name.
    :param lengths: of columns whose end is zeros that are not in the file, by name.
    """

    kind: str
    items: dict[str, Any]
    columns: Mapping[str, np.ndarray]
    lengths: dict[str, int]


def pack(kind: str, items: Mapping[str, Any]) -> Container:
    """Make a container of items that are plain, or a signed pickle each."""
    sink = Columns()
    return Container(kind, encode_items(items, sink), sink.arrays, {})


def unpack(container: Container, where: str, *, trust: bool = False) -> dict[str, Any]:
    """Return the items of a container.

    :raises UntrustedFileError: for a pickle that is neither this user's nor harmless.
    """
    return decode_items(container.items, where, trust=trust, columns=container.columns)


@interrupts_pass()
def write(file: Any, container: Container) -> None:
    """Write a container.

    :param file: a path or an open file.
    """
    header = {"sb3_pmpo": container.kind, "items": container.items, "lengths": container.lengths}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_HEADER, json.dumps(header))
        for name, array in container.columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                _write_array(entry, np.ascontiguousarray(array))


def _write_array(file: Any, array: np.ndarray) -> None:
    """Write an array as ``numpy.lib.format.write_array`` does, which copies 16 MiB at a time."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(bytes_of(array))


def bytes_of(array: np.ndarray) -> memoryview:
    """Return what an array holds, row by row; a copy only if it lies otherwise in memory."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


@interrupts_pass()
def write_pickle(file: Any, kind: str, value: Any) -> None:
    """Write what only a pickle can hold, with a digest under the user's key."""
    pickled = pickles.dump(value)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_HEADER, json.dumps({"sb3_pmpo": kind, "digest": pickled.digest}))
        archive.writestr(_PICKLE, pickled.content)


def read(file: Any, kind: str, where: str) -> Container | Pickled:
    """Read a container, or the pickle that is in its place.

    :param file: an open file that can seek.
    :param kind: that it must be of.
    :param where: the file, for messages.
    :return: the pickle of a file of earlier versions, or of SB3's, too.
    :raises ValueError: if it is neither, or of another kind.
    """
    start = file.read(len(_MAGIC))
    file.seek(-len(start), io.SEEK_CUR)
    if start != _MAGIC:
        return Pickled(file.read(), "")
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, kind, where)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{where} is damaged: {error}") from error


def _read_archive(archive: zipfile.ZipFile, kind: str, where: str) -> Container | Pickled:
    names = archive.namelist()
    header = json.loads(archive.read(_HEADER)) if _HEADER in names else {}
    found = header.get("sb3_pmpo")
    if found != kind:
        held = f"a {found}" if found else "something else"
        raise ValueError(f"{where} must hold a {kind}, but it holds {held}")
    if _PICKLE in names:
        return Pickled(archive.read(_PICKLE), str(header.get("digest", "")))
    lengths, columns = header["lengths"], {}
    for name in names:
        if name.endswith(".npy"):
            with archive.open(name) as entry:
                array = np.lib.format.read_array(entry, allow_pickle=False)
            column = name.removesuffix(".npy")
            columns[column] = padded(array, lengths.get(column, len(array)))
    return Container(kind, header["items"], columns, lengths)


def padded(array: np.ndarray, length: int) -> np.ndarray:
    """Fill an array up with zeros to a length."""
    if len(array) == length:
        return array
    result = np.zeros((length, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    return result


def opened(path: str | Path | io.BufferedIOBase) -> str:
    """Return what a message calls a file."""
    return str(path) if isinstance(path, (str, Path)) else "the file"
