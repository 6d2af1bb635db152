"""Temporal-difference targets and the gradient of the critics' loss.

Axes: N critics, K quantiles, J quantiles of the target, B transitions. Rewards,
dones and discounts are ``[B]``.
"""

from __future__ import annotations

import torch as th


def td_target(
    rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_quantiles: th.Tensor
) -> th.Tensor:
    """Compute the 1-step or n-step TD target ``R + discount * (1 - done) * Z(s')``.

    R is the reward, or the discounted sum of n rewards. Z is what the target critic says of the
    state that follows: quantiles of its return, or its value. After a termination nothing follows,
    so the target is R alone.

    :param rewards: ``[B]`` reward, or the discounted sum of the n steps' rewards.
    :param dones: ``[B]`` 1 where the episode *terminated* (a time limit is no termination).
    :param discounts: ``[B]`` or a number: ``gamma`` to the power of the steps really taken.
    :param next_quantiles: ``[B, K]`` of the return of the state reached; its value if K is 1.
    :return: ``[B, K]``, without gradient.
    """
    bootstrap = ((1.0 - dones) * discounts).unsqueeze(-1)
    return (rewards.unsqueeze(-1) + bootstrap * next_quantiles).detach()


#: Where the Huber loss goes from squares to absolute values, in units of the return scale.
HUBER_THRESHOLD = 0.1


@th.no_grad()
def quantile_critic_gradient(
    quantiles: th.Tensor, target: th.Tensor, scale: th.Tensor, weights: th.Tensor | None = None
) -> th.Tensor:
    """Compute the gradient of quantile regression to the target (Dabney et al., 2018, Eq. 10).

    With ``u = (target_j - quantile_i) / scale``, the levels ``tau_i = (i + 1/2) / K`` and the Huber
    loss of threshold :data:`HUBER_THRESHOLD` and slope 1, the loss is
    ``sum_N mean_B mean_i mean_j 2 * |tau_i - 1{u < 0}| * huber(u)``; this is its gradient. A few
    transitions of which the critics are far off do not drown the others, as their squares would,
    and are not lost either, as with Huber regression of the mean, which is one quantile: they move
    the outer quantiles. The pairs (i, j) are many, and the gradient needs few passes over them
    where autograd needs ten.

    :param quantiles: ``[N, B, K]``.
    :param target: ``[B, J]``.
    :param scale: scalar > 0 in units of the return, so that the loss has no unit.
    :param weights: ``[B]`` of the transitions; None for 1 each.
    :return: ``[N, B, K]``, for ``quantiles.backward(gradient)``.
    """
    n_batch, n_quantiles = quantiles.shape[1:]
    levels = (th.arange(n_quantiles, device=quantiles.device) + 0.5) / n_quantiles
    per_unit = 1.0 / (HUBER_THRESHOLD * scale)
    errors = (target * per_unit).unsqueeze(-1) - (quantiles * per_unit).unsqueeze(-2)
    slopes = errors.clamp_(-1.0, 1.0)  # [N, B, J, K]
    every = slopes.mean(-2)
    below = slopes.clamp_(max=0.0).mean(-2)  # where the target is lower
    pull = below.lerp_(every - below, levels.to(below))
    if weights is not None:
        pull.mul_(weights.unsqueeze(-1))
    return pull.mul_(-2.0 / (n_batch * n_quantiles * scale))
