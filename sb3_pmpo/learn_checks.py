"""Refuse arguments of learning that are no numbers of steps, or no callbacks."""

from __future__ import annotations

from numbers import Real
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_pmpo.core.checks import INFINITY, check_number


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number; 1e5 is one.

    :raises TypeError: if it is no number.
    :raises ValueError: if it is not whole, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a whole number >= {least}, got {value!r}")
    check_number(name, value, least, INFINITY, int, "1e5 is one, too")


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
