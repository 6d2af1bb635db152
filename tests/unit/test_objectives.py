"""The PMPO objective on Gaussians: gradients, equivalences, collapse and convergence.

Axes: S samples, *B batch, A action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_pmpo.core.e_step import Duals
from sb3_pmpo.core.labels import advantage, top_k
from sb3_pmpo.core.losses import least_beta
from sb3_pmpo.core.samples import Candidates, Preference, from_masks
from sb3_pmpo.distributions import Categorical, DiagGaussian
from sb3_pmpo.learner import policy_step
from sb3_pmpo.objectives import MPOObjective, PMPOObjective

SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)
SHAPES = {
    "n_samples": st.integers(2, 8),
    "batch": st.lists(st.integers(1, 3), max_size=2).map(tuple),
    "n_actions": st.integers(1, 4),
    "dtype": st.sampled_from([th.float32, th.float64]),
    "decoupled": st.booleans(),
    "seed": st.integers(0, 2**31 - 1),
}
FLOOR = 0.01

#: Where the instability that the objective warns of is the point.
unsafe = pytest.mark.filterwarnings("ignore:.*beta=.*the policy may collapse:UserWarning")

Score = Callable[[th.Tensor], th.Tensor]


def seeded(seed: int) -> th.Generator:
    """Make a generator of one's own, so that no test depends on another's draws."""
    return th.Generator().manual_seed(seed)


def gaussian(shape: tuple[int, ...], dtype: th.dtype, seed: int) -> DiagGaussian:
    """Draw a mean in about [-2, 2] and a std in [0.2, 1.2], both with a gradient."""
    generator = seeded(seed)
    mean = th.randn(shape, generator=generator).to(dtype)
    std = 0.2 + th.rand(shape, generator=generator).to(dtype)
    return DiagGaussian(mean.requires_grad_(), std.requires_grad_())


def problem(
    n_samples: int, batch: tuple[int, ...], n_actions: int, dtype: th.dtype, seed: int
) -> tuple[DiagGaussian, DiagGaussian, Candidates]:
    """Draw a policy, a reference, and scored samples of the reference."""
    online = gaussian((*batch, n_actions), dtype, seed)
    reference = gaussian((*batch, n_actions), dtype, seed + 1)
    generator = seeded(seed + 2)
    noise = th.randn(n_samples, *batch, n_actions, generator=generator).to(dtype)
    scores = th.randn(n_samples, *batch, generator=generator).to(dtype)
    actions = (reference.mean + reference.std * noise).detach()
    return online, reference, Candidates(scores, actions)


def pmpo(
    alpha: float, beta: float | tuple[float, float], k: int, *, decoupled: bool = False
) -> PMPOObjective:
    """Make an objective; one beta serves mean and std alike."""
    beta_mean, beta_std = beta if isinstance(beta, tuple) else (beta, beta)
    return PMPOObjective(alpha, beta_mean, beta_std, top_k(k), decoupled)


class TestValueAndGradient:
    @SETTINGS
    @given(**SHAPES)
    def test_is_finite_and_keeps_the_dtype(
        self, n_samples, batch, n_actions, dtype, decoupled, seed
    ):
        online, reference, candidates = problem(n_samples, batch, n_actions, dtype, seed)
        objective = pmpo(0.5, (1.0, 20.0), n_samples // 2, decoupled=decoupled)
        loss, metrics = objective(online, reference, candidates)
        assert loss.shape == batch
        assert loss.dtype == dtype
        assert loss.isfinite().all()
        assert all(value.shape == () and value.isfinite() for value in metrics.values())
        for gradient in th.autograd.grad(loss.sum(), online):
            assert gradient.isfinite().all()

    @SETTINGS
    @given(**SHAPES)
    def test_gradient_by_hand(self, n_samples, batch, n_actions, dtype, decoupled, seed):
        """Eq. 10 with the Gaussian's derivatives written out, c the weight of a sample in the
        loss, per state: joint ``dL/dm = sum c (x - m)/s^2 + beta (m - m_ref)/s^2`` and
        ``dL/ds = sum c ((x - m)^2/s^2 - 1)/s + beta (1/s - (s_ref^2 + (m - m_ref)^2)/s^3)``;
        decoupled the same with ``s_ref`` for s in the first and ``m_ref`` for m in the second.
        """
        alpha, beta_mean, beta_std = 0.3, 1.5, 7.0
        online, reference, candidates = problem(n_samples, batch, n_actions, dtype, seed)
        objective = pmpo(alpha, (beta_mean, beta_std), n_samples // 2, decoupled=decoupled)
        loss, _ = objective(online, reference, candidates)
        d_mean, d_std = th.autograd.grad(loss.sum(), online)

        accept, reject = objective.labeller(candidates)
        c = (-alpha * accept + (1 - alpha) * reject).to(dtype).unsqueeze(-1)
        (m, s), (m_ref, s_ref) = online.detach(), reference.detach()
        x = candidates.actions
        width, center = (s_ref, m_ref) if decoupled else (s, m)
        beta_of_std = beta_std if decoupled else beta_mean
        by_mean = (c * (x - m)).sum(0) / width**2 + beta_mean * (m - m_ref) / width**2
        by_std = (c * ((x - center) ** 2 / s**2 - 1)).sum(0) / s
        by_std = by_std + beta_of_std * (1 / s - (s_ref**2 + (center - m_ref) ** 2) / s**3)
        th.testing.assert_close(d_mean, by_mean, rtol=1e-3, atol=1e-3)
        th.testing.assert_close(d_std, by_std, rtol=1e-3, atol=5e-3)

    def test_the_joint_optimum_in_closed_form(self):
        """The loss is a weighted likelihood: with ``w = 2 alpha - 1 + beta > 0`` its stationary
        point is ``m* = (alpha E_acc x - (1 - alpha) E_rej x + beta m_ref) / w`` and
        ``s*^2 = (alpha E_acc x^2 - (1 - alpha) E_rej x^2 + beta (s_ref^2 + m_ref^2)) / w - m*^2``.
        """
        alpha, beta = 0.5, 2.0
        reference = DiagGaussian(th.tensor([0.2]).double(), th.tensor([0.7]).double())
        x = reference.mean + reference.std * quantiles(8)
        w = 2 * alpha - 1 + beta
        moments = [(alpha * x[4:] ** p).mean() - ((1 - alpha) * x[:4] ** p).mean() for p in (1, 2)]
        mean = (moments[0] + beta * reference.mean) / w
        second = (moments[1] + beta * (reference.std**2 + reference.mean**2)) / w
        optimum = DiagGaussian(mean.requires_grad_(), (second - mean**2).sqrt().detach())
        optimum.std.requires_grad_()
        loss, _ = pmpo(alpha, beta, 4)(optimum, reference, Candidates(x.squeeze(-1), x))
        for gradient in th.autograd.grad(loss, optimum):
            assert gradient.item() == pytest.approx(0.0, abs=1e-6)

    @SETTINGS
    @given(**SHAPES)
    def test_the_order_of_the_samples_does_not_matter(
        self, n_samples, batch, n_actions, dtype, decoupled, seed
    ):
        online, reference, candidates = problem(n_samples, batch, n_actions, dtype, seed)
        order = th.randperm(n_samples, generator=seeded(seed + 3))
        permuted = Candidates(candidates.scores[order], candidates.actions[order])
        objective = pmpo(0.5, (1.0, 20.0), n_samples // 2, decoupled=decoupled)
        before = objective(online, reference, candidates)
        after = objective(online, reference, permuted)
        th.testing.assert_close(after.loss, before.loss, rtol=1e-4, atol=1e-4)
        assert after.metrics.keys() == before.metrics.keys()
        th.testing.assert_close(after.metrics, before.metrics, rtol=1e-4, atol=1e-4)

    def test_decoupled_weighs_each_kl_by_its_own_beta(self):
        """Raising one beta moves the gradient of its own parameter and leaves the other's."""
        online, reference, candidates = problem(4, (3,), 2, th.float64, 0)
        by_beta = {}
        for beta in ((1.0, 1.0), (9.0, 1.0), (1.0, 9.0)):
            loss, _ = pmpo(0.5, beta, 2, decoupled=True)(online, reference, candidates)
            by_beta[beta] = th.autograd.grad(loss.sum(), online)
        base, stiff_mean, stiff_std = by_beta.values()
        assert th.equal(stiff_mean[1], base[1])
        assert not th.allclose(stiff_mean[0], base[0])
        assert th.equal(stiff_std[0], base[0])
        assert not th.allclose(stiff_std[1], base[1])

    def test_joint_has_one_beta(self):
        online, reference, candidates = problem(4, (3,), 2, th.float64, 0)
        one, other = (pmpo(0.5, (1.0, b), 2)(online, reference, candidates) for b in (0.0, 99.0))
        assert th.equal(one.loss, other.loss)

    @unsafe
    @pytest.mark.parametrize("decoupled", [True, False])
    def test_a_reference_refreshed_at_every_update_makes_beta_void(self, decoupled):
        """At ``theta = theta_ref`` the gradient of the loss does not depend on beta at all."""
        online, _, candidates = problem(4, (3,), 2, th.float64, 0)
        found = []
        for beta in (0.0, 2.0, 1000.0):
            loss, _ = pmpo(0.0, beta, 2, decoupled=decoupled)(online, online, candidates)
            found.append(th.autograd.grad(loss.sum(), online))
        for weak, strong in zip(found[0], found[-1], strict=True):
            th.testing.assert_close(weak, strong)
            assert not th.allclose(weak, th.zeros_like(weak))


