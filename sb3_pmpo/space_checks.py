"""Refuse spaces that cannot be learned in, with what to do about it.

Axes: A action dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

#: Choices of a discrete dimension: each has an entry in a one-hot code and a logit.
MOST_CHOICES = 1_000_000

_OBSERVATIONS = "a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict of them"


def check_observation_space(space: Any) -> None:
    """Check the space of the observations.

    :raises ValueError: if the networks or the replay buffer cannot take what it holds.
    """
    if not isinstance(space, spaces.Dict):
        _check_part("the observation space", space)
        return
    if not space.spaces:
        raise ValueError(
            f"the observation space must not be empty, got {space}: a policy needs at least one "
            "number to see; add a key"
        )
    for key, part in space.spaces.items():
        name = f"the observation space's key {key!r}"
        if isinstance(part, (spaces.Dict, spaces.Tuple)):
            raise ValueError(
                f"{name} must not be nested, got {part}: flatten it, for example with "
                "gymnasium.wrappers.FlattenObservation"
            )
        _check_part(name, part)


def _check_part(name: str, space: Any) -> None:
    if not isinstance(
        space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    ):
        raise ValueError(
            f"{name} must be {_OBSERVATIONS}, got {space}: turn it into one of them in a wrapper "
            "(gymnasium.wrappers.TransformObservation, or FlattenObservation)"
        )
    _check_entries(name, space)
    if isinstance(space, spaces.Box) and space.shape == ():
        raise ValueError(
            f"{name} must have an axis, got {space}: use shape (1,) and return an array of one "
            "number"
        )


def _check_entries(name: str, space: spaces.Space) -> None:
    """Refuse no entries at all, too many choices, and tables of choices."""
    if space.shape is not None and 0 in space.shape:
        raise ValueError(f"{name} must have entries, got {space}: leave out what is empty")
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        raise ValueError(f"{name}, a MultiDiscrete, must have one axis, got {space}: flatten it")
    choices = 0
    if isinstance(space, spaces.Discrete):
        choices = int(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        choices = int(space.nvec.sum())
    if choices > MOST_CHOICES:
        raise ValueError(
            f"{name} must have at most {MOST_CHOICES} choices, got {space}: each has an entry in "
            "a one-hot code; describe them by numbers in a Box"
        )


def check_action_space(space: Any) -> None:
    """Check the space of the actions.

    :raises ValueError: unless it is a Box of floats with bounds that can be mapped to [-1, 1], or
        Discrete or MultiDiscrete from 0.
    """
    name = "the action space"
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)):
        raise ValueError(
            f"{name} must be a bounded Box, Discrete or MultiDiscrete, got {space}: turn it into "
            "one of them in a wrapper; MultiBinary(n) is MultiDiscrete([2] * n)"
        )
    _check_entries(name, space)
    if isinstance(space, spaces.Box):
        _check_bounds(name, space)
    elif np.any(np.asarray(space.start) != 0):
        raise ValueError(
            f"the action space must start at 0, got {space}: Stable-Baselines3 stores and predicts "
            "actions from 0; shift them in a wrapper (gymnasium.wrappers.TransformAction)"
        )


def _check_bounds(name: str, space: spaces.Box) -> None:
    if space.shape == ():
        raise ValueError(f"{name} must have an axis, got {space}: use shape (1,)")
    if space.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"{name}, a Box, must be of float32 or float64, got {space}: the policy's actions are "
            "such numbers; use Discrete or MultiDiscrete for choices, or convert in a wrapper "
            "(gymnasium.wrappers.TransformAction)"
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"{name} must have finite bounds, got {space}: the policy acts between them; set them "
            "with gymnasium.wrappers.TransformAction(env, lambda action: action, "
            f"gymnasium.spaces.Box(-1.0, 1.0, {space.shape}))"
        )
    with np.errstate(over="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    wrong = np.flatnonzero(~(np.isfinite(width) & (width >= np.finfo(np.float32).tiny)).ravel())
    if len(wrong):
        low, high = space.low.ravel()[wrong[0]], space.high.ravel()[wrong[0]]
        raise ValueError(
            f"{name} must have low < high in each dimension, and a range that float32 can hold, "
            f"got [{low:g}, {high:g}] in dimension {wrong[0]} of {space}: leave out a dimension "
            "that is fixed, and set bounds that the task needs (gymnasium.wrappers.TransformAction)"
        )


# ---------------------------------------------------------------------- observations


def check_observation(observation: Any, space: spaces.Space) -> None:
    """Check what a policy is to act on.

    :param observation: an array, or a dict of arrays, of one state or of several.
    :param space: of the observations.
    :raises ValueError: naming the key and the value of what is missing, no number, NaN or infinite,
        or no choice of its space.
    """
    for name, part, of_part in _named_parts(observation, space):
        array = np.asarray(part)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be of numbers, got {part!r}: {of_part} has no other")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"{name} must be finite, got {array}: mend the environment; "
                "stable_baselines3.common.vec_env.VecCheckNan finds where it begins"
            )
    wrong = wrong_choice(observation, space)
    if wrong is not None:
        raise ValueError(f"{wrong}: give what the environment's observation space has")


def _named_parts(observation: Any, space: spaces.Space) -> Iterator[tuple[str, Any, spaces.Space]]:
    """Yield a name for messages, the value and the space of each part of an observation."""
    if not isinstance(space, spaces.Dict) or not isinstance(observation, Mapping):
        yield "the observation", observation, space
        return
    for key, part in space.spaces.items():
        if key not in observation:
            raise ValueError(
                f"the observation must have the key {key!r}, got {list(observation)}: its space is "
                f"{space}"
            )
        yield f"the observation's {key!r}", observation[key], part


def wrong_choice(observation: Any, space: spaces.Space) -> str | None:
    """Say which choice of an observation its space does not have; None where all are right.

    A one-hot code cannot be made of it. A Box is not looked at.

    :param observation: numbers, of one state or of several, or a dict of them.
    :param space: of the observations.
    """
    for name, part, of_part in _named_parts(observation, space):
        if isinstance(of_part, spaces.MultiBinary):
            low, size = np.array(0), np.array(2)
        elif isinstance(of_part, spaces.Discrete):
            low, size = np.asarray(of_part.start), np.asarray(of_part.n)
        elif isinstance(of_part, spaces.MultiDiscrete):
            low, size = of_part.start, of_part.nvec
        else:
            continue
        array = np.asarray(part)
        if low.shape not in ((), array.shape[-1:]):
            continue  # SB3 names the shapes
        if not ((array >= low) & (array < low + size) & (array == np.floor(array))).all():
            high = (low + size - 1).tolist()
            return f"{name} must be whole numbers from {low} to {high}, of {of_part}, got {array}"
    return None


def first_observations(space: spaces.Space, number: int) -> Any:
    """Make that many observations of the lowest values, as environments would give them.

    :return: ``[number, ...]``, or a dict of such.
    """
    if isinstance(space, spaces.Dict):
        return {key: first_observations(part, number) for key, part in space.spaces.items()}
    lowest: Any = 0
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        lowest = space.start
    elif isinstance(space, spaces.Box):
        lowest = np.clip(0, space.low, space.high)
    return np.full((number, *(space.shape or ())), lowest, space.dtype)
