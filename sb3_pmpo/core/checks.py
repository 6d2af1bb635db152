"""Refuse arguments outside their ranges, in one vocabulary: name, range, value, remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from numbers import Real
from typing import Any

from torch import nn

#: The end of a range without an end.
INFINITY = math.inf

#: The square of a larger observation or reward, or of the sum of its discounted repetitions, is no
#: float32.
LARGEST = 1e16

#: The largest weight of a loss: a larger one leaves nothing of the others in float32.
HEAVIEST = 1e9


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
    # As Python's own: beside a float32, 2**32 - 1 would be rounded.
    if not (_is_number(value, kind) and low <= kind(value) <= high):
        word = "a whole number" if kind is int else "a number"
        lower = "" if low == -INFINITY else f" >= {low}"
        # So high an end is not worth a word to who is below it.
        far = high == INFINITY or (high == HEAVIEST and not (_is_number(value, kind) and value > 1))
        upper = "" if far else f" and <= {high}"
        raise ValueError(f"{name} must be {word}{lower}{upper}, got {value!r}: {hint}")


def _is_number(value: Any, kind: type) -> bool:
    """Say whether it is a finite number, and a whole one if that is asked for."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the floats
        return False
    return math.isfinite(number) and (kind is float or number.is_integer())


def make_plain(target: Any, *names: str) -> None:
    """Turn checked numbers of other types, such as fractions, into floats that tensors take.

    :param target: whose attributes they are; it may be frozen.
    """
    for name in names:
        value = getattr(target, name)
        if isinstance(value, Real) and not isinstance(value, (int, float)):
            object.__setattr__(target, name, float(value))


def check_positive(name: str, value: Any, hint: str, high: float = HEAVIEST) -> None:
    """Check a scalar argument.

    :raises ValueError: unless ``value`` is a finite number above 0, and at most ``high``.
    """
    check_number(name, value, 0.0, high, float, hint)
    if value == 0.0:
        raise ValueError(f"{name} must be > 0, got {value!r}: {hint}")


def check_flag(name: str, value: Any, hint: str) -> bool:
    """Check an argument that is on or off, and return it as Python has it.

    :raises ValueError: unless ``value`` is True or False, of Python or of NumPy.
    """
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {value!r}: {hint}")


def written(thing: Any, without: Collection[str] = ()) -> str:
    """Write an object as its maker would: ``top_k(5)``, ``mean_score``, without an address.

    A dataclass is the call that makes it, without what is the default, and its only required
    argument without a name.

    :param without: fields of a dataclass to leave out.
    """
    if is_dataclass(thing) and not isinstance(thing, type):
        required = [each.name for each in fields(thing) if each.default is MISSING]
        given = [
            ("" if required == [each.name] else f"{each.name}=") + written(value)
            for each in fields(thing)
            if (value := getattr(thing, each.name)) != each.default and each.name not in without
        ]
        return f"{type(thing).__name__}({', '.join(given)})"
    name = getattr(thing, "__name__", "<lambda>")
    if callable(thing) and name != "<lambda>":
        return str(name)
    if isinstance(thing, nn.Module):  # which writes a line for each of its parts
        return type(thing).__name__
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


@contextmanager
def blaming(what: str, remedy: str) -> Iterator[None]:
    """Name the argument where what a user handed over fails when it is tried.

    :param what: the argument and its value.
    :param remedy: what to give instead.
    :raises ValueError: with the error that was raised, whatever it was.
    """
    try:
        yield
    except Exception as error:  # what a user's function raises can be anything
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise ValueError(f"{what} failed with {reason}. Remedy: {remedy}") from error
