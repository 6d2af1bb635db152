"""Candidates of unequal weights: all actions are listed, each with its probability.

Where the weights are whole shares of 8 draws, everything must be what it is for the 8 draws written
out one by one.
"""

from __future__ import annotations

import pytest
import torch as th

from sb3_pmpo.core.e_step import boltzmann_weights, temperature_loss
from sb3_pmpo.core.labels import (
    Labeller,
    advantage,
    best_worst,
    boltzmann,
    mean_score,
    quantile,
    threshold,
    top_k,
)
from sb3_pmpo.core.samples import (
    Candidates,
    Preference,
    from_masks,
    mean_over_samples,
    uniform_weights,
)

# Three states with five actions each; every state has 8 samples.
COUNTS = th.tensor([[1, 4, 0], [2, 0, 8], [3, 2, 0], [0, 1, 0], [2, 1, 0]])
SCORES = th.tensor([[5.0, 1.0, 1.0], [1.0, 9.0, 2.0], [4.0, 3.0, 3.0], [7.0, 0.0, 4.0], [2, 2, 5]])


def written_out(labeller: Labeller, state: int) -> Preference:
    """Label the 8 samples of a state, then add up the weights of equal actions ``[5]``."""
    which = th.arange(5).repeat_interleave(COUNTS[:, state])
    samples = Candidates(SCORES[:, state][which].unsqueeze(-1))
    sums = [th.zeros(5).index_add(0, which, part.squeeze(-1)) for part in labeller(samples)]
    return Preference(*sums)


@pytest.mark.parametrize(
    "labeller",
    [
        top_k(4),
        top_k(3),
        best_worst(),
        top_k(2, normalise=mean_over_samples),
        threshold(2.5),
        threshold(2.5, normalise=mean_over_samples),
        threshold(mean_score),
        boltzmann(1.5),
    ],
)
def test_whole_counts_are_repeated_samples(labeller: Labeller) -> None:
    preference = labeller(Candidates(SCORES, weights=COUNTS / 8, n_samples=8))
    for state in range(3):
        expected = written_out(labeller, state)
        th.testing.assert_close(preference.accept[:, state], expected.accept)
        th.testing.assert_close(preference.reject[:, state], expected.reject)


def test_counts_weigh_the_mean_and_the_deviations_of_advantage() -> None:
    weighed = advantage()(Candidates(SCORES[:, :1], weights=COUNTS[:, :1] / 8, n_samples=8))
    expected = written_out(advantage(), 0)
    th.testing.assert_close(weighed.accept[:, 0], expected.accept)
    th.testing.assert_close(weighed.reject[:, 0], expected.reject)


def test_ties_of_listed_actions_share_nothing_twice() -> None:
    """A candidate on the edge of the best k is accepted with a part of its count only."""
    counts = th.tensor([6.0, 2.0])
    accept, reject = top_k(4)(Candidates(th.tensor([1.0, 0.0]), weights=counts / 8, n_samples=8))
    th.testing.assert_close(accept, th.tensor([1.0, 0.0]))
    th.testing.assert_close(reject, th.tensor([0.5, 0.5]))


def test_fractions_of_a_sample_keep_the_loss_safe() -> None:
    """Of an action that one sample in a hundred would be, a hundredth is rejected, not all."""
    counts = th.tensor([7.99, 0.01])
    candidates = Candidates(th.tensor([1.0, 0.0]), weights=counts / 8, n_samples=8)
    _, reject = threshold(0.5)(candidates)
    th.testing.assert_close(reject, th.tensor([0.0, 0.01]))
    accept, reject = top_k(4)(candidates)
    assert accept.sum() == pytest.approx(1.0)
    th.testing.assert_close(reject, th.tensor([0.9975, 0.0025]))


def test_a_preference_of_ones_own_can_count() -> None:
    counts = th.tensor([[3.0], [1.0], [4.0]])
    accept = th.tensor([[True], [True], [False]])
    candidates = Candidates(th.zeros(3, 1), weights=counts / 8, n_samples=8)
    preference = from_masks(accept, ~accept, candidates=candidates)
    th.testing.assert_close(preference.accept, th.tensor([[0.75], [0.25], [0.0]]))


def test_expectations() -> None:
    counted = Candidates(SCORES, weights=COUNTS / 8, n_samples=8)
    for state in range(3):
        samples = SCORES[:, state].repeat_interleave(COUNTS[:, state])
        assert counted.mean_score()[state] == pytest.approx(samples.mean().item())
        median = quantile(0.5)(counted)[state]
        assert median == pytest.approx(samples.quantile(0.5).item())
        repeated = samples.unsqueeze(-1)
        temperature = th.tensor(0.7)
        one = temperature_loss(SCORES[:, [state]], temperature, COUNTS[:, [state]] / 8, epsilon=0.1)
        other = temperature_loss(repeated, temperature, uniform_weights(repeated), epsilon=0.1)
        th.testing.assert_close(one, other)


def test_weights_of_actions_that_are_never_drawn_are_zero() -> None:
    weights = boltzmann_weights(SCORES, 1.0, COUNTS / 8)
    assert (weights[COUNTS == 0] == 0).all()
    th.testing.assert_close(weights.sum(0), th.ones(3))
