"""Temporal-difference targets and critic losses.

Axes: N critics, B transitions.
"""

from __future__ import annotations

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_pmpo.core.td import squared_critic_loss, td_target


def seeded(seed: int) -> th.Generator:
    """Make a generator of one's own, so that no test depends on another's draws."""
    return th.Generator().manual_seed(seed)


class TestTarget:
    def test_terminal_transitions_do_not_bootstrap(self):
        """``r + gamma * (1 - done) * V``: 1 + 0.9 * 10 alive, 1 dead."""
        target = td_target(th.ones(2), th.tensor([0.0, 1.0]), 0.9, th.full((2,), 10.0))
        th.testing.assert_close(target, th.tensor([10.0, 1.0]))

    def test_each_transition_has_its_own_discount(self):
        """An n-step buffer gives ``gamma^k``, k the steps really taken before an end."""
        discounts = 0.9 ** th.tensor([3.0, 1.0, 2.0])
        target = td_target(th.zeros(3), th.zeros(3), discounts, th.full((3,), 10.0))
        th.testing.assert_close(target, th.tensor([7.29, 9.0, 8.1]))

    @pytest.mark.parametrize("n_steps", [1, 3, 5])
    def test_the_true_value_is_a_fixed_point(self, n_steps):
        """Reward 1 for ever: ``V = 1 / (1 - gamma)``, and its n-step target is V again."""
        gamma = 0.9
        value = th.full((4,), 1 / (1 - gamma))
        rewards = th.full((4,), sum(gamma**i for i in range(n_steps)))
        target = td_target(rewards, th.zeros(4), gamma**n_steps, value)
        th.testing.assert_close(target, value)

    def test_a_number_and_a_tensor_of_it_agree(self):
        rewards, values = th.randn(2, 5, generator=seeded(0))
        dones = th.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
        by_number = td_target(rewards, dones, 0.99, values)
        assert th.equal(by_number, td_target(rewards, dones, th.full((5,), 0.99), values))

    def test_carries_no_gradient(self):
        rewards, values = (th.ones(3, requires_grad=True) for _ in range(2))
        discounts = th.full((3,), 0.9, requires_grad=True)
        assert not td_target(rewards, th.zeros(3), discounts, values).requires_grad

    @pytest.mark.parametrize("dtype", [th.float32, th.float64])
    def test_keeps_shape_and_dtype(self, dtype):
        ones = th.ones(3, dtype=dtype)
        target = td_target(ones, ones, 0.9, ones)
        assert target.shape == (3,)
        assert target.dtype == dtype


class TestSquaredCriticLoss:
    def test_value(self):
        """``1/2 * sum_N mean_B ((Q - y) / scale)^2`` by hand: errors 2, 0 and 4, -2, scale 2."""
        q_values = th.tensor([[3.0, 1.0], [5.0, -1.0]])
        loss = squared_critic_loss(q_values, th.ones(2), th.tensor(2.0))
        assert loss.item() == pytest.approx(0.5 * ((1 + 0) / 2 + (4 + 1) / 2))

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        n_critics=st.integers(1, 4),
        n_batch=st.integers(1, 6),
        dtype=st.sampled_from([th.float32, th.float64]),
        scale=st.floats(0.1, 100.0),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_gradient(self, n_critics, n_batch, dtype, scale, seed):
        """``dL/dQ = (Q - y) / (B * scale^2)``: the sum over critics is not averaged."""
        generator = seeded(seed)
        q_values = th.randn(n_critics, n_batch, generator=generator).to(dtype).requires_grad_()
        target = th.randn(n_batch, generator=generator).to(dtype)
        loss = squared_critic_loss(q_values, target, th.tensor(scale, dtype=dtype))
        assert loss.shape == ()
        assert loss.dtype == dtype
        loss.backward()
        expected = (q_values.detach() - target) / (n_batch * scale**2)
        th.testing.assert_close(q_values.grad, expected)

    def test_each_critic_regresses_alone(self):
        """The gradient of one critic is the same whoever stands beside it."""
        q_values = th.randn(3, 5, generator=seeded(1), requires_grad=True)
        target, scale = th.zeros(5), th.tensor(1.0)
        (together,) = th.autograd.grad(squared_critic_loss(q_values, target, scale), q_values)
        alone = q_values[1:2].detach().requires_grad_()
        squared_critic_loss(alone, target, scale).backward()
        th.testing.assert_close(together[1:2], alone.grad)

    @pytest.mark.parametrize("unit", [1e-3, 7.0, 1e4])
    def test_has_no_unit(self, unit):
        """Returns measured in another unit (Q, target and scale alike) leave the loss as it is."""
        q_values = th.randn(2, 5, generator=seeded(2), dtype=th.float64)
        target = th.randn(5, generator=seeded(3), dtype=th.float64)
        scale = th.tensor(1.7, dtype=th.float64)
        th.testing.assert_close(
            squared_critic_loss(unit * q_values, unit * target, unit * scale),
            squared_critic_loss(q_values, target, scale),
        )

    def test_no_gradient_reaches_the_target(self):
        q_values, target = th.ones(2, 3, requires_grad=True), th.zeros(3, requires_grad=True)
        squared_critic_loss(q_values, target, th.tensor(1.0)).backward()
        assert target.grad is None

    def test_is_least_where_the_critics_agree_with_the_target(self):
        target = th.randn(5, generator=seeded(4))
        assert squared_critic_loss(target.expand(3, 5), target, th.tensor(0.5)).item() == 0.0
