"""MPO's duals: where they end on problems with known answers.

Axes: S samples, *B batch, A action dimensions.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch as th
from scipy.optimize import brentq
from scipy.special import softmax, xlogy

from sb3_pmpo.core.e_step import (
    Duals,
    boltzmann_weights,
    multiplier_loss,
    temperature_loss,
    weights_kl,
)
from sb3_pmpo.core.labels import boltzmann
from sb3_pmpo.core.losses import weighted_likelihood_loss
from sb3_pmpo.core.samples import Candidates, uniform_weights
from sb3_pmpo.distributions import Categorical, DiagGaussian
from sb3_pmpo.learner import policy_step
from sb3_pmpo.objectives import MPOObjective

SCORES = 3.0 * th.randn(20, 50, generator=th.Generator().manual_seed(0), dtype=th.float64)
EVEN = uniform_weights(SCORES)


def kl_of_softmax(temperature: float) -> np.ndarray:
    """Compute by NumPy ``KL(weights || uniform)``, ``[B]``."""
    weights = softmax(SCORES.numpy() / temperature, axis=0)
    return xlogy(weights, len(SCORES) * weights).sum(0)


def test_the_weights_are_a_softmax() -> None:
    for temperature in (0.1, 1.0, 30.0):
        expected = th.from_numpy(softmax(SCORES.numpy() / temperature, axis=0))
        weights = boltzmann_weights(SCORES, temperature, EVEN)
        th.testing.assert_close(weights, expected)
        th.testing.assert_close(boltzmann(temperature)(Candidates(SCORES)).accept, expected)
        of_numpy = th.from_numpy(kl_of_softmax(temperature))
        th.testing.assert_close(weights_kl(weights, EVEN), of_numpy, atol=1e-6, rtol=1e-6)


def test_a_scalar_temperature_and_one_of_each_entry_agree() -> None:
    one = temperature_loss(SCORES, th.tensor(0.7), EVEN, epsilon=0.1)
    each = temperature_loss(SCORES, th.full((50,), 0.7), EVEN, epsilon=0.1)
    assert one.shape == (50,)
    assert th.equal(one, each)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_the_temperature_meets_epsilon(epsilon: float) -> None:
    """The dual's minimum is where the weights' KL is epsilon, found by a root finder."""
    root = brentq(lambda temperature: kl_of_softmax(temperature).mean() - epsilon, 1e-2, 1e3)
    duals = Duals(multipliers={}, n_dims=1, temperatures={"action": 10.0}, learning_rate=5e-2)
    for _ in range(400):
        loss = temperature_loss(SCORES, duals.temperature("action"), EVEN, epsilon=epsilon)
        duals.optimizer.zero_grad()
        loss.mean().backward()
        duals.optimizer.step()
    assert duals.temperature("action").item() == pytest.approx(root, rel=1e-2)


def test_the_dual_s_slope_is_the_slack() -> None:
    """``dg / d eta = epsilon - KL`` of each entry: positive, so eta falls, while it is too flat."""
    for value in (0.5, 2.0, 20.0):
        temperature = th.full((50,), value, dtype=th.float64, requires_grad=True)
        temperature_loss(SCORES, temperature, EVEN, epsilon=0.1).sum().backward()
        assert temperature.grad.numpy() == pytest.approx(0.1 - kl_of_softmax(value), abs=1e-6)


def test_scores_and_kls_get_no_gradient() -> None:
    scores = SCORES.clone().requires_grad_()
    kl = th.rand(50, 2, requires_grad=True)
    multipliers = th.ones(50, 2, requires_grad=True)
    loss = temperature_loss(scores, th.tensor(1.0, requires_grad=True), EVEN, epsilon=0.1)
    slack = multiplier_loss(multipliers, kl, epsilon=0.3)
    th.testing.assert_close(slack, (0.3 - kl.detach()).sum(-1))  # of each entry
    (loss + slack).sum().backward()
    assert scores.grad is None
    assert kl.grad is None
    th.testing.assert_close(multipliers.grad, 0.3 - kl.detach())


def test_the_m_step_s_gradient() -> None:
    """``-weight`` on the log-probs, the multiplier on each dimension's KL; per entry of B."""
    log_prob = th.randn(4, 3, requires_grad=True)
    weights = th.rand(4, 3, requires_grad=True)
    kl = th.rand(3, 2, requires_grad=True)
    multipliers = th.tensor([2.0, 5.0], requires_grad=True)
    result = weighted_likelihood_loss(log_prob, weights, kl, multipliers)
    likelihood = (weights * log_prob).sum(0)
    th.testing.assert_close(result.log_prob, likelihood)
    th.testing.assert_close(result.kl, kl.sum(-1))
    th.testing.assert_close(result.loss, 2.0 * kl[:, 0] + 5.0 * kl[:, 1] - likelihood)
    result.loss.sum().backward()
    th.testing.assert_close(log_prob.grad, -weights.detach())
    th.testing.assert_close(kl.grad, multipliers.detach().expand(3, 2))
    assert weights.grad is None
    assert multipliers.grad is None


