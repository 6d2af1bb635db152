"""The labellers beside top_k: threshold, boltzmann, labels given by the user (Sec. 4).

Axes: S samples, *B batch.
"""

from __future__ import annotations

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_pmpo.core.labels import (
    NOISE,
    Labeller,
    advantage,
    best_worst,
    boltzmann,
    mean_score,
    quantile,
    state_value,
    threshold,
    top_k,
)
from sb3_pmpo.core.losses import pmpo_loss
from sb3_pmpo.core.samples import Candidates, from_labels, mean_over_samples

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
SCORES = th.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 1.0], [-2.0, 1.0]])  # [S = 4, B = 2]
LABELLERS = [
    best_worst(),
    threshold(0.0),
    threshold(mean_score),
    threshold(quantile(0.75)),
    threshold(state_value),
    boltzmann(0.5),
]


def candidates(scores: th.Tensor = SCORES) -> Candidates:
    return Candidates(scores, value=lambda: th.full(scores.shape[1:], 1.5))


@pytest.mark.parametrize(
    ("labeller", "accepted"),
    [
        (threshold(1.0), [[1, 1], [1, 1], [1, 1], [0, 1]]),  # reaching it is enough
        (threshold(5.0), [[0, 0], [0, 0], [0, 0], [0, 0]]),
        (threshold(mean_score), [[1, 1], [1, 1], [1, 1], [0, 1]]),
        (threshold(quantile(0.75)), [[1, 1], [0, 1], [0, 1], [0, 1]]),  # of the first state 2.25
        (threshold(state_value), [[1, 0], [0, 0], [1, 0], [0, 0]]),
    ],
)
def test_threshold_accepts_what_reaches_the_baseline(
    labeller: Labeller, accepted: list[list[int]]
) -> None:
    accept, reject = labeller(candidates())
    expected = th.tensor(accepted, dtype=th.bool)
    assert th.equal(accept > 0, expected)
    assert th.equal(reject > 0, ~expected)


def test_threshold_takes_a_baseline_of_ones_own_and_a_normalisation() -> None:
    labeller = threshold(lambda c: c.scores.amax(0), normalise=mean_over_samples)
    accept, reject = labeller(candidates())
    assert accept.sum(0).tolist() == [0.25, 1.0]
    assert reject.sum(0).tolist() == [0.75, 0.0]


def test_advantage_weighs_by_the_distance_from_the_mean_in_units_of_the_batch() -> None:
    """Mean absolute deviations of the states 1.5 and 0.5, of the batch 1."""
    scores = th.tensor([[5.0, 1.0], [2.0, 2.0], [2.0, 1.0], [2.0, 1.0], [4.0, 0.0], [3.0, 1.0]])
    accept, reject = advantage()(Candidates(scores))
    deviation = scores - scores.mean(0)
    expected = 2.0 * deviation / deviation.abs().mean() / 6.0
    th.testing.assert_close(accept - reject, expected)
    assert th.all(accept * reject == 0.0)
    th.testing.assert_close(accept.sum(0), reject.sum(0))
    assert accept.sum(0).mean().item() == pytest.approx(1.0)
    assert accept.sum(0)[0] > 1.5 * accept.sum(0)[1]  # more depends on the action there


def test_advantage_labels_nothing_where_nothing_depends_on_the_action() -> None:
    accept, reject = advantage()(Candidates(th.full((4, 3), 2.0)))
    assert not accept.any()
    assert not reject.any()
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        advantage()(Candidates(th.ones(1, 3)))
    listed = advantage()(Candidates(th.ones(1, 3), n_samples=6))  # of the only action that there is
    assert not listed.accept.any()
    assert not listed.reject.any()


def test_advantage_labels_nothing_where_the_scores_differ_by_the_critics_noise_alone() -> None:
    """Of a spread s the share ``1 - (NOISE * unit / s)^2`` counts, and none below the noise."""
    scores = th.tensor([[1.0, -2.0], [-1.0, 2.0], [1.0, -2.0], [-1.0, 2.0]])  # spread 1.5
    plain = advantage()(Candidates(scores))
    for unit, share in ((1.5 / NOISE, 0.0), (9.0 / NOISE, 0.0), (0.75 / NOISE, 0.75), (0.0, 1.0)):
        weighed = advantage()(Candidates(scores, unit=th.tensor(unit)))
        th.testing.assert_close(weighed.accept, share * plain.accept)
        th.testing.assert_close(weighed.reject, share * plain.reject)
    for labels in advantage()(Candidates(th.ones(4, 2), unit=th.tensor(1.0))):
        assert not labels.any()


