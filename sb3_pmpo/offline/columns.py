"""Columns of a data set: arrays of N rows, in memory or mapped from files, read in batches."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

#: Rows that a pass over a column reads at a time.
CHUNK = 65_536

#: A page fault maps up to so much of a file that the system has cached, where it keeps it in large
#: pieces (Linux 6.18, ext4: 1.6 MB a row in the mean).
_FAULT_BYTES = 2**21

#: Rows that are read between two looks at how much is mapped.
_ROWS = 32

#: Mapped pages count as this process's memory until they are given back; so many may stay.
_RESIDENT_BYTES = 2**27


class DatasetError(ValueError):
    """Data that cannot be learned from; the message names value, range and remedy."""


class Column:
    """An array of N rows. A mapped one stays on disk: what was read is given back again.

    :param array: ``[N, ...]``, an ``np.memmap`` too.
    :param name: of the column, for messages.
    """

    def __init__(self, array: Any, name: str) -> None:
        ragged = DatasetError(
            f"{name} must be an array of numbers, got an array of Python objects: its rows "
            "have different shapes, or are None; give every row one shape"
        )
        refuse_masked(array, name)
        try:
            self.array = np.asarray(array) if not isinstance(array, np.ndarray) else array
        except ValueError as error:
            raise ragged from error
        self.name = name
        if self.array.dtype == object:
            raise ragged
        if self.array.dtype.kind in "USmMV":
            raise DatasetError(f"{name} must be numbers, got an array of {self.array.dtype}")
        if self.array.ndim == 0:
            raise DatasetError(f"{name} must have a row a transition, got the number {array!r}")
        self._mapping = _shared_mapping(self.array)
        self._touched = 0

    def __len__(self) -> int:
        return len(self.array)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.array.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the numbers that are taken, in this machine's byte order."""
        return self.array.dtype.newbyteorder("=")

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copy these rows, in this order.

        :param rows: ``[B]`` integers in ``[0, N)``.
        """
        if self._mapping is None:
            return np.array(self.array[rows], self.dtype, subok=False)
        values = np.empty((len(rows), *self.row_shape), self.dtype)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            values[part] = self.array[rows[part]]
            self._count(_ROWS * _FAULT_BYTES)
        return values

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield ``(first row, copy of up to CHUNK rows)``, from the first row to the last."""
        for start in range(0, len(self), CHUNK):
            values = np.array(self.array[start : start + CHUNK], self.dtype, subok=False)
            self._count(values.nbytes)
            yield start, values

    def reshaped(self, row_shape: tuple[int, ...]) -> Column:
        """Return the same numbers with rows of another shape; nothing is copied."""
        return Column(self.array.reshape(len(self), *row_shape), self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Column:
        """Copy what is in memory; a file is mapped once, for nothing writes to it."""
        if self._mapping is not None:
            return Column(self.array, self.name)
        return Column(np.array(self.array, subok=False), self.name)

    def __reduce__(self) -> Any:
        """Pickle the numbers, or the place of those that are mapped from a file."""
        place = None if self._mapping is None else Place.of(self.array)
        if place is None:
            return Column, (np.array(self.array, self.dtype, subok=False), self.name)
        return _reopen, (place, self.name)

    def _count(self, touched: int) -> None:
        if self._mapping is None:
            return
        self._touched += touched
        if self._touched > _RESIDENT_BYTES:
            self._touched = 0
            # The pages stay in the system's cache; only this process's claim to them ends.
            self._mapping.madvise(mmap.MADV_DONTNEED)


class Place(NamedTuple):
    """Where in a file the numbers of a mapped array are, and some of them to know it by.

    :param path: of the file.
    :param offset: of the first number, in bytes.
    :param shape: of the array.
    :param dtype: of its numbers, with their byte order.
    :param sample: up to 16 rows, spread over all.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    sample: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> Place | None:
        """Find the place; None where the file has no name, or other numbers are between these."""
        file: Any = array
        while isinstance(file.base, np.memmap):
            file = file.base
        if not isinstance(file, np.memmap) or file.filename is None:
            return None
        if not array.flags.c_contiguous or array.dtype.hasobject:
            return None
        before = array.__array_interface__["data"][0] - file.__array_interface__["data"][0]
        path, shape = os.path.abspath(file.filename), array.shape
        return cls(path, file.offset + before, shape, array.dtype.str, _sample(array))

    def open(self) -> np.ndarray:
        """Map the file again.

        :raises DatasetError: if it is gone, or holds other numbers.
        """
        try:
            array = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{self.path}, which a pickled data set was mapped from, cannot be: {error}; load "
                "the data set from its folder, or with in_memory=True before it is pickled"
            ) from error
        if not np.array_equal(_sample(array), self.sample):
            raise DatasetError(
                f"{self.path} holds other numbers than when the data set was pickled: load it anew"
            )
        return array


def _sample(array: np.ndarray) -> np.ndarray:
    """Copy up to 16 rows."""
    rows = np.unique(np.linspace(0, len(array) - 1, 16).astype(np.int64))
    return np.array(array[rows], subok=False)


def _reopen(place: Place, name: str) -> Column:
    return Column(place.open(), name)


T = TypeVar("T")
#: The column of a Box or of another plain space, or the columns of a Dict.
Columns = Column | dict[str, Column]


def make_columns(value: Any, name: str) -> Columns:
    """Make the column of an array, or those of a dictionary of arrays."""
    if isinstance(value, Mapping):
        nested = [key for key, part in value.items() if isinstance(part, Mapping)]
        if nested:
            raise DatasetError(
                f"{name}[{nested[0]!r}] is a dictionary: Stable-Baselines3 takes Dict observations "
                "of one level; flatten it, for instance to 'outer_inner' keys"
            )
        if not value:
            raise DatasetError(f"{name} must have at least one key, got an empty dictionary")
        return {str(key): Column(part, f"{name}[{key!r}]") for key, part in value.items()}
    return Column(value, name)


def map_columns(columns: Columns, function: Callable[[Column], Any]) -> Any:
    """Apply a function to the column, or to each of a dictionary."""
    if isinstance(columns, dict):
        return {key: function(column) for key, column in columns.items()}
    return function(columns)


def take(columns: Columns, rows: np.ndarray) -> Any:
    """Copy these rows of the column, or of each of a dictionary."""
    return map_columns(columns, lambda column: column.take(rows))


def flat(columns: dict[str, T] | T) -> list[T]:
    """List the columns, or the arrays, of observations that may be a dictionary of them."""
    return list(columns.values()) if isinstance(columns, dict) else [columns]


def refuse_masked(array: Any, name: str) -> None:
    """Refuse what hides some of its values: the arrays below a mask are learned from else.

    :raises DatasetError: if a value is masked, also in one of a list of arrays.
    """
    for part in array if isinstance(array, (list, tuple)) else [array]:
        if isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part):
            raise DatasetError(
                f"{name} must have no masked values, got {np.ma.count_masked(part)} of them: drop "
                "their rows from all columns, or write what they stand for with .filled(value)"
            )


def _shared_mapping(array: np.ndarray) -> mmap.mmap | None:
    """Find the file mapping behind an array; None for memory and for copy-on-write mappings."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.mode == "c":
            return None  # to give pages back would undo what was written to them
        base = base.base
    return base if isinstance(base, mmap.mmap) and sys.platform == "linux" else None
