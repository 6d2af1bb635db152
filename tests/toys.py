"""Small environments with known answers, and a small model."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pmpo import PMPO
from sb3_pmpo.replay import Batch, Replay


class Toy(gym.Env):
    """Reward ``1 - |action - x|`` in units of the action range, where x is what is observed.

    :param low: lower bound of the actions; of the same length as ``high``.
    :param high: upper bound of the actions.
    :param dtype: of observations and actions.
    :param length: steps of an episode.
    :param terminates: episodes end by termination instead of by a time limit.
    :param fault: ``(what, step, value)``: from that step on, an "observation", "terminal" or
        "reward" is not what it should be; "reset" at the first observation.
    """

    def __init__(
        self,
        low: tuple[float, ...] = (-1.0,),
        high: tuple[float, ...] = (1.0,),
        dtype: type = np.float32,
        length: int = 10,
        terminates: bool = False,
        fault: tuple[str, int, float] = ("nothing", 0, 0.0),
    ) -> None:
        self.action_space = spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)
        self.observation_space = spaces.Box(-1, 1, (len(low) + 1,), dtype)
        self.length, self.terminates, self.fault = length, terminates, fault
        self.actions: list[np.ndarray] = []
        self.step_in_episode = 0

    def _observe(self) -> np.ndarray:
        self._x = self.np_random.uniform(-1, 1, self.observation_space.shape)
        return self._x.astype(self.observation_space.dtype)

    def _is_faulty(self, what: str) -> bool:
        return what == self.fault[0] and len(self.actions) >= self.fault[1]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.step_in_episode = 0
        observation = self._observe()
        if self._is_faulty("reset"):
            observation[0] = self.fault[2]
        return observation, {}

    def step(self, action: np.ndarray) -> Any:
        self.actions.append(np.array(action))
        space = self.action_space
        scaled = 2.0 * (action - space.low) / (space.high - space.low) - 1.0
        reward = float(1.0 - np.abs(scaled - self._x[:-1]).mean())
        self.step_in_episode += 1
        done = self.step_in_episode >= self.length
        observation = self._observe()
        if self._is_faulty("terminal" if done else "observation"):
            observation[0] = self.fault[2]
        if self._is_faulty("reward"):
            reward = self.fault[2]
        return observation, reward, done and self.terminates, done and not self.terminates, {}


class DictToy(gym.ObservationWrapper):
    """Toy with a Dict observation: a vector, a code and a tiny image."""

    def __init__(self, env: Toy) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict(
            vector=env.observation_space,
            code=spaces.Discrete(3),
            image=spaces.Box(0, 255, (1, 36, 36), np.uint8),
        )

    def observation(self, observation: np.ndarray) -> dict[str, Any]:
        grey = int(np.nan_to_num(127 * (1 + observation[0])))
        image = np.full((1, 36, 36), grey, np.uint8)
        return {"vector": observation, "code": grey % 3, "image": image}


class Guess(gym.Env):
    """Reward for every dimension of the action that names the observed number."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space
        self.sizes = np.atleast_1d(getattr(action_space, "n", getattr(action_space, "nvec", 0)))
        self.observation_space = spaces.Box(0, 1, (len(self.sizes), int(max(self.sizes))))

    def _observe(self) -> np.ndarray:
        self.answer = self.np_random.integers(0, self.sizes)
        return np.eye(self.observation_space.shape[1], dtype=np.float32)[self.answer]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.step_in_episode = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        reward = float(np.mean(np.atleast_1d(action) == self.answer))
        self.step_in_episode += 1
        return self._observe(), reward, False, self.step_in_episode == 10, {}


def small(env: Any, policy: str = "MlpPolicy", algorithm: type = PMPO, **kwargs: Any) -> Any:
    """Make a model that learns a little in no time; ``kwargs`` go first."""
    defaults: dict[str, Any] = {
        "policy_kwargs": {"net_arch": [16]},
        "batch_size": 16,
        "buffer_size": 300,
        "learning_starts": 20,
        "gradient_steps": 1,
        "seed": 0,
        "device": "cpu",
    }
    return algorithm(policy, env, **defaults | kwargs)


def sample(model: Any, size: int) -> Batch:
    """Sample a batch as an update of the model does."""
    replay = Replay(model.replay_buffer, model.n_steps, model.gamma)
    return replay.sample(size, model.get_vec_normalize_env())


def parameters(module: Any) -> dict[str, Any]:
    """Copy a module's state."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def toys(n_envs: int, **kwargs: Any) -> DummyVecEnv:
    """Make that many toys in one vectorised environment."""
    return DummyVecEnv([lambda: Toy(**kwargs)] * n_envs)


def assert_equal(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> None:
    """Compare two states bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        th.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)


class Kept(KVWriter):
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], *_: Any, **__: Any) -> None:
        self.values |= key_values

    def close(self) -> None:
        pass
