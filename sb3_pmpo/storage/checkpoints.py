"""Checkpoints on disk: one unit under one step number, made visible by one rename.

A folder holds one checkpoint. ``checkpoint.json`` names all its files, and no file is changed once
it is named there; a new checkpoint writes files under new names, then renames its own
``checkpoint.json`` into place, then deletes what is named no more. The large columns of the replay
buffer are cut into pieces of rows, and only pieces whose rows have changed are written anew.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pmpo.files import clear_unfinished
from sb3_pmpo.storage import containers
from sb3_pmpo.storage.buffers import load_buffer, pack_buffer, save_buffer, written_rows
from sb3_pmpo.storage.containers import Columns, Container, padded
from sb3_pmpo.storage.models import decode_items, encode_items
from sb3_pmpo.storage.pickles import Pickled

#: Names all the files of a checkpoint.
MANIFEST = "checkpoint.json"

_KIND = "checkpoint"

#: Pieces that the rows of a buffer are cut into, and the fewest rows of a piece.
_PIECES, _FEWEST = 128, 256

#: Columns that change where a row is written and nowhere else. The others, such as priorities and
#: the ends of episodes, are small beside them.
_BY_ROW = ("buffer/actions", "buffer/next_observations", "buffer/observations")

#: What a checkpoint itself consists of, beside the pieces.
_OWN_FILES = ("model", "state", "buffer")

#: What a checkpoint calls its files.
_OURS = re.compile(r"\.?\d{9,}-[0-9a-f]{8}-.+")


class Checkpoint(NamedTuple):
    """A checkpoint that is whole.

    :param folder: where it is.
    :param step: how many steps the model had taken.
    :param files: names in the folder, by what they are: ``"model"``, ``"state"``, perhaps
        ``"buffer"``, and what else was given.
    :param pieces: names of the pieces of the buffer's large columns, in their order.
    """

    folder: Path
    step: int
    files: dict[str, str]
    pieces: list[str]

    def path(self, name: str) -> Path:
        """Return where one of the files is."""
        return self.folder / self.files[name]


def write_checkpoint(
    folder: Path,
    step: int,
    *,
    write_model: Callable[[Path], None],
    buffer: ReplayBuffer | None,
    items: Mapping[str, Any],
    files: Mapping[str, Path | Callable[[Path], None]],
) -> Checkpoint:
    """Write a checkpoint in the place of the one before.

    :param folder: where; it is made if it is not there.
    :param step: of the model.
    :param write_model: writes the model to a path.
    :param buffer: of which only what the checkpoint before does not hold is written; None if the
        model has none.
    :param items: of the state; what is not plain becomes a signed pickle.
    :param files: to copy into it, by name, or what writes them to a path.
    :raises ValueError: for a name that is the checkpoint's own, or is no plain name.
    """
    for name in files:
        if name in _OWN_FILES or not name or Path(name).name != name:
            raise ValueError(
                f"files must be named by plain names other than {', '.join(_OWN_FILES)}, got "
                f"{name!r}: give that file another name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    prefix = f"{step:09d}-{uuid.uuid4().hex[:8]}"
    names = {"model": f"{prefix}-model.zip", "state": f"{prefix}-state.npz"}
    try:
        write_model(folder / names["model"])
        sink = Columns()
        is_data = buffer is not None and pack_buffer(buffer) is not None
        told = encode_items({**items, "buffer": buffer if is_data else None}, sink)
        by_row = {name: sink.arrays.pop(name) for name in list(sink.arrays) if _is_by_row(name)}
        if buffer is not None and not is_data:
            names["buffer"] = f"{prefix}-buffer.pkl"
            save_buffer(buffer, folder / names["buffer"])
        pieces = _write_pieces(folder, prefix, buffer, by_row)
        containers.write(folder / names["state"], Container(_KIND, told, sink.arrays, {}))
        for name, given in files.items():
            names[name] = f"{prefix}-file-{name}"
            if isinstance(given, Path):
                shutil.copyfile(given, folder / names[name])
            else:
                given(folder / names[name])
        checkpoint = Checkpoint(folder, step, names, pieces)
        _make_visible(checkpoint, prefix)
    except BaseException:  # a full disk, Ctrl-C: give the space back at once
        manifest = folder / MANIFEST
        if not (manifest.exists() and prefix in manifest.read_text()):  # else it is visible
            for path in folder.glob(f"*{prefix}-*"):
                path.unlink(missing_ok=True)
        raise
    tidy(folder)
    return checkpoint


def _is_by_row(name: str) -> bool:
    return name.startswith(_BY_ROW)


def _write_pieces(
    folder: Path, prefix: str, buffer: ReplayBuffer | None, columns: dict[str, np.ndarray]
) -> list[str]:
    """Write the pieces that the checkpoint before does not hold; return the names of all pieces.

    A piece's name ends in its number and the checksum of its rows, so what is there is known by
    what it holds. To count the rows that were added would miss what else a user writes into them.
    """
    if buffer is None or not columns:
        return []
    rows, length = written_rows(buffer), _piece_length(buffer.buffer_size)
    held = {_content(name): name for name in _pieces_of(folder) if (folder / name).exists()}
    pieces = []
    for i, start in enumerate(range(0, rows, length)):
        part = slice(start, min(start + length, rows))
        part_of = {name: array[part] for name, array in columns.items()}
        content = f"rows{i}-{_checksum(part_of):08x}.npz"
        if content not in held:
            held[content] = f"{prefix}-{content}"
            containers.write(folder / held[content], Container(_KIND, {}, part_of, {}))
        pieces.append(held[content])
    return pieces


def _pieces_of(folder: Path) -> list[str]:
    """Return the pieces of the checkpoint in a folder; none if there is none, or a damaged one."""
    try:
        found = find_checkpoint(folder)
    except ValueError:
        return []
    return [] if found is None else found.pieces


def _content(piece: str) -> str:
    """Return what of a piece's name tells its rows."""
    return "-".join(piece.split("-")[2:])


