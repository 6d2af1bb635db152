"""Every distribution answers all that the objectives and the algorithms ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch as th

from sb3_pmpo.core.e_step import Duals
from sb3_pmpo.core.labels import advantage, top_k
from sb3_pmpo.core.losses import dpo_loss
from sb3_pmpo.core.samples import Candidates
from sb3_pmpo.distributions import Categorical, DiagGaussian, Distribution, FullGaussian
from sb3_pmpo.objectives import DPOObjective, MPOObjective, PMPOObjective

N_SAMPLES, N_ACTIONS = 6, 2
ASKED = {name for name in vars(Distribution) if not name.startswith("_")}


def draw(*shape: int, seed: int) -> th.Tensor:
    return th.randn(shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def diagonal(batch: tuple[int, ...], seed: int) -> DiagGaussian:
    mean = draw(*batch, N_ACTIONS, seed=seed)
    return DiagGaussian(mean, 0.3 + draw(*batch, N_ACTIONS, seed=seed + 1).abs())


def full(batch: tuple[int, ...], seed: int) -> FullGaussian:
    lower = draw(*batch, N_ACTIONS, N_ACTIONS, seed=seed + 2).tril(-1)
    mean, std = diagonal(batch, seed)
    return FullGaussian(mean, lower + std.diag_embed())


def listed(batch: tuple[int, ...], seed: int) -> Categorical:
    return Categorical(draw(*batch, N_ACTIONS, 3, seed=seed), (3,) * N_ACTIONS, -1.0, 1.0)


def sampled(batch: tuple[int, ...], seed: int) -> Categorical:
    return Categorical(draw(*batch, N_ACTIONS, 7, seed=seed), (7,) * N_ACTIONS, -1.0, 1 / 3)


MAKERS = [diagonal, full, listed, sampled]


def with_gradient(policy: Any) -> tuple[Any, list[th.Tensor]]:
    """Make its parameters leaves."""
    tensors = {
        name: value.requires_grad_()
        for name, value in policy._asdict().items()
        if isinstance(value, th.Tensor)
    }
    return policy._replace(**tensors), list(tensors.values())


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("make", MAKERS)
def test_it_answers_the_whole_protocol(make: Any, batch: tuple[int, ...]) -> None:
    (policy, leaves), reference = with_gradient(make(batch, 0)), make(batch, 5)
    found: dict[str, Any] = {}
    actions, weights = found["propose"] = reference.propose(N_SAMPLES)
    size = len(actions)
    assert actions.shape == (size, *batch, N_ACTIONS)
    assert weights.shape == (size, *batch)
    th.testing.assert_close(weights.sum(0), th.ones(batch, dtype=th.float64))
    found["sample"] = policy.sample(N_SAMPLES)
    assert found["sample"].shape == (N_SAMPLES, *batch, N_ACTIONS)
    assert not found["sample"].requires_grad
    found["mode"] = policy.mode()
    assert found["mode"].shape == (*batch, N_ACTIONS)
    found["at_quantile"] = policy.at_quantile(draw(*batch, N_ACTIONS, seed=9))
    assert found["at_quantile"].shape == (*batch, N_ACTIONS)
    found["overshoot"] = policy.overshoot(actions)
    assert found["overshoot"] is None or found["overshoot"].shape == (size, *batch)
    found["log_prob"] = policy.log_prob(actions)
    assert found["log_prob"].shape == (size, *batch)
    found["kl_per_dim"], found["kl_from"] = policy.kl_per_dim(reference), policy.kl_from(reference)
    th.testing.assert_close(found["kl_per_dim"].sum(-1), found["kl_from"])
    assert found["kl_from"].shape == batch
    assert (found["kl_from"] > 0.0).all()
    th.testing.assert_close(policy.kl_from(policy), th.zeros(batch, dtype=th.float64))
    found["joint"], found["decoupled"] = (
        f(reference, actions) for f in (policy.joint, policy.decoupled)
    )
    found["parts"] = policy.parts()
    assert [part.name for part in found["decoupled"]] == list(found["parts"])
    assert [part.name for part in found["joint"]] == ["joint"]
    for part in (*found["joint"], *found["decoupled"]):
        assert part.log_prob.shape == (size, *batch)
        assert part.kl.shape == batch
        assert th.autograd.grad(part.log_prob.sum() + part.kl.sum(), leaves, allow_unused=True)
    found["edge_barrier"] = policy.edge_barrier()
    assert found["edge_barrier"].shape == batch
    assert (found["edge_barrier"] >= 0.0).all()
    found["describe"] = policy.describe()
    for value in found["describe"].values():
        assert value.shape == ()
        assert not value.requires_grad
    assert found.keys() == ASKED


def objectives(policy: Any) -> dict[str, Any]:
    parts = policy.parts()
    duals = Duals(
        multipliers=dict.fromkeys(parts, 1.0),
        n_dims=policy.kl_per_dim(policy).shape[-1],
        temperatures={"action": 1.0, "penalty": 1.0},
        learning_rate=0.01,
    )
    return {
        "decoupled": PMPOObjective(0.5, 1.0, 20.0, advantage(), edge_barrier=0.1),
        "joint": PMPOObjective(0.5, 1.0, 1.0, top_k(3), decoupled=False, edge_barrier=0.1),
        "MPO": MPOObjective(0.1, 0.001, dict.fromkeys(parts, 0.01), duals),
        "DPO": DPOObjective(2.0, dpo_loss),
    }


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("name", ["decoupled", "joint", "MPO", "DPO"])
@pytest.mark.parametrize("make", MAKERS)
def test_every_objective_fits_it(make: Any, name: str, batch: tuple[int, ...]) -> None:
    (policy, leaves), reference = with_gradient(make(batch, 0)), make(batch, 5)
    actions, weights = reference.propose(N_SAMPLES)
    candidates = Candidates(
        actions.sum(-1), actions, weights, outside=reference.overshoot(actions), n_samples=N_SAMPLES
    )
    loss, metrics = objectives(policy)[name](policy, reference, candidates)
    assert loss.shape == batch
    assert all(value.shape == () and value.isfinite() for value in metrics.values())
    for gradient in th.autograd.grad(loss.sum(), leaves):
        assert gradient.isfinite().all()
        assert (gradient != 0.0).any()


@pytest.mark.parametrize("make", [diagonal, full])
@pytest.mark.parametrize("mean", [0.0, 0.9, 1.0, -1.0, 1.5, -30.0])
def test_the_barrier_pulls_a_mean_back_wherever_it_is(make: Any, mean: float) -> None:
    """Finite at the edge and outside the box, with a slope towards the middle."""
    policy = make((3,), 0)._replace(mean=th.full((3, N_ACTIONS), mean, dtype=th.float64))
    policy, (leaf, *_) = with_gradient(policy)
    barrier = policy.edge_barrier()
    assert barrier.isfinite().all()
    assert (barrier == 0.0).all() == (mean == 0.0) or barrier.abs().max() < 1e-4
    (slope,) = th.autograd.grad(barrier.sum(), leaf)
    assert slope.isfinite().all()
    assert (slope.sign() == th.tensor(mean).sign()).all()