class TestBlockedGradients:
    @pytest.mark.parametrize("decoupled", [True, False])
    def test_the_gradient_reaches_the_policy_alone(self, decoupled):
        """Rule 5: none to the reference's mean and std, none to the scores."""
        online, reference, candidates = problem(4, (3,), 2, th.float32, 0)
        scores = candidates.scores.requires_grad_()
        loss, _ = pmpo(0.5, 1.0, 2, decoupled=decoupled)(online, reference, candidates)
        loss.sum().backward()
        assert online.mean.grad is not None
        assert online.std.grad is not None
        assert reference.mean.grad is None
        assert reference.std.grad is None
        assert scores.grad is None

    @pytest.mark.parametrize("decoupled", [True, False])
    def test_none_reaches_the_samples(self, decoupled):
        online, reference, candidates = problem(4, (3,), 2, th.float32, 0)
        actions = candidates.actions.requires_grad_()
        loss, _ = pmpo(0.5, 1.0, 2, decoupled=decoupled)(online, reference, candidates)
        loss.sum().backward()
        assert actions.grad is None

    def test_none_reaches_a_labellers_weights(self):
        """A labeller may hand out weights of a network; they stay weights."""
        online, reference, candidates = problem(4, (3,), 2, th.float32, 0)
        accept, reject = th.rand(2, 4, 3, generator=seeded(1)).requires_grad_().unbind()
        weights = Preference(accept.detach().requires_grad_(), reject.detach().requires_grad_())
        objective = PMPOObjective(0.5, 1.0, 1.0, lambda _: weights)
        objective(online, reference, candidates).loss.sum().backward()
        assert weights.accept.grad is None
        assert weights.reject.grad is None

    def test_metrics_carry_none(self):
        online, reference, candidates = problem(4, (3,), 2, th.float32, 0)
        candidates.scores.requires_grad_()
        _, metrics = pmpo(0.5, 1.0, 2)(online, reference, candidates)
        assert [name for name, value in metrics.items() if value.requires_grad] == []


