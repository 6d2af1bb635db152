"""Checks of the columns that hold one number a row, and of their lengths.

Axes: N rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_pmpo.offline.columns import Column, DatasetError
from sb3_pmpo.offline.spaces import check_rows, is_finite

ACCEPTED, UNLABELLED, REJECTED = 1, 0, -1


def check_lengths(columns: list[Column], n: int) -> None:
    """Check that every column has n rows."""
    for column in columns:
        if len(column) != n:
            raise DatasetError(
                f"all columns must have as many rows as actions, {n}, but {column.name} has "
                f"{len(column)}"
            )


def read_numbers(values: Any, name: str, n: int) -> np.ndarray | None:
    """Check a column of one number a row; it is small enough to stay in memory."""
    if values is None:
        return None
    column = Column(values, name)
    if column.row_shape == (1,):
        column = column.reshaped(())
    if column.row_shape != ():
        raise DatasetError(f"{name} must be one number a row, got rows of {column.row_shape}")
    check_lengths([column], n)
    check_rows(column, is_finite, "must be finite in float32")
    return np.array(column.array, column.dtype, subok=False)


def read_labels(values: Any, n: int) -> np.ndarray:
    """Check labels; zeros where there are none."""
    labels = read_numbers(values, "labels", n)
    if labels is None:
        return np.zeros(n, np.int8)
    if labels.dtype == bool:
        raise DatasetError(
            "labels must be 1 (accepted), -1 (rejected) or 0 (unlabelled), got booleans: write "
            "np.where(accepted, 1, -1), for False could mean either of two"
        )
    check_rows(
        Column(labels, "labels"),
        lambda part: np.isin(part, (REJECTED, UNLABELLED, ACCEPTED)),
        "must be 1 (accepted), -1 (rejected) or 0 (unlabelled)",
        "Compare scores with a threshold first, such as np.sign(advantages)",
    )
    return labels.astype(np.int8)


def check_ranges(
    dones: np.ndarray | None, weights: np.ndarray | None, whole: np.ndarray | None
) -> None:
    """Check that dones and whole are 0 or 1 and weights are not negative."""
    for name, flags in (("dones", dones), ("whole", whole)):
        if flags is not None:
            column = Column(flags, name)
            check_rows(column, lambda part: np.isin(part, (0, 1)), "must be 0 or 1")
    if weights is not None:
        check_rows(Column(weights, "weights"), lambda part: part >= 0, "must be >= 0")
        if not weights.any():
            raise DatasetError("weights must not all be 0: no row would count; leave weights out")


def episode_starts(ids: np.ndarray | None, dones: np.ndarray | None) -> np.ndarray:
    """Find the first row of each episode; refuse an episode in several places."""
    if ids is None:
        ended = np.zeros(0, np.int64) if dones is None else np.flatnonzero(dones[:-1]) + 1
        return np.concatenate(([0], ended))
    check_rows(Column(ids, "episode_ids"), lambda part: part == np.trunc(part), "must be whole")
    starts = np.concatenate(([0], np.flatnonzero(np.diff(ids)) + 1))
    names, counts = np.unique(ids[starts], return_counts=True)
    if (counts > 1).any():
        name = names[counts > 1][0]
        again = int(starts[ids[starts] == name][1])
        raise DatasetError(
            f"episode_ids must be one block a number, but {(counts > 1).sum()} of them come back, "
            f"the first being {name} at index {again}: sort the rows by episode, or number anew "
            "the episodes of data sets that were joined"
        )
    if dones is not None:
        last = np.zeros(len(ids), bool)
        last[np.concatenate((starts[1:] - 1, [len(ids) - 1]))] = True
        inside = np.flatnonzero((dones > 0) & ~last)
        if len(inside):
            raise DatasetError(
                f"dones must be 1 at the last row of an episode only, but {len(inside)} rows "
                f"inside episodes have it, the first at index {inside[0]}: give each episode an id "
                "of its own"
            )
    return starts
