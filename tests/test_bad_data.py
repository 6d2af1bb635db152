"""NaN and infinity are refused before they are stored; VecNormalize's part in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
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
    if normalised and what == "terminal" and value == np.inf:
        pytest.skip("VecNormalize has clipped it to a finite value before anyone sees it")
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