def test_labels_count_as_far_as_the_critics_agree() -> None:
    """Of scores ``signal + noise_n`` the mean of N critics has ``1 / (1 + v / N)`` of signal."""
    generator = th.Generator().manual_seed(0)

    def drawn(*shape: int) -> th.Tensor:
        return th.randn(*shape, 6, 4000, generator=generator)

    for n_critics, variance in ((2, 1.0), (2, 9.0), (5, 4.0)):
        each = drawn(1) + variance**0.5 * drawn(n_critics)
        shifted = (
            each + 7.0 * drawn(n_critics)[:, :1]
        )  # what a critic says of the state is no matter
        candidates = Candidates(each.mean(0), each=lambda each=shifted: each)
        expected = 1.0 / (1.0 + variance / n_critics)
        assert candidates.reliability().item() == pytest.approx(expected, abs=0.02)
        plain, weighed = advantage()(candidates), advantage(reliable=True)(candidates)
        th.testing.assert_close(weighed.accept, candidates.reliability() * plain.accept)
        th.testing.assert_close(weighed.reject, candidates.reliability() * plain.reject)
    one = drawn(1)
    for each, share in (
        *((one, 1.0), (th.cat([one, one]), 1.0), (th.cat([one, -one]), 0.0)),
        *((drawn(2), 0.0), (th.zeros(2, 6, 5), 1.0), (th.ones(2, 1, 5), 1.0)),
    ):
        found = Candidates(each.mean(0), each=lambda each=each: each).reliability()
        assert found.item() == pytest.approx(share, abs=0.03)
    assert Candidates(one[0]).reliability() == 1.0  # of one judge


def test_two_critics_that_correlate_are_as_reliable_as_spearman_and_brown_say() -> None:
    one = th.randn(6, 1000, generator=th.Generator().manual_seed(0), dtype=th.float64)
    other = th.randn(6, 1000, generator=th.Generator().manual_seed(1), dtype=th.float64)
    one, other = (x - x.mean(0) for x in (one, other))
    one = one / one.norm()
    other = other - (one * other).sum() * one
    both = th.stack([one, 0.4 * one + (1.0 - 0.16) ** 0.5 * other / other.norm()])
    found = Candidates(both.mean(0), each=lambda: both).reliability()
    assert found.item() == pytest.approx(2 * 0.4 / 1.4)


def test_a_limit_keeps_the_rejected_under_what_the_kl_holds() -> None:
    """With ``beta = 2 (1 - alpha) limit`` the loss of a categorical policy has a minimum."""
    prior = th.tensor([[0.98, 0.5], [0.01, 0.25], [0.01, 0.25]], dtype=th.float64)  # [S, B]
    scores = th.tensor([[1.0, 0.3], [-9.0, 0.1], [1.5, 0.2]], dtype=th.float64)
    alpha, beta = 0.5, 5.0
    accept, reject = advantage(beta / (2.0 * (1.0 - alpha)))(Candidates(scores, weights=prior))
    assert ((1.0 - alpha) * reject <= beta * prior + 1e-12).all()
    _, free = advantage()(Candidates(scores, weights=prior))
    assert ((1.0 - alpha) * free > beta * prior).any()  # which is unbounded below
    th.testing.assert_close(reject[1:, 1], free[1:, 1])  # what is within the limit is as without
    assert accept.any()
    with pytest.raises(ValueError, match="limit must be > 0, got 0"):
        advantage(0.0)


def test_advantage_moves_a_mean_by_the_covariance_of_score_and_action() -> None:
    """The minimum of the loss in the mean is ``ref + E[deviation * noise] * std / beta``."""
    generator = th.Generator().manual_seed(0)
    noise = th.randn(64, 5, generator=generator, dtype=th.float64)
    slope = th.tensor([0.0, 0.1, 1.0, -1.0, 3.0], dtype=th.float64)
    preference = advantage()(Candidates(noise * slope))
    mean = th.zeros(5, dtype=th.float64, requires_grad=True)  # the reference's std is 1
    beta = 0.2
    log_prob, kl = -0.5 * (noise - mean).square(), 0.5 * mean.square()
    pmpo_loss(log_prob, preference, kl, alpha=0.5, beta=beta).loss.sum().backward()
    step = -mean.grad / beta  # each state's loss is quadratic with curvature beta
    deviation = slope * (noise - noise.mean(0))
    th.testing.assert_close(step, (deviation * noise).mean(0) / deviation.abs().mean() / beta)
    assert step[0] == 0.0