class TestMetrics:
    def test_names(self):
        """One set of Eq. 10's terms a component, and two of the labels."""
        online, reference, candidates = problem(4, (3,), 2, th.float32, 0)
        labels = {"accept_fraction", "q_gap"}
        terms = ("accept_log_prob", "reject_log_prob", "kl")
        _, joint = pmpo(0.5, 1.0, 2)(online, reference, candidates)
        assert joint.keys() == labels | {f"{term}_joint" for term in terms}
        _, apart = pmpo(0.5, 1.0, 2, decoupled=True)(online, reference, candidates)
        assert apart.keys() == labels | {f"{t}_{part}" for t in terms for part in ("mean", "std")}

    def test_values(self):
        """Scores 0, 1, 2, 5: one accepted of four, the gap 5 - 0; the KL is the closed form."""
        online, reference, candidates = problem(4, (), 2, th.float32, 0)
        candidates = replace(candidates, scores=th.tensor([1.0, 5.0, 0.0, 2.0]))
        loss, metrics = pmpo(0.25, 2.0, 1)(online, reference, candidates)
        log_prob = online.log_prob(candidates.actions)
        assert metrics["accept_fraction"].item() == 0.25
        assert metrics["q_gap"].item() == 5.0
        assert metrics["accept_log_prob_joint"].item() == pytest.approx(log_prob[1].item())
        assert metrics["reject_log_prob_joint"].item() == pytest.approx(log_prob[2].item())
        kl = online.kl_from(reference).item()
        assert metrics["kl_joint"].item() == pytest.approx(kl)
        expected = -0.25 * log_prob[1] + 0.75 * log_prob[2] + 2.0 * kl
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_the_barrier_is_added_to_the_loss(self):
        """``-log(1 - mean^2)`` by its weight; without gradient to the std, 0 in the middle."""
        online, reference, candidates = problem(4, (3,), 2, th.float64, 0)
        x = th.tensor([[0.0, 0.3], [-1.5, 0.0], [6.0, -6.0]]).double().requires_grad_()
        online = online._replace(mean=x.tanh())
        plain, _ = pmpo(0.5, 1.0, 2)(online, reference, candidates)
        objective = PMPOObjective(0.5, 1.0, 1.0, top_k(2), False, edge_barrier=0.3)
        loss, metrics = objective(online, reference, candidates)
        barrier = 2.0 * x.cosh().log().sum(-1)
        th.testing.assert_close(loss - plain, 0.3 * barrier, atol=0.06, rtol=0.0)
        mean = barrier.detach().mean()
        th.testing.assert_close(metrics["edge_barrier"], mean, atol=0.05, rtol=0.0)
        (slope,) = th.autograd.grad((loss - plain).sum(), x)
        expected = 0.3 * 2.0 * x.tanh()  # full where tanh's own slope is 2e-5
        th.testing.assert_close(slope, expected.detach(), rtol=0.05, atol=1e-6)

    def test_the_barrier_makes_choices_without_labels_uniform(self):
        """With equal scores nothing else moves the policy; a clear label outweighs the barrier."""
        objective = PMPOObjective(0.5, 5.0, 5.0, advantage(), edge_barrier=0.02)
        for scores, nearer in (([0.0, 0.0, 0.0], True), ([1.0, 0.0, -1.0], False)):
            logits = th.tensor([[[1.0, 0.0, -1.0]]]).double().requires_grad_()
            policy = Categorical(logits, (3,))
            reference = policy.detach()
            actions, weights = reference.propose(6)
            scored = th.tensor(scores).double().unsqueeze(-1)
            loss, _ = objective(policy, reference, Candidates(scored, actions, weights))
            (slope,) = th.autograd.grad(loss.sum(), logits)
            assert (slope[0, 0, 0] > 0.0) == nearer
            assert (slope[0, 0, 2] < 0.0) == nearer
            if nearer:
                barrier = 0.02 * 2.0 * (logits.detach().softmax(-1) - 1.0 / 3.0)
                th.testing.assert_close(slope, barrier)

    def test_refuses_candidates_without_actions(self):
        online, reference, candidates = problem(4, (3,), 2, th.float32, 0)
        with pytest.raises(ValueError, match=r"candidates\.actions is None.*needs the samples"):
            pmpo(0.5, 1.0, 2)(online, reference, replace(candidates, actions=None))

    @pytest.mark.parametrize("decoupled", [True, False])
    def test_no_labels_leave_the_kl(self, decoupled):
        """Both sets empty: the loss is ``beta * KL`` by component, never NaN."""
        online, reference, candidates = problem(4, (3,), 2, th.float64, 0)
        nobody = th.zeros(4, 3, dtype=th.bool)
        objective = PMPOObjective(0.5, 2.0, 5.0, lambda _: from_masks(nobody, nobody), decoupled)
        loss, metrics = objective(online, reference, candidates)
        if decoupled:
            mean, std = online.decoupled(reference, candidates.actions)
            th.testing.assert_close(loss, 2.0 * mean.kl + 5.0 * std.kl)
        else:
            th.testing.assert_close(loss, 2.0 * online.kl_from(reference))
        assert metrics["accept_fraction"].item() == 0.0
        assert metrics["q_gap"].item() == 0.0
        for gradient in th.autograd.grad(loss.sum(), online):
            assert gradient.isfinite().all()


