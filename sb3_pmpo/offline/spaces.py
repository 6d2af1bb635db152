"""Spaces of a data set: inferred where they are not given, checked row by row, kept as JSON."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_pmpo.offline.columns import Column, Columns, DatasetError

# ---------------------------------------------------------------------- inference


def infer_observation_space(columns: Columns, following: Columns | None = None) -> spaces.Space:
    """Infer a space from what the columns hold: floats, bytes of images, or counts.

    :param columns: of the observations.
    :param following: of what came next, where a count may be larger; None if it is not known.
    """
    if isinstance(columns, dict):
        after = following if isinstance(following, dict) else {}
        parts = {
            key: infer_observation_space(part, after.get(key)) for key, part in columns.items()
        }
        return spaces.Dict(parts)
    shape, dtype = columns.row_shape, columns.dtype
    if np.issubdtype(dtype, np.floating):
        return spaces.Box(-np.inf, np.inf, shape or (1,), dtype)
    if dtype == np.uint8 and len(shape) == 3:
        return spaces.Box(0, 255, shape, np.uint8)
    if np.issubdtype(dtype, np.integer) and shape in {(), (1,)}:
        largest = _largest(columns)
        if isinstance(following, Column) and np.issubdtype(following.dtype, np.integer):
            largest = max(largest, _largest(following))
        return spaces.Discrete(largest + 1)
    raise DatasetError(
        f"the space of {columns.name} cannot be inferred from dtype {dtype} and rows of shape "
        f"{shape}: give observation_space"
    )


def infer_action_space(columns: Columns) -> spaces.Space:
    """Infer a Box from floats, ``[-1, 1]`` if all are inside; Discrete or MultiDiscrete from ints.

    Beyond [-1, 1] the bounds are the smallest and the largest action of each dimension.
    """
    if isinstance(columns, dict):
        raise DatasetError("actions must be one array, got a dictionary: flatten the action space")
    shape, dtype = columns.row_shape, columns.dtype
    if np.issubdtype(dtype, np.integer):
        if shape in {(), (1,)}:
            return spaces.Discrete(_largest(columns) + 1)
        if len(shape) == 1:
            return spaces.MultiDiscrete(_counts(columns))
    if not np.issubdtype(dtype, np.floating):
        raise DatasetError(
            f"the space of actions cannot be inferred from dtype {dtype} and rows of shape "
            f"{shape}: give action_space"
        )
    low, high = _extreme(columns, np.min), _extreme(columns, np.max)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return spaces.Box(-1.0, 1.0, shape or (1,), np.float32)  # the check names the rows
    if low.min() >= -1.0 and high.max() <= 1.0:
        return spaces.Box(-1.0, 1.0, shape or (1,), np.float32)
    if np.any(low == high):
        raise DatasetError(
            f"an action's dimension is {low.flat[np.flatnonzero(low == high)[0]]} in every row, "
            "which gives it no bounds: give action_space"
        )
    return spaces.Box(np.atleast_1d(low), np.atleast_1d(high), dtype=dtype.type)


def _extreme(column: Column, function: Callable[..., Any]) -> np.ndarray:
    return np.asarray(function([function(part, axis=0) for _, part in column.chunks()], axis=0))


def _counts(column: Column) -> np.ndarray:
    """Count the choices of each dimension."""
    largest = _extreme(column, np.max)
    if largest.size and largest.min() < 0:
        raise DatasetError(
            f"{column.name} of a discrete space must be >= 0, got at most {largest.min()} in "
            f"dimension {int(largest.argmin())}: number the choices from 0, or give action_space"
        )
    return largest + 1


def _largest(column: Column) -> int:
    largest = int(_extreme(column, np.max).max())
    if largest < 0:
        raise DatasetError(
            f"{column.name} of a discrete space must be >= 0, got at most {largest}: number the "
            "choices from 0"
        )
    return largest


# ---------------------------------------------------------------------- checks


def fit_columns(columns: Columns, space: spaces.Space, name: str) -> Columns:
    """Give the columns the shapes of a space, and check every row against it.

    :return: the columns, of which ``[N, 1]`` and ``[N]`` are exchanged where the space asks.
    :raises DatasetError: naming how many rows are wrong and the first of them.
    """
    if isinstance(space, spaces.Dict) or isinstance(columns, dict):
        if not (isinstance(space, spaces.Dict) and isinstance(columns, dict)):
            raise DatasetError(
                f"{name} must be a dictionary if and only if its space is a Dict, got {space}"
            )
        if set(space.spaces) != set(columns):
            raise DatasetError(
                f"{name} must have the keys {sorted(space.spaces)} of its space, got "
                f"{sorted(columns)}"
            )
        return {key: _fit(columns[key], part, bounded=False) for key, part in space.spaces.items()}
    return _fit(columns, space, bounded=name == "actions")


def _fit(column: Column, space: spaces.Space, *, bounded: bool) -> Column:
    shape = space.shape
    if shape is None:
        raise DatasetError(
            f"{column.name}: the space {space} is not supported; use Box, Discrete, MultiDiscrete, "
            "MultiBinary or a Dict of them"
        )
    if column.row_shape != shape:
        if int(np.prod(column.row_shape)) != int(np.prod(shape)) or int(np.prod(shape)) != 1:
            raise DatasetError(
                f"{column.name} must have rows of shape {shape}, as its space has, got "
                f"{column.row_shape}"
            )
        column = column.reshaped(shape)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
        check_rows(
            column,
            lambda values: (values >= space.low) & (values <= space.high) & (values % 1 == 0),
            f"must be whole numbers in {space}",
            "give them as the environment does: pixels of bytes are not divided by 255",
        )
        return column
    if not np.issubdtype(column.dtype, np.floating):
        check_rows(column, _is_in(space, bounded), f"must be in {space}")
        return column
    check_rows(column, is_finite, "must be finite in float32")
    if not isinstance(space, spaces.Box):
        raise DatasetError(
            f"{column.name} must be integers, as its space {space} has, got dtype {column.dtype}"
        )
    if bounded:
        check_rows(
            column,
            _is_in(space, bounded),
            f"must be in the box from {space.low.min():g} to {space.high.max():g}",
            "clip them, or give the action_space that they were taken in",
        )
    return column


def _is_in(space: spaces.Space, bounded: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Return what says of each number whether the space has it."""
    low: Any
    high: Any
    if isinstance(space, spaces.Box):
        if not bounded:
            return lambda values: np.ones(values.shape, bool)
        # Half a float's digits of room: rounding on the way to a file is not the user's mistake.
        room = 1e-4 * (space.high - space.low)
        low, high = space.low - room, space.high + room
    elif isinstance(space, spaces.Discrete):
        low, high = space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    else:  # MultiBinary
        low, high = 0, 1
    return lambda values: (values >= low) & (values <= high)


