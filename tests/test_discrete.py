"""Discretised, Discrete and MultiDiscrete actions in the algorithms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from toys import Guess, Toy, assert_equal, parameters, small, toys

from sb3_pmpo import DPO, MPO, PMPO, best_worst, threshold
from sb3_pmpo.core.batch import Batch
from sb3_pmpo.core.labels import state_value
from sb3_pmpo.core.samples import Candidates, Preference
from sb3_pmpo.distributions import Categorical

CLASSES = [PMPO, MPO, DPO]


SPACES = [
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 4]),  # 8 joint actions, listed
    spaces.MultiDiscrete([4, 3, 5]),  # 60, sampled
]
BINS = {"net_arch": [16], "n_bins": 5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "space", "steps", "rate", "tau"),
    [
        (PMPO, SPACES[2], 700, 5e-3, 0.03),
        (MPO, SPACES[1], 350, 6e-3, 0.04),
        (DPO, SPACES[0], 350, 6e-3, 0.04),
    ],
)
def test_it_learns_to_guess(
    algorithm: type, space: spaces.Space, steps: int, rate: float, tau: float
) -> None:
    model = small(
        Guess(space), algorithm=algorithm,
        gamma=0.0, n_steps=1, train_freq=1, learning_rate=rate, policy_delay=1, batch_size=64,
        policy_kwargs={"net_arch": [32]}, reference_tau=tau, buffer_size=5000,
    )  # fmt: skip
    model.learn(steps)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=10, warn=False)
    assert mean > 8.5  # of 10; 3.4 by chance


@pytest.mark.parametrize("algorithm", CLASSES)
@pytest.mark.parametrize(
    ("env", "kwargs"),
    [(Guess(space), {}) for space in SPACES]
    + [(Toy(low=(-2.0, 0.0), high=(1.0, 3.0)), {"policy_kwargs": BINS})],
)
def test_save_load_and_predict(
    algorithm: type, env: gym.Env, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    model = small(algorithm=algorithm, env=env, train_freq=1, **kwargs)
    model.learn(50)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=env, device="cpu")
    assert_equal(parameters(model.policy), parameters(loaded.policy))
    assert all(value.is_floating_point() for value in parameters(model.policy).values())
    observation, _ = env.reset(seed=0)
    batch = np.stack([observation] * 3)
    for deterministic in (True, False):
        single, _ = model.predict(observation, deterministic=deterministic)
        several, _ = model.predict(batch, deterministic=deterministic)
        assert env.action_space.contains(single.astype(env.action_space.dtype))
        assert single.dtype == env.action_space.dtype
        assert several.shape == (3, *env.action_space.shape)
    one, other = (m.predict(batch, deterministic=True)[0] for m in (model, loaded))
    assert np.array_equal(one, other)
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 70


@pytest.mark.parametrize("algorithm", CLASSES)
def test_an_action_that_is_the_only_one_is_taken(algorithm: type) -> None:
    model = small(Guess(spaces.Discrete(1)), algorithm=algorithm).learn(30)
    assert model.predict(np.ones((1, 1), np.float32))[0] == 0


@pytest.mark.parametrize("n_bins", [2, 7])
def test_discretised_actions_are_bin_centres_of_the_box(n_bins: int) -> None:
    env = Toy(low=(-2.0,), high=(1.0,))
    model = small(
        algorithm=PMPO,
        env=env,
        policy_kwargs={"net_arch": [16], "n_bins": n_bins},
        learning_starts=0,
    )
    model.learn(60)
    centres = np.linspace(-2.0, 1.0, n_bins)
    distance = np.abs(np.array(env.actions)[:, :1] - centres).min(1)
    assert distance.max() < 1e-6
    assert len(np.unique(np.array(env.actions).round(4))) > 1
    assert isinstance(model.actor.distribution(th.zeros(1, 2)), Categorical)


@pytest.mark.slow
def test_the_discretised_policy_learns_the_identity() -> None:
    model = small(
        IdentityEnvBox(eps=0.5),
        gamma=0.0, n_steps=1, train_freq=1, learning_rate=1e-2, policy_delay=1, batch_size=64,
        buffer_size=5000, reference_tau=0.05,
        policy_kwargs={"net_arch": [32], "n_bins": 9},
    )  # fmt: skip
    model.learn(300)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=5, warn=False)
    assert mean > 90


@pytest.mark.parametrize("pessimism", [0.0, 0.5, 1.0])
def test_labels_take_the_critics_mean_and_td_targets_less(
    pessimism: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("critics", "actor"):
        monkeypatch.setattr(f"sb3_pmpo.{module}.fastest_dtype", lambda *_: th.float32)
    seen: list[Candidates] = []

    def labeller(candidates: Candidates) -> Preference:
        seen.append(candidates)
        return best_worst()(candidates)

    # All actions are listed, so expectations are exact.
    model = small(
        algorithm=PMPO, env=Guess(spaces.Discrete(3)), labeller=labeller, pessimism=pessimism
    )
    model.learn(60)
    for parameter in model.critic_target.ensemble.parameters():
        parameter.data += th.randn_like(parameter)  # let the critics disagree
    observations = th.rand(16, 1, 3)
    probability = model.reference_actor.distribution(observations).logits[:, 0].softmax(-1).T
    features = model.critic_target.features(observations)
    codes = th.eye(3).unsqueeze(1).expand(3, 16, 3)
    quantiles = model.critic_target.ensemble(features, codes, quantiles=True)  # [N, 3, 16, K]
    q_values = quantiles.mean(-1)

    model.learner.improve(observations, model.n_samples)
    candidates = seen[-1]
    th.testing.assert_close(candidates.scores, q_values.mean(0))
    th.testing.assert_close(candidates.weights, probability)
    assert candidates.n_samples == model.n_samples
    th.testing.assert_close(candidates.value(), (probability * q_values.mean(0)).sum(0))
    batch = Batch(None, None, observations, th.zeros(16), th.zeros(16), 1.0)
    following = model.learner.td_target(batch, pessimism)  # [16, K]
    from_mean_to_lowest = th.lerp(q_values.mean(0), q_values.amin(0), pessimism)
    th.testing.assert_close(following.mean(-1), (probability * from_mean_to_lowest).sum(0))
    spread = quantiles.mean(0) - q_values.mean(0).unsqueeze(-1)  # is the critics' mean, as it was
    expected = following.mean(-1, keepdim=True) + (probability.unsqueeze(-1) * spread).sum(0)
    th.testing.assert_close(following, expected)


def test_a_threshold_at_the_value_needs_no_samples() -> None:
    model = small(algorithm=PMPO, env=Guess(spaces.Discrete(4)), labeller=threshold(state_value))
    model.learn(60)


def test_several_environments_and_the_same_seed() -> None:
    def train() -> PMPO:
        env = toys(2)
        return small(algorithm=PMPO, env=env, policy_kwargs=BINS, gradient_steps=-1).learn(80)

    one, other = train(), train()
    assert_equal(parameters(one.policy), parameters(other.policy))


@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        (Toy(), {"policy_kwargs": {"n_bins": 1}}, "n_bins must be a whole number >= 2 .*got 1"),
        (Toy(), {"policy_kwargs": {"n_bins": 2.5}}, "n_bins must be a whole number >= 2 .*got 2.5"),
        (Guess(SPACES[0]), {"policy_kwargs": {"n_bins": 3}}, "n_bins=3 discretises a Box"),
        (Guess(spaces.Discrete(3, start=1)), {}, "must start at 0"),
    ],
)
def test_what_makes_no_sense_is_refused(env: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(algorithm=PMPO, env=env, **kwargs)


def test_action_noise_is_refused_for_discrete_actions() -> None:
    from stable_baselines3.common.noise import NormalActionNoise

    with pytest.raises(ValueError, match="action_noise is added to the actions of a Box"):
        small(
            algorithm=PMPO,
            env=Guess(SPACES[0]),
            action_noise=NormalActionNoise(np.zeros(1), np.ones(1)),
        )