N_REPEATS = 20_000
PLACES = {
    "at the reference": ((0.0, 0.0), (1.0, 1.0)),
    "away from it": ((0.6, -0.3), (0.7, 1.4)),
}


def slope(actions: th.Tensor) -> th.Tensor:
    """Score linearly."""
    return actions[..., 0] - 0.5 * actions[..., 1]


def curved_slope(actions: th.Tensor) -> th.Tensor:
    """Score so that accepted and rejected differ in the first and in the second moment."""
    return slope(actions) - 0.3 * actions[..., 0].square()


def bowl(actions: th.Tensor) -> th.Tensor:
    """Score with the optimum at the reference's mean."""
    return -actions.square().sum(-1)


def repeated_gradients(
    objective: PMPOObjective, place: str, score: Score = curved_slope
) -> th.Tensor:
    """Estimate the gradient on 4 fresh samples of N(0, I), ``N_REPEATS`` times at once.

    Each repeat is a state with parameters of its own, so that one backward pass gives all the
    estimates; the samples are the same for every objective.

    :return: ``[N_REPEATS, 4]`` gradients with respect to mean and std of both dimensions.
    """
    mean, std = (
        th.tensor(v, dtype=th.float64).expand(N_REPEATS, 2).clone().requires_grad_()
        for v in PLACES[place]
    )
    reference = DiagGaussian(th.zeros_like(mean), th.ones_like(std))
    actions = th.randn(4, N_REPEATS, 2, generator=seeded(0), dtype=th.float64)
    candidates = Candidates(score(actions), actions)
    loss, _ = objective(DiagGaussian(mean, std), reference, candidates)
    return th.cat(th.autograd.grad(loss.sum(), (mean, std)), dim=-1)


