"""The diagonal Gaussian: closed forms against torch.distributions, gradients by hand.

Axes: S samples, *B batch, A action dimensions.
"""

from __future__ import annotations

import math

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from sb3_pmpo.distributions import DiagGaussian

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
SHAPES = {
    "n_samples": st.integers(1, 8),
    "batch": st.lists(st.integers(1, 3), max_size=2).map(tuple),
    "n_actions": st.integers(1, 4),
    "dtype": st.sampled_from([th.float32, th.float64]),
    "seed": st.integers(0, 2**31 - 1),
}


def seeded(seed: int) -> th.Generator:
    """Make a generator of one's own, so that no test depends on another's draws."""
    return th.Generator().manual_seed(seed)


def gaussian(shape: tuple[int, ...], dtype: th.dtype, seed: int) -> DiagGaussian:
    """Draw a mean in about [-2, 2] and a std in [0.1, 1.1], both with a gradient."""
    generator = seeded(seed)
    mean = th.randn(shape, generator=generator).to(dtype)
    std = 0.1 + th.rand(shape, generator=generator).to(dtype)
    return DiagGaussian(mean.requires_grad_(), std.requires_grad_())


def peer(policy: DiagGaussian) -> Independent:
    """Make torch's own distribution of the same parameters."""
    return Independent(Normal(policy.mean, policy.std), 1)


def draw(
    n_samples: int, batch: tuple[int, ...], n_actions: int, dtype: th.dtype, seed: int
) -> tuple[DiagGaussian, DiagGaussian, th.Tensor]:
    """Draw a policy, a reference and samples ``[S, *B, A]`` of the reference."""
    policy = gaussian((*batch, n_actions), dtype, seed)
    reference = gaussian((*batch, n_actions), dtype, seed + 1)
    noise = th.randn(n_samples, *batch, n_actions, generator=seeded(seed + 2)).to(dtype)
    return policy, reference, (reference.mean + reference.std * noise).detach()


