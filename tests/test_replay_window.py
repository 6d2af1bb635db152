"""n-step windows over every kind of buffer, with episodes cut here and there, against a slow walk.

Axes: T steps stored, E environments, B transitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pmpo.replay import Batch, Replay
from sb3_pmpo.replay.storage import draw_uniformly
from tests.toys import Toy
from tests.transitions import ACTION, KINDS, VECTOR, Judge, Log, make_buffer

GAMMA = 0.9
CASES = {
    "size": st.integers(3, 12),
    "steps": st.integers(2, 30),
    "n_envs": st.integers(1, 3),
    "n_steps": st.integers(1, 5),
    "seed": st.integers(0, 2**31 - 1),
}
SETTINGS = settings(max_examples=10, deadline=None, derandomize=True)


def column(observations: Any, key: str) -> np.ndarray:
    part = observations[key] if isinstance(observations, dict) else observations
    return part.numpy()[:, 0]


def assert_is_as_logged(batch: Batch, log: Log, n_steps: int) -> np.ndarray:
    """Compare each window but its goals and rewards in hindsight; return the observations."""
    key = "observation" if log.kind == "her" else "a"
    first, after = column(batch.observations, key), column(batch.next_observations, key)
    assert isinstance(batch.discounts, th.Tensor)
    for i, number in enumerate(first):
        t, env = log.place(number)
        walked = log.window(t, env, n_steps)
        last = walked[-1]
        assert batch.actions[i, 0] == log.rewards[t, env]
        assert batch.dones[i].item() == log.terminated[last, env]
        assert batch.discounts[i].item() == pytest.approx(GAMMA ** len(walked))
        if not (log.kind == "efficient" and log.terminated[last, env]):  # of no account there
            assert after[i] == log.following[last, env]
        if log.kind != "her":
            total = sum(GAMMA**k * log.rewards[s, env] for k, s in enumerate(walked))
            assert batch.rewards[i].item() == pytest.approx(total, rel=1e-4, abs=1e-5)
    if log.kind == "dict":
        for part in (batch.observations, batch.next_observations):
            th.testing.assert_close(part["b"], th.cat([part["a"], -part["a"]], 1))
    return first


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("kind", ["box", "dict", "efficient"])
@SETTINGS
@given(**CASES)
def test_windows_equal_the_slow_walk(
    kind: str, prioritized: bool, size: int, steps: int, n_envs: int, n_steps: int, seed: int
) -> None:
    np.random.seed(seed)
    log = Log(kind, steps, n_envs, seed)
    buffer = log.fill(make_buffer(kind, size, n_envs, prioritized))
    replay = Replay(buffer, n_steps, GAMMA)
    batch = replay.sample(64)
    if not isinstance(batch.discounts, th.Tensor):  # single steps, by the buffer's own `sample`
        batch = batch._replace(discounts=th.full((64,), GAMMA))
    observations = assert_is_as_logged(batch, log, n_steps)
    kept = size - 1 if kind == "efficient" and buffer.full else size
    assert observations.min() > (steps - kept) * n_envs  # what was overwritten is gone
    assert (batch.weights is not None) == (batch.indices is not None) == prioritized


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
@SETTINGS
@given(**CASES)
def test_windows_in_hindsight_equal_the_slow_walk(
    strategy: str, prioritized: bool, size: int, steps: int, n_envs: int, n_steps: int, seed: int
) -> None:
    np.random.seed(seed)
    log = Log("her", steps, n_envs, seed)
    log.cuts[-1] = True  # HER replays complete episodes only: let there be one
    log.ended[-1] = True
    buffer = make_buffer("her", size, n_envs, prioritized, goal_selection_strategy=strategy)
    log.fill(buffer)
    if not (buffer.ep_length > 0).any():
        return  # the one episode is longer than the buffer
    batch = Replay(buffer, n_steps, GAMMA).sample(40)
    if not isinstance(batch.discounts, th.Tensor):
        batch = batch._replace(discounts=th.full((40,), GAMMA))
    first = assert_is_as_logged(batch, log, n_steps)
    goals = column(batch.observations, "desired_goal")
    after = column(batch.next_observations, "desired_goal")
    np.testing.assert_array_equal(goals[8:], after[8:])
    for i, number in enumerate(first):
        t, env = log.place(number)
        walked = log.window(t, env, n_steps)
        if i < 8:  # one of five is real, and those come first
            rewards = log.rewards[walked, env]
            assert goals[i] == log.goals[t, env]
        else:
            rewards = Judge.reward(log.following[walked, env], goals[i])
            end = log.episode_end(t, env)
            begin = {"future": t, "final": end}.get(strategy, log.episode_start(t, env))
            assert goals[i] in log.following[begin : end + 1, env]
        total = sum(GAMMA**k * reward for k, reward in enumerate(rewards))
        assert batch.rewards[i].item() == pytest.approx(total, rel=1e-4, abs=1e-5)


def seeded_pair(kind: str, steps: int, size: int = 9) -> tuple[Any, Any]:
    """One batch from the buffer's own ``sample``, one gathered, with the same random numbers."""
    log = Log(kind, steps, 2, seed=3, cuts=0.0)
    buffer = log.fill(make_buffer(kind, size, 2))
    np.random.seed(1)
    own = Replay(buffer, 1, GAMMA).sample(200)
    np.random.seed(1)
    return own, Replay(buffer, 1, GAMMA)._gather(draw_uniformly(buffer, 200), None)