def test_duals_of_independent_problems_do_not_mix() -> None:
    together = th.tensor([1.0, 4.0], requires_grad=True)
    temperature_loss(SCORES[:, :2], together, EVEN[:, :2], epsilon=0.1).sum().backward()
    for index, value in enumerate((1.0, 4.0)):
        single = th.tensor(value, requires_grad=True)
        temperature_loss(SCORES[:, index], single, EVEN[:, index], epsilon=0.1).backward()
        assert together.grad[index].item() == pytest.approx(single.grad.item(), rel=1e-4)


def test_log_values_stay_in_bounds() -> None:
    duals = Duals(
        multipliers={"mean": 1.0}, n_dims=3, temperatures={"action": 1.0}, learning_rate=100.0
    )
    (duals.multipliers("mean").sum() - duals.temperature("action")).backward()
    duals.optimizer.step()
    duals.clamp_()
    assert duals.multipliers("mean").tolist() == pytest.approx([math.exp(-18.0)] * 3)
    assert duals.temperature("action").item() == pytest.approx(math.exp(18.0))


def optimise(objective: MPOObjective, policy, reference, parameters, score, n_steps: int) -> None:
    """Take M-steps from a fixed reference until policy and multipliers have settled.

    Many samples a step: with few, the KLs go on swinging by more than a test may allow.
    """
    th.manual_seed(0)
    optimizer = th.optim.Adam(parameters, lr=3e-3)
    for _ in range(n_steps):
        actions, weights = reference.propose(1024)
        candidates = Candidates(score(actions), actions, weights, n_samples=1024)
        policy_step(objective, [optimizer], policy(), reference, candidates)


@pytest.mark.slow
def test_the_multipliers_hold_the_kl_on_a_quadratic() -> None:
    """The optimum is beyond what the KLs allow, for mean and std: each dimension ends at its
    epsilon."""
    epsilon_kl = {"mean": 0.05, "std": 0.01}
    duals = Duals(
        multipliers={"mean": 1.0, "std": 1.0}, n_dims=2, temperatures={"action": 1.0},
        learning_rate=1e-2,
    )  # fmt: skip
    objective = MPOObjective(1.0, None, epsilon_kl, duals)
    reference = DiagGaussian(th.zeros(1, 2), th.ones(1, 2))
    mean, log_std = (th.zeros(1, 2, requires_grad=True) for _ in range(2))
    optimise(
        objective,
        lambda: DiagGaussian(mean, log_std.exp()),
        reference,
        [mean, log_std],
        lambda actions: -(actions - th.tensor([0.6, -0.6])).square().sum(-1),
        n_steps=1000,
    )
    policy = DiagGaussian(mean.detach(), log_std.detach().exp())
    shift, spread = policy.decoupled(reference, th.zeros(1, 1, 2))
    for component in (shift, spread):
        expected = th.full((1, 2), epsilon_kl[component.name])
        th.testing.assert_close(component.kl_per_dim, expected, rtol=0.2, atol=0.0)
    assert policy.mean[0, 0] > 0 > policy.mean[0, 1]
    assert (policy.std < 1.0).all()


@pytest.mark.slow
def test_the_multipliers_hold_the_kl_of_a_categorical() -> None:
    duals = Duals(
        multipliers={"joint": 1.0}, n_dims=1, temperatures={"action": 1.0}, learning_rate=1e-2
    )
    objective = MPOObjective(1.0, None, {"joint": 0.05}, duals)
    reference = Categorical(th.zeros(1, 1, 5), (5,))
    logits = th.zeros(1, 1, 5, requires_grad=True)
    optimise(
        objective, lambda: Categorical(logits, (5,)), reference, [logits],
        lambda actions: actions.squeeze(-1), n_steps=1000,
    )  # fmt: skip
    kl = Categorical(logits.detach(), (5,)).kl_from(reference).item()
    assert kl == pytest.approx(0.05, rel=0.2)