@pytest.mark.parametrize("labeller", LABELLERS)
@SETTINGS
@given(
    n_samples=st.integers(2, 9),
    batch=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    seed=st.integers(0, 2**31 - 1),
    tied=st.booleans(),
)
def test_each_side_sums_to_one_or_is_empty_and_the_loss_is_finite(
    labeller: Labeller, n_samples: int, batch: tuple[int, ...], seed: int, tied: bool
) -> None:
    generator = th.Generator().manual_seed(seed)
    scores = th.randn(n_samples, *batch, generator=generator)
    if tied:
        scores = scores.round()
    log_prob = th.randn(n_samples, *batch, generator=generator).requires_grad_()
    preference = labeller(candidates(scores))
    for weights in preference:
        assert weights.shape == scores.shape
        assert (weights >= 0).all()
        total = weights.sum(0)
        th.testing.assert_close(total, (total > 0).to(total))
    loss = pmpo_loss(log_prob, preference, th.zeros(batch), alpha=0.5, beta=1.0).loss
    assert loss.shape == batch
    assert loss.isfinite().all()
    assert th.autograd.grad(loss.sum(), log_prob)[0].isfinite().all()


def test_best_worst_is_top_one() -> None:
    assert best_worst() == top_k(1)


def test_boltzmann_weighs_as_a_softmax_and_its_complement() -> None:
    scores, temperature = SCORES[:, 0], 0.7
    accept, reject = boltzmann(temperature)(candidates(scores))
    th.testing.assert_close(accept, th.softmax(scores / temperature, 0))
    p = ((scores - 3.0) / temperature).exp()
    th.testing.assert_close(reject, (1 - p) / (1 - p).sum())
    assert reject[0] == 0.0  # the best is certain to be preferred


def test_boltzmann_rejects_nobody_where_all_are_equal_and_survives_large_scores() -> None:
    accept, reject = boltzmann(1e-3)(candidates(th.full((4,), 1e6)))
    assert accept.tolist() == [0.25] * 4
    assert reject.tolist() == [0.0] * 4
    accept, reject = boltzmann(1e-3)(candidates(th.tensor([1e6, -1e6, 0.0])))
    assert accept.tolist() == [1.0, 0.0, 0.0]
    assert reject.tolist() == [0.0, 0.5, 0.5]


def test_boltzmann_of_a_high_temperature_weighs_evenly_and_of_a_low_one_takes_the_best() -> None:
    even = boltzmann(1e4)(candidates(SCORES[:, 0])).accept
    th.testing.assert_close(even, th.full((4,), 0.25), rtol=1e-3, atol=0)
    assert boltzmann(1e-2)(candidates(SCORES[:, 0])).accept.argmax() == 0


@pytest.mark.parametrize("dtype", [th.int64, th.float32, th.float64])
def test_labels_accept_positive_and_reject_negative(dtype: th.dtype) -> None:
    labels = th.tensor([[1, -1], [0, -1], [-1, 0], [1, -1]], dtype=dtype)
    accept, reject = from_labels(labels)
    assert accept.tolist() == [[0.5, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 0.0]]
    th.testing.assert_close(reject[:, 1], th.tensor([1 / 3, 1 / 3, 0.0, 1 / 3]))


def test_boolean_labels_are_accept_and_reject() -> None:
    accept, reject = from_labels(th.tensor([True, False, False]))
    assert accept.tolist() == [1.0, 0.0, 0.0]
    assert reject.tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: threshold(float("nan")), "baseline must be a number, got nan"),
        (lambda: threshold(True), "baseline must be a number, got True"),
        (lambda: quantile(1.5), "q must be a number >= 0.0 and <= 1.0, got 1.5"),
        (lambda: quantile(True), "q must be a number .*got True"),
        (lambda: boltzmann(0.0), "temperature must be > 0, got 0.0"),
        (lambda: boltzmann(float("inf")), "temperature must be a number >= 0.0, got inf"),
        (lambda: boltzmann(True), "temperature must be a number .*got True"),
        (lambda: top_k(float("nan")), "k must be a whole number >= 1, got nan"),
        (lambda: top_k(2.5), "k must be a whole number >= 1, got 2.5"),
        (lambda: advantage(limit=True), "limit must be a number .*got True"),
        (lambda: advantage(reliable="no"), "reliable must be True or False, got 'no'"),
        (lambda: from_labels(th.tensor([float("nan")])), "labels must not be NaN"),
        (lambda: threshold(state_value)(Candidates(SCORES)), "needs a critic; use mean_score"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_equal_scores_are_no_preference_whatever_their_rounding() -> None:
    scores = th.randn(1, 4000, generator=th.Generator().manual_seed(0)).expand(6, -1)
    accept, reject = advantage()(Candidates(scores))
    assert not accept.any()
    assert not reject.any()
    accept, reject = threshold(mean_score)(Candidates(scores))
    assert (accept > 0).all()
    assert not reject.any()
