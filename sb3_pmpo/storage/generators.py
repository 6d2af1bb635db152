"""The generators of a process that everything in it may draw from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch as th


def get_generators() -> dict[str, Any]:
    """Tell the state of Python's, NumPy's and torch's generator, as plain data."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": th.get_rng_state().numpy(),
    }


def set_generators(state: dict[str, Any]) -> None:
    """Put back what :func:`get_generators` told."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    th.set_rng_state(th.from_numpy(state["torch"]))
