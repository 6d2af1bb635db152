"""Observations as columns of a table: one, or one for each key of a Dict space.

Axes: K rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_pmpo.offline.columns import Column, DatasetError


def column_name(key: str) -> str:
    """Name the column of a key of a Dict, or of an observation that is none (``""``)."""
    return f"observations/{key}" if key else "observations"


def by_name(observations: Any) -> dict[str, np.ndarray]:
    """Spread observations over columns."""
    if isinstance(observations, dict):
        return {column_name(key): values for key, values in observations.items()}
    return {"observations": observations}


def observations_of(columns: dict[str, np.ndarray]) -> Any:
    """Gather observations from their columns."""
    if "observations" in columns:
        return columns["observations"]
    prefix = column_name(" ")[:-1]
    return {
        name.removeprefix(prefix): values
        for name, values in columns.items()
        if name.startswith(prefix)
    }


def stack(observations: Any, space: spaces.Space) -> Any:
    """Bring K observations to arrays ``[K, ...]``: of a Dict space, one a key."""
    if not isinstance(space, spaces.Dict):
        return Column(observations, "observations").array
    if isinstance(observations, dict):
        return {key: Column(values, column_name(key)).array for key, values in observations.items()}
    keys = space.spaces.keys()
    rows = observations if isinstance(observations, (list, tuple)) else [observations]
    strange = [seen for seen in rows if not isinstance(seen, Mapping)]
    if strange:
        raise DatasetError(
            f"the observation must be a dictionary with the keys {sorted(keys)}, as its space "
            f"{space} has, got {strange[0]!r}"
        )
    missing = [key for seen in rows for key in keys if key not in seen]
    if missing:
        raise DatasetError(f"the observation lacks {missing[0]!r}, which its space {space} has")
    return {key: Column([seen[key] for seen in rows], column_name(key)).array for key in keys}


def head(observations: Any, n: int) -> Any:
    """Return the first n of them."""
    if isinstance(observations, dict):
        return {key: values[:n] for key, values in observations.items()}
    return observations[:n]
