"""Actions in a Box of any bounds, and how the policy explores."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import Toy, small

from sb3_pmpo.policies import MlpPolicy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_asymmetric_bounds(dtype: type) -> None:
    env = Toy(low=(-0.3, 10.0), high=(1.1, 40.0), dtype=dtype)
    model = small(env, seed=1, policy_kwargs={"net_arch": [16], "std_init": 0.9})
    model.learn(100)
    space = env.action_space
    assert all(action.dtype == dtype and action in space for action in env.actions)
    taken = np.array(env.actions)
    assert (taken.min(0) < space.low + 0.1 * (space.high - space.low)).all()
    assert (taken.max(0) > space.high - 0.1 * (space.high - space.low)).all()
    stored = model.replay_buffer.actions[:100, 0]
    np.testing.assert_allclose(stored, model.policy.scale_action(taken), atol=1e-5)
    assert np.abs(stored).max() == 1.0  # clipped to the box, and the box is [-1, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predict_is_scaled_to_the_bounds(dtype: type) -> None:
    env = Toy(low=(-0.3, 10.0), high=(1.1, 40.0), dtype=dtype)
    model = small(env)
    with th.no_grad():
        model.actor.head.linear.weight.zero_()
        model.actor.head.linear.bias[:2] = th.tensor([0.5, -1.0])
    for predictor in (model, model.policy, model.actor):
        action, _ = predictor.predict(np.zeros(3, dtype), deterministic=True)
        expected = np.array([0.4, 25.0]) + np.tanh([0.5, -1.0]) * np.array([0.7, 15.0])
        np.testing.assert_allclose(action, expected, rtol=1e-5)
        assert action.dtype == dtype
        batch, _ = predictor.predict(np.zeros((5, 3), dtype))
        assert batch.shape == (5, 2)
        assert len(np.unique(batch)) > 5  # sampled
        assert all(row in env.action_space for row in batch)


def test_actions_at_the_corners_are_in_the_box() -> None:
    rng = np.random.default_rng(0)
    for low, high in np.sort(100.0 * rng.normal(size=(50, 2))):
        env = Toy(low=(low,), high=(high,))
        policy = MlpPolicy(env.observation_space, env.action_space, lambda _: 0.0, net_arch=[])
        for corner in (-1.0, 1.0):
            assert policy.unscale_action(np.array([corner], np.float32)) in env.action_space


def test_action_noise_is_added() -> None:
    noise = NormalActionNoise(np.array([5.0]), np.array([0.0]))
    env = Toy()
    small(env, action_noise=noise, learning_starts=0).learn(10)
    assert [action.item() for action in env.actions] == [1.0] * 10


def test_exploration_is_the_mean_plus_std_times_noise() -> None:
    class Steps:
        def __call__(self) -> np.ndarray:
            return np.full((1, 1), 0.5, np.float32)

        def reset(self, env: int) -> None:
            """Has no memory."""

    model = small(Toy(), exploration_noise=lambda *_: Steps(), learning_starts=0, gradient_steps=0)
    model.learn(1)
    first = th.as_tensor(model.replay_buffer.observations[0])
    model.policy.normaliser.moments[0].__init__((2,))  # as it was when the action was drawn
    mean, std = model.actor.distribution(first)
    assert model.replay_buffer.actions[0].item() == pytest.approx((mean + 0.5 * std).item())


def test_exploration_noise_restarts_where_an_episode_ends() -> None:
    class Resets:
        def __init__(self) -> None:
            self.ended: list[int] = []

        def __call__(self) -> np.ndarray:
            return np.zeros((2, 1), np.float32)

        def reset(self, env: int) -> None:
            self.ended.append(int(env))

    env = DummyVecEnv([lambda: Toy(length=4), lambda: Toy(length=9)])
    model = small(env, exploration_noise=lambda *_: Resets(), gradient_steps=0)
    model.learn(20)  # 10 steps in each
    assert model.noise.ended == [0, 0, 1]
