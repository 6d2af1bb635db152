"""Random transitions that name themselves, the buffers that store them, and what is right of them.

Axes: T steps stored, E environments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.replay import (
    PrioritizedDictReplayBuffer,
    PrioritizedHerReplayBuffer,
    PrioritizedReplayBuffer,
    close_open_episodes,
)

VECTOR = spaces.Box(-np.inf, np.inf, (1,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)
DICT = spaces.Dict(a=VECTOR, b=spaces.Box(-np.inf, np.inf, (2,), np.float32))
GOAL = spaces.Dict(observation=VECTOR, achieved_goal=VECTOR, desired_goal=VECTOR)
KINDS = ("box", "dict", "efficient", "her")
CLASSES: dict[str, tuple[type, type]] = {
    "box": (ReplayBuffer, PrioritizedReplayBuffer),
    "dict": (DictReplayBuffer, PrioritizedDictReplayBuffer),
    "efficient": (ReplayBuffer, PrioritizedReplayBuffer),
    "her": (HerReplayBuffer, PrioritizedHerReplayBuffer),
}


class Judge:
    """What a HER buffer asks of its environment: the reward is a function of both goals."""

    def env_method(self, name: str, achieved: Any, desired: Any, infos: Any, **_: Any) -> list:
        assert name == "compute_reward"
        assert len(infos) == len(achieved) == len(desired)
        return [self.reward(achieved, desired)[:, 0]]

    @staticmethod
    def reward(achieved: Any, desired: Any) -> Any:
        return np.sin(achieved * 3.0 + desired)


def make_buffer(kind: str, size: int, n_envs: int, prioritized: bool = False, **kwargs: Any) -> Any:
    """Make an empty buffer of ``size`` entries."""
    space = {"dict": DICT, "her": GOAL}.get(kind, VECTOR)
    if kind == "her":
        kwargs = {"env": Judge(), **kwargs}
    if kind == "efficient":
        kwargs |= {"optimize_memory_usage": True, "handle_timeout_termination": False}
    cls = CLASSES[kind][prioritized]
    return cls(size * n_envs, space, ACTION, device="cpu", n_envs=n_envs, **kwargs)


class Log:
    """Random transitions whose observations are their own serial numbers, from 1 on.

    An observation at the end of an episode is -1000 less the number. Now and then all environments
    are reset without a done: a cut.
    """

    def __init__(self, kind: str, steps: int, n_envs: int, seed: int, cuts: float = 0.1) -> None:
        rng = np.random.default_rng(seed)
        self.kind, self.n_envs, self.steps = kind, n_envs, steps
        self.terminated = rng.random((steps, n_envs)) < 0.12
        self.truncated = ~self.terminated & (rng.random((steps, n_envs)) < 0.12)
        if kind == "efficient":  # SB3's knows no time limits
            self.truncated[:] = False
        self.cuts = rng.random(steps) < cuts
        self.rewards = rng.normal(size=(steps, n_envs)).astype(np.float32)
        numbers = np.arange(steps * n_envs).reshape(steps, n_envs) + 1
        self.observations = numbers.astype(np.float32)  # [T, E]
        self.goals = -1e6 - self.observations  # true ones, unlike anything achieved
        self.ended = self.terminated | self.truncated | self.cuts[:, None]
        following = np.concatenate([self.observations[1:], -np.ones((1, n_envs), np.float32)])
        following[-1] = -self.observations[-1] - 1000
        self.following = np.where(self.ended, -self.observations - 1000, following)

    def shape(self, values: np.ndarray, goals: np.ndarray) -> Any:
        if self.kind == "dict":
            return {"a": values[:, None], "b": np.stack([values, -values], 1)}
        if self.kind == "her":
            names = ("observation", "achieved_goal", "desired_goal")
            return {k: v[:, None] for k, v in zip(names, (values, values, goals), strict=True)}
        return values[:, None]

    def fill(self, buffer: Any, start: int = 0) -> Any:
        """Store all steps from ``start`` on; close episodes where they were cut."""
        for t in range(start, self.steps):
            buffer.add(
                self.shape(self.observations[t], self.goals[t]),
                self.shape(self.following[t], self.goals[t]),
                self.rewards[t, :, None],
                self.rewards[t],
                (self.terminated | self.truncated)[t].astype(np.float32),
                [{"TimeLimit.truncated": bool(cut)} for cut in self.truncated[t]],
            )
            if self.cuts[t]:
                close_open_episodes(buffer)
                close_open_episodes(buffer)  # the second time does nothing
        return buffer

    def place(self, number: float) -> tuple[int, int]:
        """Find the step and the environment of an observation."""
        return divmod(int(number) - 1, self.n_envs)

    def window(self, t: int, env: int, n_steps: int) -> list[int]:
        """Walk from a step to the window's end, one step after the other."""
        walked = [t]
        while len(walked) < n_steps and not self.ended[walked[-1], env]:
            if walked[-1] == self.steps - 1:
                break
            walked.append(walked[-1] + 1)
        return walked

    def episode_end(self, t: int, env: int) -> int:
        while not self.ended[t, env]:
            t += 1
        return t

    def episode_start(self, t: int, env: int) -> int:
        while t > 0 and not self.ended[t - 1, env]:
            t -= 1
        return t
