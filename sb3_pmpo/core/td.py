"""Temporal-difference targets and critic losses.

Axes: N critics, B transitions. Rewards, dones, discounts and values are ``[B]``.
"""

from __future__ import annotations

import torch as th


def td_target(
    rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_values: th.Tensor
) -> th.Tensor:
    """Compute the 1-step or n-step TD target ``R + discount * (1 - done) * V(s')``.

    :param rewards: ``[B]`` reward, or the discounted sum of the n steps' rewards.
    :param dones: ``[B]`` 1 where the episode *terminated* (a time limit is no termination).
    :param discounts: ``[B]`` or a number: ``gamma`` to the power of the steps really taken.
    :param next_values: ``[B]`` value of the state reached.
    :return: ``[B]``, without gradient.
    """
    return (rewards + (1.0 - dones) * discounts * next_values).detach()


def squared_critic_loss(q_values: th.Tensor, target: th.Tensor, scale: th.Tensor) -> th.Tensor:
    """Compute ``1/2 * sum_N mean_B ((Q - target) / scale)^2``: each critic regresses alone.

    :param q_values: ``[N, B]``; the gradient flows.
    :param target: ``[B]``, no gradient.
    :param scale: scalar > 0 in units of the return, so that the loss has no unit.
    :return: a scalar.
    """
    return 0.5 * ((q_values - target.detach()) / scale.detach()).square().mean(-1).sum()