def is_finite(values: np.ndarray) -> np.ndarray:
    """Say of each number whether it is finite in float32, in which it is learned from."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32))


def check_rows(
    column: Column, good: Callable[[np.ndarray], np.ndarray], rule: str, remedy: str = ""
) -> None:
    """Check each row, a chunk at a time.

    :param good: says of each number of a chunk whether it may be.
    :raises DatasetError: naming how many rows break the rule, the first of them and its value.
    """
    count, first, value = 0, -1, None
    for start, values in column.chunks():
        bad = np.flatnonzero(~good(values).reshape(len(values), -1).all(1))
        if len(bad) and count == 0:
            first, value = start + int(bad[0]), values[bad[0]]
        count += len(bad)
    if count:
        shown = np.array2string(np.asarray(value), threshold=8, precision=4)
        raise DatasetError(
            f"{column.name} {rule}; {count} of {len(column)} rows are not, the first at index "
            f"{first}: {shown}. {remedy or 'Mend or drop those rows'}"
        )


def form(space: spaces.Space) -> Any:
    """Describe what two spaces must have in common."""
    if isinstance(space, spaces.Dict):
        return {key: form(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return ("Discrete", int(space.n), int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return ("MultiDiscrete", space.nvec.tolist(), space.start.tolist())
    return (type(space).__name__, space.shape, is_image_space(space))


# ---------------------------------------------------------------------- JSON


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """Describe a space in what JSON holds."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {k: space_to_json(v) for k, v in space.spaces.items()}}
    if isinstance(space, spaces.Box):
        bounds = {"low": _compact(space.low), "high": _compact(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return {"type": "Discrete", "n": int(space.n), "start": start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        bounds = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"type": "MultiDiscrete", "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": list(space.shape)}
    raise DatasetError(f"the space {space} cannot be saved: use Box, Discrete, MultiDiscrete, Dict")


def space_from_json(text: dict[str, Any]) -> spaces.Space:
    """Make the space that :func:`space_to_json` described.

    :raises DatasetError: if it did not.
    """
    try:
        return _space_from_json(text)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise DatasetError(f"the header describes no space by {text!r}: {error!r}") from error


def _space_from_json(text: dict[str, Any]) -> spaces.Space:
    kind = text.get("type")
    if kind == "Dict":
        parts = {key: _space_from_json(part) for key, part in text["spaces"].items()}
        return spaces.Dict(OrderedDict(parts))  # of a plain dictionary it sorts the keys
    if kind == "Box":
        dtype, shape = np.dtype(text["dtype"]), tuple(text["shape"])
        low, high = (_expand(text[name], shape, dtype) for name in ("low", "high"))
        return spaces.Box(low, high, dtype=dtype.type)
    if kind == "Discrete":
        dtype = np.dtype(text.get("dtype", "int64"))
        others = {} if dtype == np.int64 else {"dtype": dtype.type}  # Gymnasium 1.0 has one alone
        return spaces.Discrete(text["n"], start=text["start"], **others)
    if kind == "MultiDiscrete":
        dtype = np.dtype(text.get("dtype", "int64"))
        return spaces.MultiDiscrete(text["nvec"], dtype.type, start=text.get("start"))
    if kind == "MultiBinary":
        shape = text["n"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    raise DatasetError(f"the header names a space of type {kind!r}, which is not known")


def _compact(bound: np.ndarray) -> Any:
    """Write a bound that all entries share once; infinities as words, for JSON has none."""
    if bound.size and (bound == bound.flat[0]).all():
        return _word(bound.flat[0])
    return [_word(value) for value in bound.ravel()]


def _word(value: Any) -> Any:
    return value.item() if np.isfinite(value) else ("inf" if value > 0 else "-inf")


def _expand(bound: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    values = np.array([float(x) if isinstance(x, str) else x for x in np.atleast_1d(
        np.array(bound, dtype=object))])  # fmt: skip
    return (
        np.broadcast_to(values if len(values) > 1 else values[0], (int(np.prod(shape)),))
        .astype(dtype)
        .reshape(shape)
    )