def z_scores(difference: th.Tensor) -> th.Tensor:
    """Divide the mean over repeats by its standard error."""
    return difference.mean(0) / (difference.std(0) / len(difference) ** 0.5).clamp(min=1e-12)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("place", PLACES)
class TestControlVariate:
    """AR(1/2, beta = 1), A(1, 0) and R(0, 2) are estimates of one gradient.

    All 4 samples are labelled, so ``(E_acc + E_rej) / 2`` is an estimate of E_ref, and the KL's
    gradient is ``-E_ref[grad log pi]``, at every theta: the three differ by a multiple of
    ``(E_acc + E_rej) / 2 - E_ref``, whose mean is zero.
    """

    def test_one_expected_gradient(self, place, decoupled):
        accept = repeated_gradients(pmpo(1.0, 0.0, 2, decoupled=decoupled), place)
        both = repeated_gradients(pmpo(0.5, 1.0, 2, decoupled=decoupled), place)
        reject = repeated_gradients(pmpo(0.0, 2.0, 2, decoupled=decoupled), place)
        assert (z_scores(accept).abs() > 20).any()  # there is a gradient to agree on
        assert (z_scores(both - accept).abs() < 5).all()
        assert (z_scores(reject - accept).abs() < 5).all()

    @unsafe
    def test_a_wrong_beta_is_noticed(self, place, decoupled):
        """Away from the reference only: at it the KL has no gradient, whatever beta."""
        accept = repeated_gradients(pmpo(1.0, 0.0, 2, decoupled=decoupled), place)
        reject = repeated_gradients(pmpo(0.0, 1.5, 2, decoupled=decoupled), place)
        is_noticed = (z_scores(reject - accept).abs() > 10).any().item()
        assert is_noticed == (place == "away from it")

    def test_ignored_samples_break_the_identity(self, place, decoupled):
        """Best against worst leaves the middle out: E_ref is not the mean of the two sets."""
        accept = repeated_gradients(pmpo(1.0, 0.0, 1, decoupled=decoupled), place)
        both = repeated_gradients(pmpo(0.5, 1.0, 1, decoupled=decoupled), place)
        assert (z_scores(both - accept).abs() > 10).any()


