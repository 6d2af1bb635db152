"""n-step replay against a slow reference and against SB3's own buffer.

Axes: T steps stored, E environments, B transitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from sb3_pmpo.buffers import MemoryEfficientNStepReplayBuffer, NStepDictReplayBuffer

VECTOR = spaces.Box(-np.inf, np.inf, (1,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)
DICT = spaces.Dict(a=VECTOR, b=spaces.Box(-np.inf, np.inf, (2,), np.float32))
CASES = {
    "size": st.integers(3, 12),
    "steps": st.integers(1, 30),
    "n_envs": st.integers(1, 2),
    "n_steps": st.integers(1, 5),
    "seed": st.integers(0, 2**31 - 1),
}
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


class Log:
    """Random transitions whose observations are their own serial numbers."""

    def __init__(self, steps: int, n_envs: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.n_envs = n_envs
        self.terminated = rng.random((steps, n_envs)) < 0.15
        self.truncated = ~self.terminated & (rng.random((steps, n_envs)) < 0.15)
        self.rewards = rng.normal(size=(steps, n_envs)).astype(np.float32)
        numbers = np.arange(steps * n_envs).reshape(steps, n_envs) + 1
        self.observations = numbers.astype(np.float32)  # [T, E]
        ended = self.terminated | self.truncated
        following = np.concatenate([self.observations[1:], -np.ones((1, n_envs))])
        self.next_observations = np.where(ended, -self.observations - 1000, following)

    def fill(self, buffer: ReplayBuffer) -> ReplayBuffer:
        def shape(values: np.ndarray) -> Any:
            if isinstance(buffer, NStepDictReplayBuffer):
                return {"a": values[:, None], "b": np.stack([values, -values], 1)}
            return values[:, None]

        for t in range(len(self.rewards)):
            buffer.add(
                shape(self.observations[t]),
                shape(self.next_observations[t].astype(np.float32)),
                np.full((self.n_envs, 1), self.rewards[t, :, None]),
                self.rewards[t],
                (self.terminated | self.truncated)[t].astype(np.float32),
                [{"TimeLimit.truncated": bool(cut)} for cut in self.truncated[t]],
            )
        return buffer

    def expected(self, number: int, n_steps: int, gamma: float) -> tuple[float, ...]:
        """Return, discount, done and next observation of the transition with that number."""
        t, env = divmod(number - 1, self.n_envs)
        total, discount = 0.0, 1.0
        for k in range(n_steps):
            total += discount * self.rewards[t + k, env]
            discount *= gamma
            last = t + k
            if self.terminated[last, env] or self.truncated[last, env]:
                break
            if last == len(self.rewards) - 1:
                break
        done = float(self.terminated[last, env])
        return total, discount, done, self.next_observations[last, env]


def sampled(buffer: Any, batch_size: int = 64) -> list[np.ndarray]:
    data = buffer.sample(batch_size)
    observations, following = data.observations, data.next_observations
    if isinstance(observations, dict):
        for part in (observations, following):
            np.testing.assert_array_equal(part["b"][:, 0], part["a"][:, 0])
            np.testing.assert_array_equal(part["b"][:, 1], -part["a"][:, 0])
        observations, following = observations["a"], following["a"]
    fields = observations, data.rewards, data.discounts, data.dones, following, data.actions
    assert all(field.shape == (batch_size, 1) for field in fields)
    return [field.numpy()[:, 0] for field in fields]


def assert_samples_are_as_logged(buffer: Any, log: Log, n_steps: int, seed: int) -> np.ndarray:
    """Compare each sampled window with the slow reference; return the sampled observations."""
    np.random.seed(seed % 2**32)
    observations, rewards, discounts, dones, following, actions = sampled(buffer)
    for i, number in enumerate(observations.astype(int)):
        expected = log.expected(number, n_steps, 0.9)
        got = rewards[i], discounts[i], dones[i], following[i]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        assert actions[i] == log.rewards.flat[number - 1]
    return observations


@SETTINGS
@given(**CASES)
def test_dict_buffer_equals_the_slow_reference(
    size: int, steps: int, n_envs: int, n_steps: int, seed: int
) -> None:
    log = Log(steps, n_envs, seed)
    buffer = NStepDictReplayBuffer(
        size * n_envs, DICT, ACTION, device="cpu", n_envs=n_envs, n_steps=n_steps, gamma=0.9
    )
    log.fill(buffer)
    observations = assert_samples_are_as_logged(buffer, log, n_steps, seed)
    newest = steps * n_envs
    assert observations.min() > newest - size * n_envs  # what was overwritten is gone


@SETTINGS
@given(**CASES)
def test_memory_efficient_buffer_equals_the_slow_reference(
    size: int, steps: int, n_envs: int, n_steps: int, seed: int
) -> None:
    log = Log(steps, n_envs, seed)
    # One copy of each observation: SB3 wants all ends to be terminations then, and the
    # observation that follows an end is the next episode's first.
    log.terminated |= log.truncated
    log.truncated[:] = False
    following = np.concatenate([log.observations[1:], -np.ones((1, n_envs), np.float32)])
    log.next_observations = following
    buffer = MemoryEfficientNStepReplayBuffer(
        size * n_envs,
        VECTOR,
        ACTION,
        device="cpu",
        n_envs=n_envs,
        optimize_memory_usage=True,
        handle_timeout_termination=False,
        n_steps=n_steps,
        gamma=0.9,
    )
    log.fill(buffer)
    assert_samples_are_as_logged(buffer, log, n_steps, seed)


@SETTINGS
@given(**CASES)
def test_dict_buffer_equals_sb3_on_vectors(
    size: int, steps: int, n_envs: int, n_steps: int, seed: int
) -> None:
    log = Log(steps, n_envs, seed)
    shared: dict[str, Any] = {"device": "cpu", "n_envs": n_envs, "n_steps": n_steps, "gamma": 0.9}
    batches = []
    for cls, space in ((NStepDictReplayBuffer, DICT), (NStepReplayBuffer, VECTOR)):
        buffer = log.fill(cls(size * n_envs, space, ACTION, **shared))
        np.random.seed(seed % 2**32)
        batches.append(sampled(buffer))
    for ours, theirs in zip(*batches, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_every_stored_transition_is_sampled(n_steps: int) -> None:
    log = Log(12, 2, seed=0)
    buffer = NStepDictReplayBuffer(10, DICT, ACTION, device="cpu", n_envs=2, n_steps=n_steps)
    log.fill(buffer)
    observations = sampled(buffer, 500)[0]
    assert set(observations.astype(int)) == set(range(15, 25))
