"""The PMPO loss: Eq. 10, its two special cases (Eq. 6 and 9), and when it is safe.

Axes: S samples, *B batch.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_pmpo.core.labels import advantage, rejected_share, top_k
from sb3_pmpo.core.losses import (
    PMPOLoss,
    check_alpha_beta,
    instability,
    pmpo_loss,
    weighted_log_prob,
)
from sb3_pmpo.core.samples import (
    Candidates,
    Preference,
    from_masks,
    mean_over_samples,
    mean_per_set,
)

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
BATCHES = st.lists(st.integers(1, 3), max_size=2).map(tuple)
DTYPES = st.sampled_from([th.float32, th.float64])
SEEDS = st.integers(0, 2**31 - 1)
ALPHAS = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])
BETAS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 20.0])


def seeded(seed: int) -> th.Generator:
    """Make a generator of one's own, so that no test depends on another's draws."""
    return th.Generator().manual_seed(seed)


def problem(
    n_samples: int, batch: tuple[int, ...], dtype: th.dtype, seed: int
) -> tuple[th.Tensor, Preference, th.Tensor]:
    """Draw log-probs, labels (of each state any mix of accept, reject, neither) and KLs."""
    generator = seeded(seed)
    log_prob = (3 * th.randn(n_samples, *batch, generator=generator)).to(dtype)
    labels = th.randint(-1, 2, (n_samples, *batch), generator=generator)
    kl = th.rand(batch, generator=generator).to(dtype)
    preference = from_masks(labels == 1, labels == -1)
    return log_prob.requires_grad_(), preference, kl.requires_grad_()


def gradients(loss: th.Tensor, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
    """Differentiate; zeros for an input that the loss does not depend on."""
    return th.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


class TestValueAndGradient:
    @SETTINGS
    @given(
        n_samples=st.integers(1, 8),
        batch=BATCHES,
        dtype=DTYPES,
        seed=SEEDS,
        alpha=ALPHAS,
        beta=BETAS,
    )
    def test_analytic_gradient(self, n_samples, batch, dtype, seed, alpha, beta):
        """Eq. 10, of each entry alone: ``dL/dlog_prob = -alpha w_acc + (1 - alpha) w_rej`` and
        ``dL/dkl = beta``; a weighted sum of the entries weighs their gradients."""
        log_prob, preference, kl = problem(n_samples, batch, dtype, seed)
        loss = pmpo_loss(log_prob, preference, kl, alpha=alpha, beta=beta).loss
        assert loss.shape == batch
        assert loss.isfinite().all()
        assert loss.dtype == dtype
        entries = th.rand(batch, generator=seeded(seed + 1)).to(dtype)
        d_log_prob, d_kl = gradients((entries * loss).sum(), log_prob, kl)
        expected = -alpha * preference.accept + (1 - alpha) * preference.reject
        th.testing.assert_close(d_log_prob, (entries * expected).to(dtype))
        th.testing.assert_close(d_kl, beta * entries)

    @pytest.mark.parametrize(
        ("alpha", "beta", "n_accept", "n_reject"),
        [(1.0, 0.0, 1, 0), (0.0, 0.0, 0, 1), (0.0, 1.0, 0, 0), (0.25, 3.0, 2, 3)],
    )
    def test_each_term_alone(self, alpha, beta, n_accept, n_reject):
        """One state: accepted get ``-alpha / |acc|``, rejected ``(1 - alpha) / |rej|``, others 0,
        the KL ``beta``."""
        rank = th.arange(6)
        accept, reject = rank < n_accept, rank >= 6 - n_reject
        log_prob = th.randn(6, generator=seeded(0), requires_grad=True)
        kl = th.tensor(0.3, requires_grad=True)
        terms = pmpo_loss(log_prob, from_masks(accept, reject), kl, alpha=alpha, beta=beta)
        d_log_prob, d_kl = gradients(terms.loss, log_prob, kl)
        expected = th.zeros(6)
        if n_accept:
            expected[accept] = -alpha / n_accept
        if n_reject:
            expected[reject] = (1 - alpha) / n_reject
        th.testing.assert_close(d_log_prob, expected)
        th.testing.assert_close(d_kl, th.tensor(beta))

    @SETTINGS
    @given(n_samples=st.integers(1, 8), seed=SEEDS, alpha=ALPHAS, beta=BETAS)
    def test_value_is_eq_10_in_plain_python(self, n_samples, seed, alpha, beta):
        """Means over each set of each state, in loops."""
        log_prob, preference, kl = problem(n_samples, (3,), th.float64, seed)
        terms = pmpo_loss(log_prob, preference, kl, alpha=alpha, beta=beta)
        for state in range(3):
            means = []
            for weights in (preference.accept, preference.reject):
                chosen = [log_prob[i, state].item() for i in range(n_samples) if weights[i, state]]
                means.append(sum(chosen) / len(chosen) if chosen else 0.0)
            expected = -alpha * means[0] + (1 - alpha) * means[1] + beta * kl[state].item()
            assert terms.loss[state].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert terms.accept[state].item() == pytest.approx(means[0], rel=1e-5, abs=1e-6)
            assert terms.reject[state].item() == pytest.approx(means[1], rel=1e-5, abs=1e-6)
        assert th.equal(terms.kl, kl)

    def test_accepted_alone_is_eq_6(self):
        """alpha = 1, beta = 0: the mean log-likelihood of the accepted, to be maximised."""
        log_prob = th.tensor([-1.0, -3.0, -50.0])
        preference = from_masks(th.tensor([True, True, False]), th.tensor([False, False, True]))
        loss = pmpo_loss(log_prob, preference, th.tensor(9.0), alpha=1.0, beta=0.0).loss
        assert loss.item() == pytest.approx(2.0)

    def test_rejected_alone_is_eq_9(self):
        """alpha = 0: the mean log-likelihood of the rejected plus beta times the KL."""
        log_prob = th.tensor([-1.0, -3.0, -50.0])
        preference = from_masks(th.tensor([False, False, True]), th.tensor([True, True, False]))
        loss = pmpo_loss(log_prob, preference, th.tensor(0.5), alpha=0.0, beta=2.0).loss
        assert loss.item() == pytest.approx(-2.0 + 1.0)

    @pytest.mark.parametrize(("alpha", "silent"), [(1.0, "reject"), (0.0, "accept")])
    def test_alpha_acts_on_one_side_each(self, alpha, silent):
        """alpha = 1: no gradient to the rejected; alpha = 0: none to the accepted; the other
        side is not scaled with it."""
        log_prob = th.randn(4, generator=seeded(1), requires_grad=True)
        preference = top_k(2)(Candidates(th.arange(4.0)))
        loss = pmpo_loss(log_prob, preference, th.tensor(0.1), alpha=alpha, beta=0.5).loss
        (gradient,) = gradients(loss, log_prob)
        spoken = "accept" if silent == "reject" else "reject"
        assert (gradient[getattr(preference, silent) > 0] == 0).all()
        assert gradient[getattr(preference, spoken) > 0].abs().tolist() == [0.5, 0.5]

    def test_alpha_rebalances(self):
        """``-alpha * (acc - rej)`` would scale both sides alike: here the ratio moves."""
        log_prob = th.randn(2, generator=seeded(2), requires_grad=True)
        preference = top_k(1)(Candidates(th.arange(2.0)))
        loss = pmpo_loss(log_prob, preference, th.tensor(0.0), alpha=0.8, beta=0.0).loss
        (gradient,) = gradients(loss, log_prob)
        th.testing.assert_close(gradient, th.tensor([0.2, -0.8]))

    @SETTINGS
    @given(n_samples=st.integers(1, 8), batch=BATCHES, dtype=DTYPES, seed=SEEDS)
    def test_the_order_of_the_samples_does_not_matter(self, n_samples, batch, dtype, seed):
        """Permuting the samples leaves the loss and permutes its gradient."""
        log_prob, preference, kl = problem(n_samples, batch, dtype, seed)
        order = th.randperm(n_samples, generator=seeded(seed + 1))
        permuted = log_prob.detach()[order].requires_grad_()
        weights = Preference(preference.accept[order], preference.reject[order])
        before = pmpo_loss(log_prob, preference, kl, alpha=0.5, beta=1.0).loss
        after = pmpo_loss(permuted, weights, kl, alpha=0.5, beta=1.0).loss
        th.testing.assert_close(after, before)
        (d_before,) = gradients(before.sum(), log_prob)
        (d_after,) = gradients(after.sum(), permuted)
        th.testing.assert_close(d_after, d_before[order])

    def test_one_program_for_states_and_no_states(self):
        """*B = () is one state of *B = (1,): a bandit and a control problem share the loss."""
        log_prob, preference, kl = problem(6, (), th.float64, 3)
        bandit = pmpo_loss(log_prob, preference, kl, alpha=0.5, beta=1.0)
        weights = Preference(preference.accept[:, None], preference.reject[:, None])
        control = pmpo_loss(log_prob[:, None], weights, kl[None], alpha=0.5, beta=1.0)
        for left, right in zip(bandit, control, strict=True):
            assert left.shape == ()
            th.testing.assert_close(left[None], right)

    def test_each_entry_is_the_loss_of_its_state_alone(self):
        """No state's loss depends on who stands beside it."""
        log_prob, preference, kl = problem(6, (2, 3), th.float64, 4)
        together = pmpo_loss(log_prob, preference, kl, alpha=0.3, beta=1.0)
        for i, j in np.ndindex(2, 3):
            own = Preference(preference.accept[:, i, j], preference.reject[:, i, j])
            alone = pmpo_loss(log_prob[:, i, j], own, kl[i, j], alpha=0.3, beta=1.0)
            for left, right in zip(together, alone, strict=True):
                th.testing.assert_close(left[i, j], right)

    def test_refuses_a_kl_of_another_shape(self):
        """A KL that is not summed over the dimensions would broadcast in silence."""
        log_prob, preference, _ = problem(4, (3,), th.float32, 0)
        with pytest.raises(ValueError, match=r"batch shape \(3,\).*got \(3, 2\): sum it"):
            pmpo_loss(log_prob, preference, th.zeros(3, 2), alpha=0.5, beta=1.0)


