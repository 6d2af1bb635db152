"""The losses. The only place where a weight meets a log-probability.

Axes: S samples, *B batch. What S is selects the setting, without a branch: sampled actions per
state (control), samples (bandit, *B empty), the minibatch (offline), completions (language).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch as th

from sb3_pmpo.core.preference import Preference


class PMPOLoss(NamedTuple):
    """The loss and its terms, each averaged over the batch; scalars.

    :param loss: what to minimise; the only one that carries a gradient.
    :param accept: mean log-probability of the accepted, ``E_acc[log pi]``.
    :param reject: mean log-probability of the rejected, ``E_rej[log pi]``.
    :param kl: ``KL(pi_ref || pi)``.
    """

    loss: th.Tensor
    accept: th.Tensor
    reject: th.Tensor
    kl: th.Tensor


def check_alpha_beta(alpha: float, beta: float) -> None:
    """Refuse weights outside their ranges.

    :raises ValueError: unless ``0 <= alpha <= 1`` and ``beta`` is finite and not negative.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(
            f"alpha must be in [0, 1], got {alpha}: 1 learns from accepted samples only, 0 from "
            "rejected ones only"
        )
    if not (beta >= 0.0 and math.isfinite(beta)):
        raise ValueError(f"beta must be finite and >= 0, got {beta}")


def instability(alpha: float, beta: float) -> str | None:
    """Say what is unsafe about a pair of weights, for an even split and means per set.

    With half of the reference's samples in each set, ``E_ref = (E_acc + E_rej) / 2``, so the
    KL puts ``beta / 2`` back on the rejected. Iff ``beta < 2 * (1 - alpha)`` their total weight
    still pushes away, and a flexible policy can lower the loss without end; a Gaussian can iff
    ``beta <= 1 - 2 * alpha`` or its optimal variance is negative. It holds in expectation over
    the samples: draw fresh ones.

    :return: the reason, or None if the pair is safe.
    """
    safe = 2.0 * (1.0 - alpha)
    if beta >= safe or math.isclose(beta, safe):
        return None
    return (
        f"beta={beta} is below 2 * (1 - alpha) = {safe} (alpha={alpha}): the KL does not outweigh "
        "the push away from rejected samples, and the policy may collapse; raise beta or alpha"
    )


def weighted_log_prob(weights: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
    """Sum ``weights * log_prob`` over the samples; a zero weight silences an infinite log-prob.

    :param weights: ``[S, *B]``, no gradient.
    :param log_prob: ``[S, *B]``; the gradient flows through it.
    :return: ``[*B]``; exactly 0 where all weights are 0.
    """
    return th.where(weights == 0, 0.0, weights.detach() * log_prob).sum(0)


def _scaled(weight: float, term: th.Tensor) -> th.Tensor:
    """Multiply; a weight of 0 silences an infinite term (0 * inf would be NaN)."""
    return weight * term if weight else th.zeros_like(term)


def pmpo_loss(
    log_prob: th.Tensor, preference: Preference, kl: th.Tensor, *, alpha: float, beta: float
) -> PMPOLoss:
    """Compute the PMPO loss, the negative of Eq. 10, averaged over the batch.

    ``L = -alpha * E_acc[log pi] + (1 - alpha) * E_rej[log pi] + beta * KL(pi_ref || pi)``

    :param log_prob: ``[S, *B]`` log-probability (summed over action dimensions) of samples of
        the reference under the policy; the gradient flows through it.
    :param preference: weights ``[S, *B]`` of the accepted and of the rejected; no gradient. An
        empty set contributes 0.
    :param kl: ``[*B]`` ``KL(pi_ref || pi)``, reference first, in nats; the gradient flows.
    :param alpha: in [0, 1], the weight of the accepted; the rejected weigh ``1 - alpha``.
    :param beta: >= 0, the weight of the KL.
    :return: the loss and its terms.
    :raises ValueError: if ``kl`` has not the batch shape of ``log_prob``.
    """
    if kl.shape != log_prob.shape[1:]:
        raise ValueError(
            f"kl must have the batch shape {tuple(log_prob.shape[1:])} of log_prob [S, *B], got "
            f"{tuple(kl.shape)}: sum it over the action dimensions"
        )
    accept = weighted_log_prob(preference.accept, log_prob)
    reject = weighted_log_prob(preference.reject, log_prob)
    loss = (_scaled(-alpha, accept) + _scaled(1.0 - alpha, reject) + _scaled(beta, kl)).mean()
    return PMPOLoss(loss, accept.detach().mean(), reject.detach().mean(), kl.detach().mean())
