"""A data set as a folder: ``.npy`` columns that can be mapped, and a header in JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sb3_pmpo.files import writer
from sb3_pmpo.offline.columns import Column, Columns, DatasetError, map_columns
from sb3_pmpo.offline.spaces import space_from_json, space_to_json

if TYPE_CHECKING:  # it is the floor above
    from sb3_pmpo.offline.dataset import LabelledDataset

HEADER = "dataset.json"
FORMAT = "sb3_pmpo labelled data set"
VERSION = 1
_ARRAYS = ("observations", "actions", "next_observations")
_NUMBERS = ("labels", "rewards", "dones", "episode_ids", "weights", "whole")


#: The files of a data set's folder.
_OURS = re.compile(rf"{re.escape(HEADER)}|\d+\.npy")

#: Where a data set is while another takes its place, before the writer and the name.
_OLD = ".old-"

#: Between the two halves of a replacement no other thread may look for what is there.
_REPLACING = threading.Lock()


def save(dataset: LabelledDataset, folder: str | Path) -> Path:
    """Write the folder beside its place, then move it there: whole, or not at all.

    Links are followed: what they name is replaced, not the link.

    :raises FileExistsError: if the folder exists and is not a data set of this format, or holds
        what is not of it.
    """
    target = Path(os.path.realpath(folder))
    with _REPLACING:
        _put_back(target)
    if target.exists() and not (target / HEADER).is_file():
        raise FileExistsError(f"{target} exists and is no data set: name a folder that is new")
    if target.exists():
        strange = [path.name for path in target.iterdir() if not _OURS.fullmatch(path.name)]
        if strange:
            raise FileExistsError(f"{target} holds {strange[0]}, which save did not write: move it")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{writer()}-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        files = {}
        for number, (name, column) in enumerate(_columns(dataset)):
            files[name] = f"{number:03d}.npy"
            write_column(temporary / files[name], column)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "rows": len(dataset),
            "observation_space": space_to_json(dataset.observation_space),
            "action_space": space_to_json(dataset.action_space),
            "inferred": sorted(dataset.inferred),
            "columns": files,
        }
        (temporary / HEADER).write_text(json.dumps(header, indent=1) + "\n")
        with _REPLACING:
            _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Path(folder)


def _replace(temporary: Path, target: Path) -> None:
    """Put a folder in the place of another, which is moved aside first: a map of it stays valid."""
    old = target.with_name(f"{_OLD}{writer()}-{target.name}")
    is_here = target.exists() and target.samefile(os.curdir)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(temporary, target)
    finally:
        _put_back(target)  # where that failed, or Ctrl-C came
    if is_here:
        os.chdir(target)  # the working directory is about to be deleted
    shutil.rmtree(old, ignore_errors=True)


def _put_back(target: Path) -> None:
    """Undo the first half of a replacement that did not come to its end."""
    if target.exists() or not target.parent.is_dir():
        return
    for path in target.parent.iterdir():
        if re.fullmatch(rf"{re.escape(_OLD)}[\d.]+-{re.escape(target.name)}", path.name):
            os.replace(path, target)
            return


def _columns(dataset: LabelledDataset) -> Iterator[tuple[str, Column]]:
    yield from _named("observations", dataset.observations)
    yield "actions", dataset.actions
    if dataset.next_observations is not None:
        yield from _named("next_observations", dataset.next_observations)
    for name in _NUMBERS:
        values = getattr(dataset, name)
        if values is not None:
            yield name, Column(values, name)


def _named(name: str, columns: Columns) -> Iterator[tuple[str, Column]]:
    if isinstance(columns, dict):
        for key, column in columns.items():
            yield f"{name}/{key}", column
    else:
        yield name, columns


def write_column(path: Path, column: Column) -> None:
    """Write a column as ``.npy``, a chunk at a time."""
    shape = (len(column), *column.row_shape)
    with path.open("wb") as file:
        header = {"descr": column.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        for _, values in column.chunks():
            file.write(np.ascontiguousarray(values).tobytes())
        file.flush()
        os.fsync(file.fileno())


class Opened(NamedTuple):
    """What a folder holds.

    :param arguments: of a ``LabelledDataset``, by name.
    :param inferred: which of the spaces were inferred when it was made.
    """

    arguments: dict[str, Any]
    inferred: frozenset[str]


def open_columns(folder: str | Path, *, in_memory: bool) -> Opened:
    """Open a folder's columns.

    :raises DatasetError: if it is not whole, or not of this format.
    """
    source = Path(os.path.realpath(folder))
    columns: dict[str, Any] = {}
    with _REPLACING:
        _put_back(source)
        header = _read_header(source)
        for name, file in header["columns"].items():
            part, is_of_dict, key = name.partition("/")
            array = _open(source, file, name, header["rows"], in_memory)
            if is_of_dict:
                columns.setdefault(part, {})[key] = array
            else:
                columns[part] = array
    for name in ("observation_space", "action_space"):
        columns[name] = space_from_json(header[name])
    return Opened(columns, frozenset(header.get("inferred", ())))


def _read_header(source: Path) -> dict[str, Any]:
    path = source / HEADER
    if not path.is_file():
        raise DatasetError(f"{source} is no data set: it has no {HEADER}; save() makes one")
    try:
        header = json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}): save the data set again") from error
    needed = {"format", "version", "rows", "observation_space", "action_space", "columns"}
    if not isinstance(header, dict) or not needed <= header.keys() or header["format"] != FORMAT:
        raise DatasetError(f"{path} is not a header of this format: save the data set again")
    if header["version"] != VERSION:
        raise DatasetError(
            f"{path} is of version {header['version']}, and this package reads {VERSION}"
        )
    names = {name.partition("/")[0] for name in header["columns"]}
    if not {"observations", "actions", "labels"} <= names <= {*_NUMBERS, *_ARRAYS}:
        raise DatasetError(
            f"{path} must name observations, actions and labels, and no columns that are unknown; "
            f"got {sorted(names)}"
        )
    return header


def _open(source: Path, file: str, name: str, rows: int, in_memory: bool) -> np.ndarray:
    if Path(file).name != file:
        raise DatasetError(f"the file of {name} must lie in {source}, got {file!r}")
    try:
        array = np.load(source / file, mmap_mode=None if in_memory else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{source / file} ({name}) cannot be read: {error}") from error
    if len(array) != rows:
        raise DatasetError(f"{source / file} must have {rows} rows, got {len(array)}")
    return array


def make_array(
    folder: str | Path | None, name: str, shape: tuple[int, ...], dtype: Any
) -> np.ndarray:
    """Make an array to be filled: in memory, or mapped to a new file of a folder.

    :raises FileExistsError: if the file is there: another data set may be mapped from it.
    """
    if folder is None:
        return np.empty(shape, dtype)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    safe = name.replace("/", "-")
    if (path / f"{safe}.npy").exists():
        raise FileExistsError(f"{path / safe}.npy exists: name a folder that is new")
    return np.lib.format.open_memmap(path / f"{safe}.npy", mode="w+", dtype=dtype, shape=shape)


@contextmanager
def kept_if_whole(folder: str | Path | None) -> Iterator[None]:
    """Delete the columns that :func:`make_array` made inside, if what fills them fails."""
    before = set(Path(folder).glob("*.npy")) if folder is not None else set()
    try:
        yield
    except BaseException:
        for path in set(Path(folder).glob("*.npy")) - before if folder is not None else ():
            path.unlink()
        raise


def in_memory(columns: Columns) -> Any:
    """Copy a column, or a dictionary of them, into memory."""
    return map_columns(columns, lambda column: np.array(column.array, subok=False))
