"""The losses, per entry of the batch. The only place where a weight meets a log-probability.

Axes: S samples, ``*B`` batch. What S is selects the setting, without a branch: sampled actions per
state (control), samples (bandit, ``*B`` empty), the minibatch (offline), completions (language).
:func:`~sb3_pmpo.learner.policy_step` reduces a loss to a number, once, with weights if it has any;
for language models TRL's trainer takes the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_pmpo.core.checks import HEAVIEST, check_number, check_positive
from sb3_pmpo.core.samples import Preference


class PMPOLoss(NamedTuple):
    """The loss and its terms, ``[*B]`` each.

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
    hint = "1 learns from accepted samples only, 0 from rejected ones only"
    check_number("alpha", alpha, 0.0, 1.0, float, hint)
    check_number("beta", beta, 0.0, HEAVIEST, float, "it is the weight of the KL")


def check_barrier(weight: float) -> None:
    """Refuse a weight of the edge barrier outside its range.

    :raises ValueError: unless ``weight`` is finite and not negative.
    """
    hint = "it is the weight of what keeps the policy from the edge, where it would learn no more"
    check_number("edge_barrier", weight, 0.0, HEAVIEST, float, hint)


def least_beta(alpha: float, rejected: float) -> float:
    """Return the weight from which on the KL holds against the rejections, for means per set.

    :param alpha: in [0, 1], the weight of the accepted.
    :param rejected: share of the samples that are rejected, in [0, 1].
    :return: ``(1 - alpha) / rejected``; 0 where nothing is rejected.
    """
    return (1.0 - alpha) / rejected if rejected else 0.0


