"""The DeepMind Control Suite through shimmy, ready for SB3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np


class ActionRepeat(gym.Wrapper):
    """Apply each action several times and sum the rewards; stop early at an episode's end.

    :param env: the environment.
    :param n_repeats: how often, >= 1.
    """

    def __init__(self, env: gym.Env, n_repeats: int) -> None:
        super().__init__(env)
        if n_repeats < 1:
            raise ValueError(f"n_repeats must be at least 1, got {n_repeats}")
        self.n_repeats = n_repeats

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step ``n_repeats`` times with one action."""
        total = 0.0
        for _ in range(self.n_repeats):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def make_env(env_id: str, *, action_repeat: int = 1, **kwargs: Any) -> gym.Env:
    """Make any registered environment; those of the Control Suite get flat float32 observations.

    :param env_id: a Gymnasium id; ``dm_control/<domain>-<task>-v0`` needs no import of shimmy.
    :param action_repeat: how often each action is applied.
    :param kwargs: passed on to ``gymnasium.make``.
    """
    if env_id.startswith("dm_control/"):
        import shimmy  # noqa: F401  # registers the ids, in a SubprocVecEnv's child too

        env = gym.make(env_id, **kwargs)
        # Observations are a Dict of float64 with 0-d entries; float64 would double the buffer.
        env = gym.wrappers.FlattenObservation(env)
        env = gym.wrappers.DtypeObservation(env, np.float32)
    else:
        env = gym.make(env_id, **kwargs)
    return ActionRepeat(env, action_repeat) if action_repeat > 1 else env


def env_factory(env_id: str, *, action_repeat: int = 1, **kwargs: Any) -> Callable[[], gym.Env]:
    """Return a picklable function that makes the environment; see :func:`make_env`."""
    import functools

    return functools.partial(make_env, env_id, action_repeat=action_repeat, **kwargs)