def _checksum(columns: Mapping[str, np.ndarray]) -> int:
    told = 0
    for name, array in columns.items():
        told = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), told)
        told = zlib.crc32(containers.bytes_of(array), told)
    return told


def _piece_length(size: int) -> int:
    return max(-(-size // _PIECES), _FEWEST)


def _make_visible(checkpoint: Checkpoint, prefix: str) -> None:
    """Bring the new files to the disk, then rename the manifest that names them into place."""
    folder, manifest = checkpoint.folder, checkpoint.folder / f"{prefix}-{MANIFEST}"
    told = {"sb3_pmpo": _KIND, "step": checkpoint.step, "files": checkpoint.files}
    manifest.write_text(json.dumps(told | {"pieces": checkpoint.pieces}, indent=1) + "\n")
    for path in folder.glob(f"{prefix}-*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(manifest, folder / MANIFEST)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot do this to a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tidy(folder: Path) -> None:
    """Delete what the checkpoint in a folder does not name: the one before, and interrupted ones.

    To be called where nobody else is writing there.
    """
    checkpoint = find_checkpoint(folder)
    named = set() if checkpoint is None else {*checkpoint.files.values(), *checkpoint.pieces}
    for path in Path(folder).iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)
    clear_unfinished(Path(folder))


def find_checkpoint(folder: str | Path) -> Checkpoint | None:
    """Return the checkpoint of a folder, or None.

    :raises ValueError: if what is there is none.
    """
    folder = Path(folder)
    try:
        told = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error}") from error
    if not isinstance(told, dict) or told.get("sb3_pmpo") != _KIND:
        raise ValueError(f"{folder / MANIFEST} is not of a checkpoint of sb3_pmpo")
    files: Any = told.get("files")
    pieces: Any = told.get("pieces")
    step: Any = told.get("step")
    problem = _problem(files, pieces, step)
    if problem:
        raise ValueError(
            f"{folder / MANIFEST} is damaged: {problem}; resume from another checkpoint, or load "
            "the model's own .zip file"
        )
    return Checkpoint(folder.resolve(), step, files, pieces)


def _problem(files: Any, pieces: Any, step: Any) -> str:
    """Say what is wrong with what a manifest has; empty if nothing is."""
    if not isinstance(files, dict) or not {"model", "state"} <= files.keys():
        return f"files must name a model and a state, got {files!r}"
    if not isinstance(pieces, list):
        return f"pieces must be a list of files, got {pieces!r}"
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return f"step must be a whole number, at least 0, got {step!r}"
    for name in (*files.values(), *pieces):
        if not isinstance(name, str) or not _OURS.fullmatch(name) or Path(name).name != name:
            return f"it names {name!r}, which is no file of its own"
    return ""


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Return the checkpoint of a folder.

    :raises FileNotFoundError: if there is none.
    """
    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint ({MANIFEST} is not there): give the folder that "
            "model.save_checkpoint was given"
        )
    return checkpoint


def read_state(checkpoint: Checkpoint, *, trust: bool = False) -> dict[str, Any]:
    """Read the items of a checkpoint, with the replay buffer among them as ``"buffer"``.

    :param checkpoint: where to read.
    :param trust: load any pickle.
    :raises UntrustedFileError: for a pickle that is neither this user's nor harmless.
    """
    state = _read_container(checkpoint.path("state"))
    columns = dict(state.columns)
    columns |= _join_pieces(checkpoint, state.items)
    where = str(checkpoint.folder)
    items = decode_items(state.items, where, trust=trust, columns=columns)
    if "buffer" in checkpoint.files:
        items["buffer"] = load_buffer(checkpoint.path("buffer"), trust=trust)
    return items


def _read_container(path: Path) -> Container:
    with path.open("rb") as file:
        found = containers.read(file, _KIND, str(path))
    if isinstance(found, Pickled):
        raise ValueError(f"{path} holds a pickle, which no checkpoint does")
    return found


def _join_pieces(checkpoint: Checkpoint, items: dict[str, Any]) -> dict[str, np.ndarray]:
    """Put the pieces of the large columns together, with zeros for what was never written."""
    if not checkpoint.pieces:
        return {}
    try:
        size = operator.index(items["buffer"][":object:"][1]["buffer_size"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{checkpoint.path('state')} is damaged: it does not say how large the replay buffer "
            "is, of which the checkpoint has pieces; resume from another checkpoint, or load the "
            "model's own .zip file"
        ) from error
    length, joined = _piece_length(size), {}
    for i, piece in enumerate(checkpoint.pieces):
        for name, array in _read_container(checkpoint.folder / piece).columns.items():
            if name not in joined:
                joined[name] = padded(array[:0], size)
            joined[name][i * length : i * length + len(array)] = array
    return joined
