"""DPO and IPO as algorithms: they learn, save, load and refuse what makes no sense."""

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

from sb3_pmpo import DPO, Candidates, dpo_loss, ipo_loss
from sb3_pmpo.distributions import DiagGaussian
from sb3_pmpo.objectives import DPOObjective

LOSSES = [dpo_loss, ipo_loss]


def small(**kwargs: Any) -> DPO:
    return toys.small(Toy(low=(-2.0,), high=(1.0,)), algorithm=DPO, **kwargs)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_pair(loss) -> None:
    """Only the best and the worst sample count, and no gradient reaches the reference."""
    beta = 2.0
    actions = th.tensor([[[0.1]], [[0.5]], [[-0.7]], [[0.3]]])
    scores = th.tensor([[0.0], [2.0], [-1.0], [1.0]])
    mean, std = th.zeros(1, 1, requires_grad=True), th.ones(1, 1, requires_grad=True)
    reference = DiagGaussian(th.full((1, 1), 0.2, requires_grad=True), th.full((1, 1), 0.8))
    result = DPOObjective(beta, loss)(
        DiagGaussian(mean, std), reference, Candidates(scores, actions)
    )
    d_mean, d_std = th.autograd.grad(result.loss.sum(), (mean, std), retain_graph=True)
    log_ratio = [-0.5 * a**2 + 0.5 * ((a - 0.2) / 0.8) ** 2 for a in (0.5, -0.7)]
    margin = log_ratio[0] - log_ratio[1]
    sigmoid = 1.0 / (1.0 + np.exp(beta * margin))
    slope = -beta * sigmoid if loss is dpo_loss else -1.0 + 2.0 * beta * margin
    # d log pi / d mean = a and d log pi / d std = a^2 - 1 for a standard normal policy
    assert float(d_mean) == pytest.approx(slope * (0.5 + 0.7), rel=1e-4)
    assert float(d_std) == pytest.approx(slope * (0.5**2 - 0.7**2), rel=1e-4)
    assert float(result.metrics["margin"]) == pytest.approx(margin, rel=1e-4)
    assert result.loss.shape == (1,)
    result.loss.sum().backward()
    assert reference.mean.grad is None


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "beta"), [(dpo_loss, 20.0), (ipo_loss, 1.0)])
def test_it_learns_the_identity(loss, beta: float) -> None:
    model = DPO(
        "MlpPolicy", IdentityEnvBox(eps=0.5), loss=loss, beta=beta, seed=1,
        policy_kwargs={"net_arch": [32]}, gamma=0.0, n_steps=1, learning_rate=1e-2,
        batch_size=64, gradient_steps=1, policy_delay=1, reference_tau=0.05,
    )  # fmt: skip
    model.learn(300)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=5, warn=False)
    assert mean > 90


def test_save_and_load_keep_the_policy_and_take_new_arguments(tmp_path: Path) -> None:
    model = small(beta=5.0, loss=ipo_loss)
    model.learn(60)
    model.save(tmp_path / "dpo")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DPO.load(tmp_path / "dpo", env=model.get_env(), device="cpu", beta=7.0)
    assert loaded.loss is ipo_loss
    assert loaded.objective == DPOObjective(7.0, ipo_loss)
    assert_equal(parameters(model.policy), parameters(loaded.policy))
    observations = np.array([[-0.5, 0.0], [0.8, -0.8]], np.float32)
    one, other = (m.predict(observations, deterministic=True)[0] for m in (model, loaded))
    assert np.array_equal(one, other)
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 80


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = (small().learn(60) for _ in range(2))
    assert_equal(parameters(one.policy), parameters(other.policy))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"beta": -1.0}, "beta must be a number >= 0.0, got -1.0"),
        ({"loss": "ipo"}, "got 'ipo': 'ipo' is not known here .known: dpo_loss, ipo_loss"),
        ({"loss": 3}, "loss must be callable, such as dpo_loss, got 3"),
        ({"n_samples": 1}, "n_samples must be a whole number >= 2 .*got 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)
