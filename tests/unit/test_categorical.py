"""The categorical policy and the full Gaussian: closed forms against torch.distributions.

Axes: S samples, *B batch, A action dimensions, K bins.
"""

from __future__ import annotations

import itertools

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as peers

from sb3_pmpo.distributions import MAX_LISTED, NO_BIN, Categorical, FullGaussian
from sb3_pmpo.distributions.gaussian import edge_barrier
from sb3_pmpo.networks import CategoricalHead

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)


def categorical(
    batch: tuple[int, ...], sizes: tuple[int, ...], seed: int, **kwargs: float
) -> Categorical:
    """Draw logits, with :data:`NO_BIN` where a dimension lacks bins."""
    generator = th.Generator().manual_seed(seed)
    logits = 2.0 * th.randn(*batch, len(sizes), max(sizes), generator=generator)
    exists = th.arange(max(sizes)) < th.tensor(sizes).unsqueeze(-1)
    return Categorical(logits.masked_fill(~exists, NO_BIN).requires_grad_(), sizes, **kwargs)


SHAPES = {
    "batch": st.lists(st.integers(1, 3), max_size=2).map(tuple),
    "sizes": st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    "seed": st.integers(0, 2**31 - 1),
}


class TestCategorical:
    @SETTINGS
    @given(**SHAPES)
    def test_log_prob_and_kl_are_torch_s(self, batch, sizes, seed):
        policy, reference = categorical(batch, sizes, seed), categorical(batch, sizes, seed + 1)
        actions = reference.sample(6)
        assert actions.shape == (6, *batch, len(sizes))
        expected_log_prob, expected_kl = 0.0, []
        for dim, size in enumerate(sizes):
            one, other = (
                peers.Categorical(logits=d.logits[..., dim, :size]) for d in (policy, reference)
            )
            expected_log_prob = expected_log_prob + one.log_prob(actions[..., dim])
            expected_kl.append(peers.kl_divergence(other, one))
        th.testing.assert_close(policy.log_prob(actions), expected_log_prob)
        kl = policy.kl_per_dim(reference)
        th.testing.assert_close(kl, th.stack(expected_kl, -1))
        (component,) = policy.decoupled(reference, actions)
        th.testing.assert_close(component.kl, kl.sum(-1))
        gradient = th.autograd.grad(
            component.kl.sum(), (policy.logits, reference.logits),
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        assert (gradient[1] == 0).all()

    def test_the_log_prob_s_gradient_is_one_hot_minus_probability(self):
        policy = categorical((), (4,), seed=3)
        policy.log_prob(th.tensor([[2.0]])).sum().backward()
        expected = th.eye(4)[2] - policy.logits.detach().softmax(-1)[0]
        th.testing.assert_close(policy.logits.grad[0], expected)

    @SETTINGS
    @given(**SHAPES)
    def test_the_barrier_is_twice_the_kl_from_uniform(self, batch, sizes, seed):
        policy, expected, slopes = categorical(batch, sizes, seed), 0.0, []
        for dim, size in enumerate(sizes):
            here = peers.Categorical(logits=policy.logits[..., dim, :size])
            uniform = peers.Categorical(probs=th.full((size,), 1.0 / size))
            expected = expected + 2.0 * peers.kl_divergence(uniform, here)
            slopes.append(2.0 * (here.probs - 1.0 / size).detach())
        barrier = policy.edge_barrier()
        th.testing.assert_close(barrier, expected.expand(batch))
        (slope,) = th.autograd.grad(barrier.sum(), policy.logits)
        for dim, size in enumerate(sizes):
            th.testing.assert_close(slope[..., dim, :size], slopes[dim])
            assert (slope[..., dim, size:] == 0.0).all()

    def test_the_barrier_of_two_bins_is_that_of_a_mean(self):
        mean = th.linspace(-0.99, 0.99, 7)
        log_probs = th.stack(((1.0 - mean) / 2.0, (1.0 + mean) / 2.0), -1).log()
        barrier = Categorical(log_probs.unsqueeze(-2), (2,)).edge_barrier()
        th.testing.assert_close(barrier, edge_barrier(mean.unsqueeze(-1)), atol=1e-4, rtol=1e-4)

    def test_an_underflow_gives_a_finite_kl(self):
        """torch's own gives infinity here."""
        policy = Categorical(th.tensor([[0.0, -300.0]]), (2,))
        reference = Categorical(th.tensor([[-300.0, 0.0]]), (2,))
        assert policy.kl_from(reference).item() == pytest.approx(300.0)

    def test_samples_have_the_probabilities(self):
        policy = categorical((2,), (3, 5), seed=0)
        th.manual_seed(0)
        actions = policy.sample(20_000)
        for dim, size in enumerate((3, 5)):
            for state in range(2):
                share = th.bincount(actions[:, state, dim].long(), minlength=5) / 20_000
                assert (share[size:] == 0).all()
                expected = policy.logits.detach()[state, dim].softmax(-1)
                th.testing.assert_close(share, expected, atol=0.02, rtol=0)

    def test_quantiles_are_samples_in_order(self):
        """Standard normal draws give the policy's probabilities, and a higher draw no lower bin."""
        policy = categorical((1,), (5,), seed=1, low=-1.0, spacing=0.5)
        z = th.special.ndtri((th.arange(10_000) + 0.5) / 10_000)
        wide = policy._replace(logits=policy.logits.detach().expand(10_000, 1, 5))
        actions = wide.at_quantile(z.unsqueeze(-1)).squeeze(-1)
        assert (actions.diff() >= 0).all()
        index = ((actions + 1.0) / 0.5).round().long()
        share = th.bincount(index, minlength=5) / 10_000
        th.testing.assert_close(share, policy.logits.detach()[0, 0].softmax(-1), atol=1e-3, rtol=0)

    def test_extreme_draws_stay_on_real_bins(self):
        policy = categorical((), (2, 4), seed=2)
        for z in (-40.0, 40.0):
            actions = policy.at_quantile(th.full((2,), z))
            assert (actions >= 0).all()
            assert (actions < th.tensor([2, 4])).all()

    def test_all_actions_are_listed_with_their_probabilities(self):
        policy = categorical((3,), (2, 3), seed=4)
        actions, weights = policy.propose(8)
        listed = [tuple(row) for row in actions[:, 0].int().tolist()]
        assert listed == list(itertools.product(range(2), range(3)))
        th.testing.assert_close(weights.sum(0), th.ones(3))
        th.testing.assert_close(weights, policy.log_prob(actions).detach().exp())

    def test_many_actions_are_sampled(self):
        policy = categorical((), (2,) * 6, seed=5)  # 64 joint actions
        assert MAX_LISTED < 64
        actions, weights = policy.propose(8)
        assert actions.shape == (8, 6)
        assert weights.tolist() == [1 / 8] * 8

    def test_bin_centres_reach_both_bounds(self):
        head = CategoricalHead(4, (5, 5), -1.0, 2.0 / 4)
        policy = head(th.zeros(1, 4))
        centres = set(policy.sample(500).flatten().tolist())
        assert centres == {-1.0, -0.5, 0.0, 0.5, 1.0}
        logits = th.zeros(1, 2, 5)
        logits[0, 0, 4] = logits[0, 1, 1] = 1.0
        assert policy._replace(logits=logits).mode().tolist() == [[1.0, -0.5]]

    def test_the_entropies(self):
        logits = th.tensor([[[0.0, 0.0, NO_BIN], [0.0, -200.0, -200.0]]])
        metrics = Categorical(logits, (2, 3)).describe()
        assert metrics["entropy_max"].item() == pytest.approx(0.6931, abs=1e-4)
        assert metrics["entropy_min"].item() == pytest.approx(0.0, abs=1e-6)


class TestFullGaussian:
    @SETTINGS
    @given(batch=SHAPES["batch"], n_actions=st.integers(1, 4), seed=SHAPES["seed"])
    def test_log_prob_and_kl_are_torch_s(self, batch, n_actions, seed):
        generator = th.Generator().manual_seed(seed)

        def draw(*shape: int) -> th.Tensor:
            return th.randn(*batch, *shape, generator=generator, dtype=th.float64)

        policy, reference = (
            FullGaussian(
                draw(n_actions),
                draw(n_actions, n_actions).tril(-1) + (0.3 + draw(n_actions).abs()).diag_embed(),
            )
            for _ in range(2)
        )
        one, other = (
            peers.MultivariateNormal(d.mean, scale_tril=d.scale_tril) for d in (policy, reference)
        )
        actions = reference.sample(5)
        th.testing.assert_close(policy.log_prob(actions), one.log_prob(actions))
        th.testing.assert_close(policy.kl_from(reference), peers.kl_divergence(other, one))
        mean, spread = policy.decoupled(reference, actions)
        for component, mixture in (
            (mean, peers.MultivariateNormal(one.mean, scale_tril=other.scale_tril)),
            (spread, peers.MultivariateNormal(other.mean, scale_tril=one.scale_tril)),
        ):
            th.testing.assert_close(component.log_prob, mixture.log_prob(actions))
            th.testing.assert_close(component.kl, peers.kl_divergence(other, mixture))

    def test_samples_have_the_covariance(self):
        factor = th.tensor([[1.0, 0.0], [0.8, 0.2]])
        th.manual_seed(0)
        samples = FullGaussian(th.tensor([1.0, -1.0]), factor).sample(50_000)
        th.testing.assert_close(samples.mean(0), th.tensor([1.0, -1.0]), atol=0.02, rtol=0)
        th.testing.assert_close(th.cov(samples.T), factor @ factor.T, atol=0.02, rtol=0)
