"""Toys for environments and training runs in other processes, which import them from here."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from toys import DictToy, Toy

from sb3_pmpo.storage.environment_state import register_environment

register_environment(Toy)  # a run that goes on, goes on within an episode


class WorkerToy(Toy):
    """Toy that can be looked into, and that fails or dies when it is told to.

    :param length: steps of an episode; every other one ends by termination.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # as Gymnasium wants it
    render_mode: str | None = "rgb_array"
    level = 0

    def __init__(self, length: int = 4) -> None:
        super().__init__(length=length)
        self.closed_in: str | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        observation, _ = super().reset(seed=seed)
        self.terminates = not self.terminates
        return observation, {"seed": seed, "options": options}

    def step(self, action: np.ndarray) -> Any:
        if action[0] > 2:
            raise ArithmeticError(f"an action of {action[0]}")
        if action[0] < -2:
            self.die()
        action *= 1.0  # a worker may write into what it gets
        return super().step(action)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def pid(self) -> int:
        return os.getpid()

    def add(self, one: int, *, other: int) -> int:
        return one + other + self.level

    def observed(self) -> np.ndarray:
        return self._x

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.step_in_episode, np.uint8)


class TupleToy(gym.ObservationWrapper):
    """Toy with a Tuple observation."""

    def __init__(self, env: Toy) -> None:
        super().__init__(env)
        self.observation_space = spaces.Tuple((env.observation_space, spaces.Discrete(3)))

    def observation(self, observation: np.ndarray) -> tuple[np.ndarray, int]:
        return observation, int(observation[0] > 0)


def box_toy() -> gym.Env:
    return WorkerToy()


def monitored_toy() -> gym.Env:
    return Monitor(Toy())


def dict_toy() -> gym.Env:
    return DictToy(WorkerToy())


def tuple_toy() -> gym.Env:
    return TupleToy(WorkerToy())


class SlowToy(Toy):
    """Toy that leaves time to be killed in."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.pause = pause

    def step(self, action: np.ndarray) -> Any:
        time.sleep(self.pause)
        return super().step(action)


gym.register("Toy-v0", SlowToy, disable_env_checker=True)
gym.register("SlowToy-v0", SlowToy, disable_env_checker=True, kwargs={"pause": 0.01})
gym.register("SlowestToy-v0", SlowToy, disable_env_checker=True, kwargs={"pause": 0.1})