class TestBlockedGradients:
    def test_no_gradient_reaches_the_weights(self):
        log_prob = th.randn(4, 2, generator=seeded(0), requires_grad=True)
        accept, reject = (th.rand(4, 2, generator=seeded(i), requires_grad=True) for i in (1, 2))
        kl = th.rand(2, requires_grad=True)
        terms = pmpo_loss(log_prob, Preference(accept, reject), kl, alpha=0.5, beta=1.0)
        terms.loss.sum().backward()
        assert accept.grad is None
        assert reject.grad is None
        assert log_prob.grad is not None

    def test_only_the_loss_carries_a_gradient(self):
        log_prob, preference, kl = problem(4, (2,), th.float32, 0)
        terms = pmpo_loss(log_prob, preference, kl, alpha=0.5, beta=1.0)
        carriers = [n for n in PMPOLoss._fields if getattr(terms, n).requires_grad]
        assert carriers == ["loss"]
        assert all(term.shape == (2,) for term in terms)


class TestEmptySets:
    @pytest.mark.parametrize("batch", [(), (3,)])
    @pytest.mark.parametrize("normalise", [mean_per_set, mean_over_samples])
    @pytest.mark.parametrize(
        ("has_accept", "has_reject"), [(False, True), (True, False), (False, False)]
    )
    def test_an_empty_set_contributes_exactly_nothing(
        self, batch, normalise, has_accept, has_reject
    ):
        """The loss is what is left of Eq. 10, never NaN, and so is its gradient."""
        log_prob = th.randn(4, *batch, generator=seeded(0), requires_grad=True)
        kl = th.rand(batch, generator=seeded(1)).requires_grad_()
        accept, reject = th.zeros(2, 4, *batch, dtype=th.bool)
        accept[:2], reject[2:] = has_accept, has_reject
        preference = from_masks(accept, reject, normalise=normalise)
        terms = pmpo_loss(log_prob, preference, kl, alpha=0.5, beta=2.0)
        expected = 2.0 * kl
        if has_accept:
            expected = expected - 0.5 * (normalise(accept / 4, 4) * log_prob).sum(0)
        else:
            assert (terms.accept == 0.0).all()
        if has_reject:
            expected = expected + 0.5 * (normalise(reject / 4, 4) * log_prob).sum(0)
        else:
            assert (terms.reject == 0.0).all()
        th.testing.assert_close(terms.loss, expected)
        d_log_prob, d_kl = gradients(terms.loss.sum(), log_prob, kl)
        assert d_log_prob.isfinite().all()
        assert d_kl.isfinite().all()
        assert (d_log_prob[~(accept | reject)] == 0).all()

    def test_one_empty_state_does_not_spoil_the_others(self):
        accept = th.tensor([[True, False], [False, False]])
        reject = th.tensor([[False, False], [True, False]])
        log_prob = th.tensor([[-1.0, -7.0], [-2.0, -9.0]])
        terms = pmpo_loss(log_prob, from_masks(accept, reject), th.zeros(2), alpha=0.5, beta=1.0)
        assert terms.loss.tolist() == [0.5 * 1.0 - 0.5 * 2.0, 0.0]

    @pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
    def test_a_sample_in_no_set_is_silent(self, value):
        """A log-prob that is not finite does no harm where the weight is zero: 0, not NaN."""
        log_prob = th.tensor([-1.0, value, -2.0], requires_grad=True)
        total = weighted_log_prob(th.tensor([0.5, 0.0, 0.5]), log_prob)
        assert total.item() == -1.5
        (gradient,) = gradients(total, log_prob)
        assert gradient.tolist() == [0.5, 0.0, 0.5]

    def test_no_weights_at_all(self):
        log_prob = th.tensor([[-math.inf], [3.0]], requires_grad=True)
        total = weighted_log_prob(th.zeros(2, 1), log_prob)
        assert total.tolist() == [0.0]
        assert gradients(total.sum(), log_prob)[0].tolist() == [[0.0], [0.0]]

    @pytest.mark.parametrize(
        ("alpha", "beta", "accepted", "rejected", "kl"),
        [(0.0, 1.0, -math.inf, -2.0, 0.1), (1.0, 1.0, -2.0, -math.inf, 0.1),
         (1.0, 0.0, -2.0, -2.0, math.inf)],
        ids=["alpha=0", "alpha=1", "beta=0"],
    )  # fmt: skip
    def test_a_term_with_a_zero_coefficient_is_silent(self, alpha, beta, accepted, rejected, kl):
        """Reject only (Eq. 9) has no accept term and accept only (Eq. 6) neither of the others: an
        infinite one (a masked logit, a categorical KL that underflows) must not make ``0 * inf``.
        """
        log_prob = th.tensor([accepted, rejected], requires_grad=True)
        preference = Preference(th.tensor([1.0, 0.0]), th.tensor([0.0, 1.0]))
        loss = pmpo_loss(log_prob, preference, th.tensor(kl), alpha=alpha, beta=beta).loss
        assert loss.isfinite()
        assert gradients(loss, log_prob)[0].isfinite().all()