def gradients(output: th.Tensor, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
    """Differentiate a sum; zeros for an input that it does not depend on."""
    return th.autograd.grad(output.sum(), inputs, allow_unused=True, materialize_grads=True)


class TestClosedForms:
    @SETTINGS
    @given(**SHAPES)
    def test_log_prob(self, n_samples, batch, n_actions, dtype, seed):
        """The sum over A of normal log-densities, as ``Independent`` has it."""
        policy, _, actions = draw(n_samples, batch, n_actions, dtype, seed)
        log_prob = policy.log_prob(actions)
        assert log_prob.shape == (n_samples, *batch)
        assert log_prob.dtype == dtype
        assert log_prob.isfinite().all()
        th.testing.assert_close(log_prob, peer(policy).log_prob(actions))

    @SETTINGS
    @given(**SHAPES)
    def test_kl(self, n_samples, batch, n_actions, dtype, seed):
        """``KL(reference || policy)``: the reference is torch's first argument."""
        policy, reference, _ = draw(n_samples, batch, n_actions, dtype, seed)
        kl = policy.kl_from(reference)
        assert kl.shape == batch
        assert kl.dtype == dtype
        assert (kl >= -1e-6).all()
        th.testing.assert_close(kl, kl_divergence(peer(reference), peer(policy)))

    def test_kl_direction_by_hand(self):
        """Reference N(0, 1), policy N(1, 2): ``log 2 + (1 + 1) / 8 - 1/2 = 0.4431``; the other
        way round it would be ``-log 2 + (4 + 1) / 2 - 1/2 = 1.3069``."""
        reference = DiagGaussian(th.zeros(1), th.ones(1))
        policy = DiagGaussian(th.ones(1), th.full((1,), 2.0))
        assert policy.kl_from(reference).item() == pytest.approx(math.log(2) - 0.25)
        assert reference.kl_from(policy).item() == pytest.approx(-math.log(2) + 2.0)

    @SETTINGS
    @given(**SHAPES)
    def test_decoupled(self, n_samples, batch, n_actions, dtype, seed):
        """Each part is a Gaussian with one parameter of the reference: its log-prob and its
        ``KL(reference || part)`` are torch's for that mixture."""
        policy, reference, actions = draw(n_samples, batch, n_actions, dtype, seed)
        mean, std = policy.decoupled(reference, actions)
        assert (mean.name, std.name) == ("mean", "std")
        mixtures = (
            DiagGaussian(policy.mean, reference.std),
            DiagGaussian(reference.mean, policy.std),
        )
        for component, mixture in zip((mean, std), mixtures, strict=True):
            assert component.log_prob.shape == (n_samples, *batch)
            assert component.kl.shape == batch
            th.testing.assert_close(component.log_prob, peer(mixture).log_prob(actions))
            th.testing.assert_close(component.kl, kl_divergence(peer(reference), peer(mixture)))

    def test_decoupled_kls_by_the_docstrings_formulas(self):
        """``((m - m_ref) / s_ref)^2 / 2`` and ``log(s / s_ref) + (s_ref / s)^2 / 2 - 1/2``."""
        reference = DiagGaussian(th.tensor([0.5, -1.0]), th.tensor([2.0, 0.5]))
        policy = DiagGaussian(th.tensor([1.5, -1.0]), th.tensor([1.0, 1.0]))
        mean, std = policy.decoupled(reference, th.zeros(1, 2))
        assert mean.kl.item() == pytest.approx(0.5 * 0.25)
        first, second = math.log(0.5) + 2.0 - 0.5, math.log(2.0) + 0.125 - 0.5
        assert std.kl.item() == pytest.approx(first + second)

    def test_decoupled_kls_add_up_to_the_joint_if_the_stds_agree(self):
        """The joint KL's shift is measured in the policy's std, the mean's in the reference's:
        with one std they are the same, and the std's KL is zero."""
        reference = DiagGaussian(th.tensor([0.5, -1.0]), th.tensor([2.0, 0.5]))
        policy = DiagGaussian(th.tensor([1.5, 0.0]), reference.std)
        mean, std = policy.decoupled(reference, th.zeros(1, 2))
        assert std.kl.item() == 0.0
        th.testing.assert_close(mean.kl, policy.kl_from(reference))

    @SETTINGS
    @given(**SHAPES)
    def test_joint(self, n_samples, batch, n_actions, dtype, seed):
        policy, reference, actions = draw(n_samples, batch, n_actions, dtype, seed)
        (joint,) = policy.joint(reference, actions)
        assert joint.name == "joint"
        assert th.equal(joint.log_prob, policy.log_prob(actions))
        assert th.equal(joint.kl, policy.kl_from(reference))

    def test_kl_is_the_expected_log_ratio_under_the_reference(self):
        """By Monte Carlo with its standard error, independent of any closed form."""
        reference = DiagGaussian(th.tensor([0.3, -0.5]), th.tensor([0.5, 0.9]))
        policy = DiagGaussian(th.tensor([0.0, -0.2]), th.tensor([0.8, 0.6]))
        noise = th.randn(100_000, 2, generator=seeded(0))
        actions = reference.mean + reference.std * noise
        ratio = reference.log_prob(actions) - policy.log_prob(actions)
        standard_error = (ratio.std() / len(ratio) ** 0.5).item()
        assert abs(ratio.mean().item() - policy.kl_from(reference).item()) < 5 * standard_error


class TestGradients:
    @SETTINGS
    @given(**SHAPES)
    def test_log_prob(self, n_samples, batch, n_actions, dtype, seed):
        """``d log pi / dm = (x - m) / s^2`` and ``d log pi / ds = ((x - m)^2 / s^2 - 1) / s``."""
        policy, _, actions = draw(n_samples, batch, n_actions, dtype, seed)
        d_mean, d_std = gradients(policy.log_prob(actions), policy.mean, policy.std)
        mean, std = policy.detach()
        th.testing.assert_close(d_mean, ((actions - mean) / std**2).sum(0), rtol=1e-4, atol=1e-3)
        expected = (((actions - mean) ** 2 / std**2 - 1) / std).sum(0)
        th.testing.assert_close(d_std, expected, rtol=1e-4, atol=1e-3)

    @SETTINGS
    @given(**SHAPES)
    def test_kl(self, n_samples, batch, n_actions, dtype, seed):
        """``dKL/dm = (m - m_ref) / s^2``; ``dKL/ds = 1/s - (s_ref^2 + (m - m_ref)^2) / s^3``."""
        policy, reference, _ = draw(n_samples, batch, n_actions, dtype, seed)
        d_mean, d_std = gradients(policy.kl_from(reference), policy.mean, policy.std)
        (mean, std), (mean_ref, std_ref) = policy.detach(), reference.detach()
        shift = mean - mean_ref
        th.testing.assert_close(d_mean, shift / std**2, rtol=1e-4, atol=1e-4)
        expected = 1 / std - (std_ref**2 + shift**2) / std**3
        th.testing.assert_close(d_std, expected, rtol=1e-4, atol=1e-3)

    @SETTINGS
    @given(**SHAPES)
    def test_decoupled(self, n_samples, batch, n_actions, dtype, seed):
        """Mean: ``(x - m) / s_ref^2`` and ``(m - m_ref) / s_ref^2``. Std: the joint formulas
        with ``m = m_ref``. Each reaches its own parameter alone."""
        policy, reference, actions = draw(n_samples, batch, n_actions, dtype, seed)
        components = policy.decoupled(reference, actions)
        (mean, std), (mean_ref, std_ref) = policy.detach(), reference.detach()
        z_ref = (actions - mean_ref) / std
        expected = {
            "mean": (((actions - mean) / std_ref**2).sum(0), (mean - mean_ref) / std_ref**2),
            "std": (((z_ref**2 - 1) / std).sum(0), 1 / std - std_ref**2 / std**3),
        }
        for component in components:
            own, other = policy if component.name == "mean" else reversed(policy)
            for output, formula in zip(
                (component.log_prob, component.kl), expected[component.name], strict=True
            ):
                d_own, d_other = gradients(output, own, other)
                th.testing.assert_close(d_own, formula, rtol=1e-4, atol=2e-3)
                assert (d_other == 0).all()

    @SETTINGS
    @given(**SHAPES)
    def test_at_the_reference_no_kl_pulls(self, n_samples, batch, n_actions, dtype, seed):
        """A reference refreshed at every update: KL = 0 and its gradient is exactly zero, joint
        and in both components."""
        policy = gaussian((*batch, n_actions), dtype, seed)
        actions = policy.sample(n_samples)
        components = (*policy.joint(policy, actions), *policy.decoupled(policy, actions))
        for component in components:
            assert (component.kl == 0).all()
            for gradient in gradients(component.kl, policy.mean, policy.std):
                assert (gradient == 0).all()

    @pytest.mark.parametrize("form", ["joint", "decoupled"])
    def test_none_reaches_the_reference(self, form):
        policy, reference, actions = draw(4, (3,), 2, th.float32, 0)
        for component in getattr(policy, form)(reference, actions):
            (component.log_prob.sum() + component.kl.sum()).backward()
        assert reference.mean.grad is None
        assert reference.std.grad is None
        assert policy.mean.grad is not None
        assert policy.std.grad is not None

    @pytest.mark.parametrize("form", ["joint", "decoupled"])
    def test_none_reaches_the_samples(self, form):
        """Rule 5: everything of the reference, so its samples too, carries no gradient."""
        policy, reference, actions = draw(4, (3,), 2, th.float32, 0)
        actions.requires_grad_()
        for component in getattr(policy, form)(reference, actions):
            component.log_prob.sum().backward()
        assert actions.grad is None

    def test_detach_cuts_both_parameters(self):
        policy = gaussian((3, 2), th.float32, 0)
        assert not any(parameter.requires_grad for parameter in policy.detach())
        assert th.equal(policy.detach().mean, policy.mean)


class TestSample:
    @SETTINGS
    @given(**SHAPES)
    def test_shape_and_no_gradient(self, n_samples, batch, n_actions, dtype, seed):
        actions = gaussian((*batch, n_actions), dtype, seed).sample(n_samples)
        assert actions.shape == (n_samples, *batch, n_actions)
        assert actions.isfinite().all()
        assert not actions.requires_grad

    @pytest.mark.parametrize("dtype", [th.float16, th.bfloat16, th.float32, th.float64])
    def test_keeps_the_dtype(self, dtype):
        policy = DiagGaussian(th.zeros(3, 2, dtype=dtype), th.ones(3, 2, dtype=dtype))
        assert policy.sample(4).dtype == dtype
        assert policy.propose(4).actions.dtype == dtype

    def test_moments(self):
        """Mean and variance of each dimension within five standard errors."""
        mean, std = th.tensor([[0.3, -1.0], [2.0, 0.0]]), th.tensor([[0.5, 0.1], [1.0, 0.02]])
        n_samples = 20_000
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            z = (DiagGaussian(mean, std).sample(n_samples) - mean) / std
        assert (z.mean(0).abs() < 5 / n_samples**0.5).all()
        assert ((z.square().mean(0) - 1).abs() < 5 * (2 / n_samples) ** 0.5).all()

    def test_states_and_dimensions_are_independent(self):
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            z = DiagGaussian(th.zeros(2, 2), th.ones(2, 2)).sample(20_000).flatten(1)
        correlation = th.corrcoef(z.T) - th.eye(4)
        assert (correlation.abs() < 5 / 20_000**0.5).all()

    def test_follows_the_global_seed(self):
        policy = gaussian((3, 2), th.float32, 0)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(1)
            first = policy.sample(4)
            second = policy.sample(4)
            th.manual_seed(1)
            again = policy.sample(4)
        assert th.equal(first, again)
        assert not th.equal(first, second)


class TestPropose:
    """The reference's samples of a state: normal each, at right angles in groups of A."""

    @SETTINGS
    @given(**SHAPES)
    def test_right_angles(self, n_samples, batch, n_actions, dtype, seed):
        policy = gaussian((*batch, n_actions), dtype, seed)
        actions, weights = policy.propose(n_samples)
        assert actions.shape == (n_samples, *batch, n_actions)
        assert actions.dtype == dtype
        assert not actions.requires_grad
        assert weights.shape == (n_samples, *batch)
        assert th.equal(weights, th.full_like(weights, 1 / n_samples))
        noise = ((actions - policy.mean) / policy.std).detach().movedim(0, -2)  # [*B, S, A]
        for group in noise.split(n_actions, dim=-2):
            unit = group / group.norm(dim=-1, keepdim=True)
            expected = th.eye(group.shape[-2], dtype=dtype).expand(*batch, -1, -1)
            # The std's rounding is what is left of the right angles in float32.
            th.testing.assert_close(unit @ unit.mT, expected, atol=2e-3, rtol=0)

    @pytest.mark.parametrize("n_samples", [2, 3, 4, 8])
    def test_each_is_a_draw_of_the_policy(self, n_samples):
        """Means, covariances and squared radii within five standard errors, sample by sample."""
        n_states, n_actions = 20_000, 3
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            policy = DiagGaussian(th.zeros(n_states, n_actions), th.ones(n_states, n_actions))
            noise = policy.propose(n_samples).actions  # [S, B, A]
        error = 5 / n_states**0.5
        assert (noise.mean(1).abs() < error).all()
        covariance = noise.mT @ noise / n_states - th.eye(n_actions)
        assert (covariance.abs() < error * 2**0.5).all()
        radius = noise.square().sum(-1)  # chi-squared: mean A, variance 2 A
        assert ((radius.mean(1) - n_actions).abs() < error * (2 * n_actions) ** 0.5).all()
        assert (radius.var(1) / (2 * n_actions) - 1).abs().max() < 0.2

    def test_a_linear_score_gives_the_mean_a_quieter_gradient(self):
        """With A samples the variance is a third of that of independent ones (A = 6)."""
        n_states, n_actions = 20_000, 6
        slope = th.linspace(-1.0, 1.0, n_actions)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            policy = DiagGaussian(th.zeros(n_states, n_actions), th.ones(n_states, n_actions))
            variances = []
            for noise in (policy.propose(n_actions).actions, policy.sample(n_actions)):
                gradient = ((noise @ slope).unsqueeze(-1) * noise).mean(0)  # [B, A]
                error = 5 * gradient.std(0) / n_states**0.5
                assert ((gradient.mean(0) - slope).abs() < error).all()
                variances.append(gradient.var(0).sum())
        assert variances[0] < variances[1] / 2.5
