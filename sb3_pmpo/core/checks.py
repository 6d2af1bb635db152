"""Refuse numbers outside their ranges, in one vocabulary: name, range, value, remedy."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

#: The end of a range without an end.
INFINITY = math.inf


def check_number(name: str, value: Any, low: float, high: float, kind: type, hint: str) -> None:
    """Check a scalar argument.

    :param name: of the argument.
    :param value: what was given.
    :param low: the lowest value allowed.
    :param high: the highest; :data:`INFINITY` for none.
    :param kind: ``int`` for whole numbers, else ``float``.
    :param hint: what the argument means, and what is usual.
    :raises ValueError: unless ``value`` is a finite number of that kind in ``[low, high]``.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    whole = is_number and (kind is float or float(value).is_integer())
    if not (whole and low <= value <= high and math.isfinite(value)):
        word = "a whole number" if kind is int else "a number"
        lower = "" if low == -INFINITY else f" >= {low}"
        upper = "" if high == INFINITY else f" and <= {high}"
        raise ValueError(f"{name} must be {word}{lower}{upper}, got {value!r}: {hint}")


def check_positive(name: str, value: Any, hint: str) -> None:
    """Check a scalar argument.

    :raises ValueError: unless ``value`` is a finite number above 0.
    """
    check_number(name, value, 0.0, INFINITY, float, hint)
    if value == 0.0:
        raise ValueError(f"{name} must be > 0, got {value!r}: {hint}")
