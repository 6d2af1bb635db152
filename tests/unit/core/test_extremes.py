"""Scores, temperatures and types at the ends of their ranges."""

from __future__ import annotations

import pytest
import torch as th

from sb3_pmpo import bandit
from sb3_pmpo.core.e_step import boltzmann_weights, temperature_loss, weights_kl
from sb3_pmpo.core.labels import advantage, top_k
from sb3_pmpo.core.losses import pmpo_loss
from sb3_pmpo.core.samples import Candidates, Preference, from_masks, uniform_weights
from sb3_pmpo.objectives import PMPOObjective


def test_the_e_step_does_not_overflow() -> None:
    scores = th.tensor([1e30, 1e30, 0.0])
    even = uniform_weights(scores)
    assert boltzmann_weights(scores, 1e-9, even).tolist() == [0.5, 0.5, 0.0]
    temperature = th.tensor(1e-8, requires_grad=True)
    loss = temperature_loss(scores, temperature, even, epsilon=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(1e30)
    assert temperature.grad is not None
    assert temperature.grad.isfinite()


def test_the_temperatures_loss_is_what_it_was() -> None:
    scores = th.randn(6, 5, generator=th.Generator().manual_seed(0), dtype=th.float64)
    even, eta = uniform_weights(scores), th.tensor(0.7, dtype=th.float64, requires_grad=True)
    written_out = eta * 0.1 + eta * ((scores / eta).exp().mean(0)).log()
    found = temperature_loss(scores, eta, even, epsilon=0.1)
    assert found.detach().tolist() == pytest.approx(written_out.detach().tolist())
    (gradient,) = th.autograd.grad(found.sum(), eta, retain_graph=True)
    assert gradient.item() == pytest.approx(th.autograd.grad(written_out.sum(), eta)[0].item())


def test_the_kl_of_the_weights_hides_nothing() -> None:
    half = th.tensor([0.5, 0.5])
    assert weights_kl(th.tensor([1.0, 0.0]), half).item() == pytest.approx(0.6931472)
    assert weights_kl(half, th.tensor([1.0, 0.0])).item() == th.inf
    assert weights_kl(th.tensor([th.nan, 0.5]), half).isnan()


def test_many_samples_in_half_precision() -> None:
    scores = th.arange(300).to(th.bfloat16)[th.randperm(300)]
    for k in (1, 150):
        preference = top_k(k)(Candidates(scores))
        assert ((preference.accept > 0).sum(), (preference.reject > 0).sum()) == (k, k)


def test_labels_of_another_shape_are_refused() -> None:
    labels = Preference(th.ones(4, 3) / 4, th.zeros(4, 3))
    with pytest.raises(ValueError, match=r"the shape \(1, 3\) of log_prob"):
        pmpo_loss(th.zeros(1, 3), labels, th.zeros(3), alpha=0.5, beta=1.0)


def test_the_bandit_asks_the_labeller_how_many_it_rejects() -> None:
    objective = PMPOObjective(0.5, 1.0, 1.0, top_k(1), decoupled=False)
    with pytest.warns(UserWarning, match=r"below \(1 - alpha\) / 0.25 = 2"):
        search = bandit.Bandit(-th.ones(2), th.ones(2), th.zeros(2), objective=objective)
    assert search.objective.rejected == 0.25  # type: ignore[union-attr]  # as it was given


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_reliability_has_no_unit(size: float) -> None:
    """Critics that agree have 1, those with nothing in common 0, at any size of a return."""
    each = size * th.tensor([[1.0, 0.0, -1.0, 0.0], [1.0, 0.0, -1.0, 0.0]])
    candidates = Candidates(each.mean(0), each=lambda: each)
    assert candidates.reliability().item() == pytest.approx(1.0)
    apart = size * th.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    assert Candidates(apart.mean(0), each=lambda: apart).reliability().item() == 0.0
    labels = advantage(reliable=True)(candidates)
    assert labels.accept.isfinite().all()
    assert labels.accept.sum() > 0.0


def test_masks_that_are_no_masks_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"accept must be boolean, got torch\.float32: write accept"
    ):
        from_masks(th.ones(3), th.zeros(3))
