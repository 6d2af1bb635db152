"""Environments: the DeepMind Control Suite through shimmy, ready for SB3."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

#: The Zoo's notation for wrappers: ``[{"package.module.name": {arguments}}, ...]``.
Wrappers = Sequence[dict[str, dict[str, Any]]]


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


def control_suite(env: gym.Env, action_repeat: int = 1) -> gym.Env:
    """Make a Control Suite environment fit for SB3; usable as a Zoo ``env_wrapper``.

    Its observations are a Dict of float64 with 0-d entries, which no SB3 policy takes.

    :param env: as ``gymnasium.make("dm_control/...")`` returns it.
    :param action_repeat: how often each action is applied.
    :return: the environment with flat float32 observations.
    """
    env = gym.wrappers.FlattenObservation(env)
    # Not gymnasium's DtypeObservation, which warns about the bounds of every task.
    bounds = env.observation_space
    assert isinstance(bounds, gym.spaces.Box)  # by construction: it was just flattened
    space = gym.spaces.Box(bounds.low.astype(np.float32), bounds.high.astype(np.float32))
    env = gym.wrappers.TransformObservation(env, _to_float32, space)
    return ActionRepeat(env, action_repeat) if action_repeat > 1 else env


def _to_float32(observation: np.ndarray) -> np.ndarray:
    return observation.astype(np.float32)


def make_env(env_id: str, wrappers: Wrappers = (), **kwargs: Any) -> gym.Env:
    """Make an environment by its id and wrap it, in this process or a SubprocVecEnv's child.

    :param env_id: a Gymnasium id; ``dm_control/<domain>-<task>-v0`` needs no import of shimmy.
    :param wrappers: applied in order.
    :param kwargs: passed on to ``gymnasium.make``.
    """
    if env_id.startswith("dm_control/"):
        import shimmy  # noqa: F401  # importing it registers the ids
    env = gym.make(env_id, **kwargs)
    for entry in wrappers:
        for path, arguments in entry.items():
            module, _, name = path.rpartition(".")
            env = getattr(importlib.import_module(module), name)(env, **arguments)
    return env


def action_repeat_of(wrappers: Wrappers) -> int:
    """Return how many environment steps one decision takes under these wrappers."""
    repeats = 1
    for entry in wrappers:
        for path, arguments in entry.items():
            if path == f"{__name__}.control_suite":
                repeats *= arguments.get("action_repeat", 1)
            elif path == f"{__name__}.ActionRepeat":
                repeats *= arguments["n_repeats"]
    return repeats