def instability(
    alpha: float,
    beta: float,
    *,
    rejected: float = 0.5,
    fixed_variance: bool = False,
    whose: str = "",
) -> str | None:
    """Say what is unsafe about a pair of weights, for means per set.

    With a share p of the reference's samples among the rejected, ``E_ref = p E_rej + (1 - p)
    E_others``, so the KL puts ``beta * p`` back on the rejected. Iff ``beta < (1 - alpha) / p``
    their total weight still pushes away, and a flexible policy can lower the loss without end; on
    an even split the bound is ``2 * (1 - alpha)``. A Gaussian can iff ``beta <= 1 - 2 * alpha`` or
    its optimal variance is negative. It holds in expectation over the samples: draw fresh ones.

    :param alpha: in [0, 1], the weight of the accepted.
    :param beta: >= 0, the weight of the KL.
    :param rejected: p, in [0, 1]; samples that are neither accepted nor rejected count as others.
        With one mean over all samples the bound is ``1 - alpha``, as if all were rejected.
    :param fixed_variance: only the mean of a Gaussian is fitted, and accepted and rejected weigh
        the same in each state, 1 at most; then all that counts is that ``beta > 1 - 2 * alpha``.
        From ``alpha=0.5`` on they may weigh any number.
    :param whose: says of the reason which part it is about, ``"the mean's "``.
    :return: the reason, or None if the pair is safe.
    """
    if fixed_variance:
        safe, bound = beta > 1.0 - 2.0 * alpha, f"not above 1 - 2 * alpha = {1.0 - 2.0 * alpha}"
    else:
        least = least_beta(alpha, rejected)
        safe = beta >= least or math.isclose(beta, least)
        rules = {0.5: "2 * (1 - alpha)", 1.0: "1 - alpha"}
        rule = rules.get(rejected, f"(1 - alpha) / {rejected:.3g}")
        bound = f"below {rule} = {least:.4g}"
    if safe:
        return None
    split = "" if rejected in {0.5, 1.0} else f", as with {rejected:.1%} of the samples rejected"
    return (
        f"{whose}beta={beta} is {bound} (alpha={alpha}{split}): the KL does not outweigh the push "
        f"away from rejected samples, and the policy may collapse; raise {whose}beta or alpha"
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
    """Compute the PMPO loss, the negative of Eq. 10, per entry.

    ``L = -alpha * E_acc[log pi] + (1 - alpha) * E_rej[log pi] + beta * KL(pi_ref || pi)``

    :param log_prob: ``[S, *B]`` log-probability (summed over action dimensions) of samples of
        the reference under the policy; the gradient flows through it.
    :param preference: weights ``[S, *B]`` of the accepted and of the rejected; no gradient. An
        empty set contributes 0.
    :param kl: ``[*B]`` ``KL(pi_ref || pi)``, reference first, in nats; the gradient flows.
    :param alpha: in [0, 1], the weight of the accepted; the rejected weigh ``1 - alpha``.
    :param beta: >= 0, the weight of the KL.
    :return: the loss and its terms, ``[*B]``.
    :raises ValueError: for a weight out of its range, or if ``preference`` has not the shape of
        ``log_prob``, or ``kl`` its batch shape.
    """
    check_alpha_beta(alpha, beta)
    if preference.accept.shape != log_prob.shape or preference.reject.shape != log_prob.shape:
        raise ValueError(
            f"preference must have the shape {tuple(log_prob.shape)} of log_prob [S, *B], got "
            f"{tuple(preference.accept.shape)} and {tuple(preference.reject.shape)}: a weight for "
            "each sample"
        )
    if kl.shape != log_prob.shape[1:]:
        raise ValueError(
            f"kl must have the batch shape {tuple(log_prob.shape[1:])} of log_prob [S, *B], got "
            f"{tuple(kl.shape)}: sum it over the action dimensions"
        )
    accept = weighted_log_prob(preference.accept, log_prob)
    reject = weighted_log_prob(preference.reject, log_prob)
    loss = _scaled(-alpha, accept) + _scaled(1.0 - alpha, reject) + _scaled(beta, kl)
    return PMPOLoss(loss, accept.detach(), reject.detach(), kl.detach())


class WeightedLikelihoodLoss(NamedTuple):
    """The loss and its terms, ``[*B]`` each.

    :param loss: what to minimise; the only one that carries a gradient.
    :param log_prob: weighted mean log-probability of the samples.
    :param kl: ``KL(pi_ref || pi)``, the sum over the dimensions.
    """

    loss: th.Tensor
    log_prob: th.Tensor
    kl: th.Tensor


def weighted_likelihood_loss(
    log_prob: th.Tensor, weights: th.Tensor, kl_per_dim: th.Tensor, multipliers: th.Tensor
) -> WeightedLikelihoodLoss:
    """Compute the loss of MPO's M-step, per entry (Eq. 5, App. G.2).

    ``L = -sum_S weight * log pi + sum_A multiplier * KL(pi_ref || pi)``

    :param log_prob: ``[S, *B]`` of the reference's samples under the policy; the gradient flows.
    :param weights: ``[S, *B]`` of the E-step, no gradient.
    :param kl_per_dim: ``[*B, A]`` in nats; the gradient flows.
    :param multipliers: ``[A]`` or ``[*B, A]``, >= 0, no gradient.
    """
    likelihood = weighted_log_prob(weights, log_prob)
    loss = (multipliers.detach() * kl_per_dim).sum(-1) - likelihood
    return WeightedLikelihoodLoss(loss, likelihood.detach(), kl_per_dim.detach().sum(-1))


class PairLoss(NamedTuple):
    """A pairwise loss and how far apart it has the pairs, ``[*B]`` each.

    :param loss: what to minimise; the only one that carries a gradient. 0 where there is no pair.
    :param margin: ``log(pi_a / ref_a) - log(pi_r / ref_r)``; 0 where there is no pair.
    :param paired: where there is a pair, boolean.
    """

    loss: th.Tensor
    margin: th.Tensor
    paired: th.Tensor


def dpo_loss(
    log_prob: th.Tensor, reference_log_prob: th.Tensor, preference: Preference, *, beta: float
) -> PairLoss:
    """Compute the DPO loss ``-log sigmoid(beta * margin)`` (Rafailov et al., 2023, Eq. 7).

    :param log_prob: ``[S, *B]`` under the policy, summed over dimensions; the gradient flows.
    :param reference_log_prob: ``[S, *B]`` under the reference, no gradient.
    :param preference: weights ``[S, *B]``, of which the accepted and the rejected each sum to 1
        (one pair, as of ``best_worst()``); a batch entry that lacks either side contributes 0.
    :param beta: > 0, strength of the implicit KL; the paper's Gaussian policies need 20.
    :return: the loss and what the pairs look like.
    :raises ValueError: unless ``beta`` is finite and > 0.
    """
    return _pair_loss(log_prob, reference_log_prob, preference, beta, _dpo)


def ipo_loss(
    log_prob: th.Tensor, reference_log_prob: th.Tensor, preference: Preference, *, beta: float
) -> PairLoss:
    """Compute the IPO loss ``-margin + beta * margin^2`` (App. E; Azar et al., 2023).

    It is the paper's up to a constant, for the reference has no gradient, and Azar's
    ``beta * (margin - 1 / (2 * beta))^2`` up to another: the margin stops at ``1 / (2 * beta)``.

    :param log_prob: as of :func:`dpo_loss`, as are the other arguments and what is returned.
    :param reference_log_prob: ``[S, *B]``, no gradient.
    :param preference: one pair for each batch entry.
    :param beta: > 0, weight of the squared margin.
    :raises ValueError: unless ``beta`` is finite and > 0.
    """
    return _pair_loss(log_prob, reference_log_prob, preference, beta, _ipo)


def _dpo(margin: th.Tensor, beta: float) -> th.Tensor:
    return -th.nn.functional.logsigmoid(beta * margin)


def _ipo(margin: th.Tensor, beta: float) -> th.Tensor:
    return -margin + beta * margin.square()


def _pair_loss(
    log_prob: th.Tensor,
    reference_log_prob: th.Tensor,
    preference: Preference,
    beta: float,
    of_margin: Callable[[th.Tensor, float], th.Tensor],
) -> PairLoss:
    check_positive("beta", beta, "there is no other regulariser")
    log_ratio = log_prob - reference_log_prob.detach()
    margin = weighted_log_prob(preference.accept - preference.reject, log_ratio)
    paired = (preference.accept > 0).any(0) & (preference.reject > 0).any(0)
    loss = th.where(paired, of_margin(margin, beta), 0.0)
    return PairLoss(loss, th.where(paired, margin.detach(), 0.0), paired)