class TestVariance:
    """AR's noise is that of ``(E_acc - E_rej) / 2``, A's that of E_acc: half of it or less iff
    ``Var E_rej - 2 Cov(E_acc, E_rej) <= Var E_acc``. True of a slope, where the sets mirror each
    other; not of a peak, where the rejected are the far ones and their noise is the larger.
    """

    @staticmethod
    def ratio(place: str, score: Score) -> th.Tensor:
        """Divide AR's variance by A's, for each parameter."""
        accept = repeated_gradients(pmpo(1.0, 0.0, 2, decoupled=True), place, score)
        both = repeated_gradients(pmpo(0.5, 1.0, 2, decoupled=True), place, score)
        return both.var(0) / accept.var(0)

    @pytest.mark.parametrize("place", PLACES)
    def test_rejected_samples_halve_it_on_a_slope(self, place):
        ratio = self.ratio(place, slope)
        assert (ratio[:2] < 0.5).all()  # of the mean
        assert (ratio[2:] < 0.56).all()  # of the std: half, up to a few percent

    def test_rejected_samples_raise_it_at_a_peak(self):
        """No free lunch: at the optimum of a quadratic AR is noisier than A."""
        ratio = self.ratio("at the reference", bowl)
        assert (ratio[:2] > 1.1).all()
        assert (ratio[2:] > 2.0).all()


def test_variance_ratio_of_the_mean_from_order_statistics():
    """Linear Q, one dimension, at the reference: with T and B the means of the upper and the
    lower two of four normal draws, Var T = 0.33585 and Cov(T, B) = 0.16415 (tables of normal
    order statistics), so the AR estimate has ``(Var T - Cov) / (2 Var T) = 0.2556`` of A's
    variance."""
    mean = th.zeros(50_000, 1, requires_grad=True)
    reference = DiagGaussian(mean.detach(), th.ones_like(mean))
    actions = th.randn(4, 50_000, 1, generator=seeded(1))
    candidates = Candidates(actions.squeeze(-1), actions)
    variance = []
    for alpha, beta in ((0.5, 1.0), (1.0, 0.0)):
        online = DiagGaussian(mean, reference.std)
        loss, _ = pmpo(alpha, beta, 2)(online, reference, candidates)
        variance.append(th.autograd.grad(loss.sum(), mean)[0].var().item())
    assert variance[1] == pytest.approx(0.33585, rel=0.03)
    assert variance[0] / variance[1] == pytest.approx(0.2556, rel=0.03)


def quantiles(n_samples: int) -> th.Tensor:
    """Place ``[S, 1]`` samples at the quantiles of N(0, 1): a draw without noise."""
    grid = (th.arange(n_samples, dtype=th.float64) + 0.5) / n_samples
    z = math.sqrt(2) * th.erfinv(2 * grid - 1)
    return (z / z.square().mean().sqrt()).unsqueeze(-1)


class Learner:
    """A mean and a std above a floor, fitted with Adam."""

    def __init__(self, mean: th.Tensor, std: float, learning_rate: float) -> None:
        self.mean = mean.clone().requires_grad_()
        rho = math.log(math.expm1(std - FLOOR))
        self.rho = th.full_like(mean, rho).requires_grad_()
        self.optimizer = th.optim.Adam([self.mean, self.rho], lr=learning_rate)

    def policy(self) -> DiagGaussian:
        return DiagGaussian(self.mean, FLOOR + th.nn.functional.softplus(self.rho))

    def step(
        self, objective: PMPOObjective, reference: DiagGaussian, candidates: Candidates
    ) -> None:
        policy_step(objective, [self.optimizer], self.policy(), reference, candidates)


