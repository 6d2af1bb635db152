"""NaN and infinity are refused before they are stored; VecNormalize's part in it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize
from toys import DictToy, Toy, assert_equal, parameters, sample, small, toys

from sb3_pmpo import PMPO
from sb3_pmpo.online.exploration import pink_noise


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("what", "step", "message"),
    [
        # Two environments, 10 steps an episode; the fault is in the second.
        ("observation", 13, "environment 1 returned a.? observation .* at step 26"),
        ("reward", 13, "environment 1 returned a.? reward .* at step 26"),
        ("terminal", 13, "environment 1 returned a.? terminal observation .* at step 40"),
        ("reset", 13, "environment 1 returned a.? observation .* at step 40"),
        ("reset", 0, "environment 1 returned a.? observation .* at step 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # VecNormalize's
def test_what_is_not_finite_is_refused_before_it_is_stored(
    tmp_path: Any, what: str, step: int, message: str, value: float, normalised: bool
) -> None:
    env: Any = DummyVecEnv([Toy, lambda: Toy(fault=(what, step, value))])
    if normalised:
        env = VecNormalize(env)
    model = small(env)
    with pytest.raises(ValueError, match=message):
        model.learn(100)
    stored = model.replay_buffer
    assert stored.size() == max(int(message.split()[-1]) // 2 - 1, 0)
    for array in (stored.observations, stored.next_observations, stored.rewards):
        assert np.isfinite(array).all()
    assert all(value.isfinite().all() for value in parameters(model.policy).values())
    model.save(tmp_path / "model")
    loaded = PMPO.load(tmp_path / "model", env=toys(2), device="cpu")
    assert_equal(parameters(model.policy), parameters(loaded.policy))
    loaded.learn(60)
    assert loaded._n_updates > 0


def test_a_dict_observation_that_is_not_finite_is_named_by_its_key() -> None:
    env = DictToy(Toy(fault=("observation", 7, np.nan)))
    model = small(env, "MultiInputPolicy")
    with pytest.raises(ValueError, match=r"environment 0 .*'vector'.* at step 7"):
        model.learn(20)
    assert model.replay_buffer.size() == 6


def test_vec_normalize_normalises_rewards_when_they_are_sampled() -> None:
    env = VecNormalize(toys(1), norm_obs=False, gamma=0.99)
    model = small(env, n_steps=1, gradient_steps=0)
    model.learn(60)
    raw = model.replay_buffer.rewards[:60]
    scale = np.sqrt(env.ret_rms.var + env.epsilon)
    assert not np.isclose(scale, 1.0, atol=0.05)
    sampled = sample(model, 64).rewards.numpy()
    assert np.isin(sampled.round(4), (raw / scale).astype(np.float32).round(4)).all()


@pytest.mark.parametrize("noise", [pink_noise, None])
def test_actions_of_a_policy_that_diverged_are_refused(noise: Any) -> None:
    env = Toy()
    model = small(env, exploration_noise=noise).learn(30)
    taken = len(env.actions)
    with th.no_grad():
        for parameter in model.actor.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"action at step 30 is not finite .*Lower learning_rate"):
        model.learn(30, reset_num_timesteps=False)
    assert len(env.actions) == taken


class Rich(gym.RewardWrapper):
    """Its rewards are allowed, and their sum is not."""

    def reward(self, reward: float) -> float:
        return 9e15


def test_a_refused_return_leaves_no_trace_in_the_statistics() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Rich(Toy())]), norm_reward=False)
    model = small(env, gamma=1.0, learning_starts=10)
    with pytest.raises(ValueError, match=r"discounted return of an episode"):
        model.learn(10)
    seen = model.replay_buffer.size() + 1  # and the first observation
    assert env.obs_rms.count == pytest.approx(seen, abs=0.01)
    assert env.returns == env.get_original_reward() == model.discounted_returns


def test_a_choice_that_there_is_not_is_refused_at_the_first_observation() -> None:
    env = DictToy(Toy())
    env.observation_space["code"] = spaces.Discrete(3, start=5)
    with pytest.raises(ValueError, match=r"at step 0: .*'code' must be .* 5 to 7"):
        small(env, "MultiInputPolicy").learn(10)


class Mover(BaseCallback):
    """Moves the training environment within the 14th step, or before that."""

    def __init__(self, move: str, when: str) -> None:
        super().__init__()
        self.move, self.when = move, when

    def _move(self, when: str) -> None:
        if when == self.when and self.model.num_timesteps in (0, 14):
            env = self.training_env
            env.reset() if self.move == "reset" else env.step(np.zeros((1, 1), np.float32))

    def _on_training_start(self) -> None:
        self._move("start")

    def _on_rollout_end(self) -> None:
        self._move("end")

    def _on_step(self) -> bool:
        self._move("step")
        return True


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("move", ["reset", "step"])
@pytest.mark.parametrize("when", ["start", "step", "end"])
def test_a_callback_that_moves_the_environments_joins_no_episodes(
    when: str, move: str, normalised: bool
) -> None:
    env: Any = toys(1)
    model = small(VecNormalize(env) if normalised else env)
    with pytest.warns(UserWarning, match="has stepped or reset the training environments"):
        model.learn(30, callback=Mover(move, when))
    stored = model.replay_buffer
    ends = np.flatnonzero(stored.dones[:30]).tolist()
    assert ends == ([9, 19, 29] if when == "start" else [9, 13, 23])
    x = stored.observations[:30, 0, 0]  # the reward is 1 - |action - x|
    np.testing.assert_allclose(
        stored.rewards[:30, 0], 1 - np.abs(stored.actions[:30, 0, 0] - x), atol=1e-5
    )
    goes_on = [t for t in range(29) if t not in ends]
    following = [t + 1 for t in goes_on]
    np.testing.assert_array_equal(stored.next_observations[goes_on], stored.observations[following])


class Copier(BaseCallback):
    """Steps a copy of the training environments, as a look-ahead does."""

    def __init__(self, copied: Any) -> None:
        super().__init__()
        self.copied = copied

    def _on_step(self) -> bool:
        env = self.copied(self.training_env)
        env.reset()
        env.step(np.ones((env.num_envs, 1), np.float32))
        return True


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_of_the_environments_moves_itself(copied: Any) -> None:
    env = toys(2)
    small(env).learn(30, callback=Copier(copied))
    assert [len(each.unwrapped.actions) for each in env.envs] == [15, 15]


class Steps(VecEnvWrapper):
    """Overrides ``step`` itself, and takes the same action so many times."""

    times = 1

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def step(self, actions: np.ndarray) -> Any:
        for _ in range(self.times):
            found = self.venv.step(actions.copy())
        return found


class StepsTwice(Steps):
    times = 2


class Properties(DummyVecEnv):
    """Makes at each call what others hold."""

    actions: Any = property(
        lambda self: self.taken.copy(), lambda self, actions: vars(self).update(taken=actions)
    )
    reset_infos: Any = property(lambda self: [{}], lambda self, infos: None)


class Foreign(DummyVecEnv):
    """Unwraps to what is no VecEnv, as the one of EnvPool."""

    unwrapped: Any = property(lambda self: self.envs[0])


@pytest.mark.parametrize(
    ("make", "ends"),
    [
        (lambda: Steps(toys(1)), [9, 19, 29]),
        (lambda: Steps(VecNormalize(toys(1))), [9, 19, 29]),
        (lambda: StepsTwice(VecNormalize(toys(1))), [4, 9, 14, 19, 24, 29]),
        (lambda: Properties([Toy]), [9, 19, 29]),
        (lambda: Foreign([Toy]), [9, 19, 29]),
    ],
)
def test_a_vec_env_of_a_users_is_not_taken_for_one_that_a_callback_moves(
    make: Any, ends: list[int]
) -> None:
    model = small(make()).learn(30)  # where a warning is an error
    assert np.flatnonzero(model.replay_buffer.dones[:30]).tolist() == ends
