"""Refuse arguments of learning that are no numbers of steps, or no callbacks."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number; 1e5 is one.

    :raises TypeError: if it is no number.
    :raises ValueError: if it is not whole, or too small.
    """
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    if isinstance(value, bool) or not is_number:
        raise TypeError(f"{name} must be a whole number >= {least}, got {value!r}")
    if not (value >= least and float(value).is_integer()):
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_callback(callback: Any) -> None:
    """Refuse what SB3 would call in vain.

    :raises TypeError: if it is neither a callback, a list of them, a function, nor None.
    """
    if isinstance(callback, list):
        wrong = [each for each in callback if not isinstance(each, BaseCallback)]
    elif callback is None or isinstance(callback, BaseCallback):
        wrong = []
    else:
        wrong = [] if callable(callback) and not isinstance(callback, type) else [callback]
    if wrong:
        raise TypeError(
            "callback must be a BaseCallback, a list of them, a function of locals and globals, or "
            f"None, got {wrong[0]!r}"
        )