@pytest.mark.parametrize("steps", [7, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_single_steps_are_bit_equal_to_sb3(kind: str, steps: int) -> None:
    own, gathered = seeded_pair(kind, steps)
    assert own.discounts == GAMMA
    for name in ("observations", "actions", "next_observations", "rewards", "dones"):
        one, other = getattr(own, name), getattr(gathered, name)
        pairs = [(one[k], other[k]) for k in one] if isinstance(one, dict) else [(one, other)]
        assert all(th.equal(*pair) for pair in pairs), name


@SETTINGS
@given(**CASES)
def test_n_steps_are_bit_equal_to_sb3(
    size: int, steps: int, n_envs: int, n_steps: int, seed: int
) -> None:
    log = Log("box", steps, n_envs, seed, cuts=0.0)
    settings: dict[str, Any] = {"device": "cpu", "n_envs": n_envs}
    sb3 = NStepReplayBuffer(size * n_envs, VECTOR, ACTION, n_steps=n_steps, gamma=0.9, **settings)
    np.random.seed(seed)
    theirs = log.fill(sb3).sample(64)
    np.random.seed(seed)
    ours = Replay(log.fill(make_buffer("box", size, n_envs)), n_steps, 0.9).sample(64)
    for name in ("observations", "actions", "next_observations"):
        assert th.equal(getattr(ours, name), getattr(theirs, name))
    assert th.equal(ours.rewards, theirs.rewards.flatten())
    assert th.equal(ours.dones, theirs.dones.flatten())
    if n_steps > 1:
        assert th.equal(ours.discounts, theirs.discounts.flatten())


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_normalised_step_by_step(kind: str, prioritized: bool) -> None:
    log = Log(kind, 40, 2, seed=5)
    buffer = log.fill(make_buffer(kind, 15, 2, prioritized))
    toy = Toy()
    toy.observation_space = buffer.observation_space
    env = VecNormalize(DummyVecEnv([lambda: toy]), clip_reward=0.7)
    env.ret_rms.var = np.array(4.0)
    np.random.seed(0)
    plain = Replay(buffer, 3, 1.0).sample(50)
    np.random.seed(0)
    normal = Replay(buffer, 3, 1.0).sample(50, env)
    key = "observation" if kind == "her" else "a"
    for i, number in enumerate(column(plain.observations, key)):
        t, env_index = log.place(number)
        rewards = log.rewards[log.window(t, env_index, 3), env_index]
        if kind == "her" and i >= 10:
            walked = log.window(t, env_index, 3)
            goal = column(plain.observations, "desired_goal")[i]
            rewards = Judge.reward(log.following[walked, env_index], goal)
        total = np.clip(rewards / np.sqrt(4.0 + env.epsilon), -0.7, 0.7).sum()
        assert normal.rewards[i].item() == pytest.approx(total, rel=1e-4, abs=1e-5)
    for name in ("observations", "next_observations"):
        raw = getattr(plain, name)
        raw = {k: v.numpy() for k, v in raw.items()} if isinstance(raw, dict) else raw.numpy()
        wanted, got = env.normalize_obs(raw), getattr(normal, name)
        for k in wanted if isinstance(wanted, dict) else [slice(None)]:
            np.testing.assert_array_equal(got[k], wanted[k])


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("kind", ["box", "dict", "efficient"])
def test_every_stored_transition_is_sampled(kind: str, n_steps: int) -> None:
    log = Log(kind, 12, 2, seed=0)
    buffer = log.fill(make_buffer(kind, 5, 2))
    found = column(Replay(buffer, n_steps, 0.9).sample(500).observations, "a")
    oldest = 17 if kind == "efficient" else 15
    assert set(found.astype(int)) == set(range(oldest, 25))


def test_discrete_observations_keep_their_type() -> None:
    space = spaces.Discrete(9)
    for prioritized in (False, True):
        buffer = type(make_buffer("box", 5, 1, prioritized))(
            10, space, spaces.Discrete(3), device="cpu", n_envs=2, optimize_memory_usage=True,
            handle_timeout_termination=False,
        )  # fmt: skip
        for t in range(4):
            pair = np.array([t, t + 4]), np.array([t + 1, t + 5])
            buffer.add(*pair, np.zeros(2, int), np.ones(2), np.zeros(2), [{}, {}])
        batch = Replay(buffer, 2, 0.9).sample(20)
        assert batch.observations.dtype == batch.actions.dtype == th.int64
        assert batch.observations.shape == batch.actions.shape == (20, 1)


def test_a_batch_maps_its_tensors_only() -> None:
    x = th.arange(4.0)
    batch = Batch({"a": x}, x, {"a": x}, x, x, 0.9, x, np.arange(4))
    half = batch.map(lambda tensor: tensor[:2])
    assert half.discounts == 0.9
    assert half.indices is batch.indices
    assert [len(half[i]) for i in (1, 3, 4, 6)] == [2] * 4
    assert len(half.observations["a"]) == len(half.next_observations["a"]) == 2
    assert Batch(x, x, x, x, x, x).map(lambda tensor: tensor).weights is None
