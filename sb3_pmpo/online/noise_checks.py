"""Try the noises that a user hands over, before they meet an environment.

Axes: E environments, A action dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.preprocessing import get_action_dim

from sb3_pmpo.core.checks import blaming, written


def check_action_noise(noise: Any, space: spaces.Space) -> None:
    """Check the noise that is added to actions, by a draw from a copy of it.

    :param noise: the argument ``action_noise``.
    :param space: of the actions.
    :raises ValueError: naming ``action_noise`` and what is wrong with it.
    """
    if noise is None:
        return
    if not isinstance(noise, ActionNoise):
        raise ValueError(
            f"action_noise must be an ActionNoise or None, got {noise!r}: "
            "stable_baselines3.common.noise.NormalActionNoise is one"
        )
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"action_noise is added to the actions of a Box, but the action space is {space}: "
            "leave it out; the policy explores by sampling"
        )
    one = noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise
    remedy = f"give a mean and a sigma of shape {space.shape}"
    with blaming(f"action_noise={noise}", remedy), numpy_generator_kept():
        drawn = np.asarray(copy.deepcopy(one)())
        wrong = not _is_finite(drawn)
    if drawn.shape != space.shape and not drawn.size == get_action_dim(space) == 1:
        raise ValueError(
            f"action_noise must draw noise of the actions' shape {space.shape}, got {drawn.shape} "
            f"from {noise}: {remedy}"
        )
    if wrong:
        raise ValueError(f"action_noise must draw finite noise, got {drawn} from {noise}: {remedy}")


def for_environments(noise: ActionNoise | None, n_envs: int) -> ActionNoise | None:
    """Return the noise with a process for each of E environments, where there are several.

    A loaded model may have it for another number of environments.
    """
    if isinstance(noise, VectorizedActionNoise):
        if len(noise.noises) == n_envs:
            return noise
        noise = noise.base_noise
    return noise if noise is None or n_envs == 1 else VectorizedActionNoise(noise, n_envs)


def check_noise_factory(factory: Any, n_envs: int, space: spaces.Space) -> None:
    """Check the exploration noise, by a draw from one that is made for this.

    :param factory: the argument ``exploration_noise``.
    :param n_envs: E.
    :param space: of the actions; noise is drawn for a Box only.
    :raises ValueError: naming ``exploration_noise`` and what is wrong with it.
    """
    if factory is None:
        return
    remedy = "sb3_pmpo.online.exploration.pink_noise is one"
    if not callable(factory):
        raise ValueError(
            f"exploration_noise must be a function of (n_envs, action_dim, seed) or None, got "
            f"{written(factory)}: {remedy}"
        )
    if not isinstance(space, spaces.Box):
        return
    shape = (n_envs, get_action_dim(space))
    with blaming(f"exploration_noise={written(factory)}", remedy), numpy_generator_kept():
        made = factory(*shape, 0)
        drawn = made()
        made.reset(0)
    check_drawn(drawn, shape, factory)


def check_drawn(drawn: Any, shape: tuple[int, ...], source: Any) -> None:
    """Check what the exploration noise has drawn.

    :param drawn: the noise.
    :param shape: ``(E, A)``.
    :param source: what has drawn it, to show.
    :raises ValueError: unless it is an array of that shape, of finite numbers.
    """
    shown = np.shape(drawn) if isinstance(drawn, np.ndarray) else repr(drawn)
    if not isinstance(drawn, np.ndarray) or drawn.shape != shape:
        raise ValueError(
            f"exploration_noise must draw an array of shape (n_envs, action_dim) = {shape}, got "
            f"{shown} from {source}: mend its __call__"
        )
    if not _is_finite(drawn):
        raise ValueError(
            f"exploration_noise must draw finite numbers, got {drawn} from {source}: mend its "
            "__call__"
        )


def _is_finite(drawn: np.ndarray) -> bool:
    """Say whether all of it is a finite number; of what is no number, too."""
    return np.issubdtype(drawn.dtype, np.number) and bool(np.isfinite(drawn).all())


@contextmanager
def numpy_generator_kept() -> Iterator[None]:
    """Leave NumPy's global generator as it was, so that a trial changes no seeded run."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
