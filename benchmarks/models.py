"""Tasks and algorithms as every benchmark gets them.

The environments are the same for all. This package's algorithms have the setting that ships for the
task (zoo_configs), those of others their defaults.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from benchmarks.suites import Arguments

#: What an algorithm's name starts with, and its class. No library is imported before it is needed.
CLASSES = {
    "PMPO": "sb3_pmpo:PMPO",
    "MPO": "sb3_pmpo:MPO",
    "DPO": "sb3_pmpo:DPO",
    "SAC": "stable_baselines3:SAC",
    "TD3": "stable_baselines3:TD3",
    "PPO": "stable_baselines3:PPO",
    "DQN": "stable_baselines3:DQN",
    "QR-DQN": "sb3_contrib:QRDQN",
    "TQC": "sb3_contrib:TQC",
    "CrossQ": "sb3_contrib:CrossQ",
    "SBX-SAC": "sbx:SAC",
    "SBX-CrossQ": "sbx:CrossQ",
}
#: Those that take no MultiDiscrete actions.
FLAT = ("DQN", "QR-DQN")


def base_of(algorithm: str) -> str:
    """Return which of ``CLASSES`` an algorithm's name starts with."""
    found = [name for name in CLASSES if f"{algorithm}-".startswith(f"{name}-")]
    if not found:
        raise ValueError(f"{algorithm!r} must start with one of {', '.join(CLASSES)}")
    return max(found, key=len)


def algorithm_class(algorithm: str) -> Any:
    """Return the class that an algorithm's name starts with."""
    module, _, name = CLASSES[base_of(algorithm)].partition(":")
    return getattr(importlib.import_module(module), name)


class Forces(gym.ActionWrapper):
    """A few forces for each actuator of a Box of actions, as MultiDiscrete or as one Discrete."""

    def __init__(self, env: gym.Env, n_forces: int, flat: bool) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, spaces.Box)
        self.levels = np.linspace(env.action_space.low, env.action_space.high, n_forces)
        self.flat = flat
        self.sizes = [n_forces] * env.action_space.shape[0]
        self.action_space = (
            spaces.Discrete(int(np.prod(self.sizes))) if flat else spaces.MultiDiscrete(self.sizes)
        )

    def action(self, action: Any) -> np.ndarray:
        """Look up the forces."""
        index = np.unravel_index(action, self.sizes) if self.flat else action
        return self.levels[np.asarray(index).astype(int), np.arange(len(self.sizes))]


def env_id_of(task: str) -> str:
    """Return Gymnasium's id of a task: itself, or that of a task of the Control Suite."""
    name = task.partition("@")[0]
    return name if re.search(r"-v\d+$", name) else f"dm_control/{name}-v0"


def make_task(task: str, action_repeat: int, algorithm: str = "PMPO") -> gym.Env:
    """Make a task as an algorithm gets it; see :mod:`benchmarks.suites` for its name."""
    from sb3_pmpo.envs import ActionRepeat, control_suite, make_env

    env_id = env_id_of(task)
    env = make_env(env_id)
    if env_id.startswith("dm_control/"):
        env = control_suite(env, action_repeat)
    elif action_repeat > 1:
        env = ActionRepeat(env, action_repeat)
    forces = task.partition("@")[2]
    return Forces(env, int(forces), base_of(algorithm) in FLAT) if forces else env


def make_model(algorithm: str, task: str, env: Any, seed: int, arguments: Arguments) -> Any:
    """Make an algorithm with its shipped setting and, over it, the arguments of a variant."""
    from sb3_pmpo.tools.settings import SETTINGS, load_config, merge, to_arguments

    shipped: Arguments = {}
    if base_of(algorithm).lower() in ("pmpo", "mpo", "dpo"):
        shipped = load_config(env_id_of(task))
    # The suite sets wrappers and length itself, the same for all.
    merged = merge(shipped, {"policy": "MlpPolicy"}, arguments)
    policy = merged["policy"]
    settings = to_arguments({key: merged[key] for key in merged.keys() - set(SETTINGS)})
    return algorithm_class(algorithm)(policy, env, seed=seed, device="cpu", **settings)


def run_episodes(model: Any, env: Any, seeds: Iterable[int]) -> list[float]:
    """Run the policy's deterministic action for one episode a seed; return the returns."""
    returns = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns
