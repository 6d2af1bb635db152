"""What a policy's file may hold: its header and its tensors, checked before they are used.

A file comes from anywhere. What passes here has the types, sizes and finite numbers that the rest
of the package relies on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch as th


class PretrainedError(ValueError):
    """A policy that is not there, or cannot be used as asked; the message is for who asked."""


class Score(NamedTuple):
    """Mean return over episodes, with a bootstrap interval.

    :param mean: of the returns, undiscounted, the environment's own.
    :param low: lower end of the interval.
    :param high: upper end.
    :param episodes: number of episodes.
    :param seed: of the first episode; the others follow one by one.
    :param confidence: of the interval.
    """

    mean: float
    low: float
    high: float
    episodes: int
    seed: int
    confidence: float = 0.95

    def __str__(self) -> str:
        return (
            f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}] "
            f"({self.confidence:.0%} interval, {self.episodes} episodes)"
        )


#: Algorithms and policies that a header may name.
ALGORITHMS = ("PMPO", "MPO", "DPO")
POLICIES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")

#: Characters of a header; the ones that ship have three thousand.
_LONGEST = 1_000_000
#: Lists within lists; a Dict of spaces needs ten.
_DEEPEST = 40
#: Numbers of an array that the header tells; an image of 480 x 640 x 3 has a million.
_LARGEST_ARRAY = 2**20
#: The largest whole number of ``policy_kwargs``, such as the width of a layer.
_LARGEST_NUMBER = 2**13
#: Weights that inputs, choices, widths and the number of critics can come to: 1 GB.
_MOST_WEIGHTS = 2**28
#: What a policy's arguments and spaces are told by; nothing that holds state or a pickle.
_TAGS = {":array:", ":dict:", ":dtype:", ":member:", ":name:", ":object:", ":ordered:",
         ":record:", ":scalar:", ":set:", ":space:", ":tuple:"}  # fmt: skip
#: ``module:namespace/name``, which begins with no dot and so is no way out of a folder.
_ENV = re.compile(r"(\w[\w.]*:)?(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_env(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200 and _ENV.fullmatch(value) is not None


def _is_wrapper(value: Any) -> bool:
    """Say whether it is what the Zoo takes: a name, a dictionary of arguments, or a list."""
    return (
        value is None
        or isinstance(value, str | dict)
        or (isinstance(value, list) and all(isinstance(one, str | dict) for one in value))
    )


def _is_score(value: Any) -> bool:
    if value is None:
        return True
    fields = {*Score._fields}
    return (
        isinstance(value, dict)
        and fields - {"confidence"} <= value.keys() <= fields
        and all(_is_number(number) for number in value.values())
        and _is_whole(value["episodes"])
        and _is_whole(value["seed"])
    )


def _is_curve(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(
            isinstance(point, list) and len(point) >= 2 and all(map(_is_number, point))
            for point in value
        )
    )


def _or_none(kind: type) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, kind) and not isinstance(value, bool))


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


#: Check, and what to say of what fails it.
_REQUIRED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "env": (_is_env, "the name of an environment, such as 'Pendulum-v1'"),
    "env_wrapper": (_is_wrapper, "a list of wrappers"),
    "env_kwargs": (_is(dict), "a dictionary"),
    "algorithm": (lambda value: value in ALGORITHMS, f"one of {', '.join(ALGORITHMS)}"),
    "policy": (lambda value: value in POLICIES, f"one of {', '.join(POLICIES)}"),
    "policy_kwargs": (_is(dict), "a dictionary"),
    "observation_space": (_is(dict), "a space"),
    "action_space": (_is(dict), "a space"),
}
_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "score": (_is_score, f"a dictionary of {', '.join(Score._fields)}"),
    "curve": (_is_curve, "a list of pairs (steps, return)"),
    "steps": (_or_none(int), "a whole number"),
    "seed": (_or_none(int), "a whole number"),
    "command": (_or_none(str), "text"),
}


def parse(text: str) -> Any:
    """Read a header's JSON.

    :raises PretrainedError: for what is too large, too deep, or no JSON.
    """
    if len(text) > _LONGEST:
        raise PretrainedError(
            f"the header must have at most {_LONGEST} characters, got {len(text)}"
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f"the header is no JSON that can be read: {error}") from error


def check_header(told: Mapping[str, Any]) -> None:
    """Check types, sizes and numbers of a header.

    :raises PretrainedError: naming the entry, its value and what it must be.
    """
    for name, (is_right, what) in {**_REQUIRED, **_OPTIONAL}.items():
        if name in _REQUIRED and name not in told:
            raise PretrainedError(f"the header must have {name!r}: {what}")
        if name in told and not is_right(told[name]):
            raise PretrainedError(f"the header's {name} must be {what}, got {_short(told[name])}")
    for name, value in told.items():
        _check_plain(value, name, _DEEPEST)
    arrays = [1]
    for name in ("observation_space", "action_space"):
        _check_told(told[name], name, arrays)
    widths = [1]
    _check_told(told["policy_kwargs"], "policy_kwargs", [], widths)
    critics = told["policy_kwargs"].get("n_critics", 1)
    most = (max(arrays) + sum(widths)) * max(widths) * (critics if _is_whole(critics) else 1)
    if most > _MOST_WEIGHTS:
        raise PretrainedError(
            f"the header asks for up to {most} weights: at most {_MOST_WEIGHTS} are read"
        )


def _check_plain(value: Any, where: str, depth: int) -> None:
    """Check that what lies within is finite, and not too deep; bounds may be infinite."""
    if depth == 0:
        raise PretrainedError(f"the header's {where} must have at most {_DEEPEST} levels")
    if isinstance(value, int | float) and not (_is_float(value) and math.isfinite(value)):
        raise PretrainedError(f"the header's {where} must be finite, got {_short(value)}")
    if isinstance(value, dict):
        for key, item in value.items():
            if key != ":array:":
                _check_plain(item, where, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, where, depth - 1)


def _check_told(value: Any, where: str, sizes: list[int], widths: list[int] | None = None) -> None:
    """Check what :func:`sb3_pmpo.storage.plain.decode` will make, before it does.

    :param sizes: gets the sizes of arrays, and the numbers of choices.
    :param widths: gets the whole numbers; None for a space, which has its own.
    """
    if isinstance(value, list):
        for item in value:
            _check_told(item, where, sizes, widths)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == ":array:":
                sizes.append(_array_size(item, where))
            elif key.startswith(":") and key not in _TAGS:
                raise PretrainedError(f"the header's {where} holds {key!r}, which no policy has")
            else:
                if key == "n" and _is_whole(item):  # of Discrete and MultiBinary
                    sizes.append(item)
                _check_told(item, where, sizes, widths)
    elif widths is not None and _is_whole(value):
        if abs(value) > _LARGEST_NUMBER:
            raise PretrainedError(
                f"the header's {where} must have whole numbers of at most {_LARGEST_NUMBER}, got "
                f"{_short(value)}"
            )
        widths.append(abs(value))


def _array_size(told: Any, where: str) -> int:
    """Return how many numbers an array has.

    :raises PretrainedError: if it is none, or too large.
    """
    if not (isinstance(told, list) and len(told) == 3 and isinstance(told[0], str)):
        raise PretrainedError(f"the header's {where} holds an array that cannot be read")
    _, shape, entries = told
    if not (isinstance(shape, list) and all(_is_whole(n) and n >= 0 for n in shape)):
        raise PretrainedError(f"the header's {where} holds an array of shape {_short(shape)}")
    size = math.prod(shape)
    if size > _LARGEST_ARRAY or len(shape) > 32:
        raise PretrainedError(
            f"the header's {where} holds an array of shape {_short(shape)}: at most "
            f"{_LARGEST_ARRAY} numbers are read"
        )
    if not (isinstance(entries, list) and len(entries) in (1, size)):
        raise PretrainedError(f"the header's {where} holds an array without its {size} entries")
    if not all(isinstance(x, int | float) and _is_float(x) for x in entries):
        raise PretrainedError(f"the header's {where} holds an array of what are no numbers")
    if told[0].lstrip("<>|=")[:1] not in ("b", "i", "u", "f") or len(told[0]) > 4:
        raise PretrainedError(f"the header's {where} holds an array of {_short(told[0])}")
    return size


def _is_float(value: int | float) -> bool:
    """Say whether a float can hold it: JSON has whole numbers of any length."""
    try:
        return not math.isnan(float(value))
    except OverflowError:
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_tensors(tensors: Mapping[str, th.Tensor]) -> None:
    """Check that the numbers of a policy are finite, and variances and counts not negative.

    :raises PretrainedError: naming the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_complex() or (
            tensor.is_floating_point() and not bool(tensor.float().isfinite().all())
        ):
            raise PretrainedError(
                f"the policy's {name} must be finite numbers: the file is damaged, or was saved "
                "from a run that had diverged"
            )
        part = name.rpartition(".")[2]
        if part in ("var", "running_var", "count") and bool((tensor.float() < 0.0).any()):
            raise PretrainedError(
                f"the policy's {name} must be >= 0, got {float(tensor.min())}: the file is damaged"
            )
