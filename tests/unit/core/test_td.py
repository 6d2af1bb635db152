"""Temporal-difference targets and the critics' loss.

Axes: N critics, K quantiles, B transitions.
"""

from __future__ import annotations

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_pmpo.core.td import HUBER_THRESHOLD, quantile_critic_gradient, td_target


def seeded(seed: int) -> th.Generator:
    """Make a generator of one's own, so that no test depends on another's draws."""
    return th.Generator().manual_seed(seed)


def values(*numbers: float) -> th.Tensor:
    """Values of states as the one quantile ``[B, 1]`` of their returns."""
    return th.tensor(numbers).unsqueeze(-1)


class TestTarget:
    def test_terminal_transitions_do_not_bootstrap(self):
        """``r + gamma * (1 - done) * V``: 1 + 0.9 * 10 alive, 1 dead."""
        target = td_target(th.ones(2), th.tensor([0.0, 1.0]), 0.9, values(10.0, 10.0))
        th.testing.assert_close(target, values(10.0, 1.0))

    def test_each_transition_has_its_own_discount(self):
        """An n-step buffer gives ``gamma^k``, k the steps really taken before an end."""
        discounts = 0.9 ** th.tensor([3.0, 1.0, 2.0])
        target = td_target(th.zeros(3), th.zeros(3), discounts, values(10.0, 10.0, 10.0))
        th.testing.assert_close(target, values(7.29, 9.0, 8.1))

    def test_every_quantile_moves_alike(self):
        """``r + gamma * z_k``: the spread of the returns is discounted, then shifted."""
        following = th.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
        target = td_target(th.tensor([1.0, 3.0]), th.zeros(2), 0.5, following)
        th.testing.assert_close(target, th.tensor([[1.5, 2.0, 4.0], [3.0, 3.0, 3.0]]))

    @pytest.mark.parametrize("n_steps", [1, 3, 5])
    def test_the_true_value_is_a_fixed_point(self, n_steps):
        """Reward 1 for ever: ``V = 1 / (1 - gamma)``, and its n-step target is V again."""
        gamma = 0.9
        value = th.full((4, 1), 1 / (1 - gamma))
        rewards = th.full((4,), sum(gamma**i for i in range(n_steps)))
        target = td_target(rewards, th.zeros(4), gamma**n_steps, value)
        th.testing.assert_close(target, value)

    def test_a_number_and_a_tensor_of_it_agree(self):
        rewards = th.randn(5, generator=seeded(0))
        following = th.randn(5, 3, generator=seeded(1))
        dones = th.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
        by_number = td_target(rewards, dones, 0.99, following)
        assert th.equal(by_number, td_target(rewards, dones, th.full((5,), 0.99), following))

    def test_carries_no_gradient(self):
        rewards, discounts = (th.ones(3, requires_grad=True) for _ in range(2))
        following = th.ones(3, 2, requires_grad=True)
        assert not td_target(rewards, th.zeros(3), discounts, following).requires_grad

    @pytest.mark.parametrize("dtype", [th.float32, th.float64])
    def test_keeps_shape_and_dtype(self, dtype):
        ones = th.ones(3, dtype=dtype)
        target = td_target(ones, ones, 0.9, th.ones(3, 7, dtype=dtype))
        assert target.shape == (3, 7)
        assert target.dtype == dtype


def written_out(quantiles: th.Tensor, target: th.Tensor, scale: th.Tensor) -> th.Tensor:
    """Sum the pairs one by one, as the docstring has the loss."""
    total = th.zeros((), dtype=quantiles.dtype)
    n_batch, n_quantiles = quantiles.shape[1:]
    for critic in quantiles:
        for row, goals in zip(critic, target, strict=True):
            for i, quantile in enumerate(row):
                level = (i + 0.5) / n_quantiles
                for goal in goals:
                    u = (goal.detach() - quantile) / scale
                    near = u.abs() <= HUBER_THRESHOLD
                    huber = u**2 / (2 * HUBER_THRESHOLD) if near else u.abs() - HUBER_THRESHOLD / 2
                    weight = 1 - level if u < 0 else level
                    total = total + 2 * weight * huber / (n_batch * n_quantiles * len(goals))
    return total


class TestQuantileCriticGradient:
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(
        n_critics=st.integers(1, 3),
        n_batch=st.integers(1, 3),
        n_quantiles=st.integers(1, 5),
        n_targets=st.integers(1, 5),
        dtype=st.sampled_from([th.float32, th.float64]),
        spread=st.sampled_from([0.01, 0.1, 1.0]),
        scale=st.floats(0.1, 100.0),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_gradient(self, n_critics, n_batch, n_quantiles, n_targets, dtype, spread, scale, seed):
        """The gradient is autograd's of the sum over all pairs, near and beyond the threshold."""
        generator = seeded(seed)
        unit = spread * scale
        quantiles = unit * th.randn(n_critics, n_batch, n_quantiles, generator=generator).to(dtype)
        target = unit * th.randn(n_batch, n_targets, generator=generator).to(dtype)
        quantiles.requires_grad_()
        unit_of_loss = th.tensor(scale, dtype=dtype)
        gradient = quantile_critic_gradient(quantiles, target, unit_of_loss)
        assert gradient.dtype == dtype
        exact = written_out(quantiles, target, unit_of_loss)
        th.testing.assert_close(gradient, th.autograd.grad(exact, quantiles)[0])

    def test_one_quantile_is_huber_regression(self):
        """``dL/dq = (q - y) / (B * threshold * scale^2)`` near, ``sign / (B * scale)`` far."""
        scale = 2.0
        near, far = 0.5 * HUBER_THRESHOLD * scale, 30.0
        quantiles = th.tensor([[near], [-near], [far], [-far]]).unsqueeze(0)
        gradient = quantile_critic_gradient(quantiles, th.zeros(4, 1), th.tensor(scale)).flatten()
        slope = near / (4 * HUBER_THRESHOLD * scale**2)
        edge = 1 / (4 * scale)
        th.testing.assert_close(gradient, th.tensor([slope, -slope, edge, -edge]))

    def test_regression_finds_the_quantiles(self):
        """Of 20000 draws, which spread a hundred times as far as the threshold."""
        draws = th.randn(1, 20_000, generator=seeded(5))
        quantiles, scale = th.zeros(1, 1, 4), th.tensor(0.01 / HUBER_THRESHOLD)
        for _ in range(400):
            quantiles -= 0.05 * quantile_critic_gradient(quantiles, draws, scale)
        expected = draws[0].quantile(th.tensor([0.125, 0.375, 0.625, 0.875]))
        th.testing.assert_close(quantiles[0, 0], expected, atol=0.02, rtol=0.0)

    def test_each_critic_regresses_alone(self):
        """The gradient of one critic is the same whoever stands beside it."""
        quantiles = th.randn(3, 5, 2, generator=seeded(1))
        target, scale = th.zeros(5, 2), th.tensor(1.0)
        together = quantile_critic_gradient(quantiles, target, scale)
        alone = quantile_critic_gradient(quantiles[1:2], target, scale)
        th.testing.assert_close(together[1:2], alone)

    @pytest.mark.parametrize("unit", [1e-3, 7.0, 1e4])
    def test_has_no_unit(self, unit):
        """Returns in another unit (quantiles, target and scale alike) leave the loss as it is."""
        quantiles = th.randn(2, 5, 3, generator=seeded(2), dtype=th.float64)
        target = th.randn(5, 3, generator=seeded(3), dtype=th.float64)
        scale = th.tensor(1.7, dtype=th.float64)
        th.testing.assert_close(
            unit * quantile_critic_gradient(unit * quantiles, unit * target, unit * scale),
            quantile_critic_gradient(quantiles, target, scale),
        )

    def test_leaves_its_arguments(self):
        quantiles, target = th.ones(2, 3, 4, requires_grad=True), th.zeros(3, 5)
        gradient = quantile_critic_gradient(quantiles, target, th.tensor(1.0))
        assert not gradient.requires_grad
        assert th.equal(quantiles, th.ones(2, 3, 4))
        assert th.equal(target, th.zeros(3, 5))

    def test_a_known_return_is_at_rest(self):
        """All quantiles at the one value there is: nothing pulls."""
        target = th.randn(5, 1, generator=seeded(4))
        gradient = quantile_critic_gradient(target.expand(3, 5, 4), target, th.tensor(0.5))
        assert th.equal(gradient, th.zeros_like(gradient))
