"""Episodes that were cut: no window, next observation or goal reaches over the cut.

Axes: T steps stored, E environments.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.replay import (
    PrioritizedHerReplayBuffer,
    PrioritizedReplayBuffer,
    Replay,
    close_open_episodes,
    legacy,
)
from tests.toys import small
from tests.transitions import ACTION, KINDS, VECTOR, Log, make_buffer


class Diary(gym.Env):
    """Observes the number of its episode and of the step in it; never ends within 30 steps.

    :param goals: observe them as HER wants it, the achieved goal being the observation.
    """

    # Over all diaries, so that a number never comes twice; the true goal's, 7, is no episode's.
    episodes = 7

    def __init__(self, goals: bool = False) -> None:
        self.goals = goals
        page = spaces.Box(0, 1e6, (2,), np.float32)
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = spaces.Dict(dict.fromkeys(names, page)) if goals else page
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def _observe(self) -> Any:
        page = np.array([self.episode, self.step_in_episode], np.float32)
        if not self.goals:
            return page
        return {"observation": page, "achieved_goal": page, "desired_goal": page * 0 + 7}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        Diary.episodes += 1
        self.episode, self.step_in_episode = Diary.episodes, 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        self.step_in_episode += 1
        return self._observe(), 1.0, False, self.step_in_episode == 30, {}

    def compute_reward(self, achieved: Any, desired: Any, infos: Any) -> Any:
        return np.ones(len(achieved))


def diaries(goals: bool = False) -> DummyVecEnv:
    return DummyVecEnv([lambda: Diary(goals)] * 2)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "box": {},
    "efficient": {
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    },
    "n-step of SB3": {"replay_buffer_class": NStepReplayBuffer},
    "prioritized": {"replay_buffer_class": PrioritizedReplayBuffer},
    "prioritized, efficient": {
        "replay_buffer_class": PrioritizedReplayBuffer,
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    },
    "her": {"replay_buffer_class": HerReplayBuffer},
    "prioritized her": {"replay_buffer_class": PrioritizedHerReplayBuffer},
}


def assert_within_episodes(model: Any, n_steps: int) -> None:
    replay = Replay(model.replay_buffer, n_steps, 0.9)
    batch = replay.sample(2000)
    before, after = batch.observations, batch.next_observations
    if isinstance(before, dict):
        achieved = before["desired_goal"][:, 0]
        assert ((achieved == 7) | (achieved == before["observation"][:, 0])).all()
        before, after = before["observation"], after["observation"]
    going_on = batch.dones == 0
    assert (after[:, 0] == before[:, 0])[going_on].all()
    steps = (after - before)[going_on, 1]
    assert steps.min() >= 1
    assert steps.max() == n_steps
    if isinstance(batch.discounts, float):
        assert (steps == 1).all()
    else:
        np.testing.assert_allclose(batch.discounts[going_on], 0.9**steps, rtol=1e-5)
    # A cut is no termination; SB3's memory-efficient buffers take time limits for one.
    assert not batch.dones.any() or model.optimize_memory_usage
    assert (before[~going_on, 1] >= 30 - n_steps).all()


@pytest.mark.parametrize(
    ("kind", "n_steps"),
    [
        ("efficient", 1),
        ("her", 1),
        ("prioritized, efficient", 1),
        *((kind, 3) for kind in ARGUMENTS),
    ],
)
def test_nothing_reaches_over_a_reset(kind: str, n_steps: int, tmp_path: Path) -> None:
    goals = "her" in kind
    arguments = ARGUMENTS[kind]
    if kind == "n-step of SB3":
        arguments = arguments | {"replay_buffer_kwargs": {"n_steps": n_steps, "gamma": 0.9}}
    model = small(
        diaries(goals), "MultiInputPolicy" if goals else "MlpPolicy", gamma=0.9, n_steps=n_steps,
        gradient_steps=0, **arguments,
    )  # fmt: skip
    for steps in (22, 6, 2, 90):
        model.learn(steps)  # anew each time
    assert_within_episodes(model, n_steps)
    model.learn(20, reset_num_timesteps=False)  # this one goes on
    newest = model.replay_buffer.pos - 11
    assert not model.replay_buffer.dones[newest].any()
    model.set_env(diaries(goals))
    model.learn(20, reset_num_timesteps=False)
    model.save_replay_buffer(tmp_path / "buffer")
    other = small(
        diaries(goals), "MultiInputPolicy" if goals else "MlpPolicy", gamma=0.9, n_steps=n_steps,
        gradient_steps=0, **arguments,
    )  # fmt: skip
    other.load_replay_buffer(tmp_path / "buffer")
    other.learn(20, reset_num_timesteps=False)
    for each in (model, other):
        assert_within_episodes(each, n_steps)
    for _ in range(3):  # round the ring
        other.learn(134)
        assert_within_episodes(other, n_steps)


def test_a_buffer_loaded_to_go_on_is_left_open(tmp_path: Path) -> None:
    model = small(diaries(), gradient_steps=0)
    model.learn(20).save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    model.learn(20, reset_num_timesteps=False)
    assert not model.replay_buffer.dones.any()
    assert_within_episodes(model, 3)


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_closing_marks_what_is_open_once(kind: str, prioritized: bool) -> None:
    buffer = make_buffer(kind, 6, 2, prioritized)
    close_open_episodes(buffer)  # nothing is in it
    log = Log(kind, 9, 2, seed=0, cuts=0.0)
    log.terminated[-1] = [True, False]
    log.truncated[-1] = False
    log.fill(buffer)
    others = np.arange(6) != 2
    before = pickle.dumps([buffer.dones[others], buffer.timeouts[others]])
    for _ in range(2):
        close_open_episodes(buffer)
        assert buffer.dones[2].astype(bool).tolist() == [True, True]
        assert (buffer.dones * (1 - buffer.timeouts))[2] == pytest.approx([1.0, 0.0])
        assert pickle.dumps([buffer.dones[others], buffer.timeouts[others]]) == before
    if kind == "her":
        assert (buffer._current_ep_start == buffer.pos).all()
        assert (buffer.ep_length[2] > 0).all()


def test_a_cut_that_was_overwritten_is_forgotten() -> None:
    log = Log("efficient", 40, 1, seed=0, cuts=0.0)
    log.terminated[:] = False
    log.cuts[[3, 4, 20]] = True
    log.ended = log.cuts[:, None] | log.terminated
    buffer = log.fill(make_buffer("efficient", 10, 1))
    assert not buffer.dones.any()
    close_open_episodes(buffer)
    assert [*vars(buffer)["observations_after_cuts"]] == [(9, 0)]
    buffer.dones[9] = 1.0  # as a termination that is stored there would
    assert Replay(buffer, 2, 0.9).sample(50).dones.sum() > 0


def test_a_class_with_sampling_of_its_own_does_not_bootstrap_from_another_episode() -> None:
    class Own(ReplayBuffer):
        def sample(self, batch_size: int, env: Any = None) -> Any:
            return super().sample(batch_size, env)

    buffer = Own(10, VECTOR, ACTION, "cpu", 1, True, handle_timeout_termination=False)
    log = Log("efficient", 5, 1, seed=1, cuts=0.0)
    log.terminated[:] = False
    close_open_episodes(log.fill(buffer))
    assert buffer.dones[:5, 0].tolist() == [0, 0, 0, 0, 1]
    assert not buffer.timeouts.any()


def test_a_termination_after_a_cut_in_the_same_entry_is_one() -> None:
    buffer = make_buffer("box", 4, 1, handle_timeout_termination=False)
    log = Log("box", 8, 1, seed=0, cuts=0.0)
    log.terminated[:], log.truncated[:] = False, False
    log.cuts[3], log.terminated[7] = True, True
    log.fill(buffer)
    assert buffer.sample(50).dones.max() == 1.0
    assert Replay(buffer, 2, 0.9).sample(50).dones.max() == 1.0


@pytest.mark.parametrize("kind", ["dict", "efficient"])
def test_buffers_of_the_first_version_are_storage_now(kind: str) -> None:
    first = legacy.NStepDictReplayBuffer
    cls = first if kind == "dict" else legacy.MemoryEfficientNStepReplayBuffer
    log = Log(kind, 20, 2, seed=0)
    plain = log.fill(make_buffer(kind, 9, 2))
    old = object.__new__(cls)
    vars(old).update(pickle.loads(pickle.dumps(vars(plain))) | {"n_steps": 2, "gamma": 0.5})
    batches = []
    for buffer in (plain, pickle.loads(pickle.dumps(old))):
        np.random.seed(0)
        batches.append(Replay(buffer, 3, 0.9).sample(50))
    assert th.equal(batches[0].rewards, batches[1].rewards)
    assert th.equal(batches[0].discounts, batches[1].discounts)


def test_closing_keeps_the_observation_of_a_discrete_space() -> None:
    buffer = ReplayBuffer(
        9, spaces.Discrete(9), ACTION, "cpu", 3, True, handle_timeout_termination=False
    )
    pair = np.array([1, 2, 3]), np.array([4, 5, 6])
    buffer.add(*pair, np.zeros((3, 1)), np.ones(3), np.zeros(3), [{}] * 3)
    close_open_episodes(buffer)
    buffer.add(*pair, np.zeros((3, 1)), np.ones(3), np.zeros(3), [{}] * 3)
    batch = Replay(buffer, 1, 0.9).sample(50)
    assert set((batch.next_observations - batch.observations).flatten().tolist()) == {3}


def test_each_of_the_updates_of_a_draw_has_its_share_of_hindsight_goals() -> None:
    """The policy moves on one of them alone, and its part came with true goals only."""
    for n_steps in (1, 3):
        model = small(
            Diary(goals=True), "MultiInputPolicy", replay_buffer_class=HerReplayBuffer,
            gradient_steps=4, n_steps=n_steps, learning_starts=100, batch_size=40,
        ).learn(100)  # fmt: skip
        replay = Replay(model.replay_buffer, n_steps, 0.9)
        goals = replay.sample(160, parts=4).observations["desired_goal"][:, 0]  # 7 is the true one
        assert [(part == 7).sum().item() for part in goals.view(4, 40)] == [8] * 4


class Ends(Diary):
    """Terminates after five steps."""

    def step(self, action: np.ndarray) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.step_in_episode == 5, False, info


def test_a_step_that_was_not_stored_joins_no_episodes() -> None:
    model = small(Ends(), learning_starts=1000, n_steps=3)
    for _ in range(3):
        stop = StopTrainingOnMaxEpisodes(1)
        model.learn(1000, callback=stop, reset_num_timesteps=False)
    buffer = model.replay_buffer
    before, after = (part[: buffer.pos, 0, 0] for part in
                     (buffer.observations, buffer.next_observations))  # fmt: skip
    np.testing.assert_array_equal(before, after)
    assert len(set(before)) == 3


@pytest.mark.parametrize("wrapped", [DummyVecEnv, SubprocVecEnv, VecNormalize])
@pytest.mark.parametrize("how", ["evaluate", "reset", "leave"])
def test_environments_that_somebody_has_moved_begin_new_episodes(wrapped: Any, how: str) -> None:
    """``evaluate_policy(model, model.get_env())`` between two calls of ``learn``."""
    env = DummyVecEnv([Diary]) if wrapped is VecNormalize else wrapped([Diary])
    if wrapped is VecNormalize:
        env = VecNormalize(env, norm_obs=False, norm_reward=False)
    model = small(env, learning_starts=100).learn(5)
    if how == "evaluate":
        env.reset()
        env.step(np.zeros((1, 1), np.float32))
    elif how == "reset":
        model.get_env().reset()
    model.learn(5, reset_num_timesteps=False)
    env.close()
    buffer = model.replay_buffer
    seen, then = (x[:10, 0] for x in (buffer.observations, buffer.next_observations))
    ends = np.maximum(buffer.dones, buffer.timeouts)[:10, 0] > 0
    assert ((seen[:, 0] == then[:, 0]) & (seen[:, 1] + 1 == then[:, 1])).all()
    assert ends.tolist() == [i == 4 and how != "leave" for i in range(10)]


@pytest.mark.parametrize("kind", ["plain", "memory-efficient", "hindsight", "normalised"])
@pytest.mark.parametrize("how", ["assigned", "loaded", "its own"])
def test_a_buffer_of_elsewhere_ends_there(kind: str, how: str, tmp_path: Path) -> None:
    """A model goes on in the middle of an episode, with a buffer whose last one is open too."""
    kwargs: dict[str, Any] = {"learning_starts": 100}
    if kind == "memory-efficient":
        only = {"handle_timeout_termination": False}
        kwargs |= {"optimize_memory_usage": True, "replay_buffer_kwargs": only}
    if kind == "hindsight":
        kwargs |= {"policy": "MultiInputPolicy", "replay_buffer_class": HerReplayBuffer}

    def make() -> Any:
        env = DummyVecEnv([lambda: Diary(kind == "hindsight")])
        normal = VecNormalize(env, norm_obs=False) if kind == "normalised" else env
        return small(normal, **kwargs).learn(5)

    model, other = make(), make()
    if how == "assigned":
        model.replay_buffer = other.replay_buffer
    else:
        (model if how == "its own" else other).save_replay_buffer(tmp_path / "buffer.pkl")
        model.load_replay_buffer(tmp_path / "buffer.pkl", truncate_last_traj=False)
    model.learn(3, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert buffer.pos == 8
    ends = [i for i in range(8) if buffer.dones[i, 0] > 0]
    assert ends == ([] if how == "its own" else [4])


def test_new_episodes_have_returns_of_their_own() -> None:
    model = small(Diary(), learning_starts=1000).learn(25)
    model.learn(1)
    assert model.discounted_returns[0] == model.replay_buffer.rewards[25, 0]