@unsafe
class TestCollapse:
    """One-dimensional linear Q, reference N(0, s_ref), half accepted: with samples symmetric
    about 0, ``E_acc[x^2] = E_rej[x^2] = s_ref^2``, ``E_acc x = -E_rej x = mu``, so the joint
    optimum has ``m* = mu / w`` and ``s*^2 = s_ref^2 - mu^2 / w^2`` with ``w = 2 alpha - 1 + beta``.
    ``mu = 0.8 s_ref``: negative at AR beta = 0.5, where no std is small enough.
    """

    S_REF = 0.5

    def fit(self, objective: PMPOObjective, n_updates: int = 600) -> DiagGaussian:
        reference = DiagGaussian(
            th.zeros(1, dtype=th.float64), th.full((1,), self.S_REF, dtype=th.float64)
        )
        actions = reference.std * quantiles(64)
        candidates = Candidates(actions.squeeze(-1), actions)
        learner = Learner(reference.mean, self.S_REF, learning_rate=0.02)
        for _ in range(n_updates):
            learner.step(objective, reference, candidates)
        return learner.policy().detach()

    def optimal_variance(self, w: float) -> float:
        return self.S_REF**2 * (1 - (quantiles(64)[32:].mean().item() / w) ** 2)

    def test_joint_ar_runs_to_the_floor(self):
        assert self.optimal_variance(0.5) < 0
        assert self.fit(pmpo(0.5, 0.5, 32)).std.item() < 2 * FLOOR

    @pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (1.0, 0.0), (0.0, 2.0)])
    def test_joint_at_the_safe_betas_ends_at_its_optimum(self, alpha, beta):
        """All three have w = 1: one optimum, ``m* = mu`` and ``s*^2 = s_ref^2 - mu^2 > 0``."""
        policy = self.fit(pmpo(alpha, beta, 32))
        mu = self.S_REF * quantiles(64)[32:].mean().item()
        assert policy.mean.item() == pytest.approx(mu, rel=1e-3)
        assert policy.std.item() ** 2 == pytest.approx(self.optimal_variance(1.0), rel=1e-2)

    @pytest.mark.parametrize("beta_std", [0.5, 1.0, 20.0])
    def test_decoupled_ar_keeps_the_std(self, beta_std):
        """The same mean step, ``m* = mu / w_mean``, but the std is fitted around the reference's
        mean, where accepted and rejected have one second moment: it stays where it is."""
        policy = self.fit(pmpo(0.5, (0.5, beta_std), 32, decoupled=True))
        mu = self.S_REF * quantiles(64)[32:].mean().item()
        assert policy.std.item() == pytest.approx(self.S_REF, rel=1e-3)
        assert policy.mean.item() == pytest.approx(mu / 0.5, rel=1e-2)

    def test_the_joint_loss_goes_below_any_bound(self):
        """At ``m*`` the loss falls as ``w log s + w s*^2 / (2 s^2)`` with ``s*^2 < 0``."""
        reference = DiagGaussian(th.zeros(1).double(), th.full((1,), self.S_REF).double())
        actions = reference.std * quantiles(64)
        candidates = Candidates(actions.squeeze(-1), actions)
        best = reference.std * quantiles(64)[32:].mean() / 0.5
        losses = {}
        for std in (0.1, 0.01, 0.001):
            policy = DiagGaussian(best, th.full((1,), std).double())
            for beta in (0.5, 1.0):
                loss, _ = pmpo(0.5, beta, 32)(policy, reference, candidates)
                losses[beta, std] = loss.item()
        assert losses[0.5, 0.1] > losses[0.5, 0.01] > losses[0.5, 0.001]
        assert losses[0.5, 0.001] < -1e4
        assert losses[1.0, 0.001] > 1e4

    @pytest.mark.parametrize("form", ["mean", "std"])
    def test_reject_only_below_beta_1_goes_below_any_bound(self, form):
        """R, beta = 0.5 (paper, Sec. 5.2: it needs beta > 1). With ``w = beta - 1 < 0`` the loss
        is ``w (m^2 + s_ref^2) / (2 s^2)`` plus lower orders: moving the mean off or shrinking the
        std lowers it without end."""
        reference = DiagGaussian(th.zeros(1).double(), th.ones(1).double())
        actions = quantiles(64)
        candidates = Candidates(actions.squeeze(-1), actions)
        losses = []
        for size in (1e1, 1e2, 1e3):
            if form == "mean":
                policy = DiagGaussian(reference.mean + size, reference.std)
            else:
                policy = DiagGaussian(reference.mean, reference.std / size)
            loss, _ = pmpo(0.0, 0.5, 32)(policy, reference, candidates)
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < -1e5


OPTIMUM = th.tensor([0.5, -0.4, 0.3])


def negative_square_distance(actions: th.Tensor) -> th.Tensor:
    """Score by ``-(a - a*)^2``: the paper's Sphere, its optimum moved off the origin."""
    return -(actions - OPTIMUM).square().sum(-1)


def optimise(
    objective: PMPOObjective,
    score: Score,
    *,
    start: th.Tensor,
    n_updates: int,
    interval: int,
    seed: int = 0,
) -> DiagGaussian:
    """Optimise a sampling distribution; the reference is refreshed every ``interval`` updates."""
    learner = Learner(start, 0.5, learning_rate=0.02)
    reference = learner.policy().detach()
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        for update in range(n_updates):
            if update % interval == 0:
                reference = DiagGaussian(*(p.clone() for p in learner.policy().detach()))
            actions = reference.sample(32)
            candidates = Candidates(score(actions), actions)
            learner.step(objective, reference, candidates)
    return learner.policy().detach()


