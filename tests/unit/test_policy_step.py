"""The one place that moves a policy: what is summed, what is stepped, what is left alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch as th

from sb3_pmpo.core.e_step import Duals
from sb3_pmpo.core.labels import top_k
from sb3_pmpo.core.losses import dpo_loss
from sb3_pmpo.core.samples import Candidates
from sb3_pmpo.distributions import DiagGaussian
from sb3_pmpo.learner import policy_step
from sb3_pmpo.objectives import DPOObjective, MPOObjective, PMPOObjective

N_STATES, RATE = 5, 0.1


def problem() -> tuple[DiagGaussian, Candidates]:
    generator = th.Generator().manual_seed(0)
    reference = DiagGaussian(th.zeros(N_STATES, 2).double(), th.ones(N_STATES, 2).double())
    actions = th.randn(4, N_STATES, 2, generator=generator, dtype=th.float64)
    scores = th.randn(4, N_STATES, generator=generator, dtype=th.float64)
    return reference, Candidates(scores, actions, outside=reference.overshoot(actions))


def parameters() -> list[th.Tensor]:
    """A policy near the reference: its means and its stds."""
    mean = th.full((N_STATES, 2), 0.3, dtype=th.float64)
    return [mean.requires_grad_(), th.full_like(mean, 0.8).requires_grad_()]


def duals(learning_rate: float = 0.01) -> Duals:
    return Duals(
        multipliers={"mean": 2.0, "std": 3.0},
        n_dims=2,
        temperatures={"action": 0.5, "penalty": 0.1},
        learning_rate=learning_rate,
    ).double()


def mpo(learning_rate: float = 0.01) -> MPOObjective:
    return MPOObjective(0.1, 0.001, {"mean": 0.01, "std": 0.001}, duals(learning_rate))


OBJECTIVES: dict[str, Any] = {
    "PMPO": lambda: PMPOObjective(0.5, 1.0, 20.0, top_k(2)),
    "DPO": lambda: DPOObjective(2.0, dpo_loss),
    "MPO": mpo,
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("weights", [None, [1.0] * N_STATES, [0.5, 0.0, 2.0, 1.0, 0.1]])
def test_the_step_is_that_of_the_weighted_sum_of_the_entries(
    name: str, weights: list[float] | None
) -> None:
    reference, candidates = problem()
    moved, objective = parameters(), OBJECTIVES[name]()
    before = [part.detach().clone() for part in moved]
    given = None if weights is None else th.tensor(weights, dtype=th.float64)
    loss, _ = objective(DiagGaussian(*moved), reference, candidates)
    total = loss.mean() if given is None else (given * loss).sum()
    gradients = th.autograd.grad(total, moved)
    metrics = policy_step(
        objective,
        [th.optim.SGD(moved, lr=RATE)],
        DiagGaussian(*moved),
        reference,
        candidates,
        given,
    )
    for part, start, gradient in zip(moved, before, gradients, strict=True):
        th.testing.assert_close(part.detach(), start - RATE * gradient)
    th.testing.assert_close(metrics["actor_loss"], total.detach())
    norm = th.cat([gradient.flatten() for gradient in gradients]).norm()
    th.testing.assert_close(metrics["actor_grad_norm"], norm)
    assert not any(value.requires_grad for value in metrics.values())


def test_an_entry_of_weight_zero_does_not_move() -> None:
    reference, candidates = problem()
    moved = parameters()
    weights = th.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=th.float64)
    policy_step(
        OBJECTIVES["PMPO"](), [th.optim.Adam(moved)], DiagGaussian(*moved), reference, candidates,
        weights,
    )  # fmt: skip
    for part, start in zip(moved, parameters(), strict=True):
        assert (part == start).all(-1).tolist() == [False, True, False, True, False]


def test_gradients_that_were_left_over_do_not_count() -> None:
    reference, candidates = problem()
    ends = []
    for left_over in (None, 1e6):
        moved, objective = parameters(), mpo()
        if left_over is not None:
            for part in (*moved, *objective.duals.parameters()):
                part.grad = th.full_like(part, left_over)
        optimizer = th.optim.SGD(moved, lr=RATE)
        policy_step(objective, [optimizer], DiagGaussian(*moved), reference, candidates)
        ends.append([part.detach() for part in (*moved, *objective.duals.parameters())])
    for one, other in zip(*ends, strict=True):
        assert th.equal(one, other)


def test_each_of_several_optimisers_steps() -> None:
    reference, candidates = problem()
    moved = parameters()
    optimizers = [th.optim.SGD([part], lr=RATE) for part in moved]
    policy_step(OBJECTIVES["PMPO"](), optimizers, DiagGaussian(*moved), reference, candidates)
    for part, start in zip(moved, parameters(), strict=True):
        assert not th.equal(part, start)


@pytest.mark.parametrize("named", [False, True])
def test_duals_take_one_step_whether_their_optimiser_is_named_or_not(named: bool) -> None:
    """Adam's first step is its learning rate, to the side that the gradient says."""
    reference, candidates = problem()
    moved, objective = parameters(), mpo()
    before = {name: value.detach().clone() for name, value in objective.duals.named_parameters()}
    optimizers = [th.optim.SGD(moved, lr=RATE)]
    if named:
        optimizers.append(objective.duals.optimizer)
    policy_step(objective, optimizers, DiagGaussian(*moved), reference, candidates)
    for name, value in objective.duals.named_parameters():
        moves = (value - before[name]).detach().abs()
        th.testing.assert_close(moves, th.full_like(moves, 0.01), rtol=1e-4, atol=0.0)
        steps = objective.duals.optimizer.state[value]["step"]
        assert steps == 1
    # A KL of the mean of 0.045 > 0.01 and of the std of 0.0049 > 0.001: both multipliers grow.
    for name in ("mean", "std"):
        log_values = objective.duals.log_multipliers[name]
        assert (log_values > before[f"log_multipliers.{name}"]).all()


def test_the_duals_stay_in_their_bounds() -> None:
    reference, candidates = problem()
    moved, objective = parameters(), mpo(learning_rate=100.0)
    optimizer = th.optim.SGD(moved, lr=0.0)
    policy_step(objective, [optimizer], DiagGaussian(*moved), reference, candidates)
    for value in objective.duals.parameters():
        assert value.abs().tolist() == pytest.approx([Duals.BOUND] * value.numel()) or (
            value.abs().item() == pytest.approx(Duals.BOUND)
        )
    assert math.exp(Duals.BOUND) < 1e8


def test_without_weights_a_batch_counts_as_one() -> None:
    """The mean: a batch of the same state three times moves the policy as the state alone does."""
    reference, candidates = problem()
    ends = []
    for rows in ([0], [0, 0, 0]):
        shared = [th.full((1, 2), value, dtype=th.float64).requires_grad_() for value in (0.3, 0.8)]
        online = DiagGaussian(*(part.expand(len(rows), 2) for part in shared))
        own = DiagGaussian(reference.mean[rows], reference.std[rows])
        batch = Candidates(candidates.scores[:, rows], candidates.actions[:, rows])
        policy_step(OBJECTIVES["PMPO"](), [th.optim.SGD(shared, lr=RATE)], online, own, batch)
        ends.append(th.cat(shared).detach())
    th.testing.assert_close(*ends)
