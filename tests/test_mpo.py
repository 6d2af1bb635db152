"""MPO: it learns, its duals are saved, loaded and logged, and nonsense is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import toys
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from toys import Toy, assert_equal, parameters

from sb3_pmpo import MPO, Candidates
from sb3_pmpo.core.e_step import Duals
from sb3_pmpo.distributions import DiagGaussian
from sb3_pmpo.objectives import MPOObjective


def small(**kwargs: Any) -> MPO:
    return toys.small(Toy(low=(-2.0, 0.0), high=(1.0, 3.0)), algorithm=MPO, **kwargs)


@pytest.mark.slow
def test_it_learns_the_identity() -> None:
    model = MPO(
        "MlpPolicy", IdentityEnvBox(eps=0.5), seed=1, policy_kwargs={"net_arch": [32]}, gamma=0.0,
        n_steps=1, learning_rate=3e-3, gradient_steps=1, policy_delay=1, reference_tau=0.02,
    )  # fmt: skip
    model.learn(700)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=5, warn=False)
    assert mean > 90


def objective(epsilon_penalty: float | None) -> MPOObjective:
    duals = Duals(
        multipliers={"mean": 2.0, "std": 3.0}, n_dims=1,
        temperatures={"action": 0.5, "penalty": 0.1}, learning_rate=1e-2,
    )  # fmt: skip
    return MPOObjective(0.1, epsilon_penalty, {"mean": 0.01, "std": 0.001}, duals)


@pytest.mark.parametrize("epsilon_penalty", [None, 0.001])
def test_the_policy_s_gradient_is_that_of_the_weighted_samples(
    epsilon_penalty: float | None,
) -> None:
    """For a policy that equals the reference: ``-sum weight * z / std``; the KLs have none."""
    actions = th.tensor([[[0.1]], [[0.5]], [[-0.7]], [[1.3]]])
    scores = th.tensor([[0.0], [1.0], [-1.0], [0.5]])
    reference = DiagGaussian(th.full((1, 1), 0.2), th.full((1, 1), 0.8))
    mean, std = (part.clone().requires_grad_() for part in reference)
    candidates = Candidates(scores, actions, outside=reference.overshoot(actions))
    mpo = objective(epsilon_penalty)
    result = mpo(DiagGaussian(mean, std), reference, candidates)
    assert result.loss.shape == (1,)
    result.loss.sum().backward()
    weights = (scores[:, 0] / 0.5).softmax(0)
    if epsilon_penalty is not None:
        weights = weights + th.tensor([0.0, 0.0, 0.0, -0.3 / 0.1]).softmax(0)
    z = (actions[:, 0, 0] - 0.2) / 0.8
    assert mean.grad.item() == pytest.approx(-(weights * z / 0.8).sum().item(), rel=1e-4)
    assert std.grad.item() == pytest.approx(-(weights * (z**2 - 1) / 0.8).sum().item(), rel=1e-4)
    # No KL yet, so each multiplier's loss is multiplier * epsilon.
    slopes = {name: p.grad.item() for name, p in mpo.duals.log_multipliers.items()}
    assert slopes == pytest.approx({"mean": 2.0 * 0.01, "std": 3.0 * 0.001}, rel=1e-4)


def test_the_duals_are_saved_loaded_and_go_on(tmp_path: Path) -> None:
    model = small()
    first = parameters(model.duals)
    model.learn(60)
    assert all((first[name] != value).all() for name, value in parameters(model.duals).items())
    model.save(tmp_path / "mpo")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = MPO.load(tmp_path / "mpo", env=model.get_env(), device="cpu", epsilon_mean=0.5)
    assert_equal(parameters(model.duals), parameters(loaded.duals))
    assert loaded.objective.duals is loaded.duals
    assert loaded.objective.epsilon_kl == {"mean": 0.5, "std": model.epsilon_std}
    old, new = (m.duals.optimizer.state_dict()["state"] for m in (model, loaded))
    assert old[0]["step"] == new[0]["step"] > 0
    assert th.equal(old[0]["exp_avg_sq"], new[0]["exp_avg_sq"])
    observations = np.array([[-0.5, 0.0, 0.1], [0.8, -0.8, 0.3]], np.float32)
    one, other = (m.predict(observations, deterministic=True)[0] for m in (model, loaded))
    assert np.array_equal(one, other)
    loaded.load_replay_buffer(tmp_path / "buffer")
    before = parameters(loaded.duals)
    loaded.learn(20, reset_num_timesteps=False)
    assert not th.equal(
        before["log_temperatures.action"], loaded.duals.log_temperatures["action"].detach()
    )


def test_the_learning_rate_of_the_duals_is_their_own() -> None:
    model = small(learning_rate=0.0, dual_learning_rate=0.05)
    model.learn(40)
    (group,) = model.duals.optimizer.param_groups
    assert group["lr"] == 0.05
    assert model.actor.optimizer.param_groups[0]["lr"] == 0.0


def test_the_duals_are_logged() -> None:
    model = small()
    model.learn(40, log_interval=None)
    metrics = model.metrics.means()
    expected = {
        "temperature", "penalty_temperature", "e_step_kl", "mean_multiplier", "std_multiplier",
        "kl_mean", "kl_std", "weighted_log_prob_mean", "weighted_log_prob_std",
    }  # fmt: skip
    assert expected <= metrics.keys()
    assert all(np.isfinite(list(metrics.values())))


def test_no_penalty_no_temperature_for_it() -> None:
    model = small(epsilon_penalty=None)
    model.learn(40, log_interval=None)
    assert list(model.duals.log_temperatures) == ["action"]
    assert "penalty_temperature" not in model.metrics.means()


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = (small().learn(60) for _ in range(2))
    assert_equal(parameters(one.policy), parameters(other.policy))
    assert_equal(parameters(one.duals), parameters(other.duals))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be > 0, got 0.0"),
        ({"epsilon_mean": -1.0}, "epsilon_mean must be a number >= 0.0, got -1.0"),
        ({"epsilon_std": float("nan")}, "epsilon_std must be a number >= 0.0, got nan"),
        ({"epsilon_policy": 0.0}, "epsilon_policy must be > 0, got 0.0"),
        ({"epsilon_penalty": 0.0}, "epsilon_penalty must be > 0, got 0.0: None is for no"),
        ({"dual_learning_rate": 0.0}, "dual_learning_rate must be > 0, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)
