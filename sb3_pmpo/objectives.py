"""Named policy losses: from (online, reference, samples, scores) to what is minimised.

Axes: S samples, *B batch, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import torch as th

from sb3_pmpo.core.duals import Duals, multiplier_loss, temperature_loss
from sb3_pmpo.core.losses import PairLoss, pmpo_loss, weighted_likelihood_loss
from sb3_pmpo.core.preference import (
    Candidates,
    Labeller,
    Preference,
    best_worst,
    boltzmann_weights,
)
from sb3_pmpo.distributions import Distribution

D = TypeVar("D", bound=Distribution)


class PolicyLoss(NamedTuple):
    """What a policy step minimises, and what it logs.

    :param loss: scalar, with gradient.
    :param metrics: scalars without gradient, by their name under ``train/``.
    """

    loss: th.Tensor
    metrics: dict[str, th.Tensor]


class Objective(Protocol):
    """What makes the loss of a policy step from candidates that the reference proposed."""

    @property
    def duals(self) -> Duals | None:
        """What the loss also trains, besides the policy."""
        ...

    def __call__(self, online: D, reference: D, candidates: Candidates) -> PolicyLoss:
        """Compute the loss."""
        ...


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
    :param beta_mean: >= 0, weight of the mean's KL (of the whole KL if there is one part only).
    :param beta_std: >= 0, weight of the std's KL.
    :param labeller: who is accepted, who rejected.
    :param decoupled: fit mean and std apart (MPO's way) or together (the paper's).
    :param edge_barrier: >= 0, weight of :meth:`DiagGaussian.edge_barrier`; 0 for a mean without
        bounds.
    """

    alpha: float
    beta_mean: float
    beta_std: float
    labeller: Labeller
    decoupled: bool = True
    edge_barrier: float = 0.0
    duals: ClassVar[None] = None

    def __call__(self, online: D, reference: D, candidates: Candidates) -> PolicyLoss:
        """Compute the loss of the policy on labelled samples of the reference.

        :param online: the policy; the gradient flows to it alone.
        :param reference: the policy that drew the samples.
        :param candidates: the samples and their scores.
        :return: the loss and the terms of Eq. 10 by component.
        """
        actions = _actions(candidates)
        preference = self.labeller(candidates)
        fit = online.decoupled if self.decoupled else online.joint
        components = fit(reference, actions)
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
        barrier = online.edge_barrier() if self.edge_barrier else None
        if barrier is not None:
            total = total + self.edge_barrier * barrier.mean()
            metrics["edge_barrier"] = barrier.detach().mean()
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
    duals: ClassVar[None] = None

    def __call__(self, online: D, reference: D, candidates: Candidates) -> PolicyLoss:
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


@dataclass(frozen=True)
class MPOObjective:
    """MPO: weights from an E-step with a learned temperature, an M-step with learned multipliers.

    :param epsilon: > 0, KL in nats of the weights to the samples.
    :param epsilon_penalty: > 0, the same for weights that favour actions inside the box, which
        are added; None for no such weights.
    :param epsilon_kl: > 0, KL in nats that each dimension may have to the reference, by component.
    :param duals: a temperature ``action``, another ``penalty`` where there is a penalty, and
        multipliers for each component.
    """

    epsilon: float
    epsilon_penalty: float | None
    epsilon_kl: Mapping[str, float]
    duals: Duals

    def __call__(self, online: D, reference: D, candidates: Candidates) -> PolicyLoss:
        """Compute the sum of the policy's loss and of the duals' losses.

        :param online: the policy; the gradient flows to it and to the duals.
        :param reference: the policy that drew the samples.
        :param candidates: the samples and their scores.
        :return: the loss, its terms by component, and the duals.
        """
        weights, loss, metrics = self._e_step(candidates)
        for component in online.decoupled(reference, _actions(candidates)):
            name, kl = component.name, component.kl_per_dim
            multipliers = self.duals.multipliers(name)
            terms = weighted_likelihood_loss(component.log_prob, weights, kl, multipliers)
            dual = multiplier_loss(multipliers, kl, epsilon=self.epsilon_kl[name])
            loss = loss + terms.loss + dual
            metrics[f"weighted_log_prob_{name}"] = terms.log_prob
            metrics[f"kl_{name}"] = terms.kl
            metrics[f"{name}_multiplier"] = multipliers.detach().mean()
        return PolicyLoss(loss, metrics)

    def _e_step(self, candidates: Candidates) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """Weigh the samples ``[S, *B]``; also the temperatures' loss, and what to log."""
        scores, counts = candidates.scores, candidates.counts
        temperature = self.duals.temperature("action")
        loss = temperature_loss(scores, temperature, epsilon=self.epsilon, counts=counts)
        weights = boltzmann_weights(scores, temperature, counts)
        share = 1.0 / len(scores) if counts is None else counts / counts.sum(0)
        kl = (weights * ((weights / share).log())).nan_to_num(0.0).sum(0).mean()
        metrics = {"temperature": temperature.detach().mean(), "e_step_kl": kl}
        if self.epsilon_penalty is not None and candidates.tie_break is not None:
            penalty = self.duals.temperature("penalty")
            inside = -candidates.tie_break
            loss = loss + temperature_loss(inside, penalty, epsilon=self.epsilon_penalty)
            weights = weights + boltzmann_weights(inside, penalty)
            metrics["penalty_temperature"] = penalty.detach().mean()
        return weights, loss, metrics
