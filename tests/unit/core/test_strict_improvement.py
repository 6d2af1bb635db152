"""Strict improvement of the EM step on finite sets (App. C), with the package's own E-step."""

from __future__ import annotations

import torch as th
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sb3_pmpo.core.labels import boltzmann
from sb3_pmpo.core.losses import weighted_log_prob
from sb3_pmpo.core.samples import Candidates

SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)
PROBLEM = {
    "size": st.integers(2, 7),
    "temperature": st.floats(0.1, 5.0),
    "seed": st.integers(0, 2**31 - 1),
}


def distributions(size: int, seed: int, count: int) -> th.Tensor:
    """Draw ``[count, size]`` log-probabilities over a finite set."""
    generator = th.Generator().manual_seed(seed)
    return th.log_softmax(th.randn(count, size, generator=generator, dtype=th.float64), -1)


def values(size: int, seed: int) -> th.Tensor:
    """Draw f, with two equal entries half of the time."""
    f = th.randn(size, generator=th.Generator().manual_seed(seed + 1), dtype=th.float64)
    if seed % 2:
        f[0] = f[1]
    return f


def em_step(log_eta: th.Tensor, f: th.Tensor, temperature: float) -> th.Tensor:
    """Take the E-step's ``delta* ~ eta exp(f / tau)``: the Boltzmann weights of a weighted set.

    A set whose members have the probabilities eta is the uniform set with ``f + tau log eta``.
    """
    return boltzmann(temperature)(Candidates(f + temperature * log_eta)).accept.log()


@SETTINGS
@given(**PROBLEM)
def test_em_improves_strictly_until_its_fixed_point(
    size: int, temperature: float, seed: int
) -> None:
    f, log_delta = values(size, seed), distributions(size, seed, 1)[0]
    assume(float(f.max() - f.min()) > 1e-2)
    start = log_delta.exp()
    value = float((start * f).sum())
    for _ in range(200):
        new = em_step(log_delta, f, temperature)
        improved = float((new.exp() * f).sum())
        moved = float((new.exp() - log_delta.exp()).abs().max())
        if moved > 1e-6:
            assert improved > value
        else:
            assert improved >= value - 1e-12
        value, log_delta = improved, new
    # The fixed points reachable from full support are the distributions on the maximisers.
    assert value <= float(f.max()) + 1e-12
    if moved < 1e-9:
        th.testing.assert_close(value, float(f.max()), rtol=0, atol=1e-3)


@SETTINGS
@given(**PROBLEM)
def test_the_log_sum_exp_bound_holds_and_is_tight_at_the_e_step(
    size: int, temperature: float, seed: int
) -> None:
    """Eq. 20 for random delta; Eq. 19, equality, for the E-step's."""
    f = values(size, seed)
    log_eta, *others = distributions(size, seed, 6)
    bound = temperature * th.logsumexp(log_eta + f / temperature, 0)

    def regularised(log_delta: th.Tensor) -> th.Tensor:
        delta = log_delta.exp()
        return (delta * f).sum() - temperature * (delta * (log_delta - log_eta)).sum()

    for log_delta in [log_eta, *others]:
        assert regularised(log_delta) <= bound + 1e-10
    th.testing.assert_close(regularised(em_step(log_eta, f, temperature)), bound)


@SETTINGS
@given(**PROBLEM)
def test_the_m_step_with_all_the_weights_reaches_the_e_step(
    size: int, temperature: float, seed: int
) -> None:
    """Weighted likelihood over categorical policies has its optimum, gradient 0, at delta*."""
    f, log_eta = values(size, seed), distributions(size, seed, 1)[0]
    target = em_step(log_eta, f, temperature).exp()
    logits = target.log().clone().requires_grad_()
    likelihood = weighted_log_prob(target, th.log_softmax(logits, 0))
    (gradient,) = th.autograd.grad(likelihood, logits)
    th.testing.assert_close(gradient, th.zeros_like(gradient), rtol=0, atol=1e-10)