@pytest.mark.slow
class TestConvergence:
    @unsafe
    @pytest.mark.parametrize(
        ("alpha", "beta", "decoupled"),
        [
            pytest.param(0.5, (1.0, 20.0), True, id="AR-decoupled"),
            pytest.param(0.5, (0.5, 20.0), True, id="AR-decoupled-paper-beta"),
            pytest.param(1.0, (0.0, 20.0), True, id="A-decoupled"),
            pytest.param(0.0, (2.0, 20.0), True, id="R-decoupled"),
            pytest.param(0.5, 1.0, False, id="AR-joint"),
            pytest.param(1.0, 0.0, False, id="A-joint"),
            pytest.param(0.0, 2.0, False, id="R-joint"),
        ],
    )
    def test_finds_the_optimum_of_a_concave_quadratic(self, alpha, beta, decoupled):
        """Sec. 5.1: any of the three objectives, reference refreshed every N updates."""
        objective = pmpo(alpha, beta, 16, decoupled=decoupled)
        start = th.zeros(3)
        policy = optimise(
            objective, negative_square_distance, start=start, n_updates=400, interval=25
        )
        assert negative_square_distance(start).item() == pytest.approx(-0.5)
        assert negative_square_distance(policy.mean).item() > -0.03
        assert (policy.std < 0.5).all()
        assert (policy.std >= FLOOR).all()

    @pytest.mark.parametrize("decoupled", [True, False])
    def test_from_afar_only_the_decoupled_arrives(self, decoupled):
        """Six stds away Q is nearly linear at the scale of the samples. Each fit of the joint form
        moves the mean by 0.8 std and scales the std by 0.6 (``TestCollapse``: s*^2 / s_ref^2 =
        1 - 0.8^2): ``0.8 s (1 + 0.6 + 0.6^2 + ...) = 2 s``, and it stalls there. The decoupled std
        does not shrink on the way.
        """
        policy = optimise(
            pmpo(0.5, (1.0, 20.0), 16, decoupled=decoupled),
            lambda actions: -(actions - 3.0).square().sum(-1),
            start=th.zeros(1),
            n_updates=700,
            interval=70,
        )
        if decoupled:
            assert policy.mean.item() == pytest.approx(3.0, abs=0.2)
            assert policy.std.item() > 0.4
        else:
            assert policy.mean.item() == pytest.approx(2 * 0.5, rel=0.25)
            assert policy.std.item() < 0.05

    def test_labels_from_one_state_do_not_move_another(self):
        """*B states with optima of their own converge together, through one loss."""
        optima = th.tensor([[0.4], [-0.4], [0.0]])
        policy = optimise(
            pmpo(0.5, (1.0, 20.0), 16, decoupled=True),
            lambda actions: -(actions - optima).square().sum(-1),
            start=th.zeros(3, 1),
            n_updates=400,
            interval=25,
        )
        assert (policy.mean - optima).abs().max() < 0.1


def test_a_labeller_that_rejects_nothing_needs_no_kl() -> None:
    labeller = top_k(2)
    assert least_beta(0.25, 0.0) == 0.0
    PMPOObjective(0.5, 0.0, 0.0, labeller, decoupled=False, rejected=0.0)  # no warning either
    with pytest.raises(ValueError, match=r"rejected must be a number >= 0.0 and <= 1.0, got 1.5"):
        PMPOObjective(0.5, 1.0, 1.0, labeller, rejected=1.5)


def test_what_an_objective_lacks_is_said_when_it_is_made() -> None:
    duals = Duals(multipliers={"mean": 1.0}, n_dims=1, temperatures={}, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"duals must have .* lack action, std"):
        MPOObjective(0.1, None, {"mean": 0.1, "std": 0.1}, duals)
    with pytest.raises(ValueError, match=r"first value of mean must be .* got -1.0"):
        Duals(multipliers={"mean": -1.0}, n_dims=1, temperatures={}, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"weights must have the shape \(2,\) of the scores"):
        Candidates(th.zeros(2), weights=th.ones(3) / 3)
