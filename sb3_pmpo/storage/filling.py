"""Values that are put back into an object that is there, because others may hold it, too."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy as np

from sb3_pmpo.storage.plain import encode


class Shared:
    """Fills what a new environment holds, once each.

    A wrapper may hold the list of what it wraps: put back as two lists, it would see no change of
    the other any more. Two names may also hold one object in a new environment, and two in the one
    before, as those of the last two observations do after a reset: only the first is filled then.
    """

    def __init__(self) -> None:
        self._filled: dict[int, tuple[Any, str]] = {}

    def fill(self, present: Any, value: Any) -> bool:
        """Make what is there equal to a value, in place.

        :param present: what a new environment holds under a name.
        :param value: plain data.
        :return: whether it is equal now; else the value is to be held in its place.
        """
        if type(present) is not type(value):
            return False
        if id(present) in self._filled:
            return self._filled[id(present)][1] == as_text(value)
        filled = present is value or _fill(present, value)
        if filled:  # held, so that no other gets its id
            self._filled[id(present)] = present, as_text(value)
        return filled


def as_text(value: Any) -> str:
    """Write plain data as a text, by which two of them are compared."""
    return json.dumps(encode(value))


def _fill(present: Any, value: Any) -> bool:
    if isinstance(present, np.random.Generator):
        if type(present.bit_generator) is not type(value.bit_generator):
            return False
        present.bit_generator.state = value.bit_generator.state
    elif isinstance(present, np.random.RandomState):
        present.set_state(value.get_state())
    elif isinstance(present, np.ndarray):
        alike = (present.shape, present.dtype) == (value.shape, value.dtype)
        if not (alike and present.flags.writeable):
            return False
        present[...] = value
    elif isinstance(present, (list, deque, dict, set)):
        if isinstance(present, deque) and present.maxlen != value.maxlen:
            return False
        items = value.copy()
        present.clear()
        if isinstance(present, (dict, set)):
            present.update(items)
        else:
            present.extend(items)
    else:
        return False
    return True
