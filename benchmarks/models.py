"""Tasks and algorithms as every benchmark gets them.

The environments are the same for all: Control Suite tasks at one action repeat. SB3's algorithms
have their defaults, this package's the setting that ships for the task (zoo_configs).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from benchmarks.suites import Arguments


def algorithm_class(algorithm: str) -> Any:
    """Return the class that an algorithm's name starts with."""
    from stable_baselines3 import SAC, TD3

    from sb3_pmpo import DPO, MPO, PMPO

    return {"PMPO": PMPO, "MPO": MPO, "DPO": DPO, "SAC": SAC, "TD3": TD3}[algorithm.split("-")[0]]


def make_task(task: str, action_repeat: int) -> Any:
    """Make a Control Suite task as every algorithm gets it."""
    from sb3_pmpo.envs import control_suite, make_env

    name = f"{control_suite.__module__}.control_suite"
    return make_env(f"dm_control/{task}-v0", [{name: {"action_repeat": action_repeat}}])


def make_model(algorithm: str, task: str, env: Any, seed: int, arguments: Arguments) -> Any:
    """Make an algorithm with its shipped setting and, over it, the arguments of a variant."""
    from sb3_pmpo.tools.settings import SETTINGS, load_config, to_arguments

    base = algorithm.split("-")[0]
    settings: Arguments = {}
    if base in {"PMPO", "MPO", "DPO"}:
        shipped = load_config(base.lower(), f"dm_control/{task}-v0")
        # The harness sets the others itself, the same for every algorithm.
        settings = {key: shipped[key] for key in shipped.keys() - set(SETTINGS)}
    # SB3 adds to policy_kwargs.
    settings = to_arguments(settings | copy.deepcopy(arguments))
    return algorithm_class(algorithm)("MlpPolicy", env, seed=seed, device="cpu", **settings)


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