class TestDtype:
    @pytest.mark.parametrize("dtype", [th.float32, th.float64])
    def test_the_loss_has_the_dtype_of_the_log_prob(self, dtype):
        log_prob, preference, kl = problem(6, (2,), dtype, 0)
        terms = pmpo_loss(log_prob, preference, kl, alpha=0.5, beta=1.0)
        assert {term.dtype for term in terms} == {dtype}

    def test_half_precision_is_summed_in_the_weights_precision(self):
        """bfloat16 log-probs of long completions: weights and sums stay float32."""
        log_prob = th.randn(6, 2, generator=seeded(0)).bfloat16()
        preference = top_k(3)(Candidates(th.randn(6, 2, generator=seeded(1))))
        terms = pmpo_loss(log_prob, preference, th.zeros(2), alpha=0.5, beta=1.0)
        assert terms.loss.dtype == th.float32
        exact = pmpo_loss(log_prob.double(), preference, th.zeros(2), alpha=0.5, beta=1.0)
        th.testing.assert_close(terms.loss, exact.loss.float(), rtol=1e-5, atol=1e-6)


class TestStability:
    """When the push away from rejected samples beats the KL's pull back to them."""

    @pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
    @pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 20.0])
    def test_iff_beta_is_below_2_times_1_minus_alpha(self, alpha, beta):
        reason = instability(alpha, beta)
        assert (reason is not None) == (beta < 2 * (1 - alpha))
        if reason is not None:
            assert f"beta={beta}" in reason
            assert f"alpha={alpha}" in reason
            assert "raise beta or alpha" in reason

    @pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0, 1.5])
    @pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
    def test_a_mean_of_fixed_variance_is_safe_iff_its_loss_is_convex(self, alpha, beta):
        """The second derivative in the mean is the total of the weights, the KL's included."""
        mean = th.zeros(1, dtype=th.float64, requires_grad=True)
        samples = th.randn(8, 1, generator=seeded(0), dtype=th.float64)
        preference = top_k(4)(Candidates(samples))
        log_prob, kl = -0.5 * (samples - mean).square(), 0.5 * mean.square()
        loss = pmpo_loss(log_prob, preference, kl, alpha=alpha, beta=beta).loss
        (slope,) = th.autograd.grad(loss, mean, create_graph=True)
        (curvature,) = th.autograd.grad(slope.sum(), mean)
        reason = instability(alpha, beta, fixed_variance=True)
        assert (reason is None) == (curvature.item() > 1e-9)
        assert reason is None or f"beta={beta}" in reason

    @pytest.mark.parametrize("tenths", range(11))
    def test_the_threshold_itself_is_safe_in_decimals(self, tenths):
        """alpha = 0.7, beta = 0.6 is on the threshold: ``2 * (1 - 0.7)`` must not round above."""
        alpha, beta = tenths / 10, (20 - 2 * tenths) / 10
        assert instability(alpha, beta) is None
        if tenths < 10:
            assert instability(alpha, beta - 0.01) is not None

    @pytest.mark.parametrize("factor", [0.5, 0.99, 1.0, 1.01, 2.0])
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.8])
    @pytest.mark.parametrize(
        ("normalise", "threshold"), [(mean_per_set, 2.0), (mean_over_samples, 1.0)]
    )
    def test_the_total_weight_on_the_rejected(self, normalise, threshold, alpha, factor):
        """With half of the reference's samples in each set, ``E_ref = (E_acc + E_rej) / 2`` and
        ``KL = const - E_ref[log pi]``: the rejected's total weight in the loss, their own and the
        KL's share, is <= 0 iff ``beta >= 2 (1 - alpha)``; iff ``beta >= 1 - alpha`` if both sets
        are averaged over all samples.
        """
        beta = factor * threshold * (1 - alpha)
        scores = th.randn(8, generator=seeded(0), dtype=th.float64)
        labeller = top_k(4, normalise=normalise)
        preference = labeller(Candidates(scores))
        log_prob = th.randn(8, generator=seeded(1), dtype=th.float64, requires_grad=True)
        sampled_kl = -log_prob.mean(0)  # up to the reference's entropy, a constant
        loss = pmpo_loss(log_prob, preference, sampled_kl, alpha=alpha, beta=beta).loss
        weight = gradients(loss, log_prob)[0][preference.reject > 0].sum().item()
        own = (1 - alpha) * threshold / 2
        assert weight == pytest.approx(own - beta / 2, abs=1e-7)
        if factor != 1.0:
            assert (weight <= 0) == (factor > 1.0)
            share = rejected_share(labeller, 8)
            assert (instability(alpha, beta, rejected=share) is None) == (weight <= 0)

    @pytest.mark.parametrize("limit", [0.5, 2.0, 10.0])
    def test_the_weight_of_a_rejection_that_is_limited(self, limit):
        """The worst action of a state in which much is at stake weighs ``2 * limit`` times its
        probability, and the KL holds it by beta times its probability."""
        labeller, alpha = advantage(limit), 0.25
        scores, probabilities = th.zeros(2, 1000), th.tensor([[0.9], [0.1]]).expand(2, 1000)
        scores[1, 0] = -1.0
        preference = labeller(Candidates(scores, weights=probabilities))
        heaviest = (preference.reject / probabilities).max().item()
        assert heaviest == pytest.approx(2.0 * limit)
        for beta in (0.95 * (1 - alpha) * heaviest, 1.05 * (1 - alpha) * heaviest):
            reason = instability(alpha, beta, rejected=rejected_share(labeller, 2))
            assert (reason is None) == (beta > (1 - alpha) * heaviest)

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    @pytest.mark.parametrize("rejected", [1, 2, 5, 6])
    def test_an_uneven_split_moves_the_bound(self, rejected, alpha):
        """Of 8 equally likely atoms some are rejected: the loss has a bound iff the KL outweighs
        the push away from them, ``beta >= (1 - alpha) * 8 / rejected``."""
        share, mask = rejected / 8, th.arange(8) < rejected

        def loss(depth: float, beta: float) -> float:
            log_prob = th.where(mask, -depth, 0.0).double().log_softmax(-1)
            kl = -math.log(8) - log_prob.mean(-1)
            preference = from_masks(~mask, mask)
            return pmpo_loss(log_prob, preference, kl, alpha=alpha, beta=beta).loss.item()

        least = (1 - alpha) / share
        for beta, bounded in ((0.95 * least, False), (least, True), (1.05 * least, True)):
            assert (instability(alpha, beta, rejected=share) is None) == bounded
            falls = loss(1e6, beta) < loss(1e3, beta) - 1.0
            assert falls != bounded

    @staticmethod
    def categorical_loss(logits: th.Tensor, *, alpha: float, beta: float) -> th.Tensor:
        """Compute the loss of a policy over 4 atoms, two of each set; uniform reference."""
        log_prob = logits.log_softmax(-1)
        preference = from_masks(th.arange(4) < 2, th.arange(4) >= 2)
        kl = -math.log(4) - log_prob.mean(-1)  # E_ref[log pi_ref - log pi]
        return pmpo_loss(log_prob, preference, kl, alpha=alpha, beta=beta).loss

    @pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.5), (0.0, 1.9), (0.5, 0.5), (0.8, 0.3)])
    def test_a_categorical_is_unbounded_below_the_threshold(self, alpha, beta):
        """Moving mass off the rejected atoms by t lowers the loss as
        ``-((1 - alpha) - beta / 2) t``, below any bound."""
        assert instability(alpha, beta) is not None
        depths = (1e1, 1e2, 1e3, 1e4)
        losses = [
            self.categorical_loss(th.tensor([0.0, 0.0, -t, -t]), alpha=alpha, beta=beta).item()
            for t in depths
        ]
        assert losses == sorted(losses, reverse=True)
        slope = (losses[-1] - losses[-2]) / (depths[-1] - depths[-2])
        assert slope == pytest.approx(-(1 - alpha) + beta / 2, abs=1e-4)
        assert losses[-1] < -100.0

    @SETTINGS
    @given(
        alpha=st.floats(0.0, 1.0), excess=st.floats(0.0, 3.0), scale=st.floats(0.0, 1e3), seed=SEEDS
    )
    def test_a_categorical_is_bounded_from_the_threshold_on(self, alpha, excess, scale, seed):
        """beta >= 2 (1 - alpha): no log-prob has a positive weight, so ``L >= -beta * H(ref)``."""
        beta = 2 * (1 - alpha) + excess
        logits = scale * th.randn(4, generator=seeded(seed), dtype=th.float64)
        loss = self.categorical_loss(logits, alpha=alpha, beta=beta)
        assert loss.item() >= -beta * math.log(4) - 1e-6 * (1 + scale)

    @pytest.mark.parametrize(
        ("alpha", "beta"), [(0.0, 0.5), (0.0, 1.0), (0.25, 0.2), (0.25, 0.5), (0.5, 0.0)]
    )
    def test_a_gaussian_is_unbounded_for_beta_up_to_1_minus_2_alpha(self, alpha, beta):
        """Reject only: beta <= 1 (paper, Sec. 5.2). The total weight on log-probs is
        ``1 - 2 alpha - beta >= 0``, so moving the mean away lowers the loss without end."""
        losses = [self.gaussian_loss(m, alpha=alpha, beta=beta) for m in (1e2, 1e3, 1e4)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < -1e3

    @pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.2), (0.25, 0.7), (0.5, 0.2), (1.0, 0.0)])
    def test_a_gaussian_mean_is_held_above_1_minus_2_alpha(self, alpha, beta):
        """With its std held, a Gaussian's loss grows as the mean leaves, to either side."""
        for side in (-1.0, 1.0):
            losses = [self.gaussian_loss(side * m, alpha=alpha, beta=beta) for m in (1e2, 1e3)]
            assert losses == sorted(losses)
            assert losses[-1] > 1e3

    @staticmethod
    def gaussian_loss(mean: float, *, alpha: float, beta: float) -> float:
        """Compute the loss of ``N(mean, 1)`` on symmetric samples of N(0, 1); right is best."""
        grid = (th.arange(64, dtype=th.float64) + 0.5) / 64
        actions = math.sqrt(2) * th.erfinv(2 * grid - 1)
        policy = th.distributions.Normal(th.tensor(mean, dtype=th.float64), 1.0)
        preference = top_k(32)(Candidates(actions))
        kl = th.tensor(0.5 * mean**2, dtype=th.float64)
        terms = pmpo_loss(policy.log_prob(actions), preference, kl, alpha=alpha, beta=beta)
        return terms.loss.item()


class TestCheck:
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("beta", [0.0, 20.0])
    def test_accepts_the_closed_range(self, alpha, beta):
        check_alpha_beta(alpha, beta)

    @pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf])
    def test_refuses_alpha(self, alpha):
        message = re.escape(f"alpha must be a number >= 0.0 and <= 1.0, got {alpha}: 1 learns")
        with pytest.raises(ValueError, match=message):
            check_alpha_beta(alpha, 1.0)

    @pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf, -math.inf])
    def test_refuses_beta(self, beta):
        message = re.escape(f"beta must be a number >= 0.0, got {beta}: it is the weight of")
        with pytest.raises(ValueError, match=message):
            check_alpha_beta(0.5, beta)
