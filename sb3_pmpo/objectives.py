"""Named policy losses: from (online, reference, samples, scores) to what is minimised.

Axes: S samples, *B batch, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch as th

from sb3_pmpo.core.losses import PairLoss, pmpo_loss
from sb3_pmpo.core.preference import Candidates, Labeller, Preference, best_worst
from sb3_pmpo.distributions import DiagGaussian


class PolicyLoss(NamedTuple):
    """What a policy step minimises, and what it logs.

    :param loss: scalar, with gradient.
    :param metrics: scalars without gradient, by their name under ``train/``.
    """

    loss: th.Tensor
    metrics: dict[str, th.Tensor]


def _actions(candidates: Candidates) -> th.Tensor:
    if candidates.actions is None:
        raise ValueError("candidates.actions is None: the objective needs the samples")
    return candidates.actions


def _score_gap(preference: Preference, candidates: Candidates) -> th.Tensor:
    """Compute the accepted samples' mean score minus the rejected ones', over the batch."""
    weights = preference.accept - preference.reject
    return (weights * candidates.scores.detach()).sum(0).mean()


@dataclass(frozen=True)
class PMPOObjective:
    """Eq. 10 with labels taken from scores.

    :param alpha: in [0, 1], weight of the accepted samples.
    :param beta_mean: >= 0, weight of the mean's KL (of the whole KL if not decoupled).
    :param beta_std: >= 0, weight of the std's KL; unused if not decoupled.
    :param labeller: who is accepted, who rejected.
    :param decoupled: fit mean and std apart (MPO's way) or together (the paper's).
    """

    alpha: float
    beta_mean: float
    beta_std: float
    labeller: Labeller
    decoupled: bool = True

    def __call__(
        self, online: DiagGaussian, reference: DiagGaussian, candidates: Candidates
    ) -> PolicyLoss:
        """Compute the loss of the policy on labelled samples of the reference.

        :param online: the policy; the gradient flows to it alone.
        :param reference: the policy that drew the samples.
        :param candidates: the samples and their scores.
        :return: the loss and the terms of Eq. 10 by component.
        """
        actions = _actions(candidates)
        preference = self.labeller(candidates)
        components = (online.decoupled if self.decoupled else online.joint)(reference, actions)
        metrics: dict[str, th.Tensor] = {}
        total = actions.new_zeros(())
        for component, beta in zip(components, (self.beta_mean, self.beta_std), strict=False):
            terms = pmpo_loss(
                component.log_prob, preference, component.kl, alpha=self.alpha, beta=beta
            )
            total = total + terms.loss
            metrics[f"accept_log_prob_{component.name}"] = terms.accept
            metrics[f"reject_log_prob_{component.name}"] = terms.reject
            metrics[f"kl_{component.name}"] = terms.kl
        metrics["accept_fraction"] = (preference.accept > 0).float().mean()
        metrics["q_gap"] = _score_gap(preference, candidates)
        return PolicyLoss(total, metrics)


@dataclass(frozen=True)
class DPOObjective:
    """DPO or IPO on the best and the worst of the samples (Sec. 5.2, App. E).

    :param beta: > 0, weight of the implicit regulariser.
    :param loss: :func:`sb3_pmpo.core.losses.dpo_loss` or ``ipo_loss``.
    """

    beta: float
    loss: Callable[..., PairLoss]

    def __call__(
        self, online: DiagGaussian, reference: DiagGaussian, candidates: Candidates
    ) -> PolicyLoss:
        """Compute the loss of the policy on one pair a state.

        :param online: the policy; the gradient flows to it alone.
        :param reference: the policy that drew the samples.
        :param candidates: the samples and their scores.
        :return: the loss; the pairs' margin and accuracy; the KL, which is not in the loss.
        """
        actions = _actions(candidates).detach()
        pairs = best_worst()(candidates)
        result = self.loss(
            online.log_prob(actions), reference.log_prob(actions), pairs, beta=self.beta
        )
        metrics = {
            "margin": result.margin,
            "pair_accuracy": result.accuracy,
            "kl_joint": online.kl_from(reference).detach().mean(),
            "q_gap": _score_gap(pairs, candidates),
        }
        return PolicyLoss(result.loss, metrics)
