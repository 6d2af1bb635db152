"""Named policy losses: from (policy, reference, candidates) to a loss per entry of the batch.

Axes: S samples, ``*B`` batch, A action dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import torch as th

from sb3_pmpo.core.checks import (
    blaming,
    check_flag,
    check_number,
    check_positive,
    make_plain,
    written,
)
from sb3_pmpo.core.e_step import (
    Duals,
    boltzmann_weights,
    multiplier_loss,
    temperature_loss,
    weights_kl,
)
from sb3_pmpo.core.labels import Labeller, best_worst, check_labels, is_balanced
from sb3_pmpo.core.losses import (
    PairLoss,
    check_alpha_beta,
    check_barrier,
    instability,
    pmpo_loss,
    weighted_likelihood_loss,
)
from sb3_pmpo.core.samples import Candidates, Preference
from sb3_pmpo.distributions import Distribution

D = TypeVar("D", bound=Distribution)


class PolicyLoss(NamedTuple):
    """What a policy step minimises, and what it logs.

    :param loss: ``[*B]``, with gradient.
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

    :param alpha: in [0, 1], weight of the accepted samples; the rejected weigh ``1 - alpha``.
    :param beta_mean: >= 0, weight of the mean's KL (of the whole KL if there is one part only).
    :param beta_std: >= 0, weight of the std's KL.
    :param labeller: who is accepted, who rejected.
    :param decoupled: fit mean and std apart (MPO's way) or together (the paper's).
    :param edge_barrier: >= 0, weight of the distribution's ``edge_barrier()``; 0 for a mean without
        bounds.
    :param rejected: share of the samples that the labeller rejects, in [0, 1], for the warning.
    :raises ValueError: for a number out of its range, or a labeller that cannot be called.
    :warns UserWarning: if the KL's weight does not outweigh the push away from rejected samples.
    """

    alpha: float
    beta_mean: float
    beta_std: float
    labeller: Labeller
    decoupled: bool = True
    edge_barrier: float = 0.0
    rejected: float = 0.5
    duals: ClassVar[None] = None

    def __post_init__(self) -> None:
        for beta in (self.beta_mean, self.beta_std):
            check_alpha_beta(self.alpha, beta)
        check_barrier(self.edge_barrier)
        hint = "it is the share of the samples that the labeller rejects; 0.5 is a half"
        check_number("rejected", self.rejected, 0.0, 1.0, float, hint)
        make_plain(self, "alpha", "beta_mean", "beta_std", "edge_barrier", "rejected")
        if not callable(self.labeller):
            raise ValueError(
                f"labeller must be callable, such as top_k(2), got {written(self.labeller)}: it "
                "maps Candidates to a Preference"
            )
        check_flag("decoupled", self.decoupled, "True fits mean and std apart")
        if (reason := self.instability()) is not None:
            warnings.warn(reason, stacklevel=4)

    def instability(self) -> str | None:
        """Say why the policy may collapse, or None where the weights are safe."""
        if not self.decoupled:
            return instability(self.alpha, self.beta_mean, rejected=self.rejected)
        balanced = is_balanced(self.labeller)
        if balanced and self.alpha < 0.5:
            return (
                f"alpha={self.alpha} is below 0.5 with {written(self.labeller)}, whose labels may "
                "weigh many times as much in some states as in others: no beta holds the policy in "
                "all of them; use top_k(n_samples // 2), or alpha >= 0.5"
            )
        of_mean = instability(
            self.alpha, self.beta_mean, fixed_variance=balanced, whose="the mean's "
        )
        return of_mean or instability(
            self.alpha, self.beta_std, rejected=self.rejected, whose="the std's "
        )

    def __call__(self, online: D, reference: D, candidates: Candidates) -> PolicyLoss:
        """Compute the loss of the policy on labelled samples of the reference.

        :param online: the policy; the gradient flows to it alone.
        :param reference: the policy that drew the samples.
        :param candidates: the samples and their scores.
        :return: the loss ``[*B]`` and the terms of Eq. 10 by component.
        """
        actions = _actions(candidates)
        preference = self.labeller(candidates)
        check_labels(preference, candidates)
        fit = online.decoupled if self.decoupled else online.joint
        metrics: dict[str, th.Tensor] = {}
        total = actions.new_zeros(())
        weights = (self.beta_mean, self.beta_std)
        for component, beta in zip(fit(reference, actions), weights, strict=False):
            terms = pmpo_loss(
                component.log_prob, preference, component.kl, alpha=self.alpha, beta=beta
            )
            total = total + terms.loss
            metrics[f"accept_log_prob_{component.name}"] = terms.accept.mean()
            metrics[f"reject_log_prob_{component.name}"] = terms.reject.mean()
            metrics[f"kl_{component.name}"] = terms.kl.mean()
        if self.edge_barrier:
            barrier = online.edge_barrier()
            total = total + self.edge_barrier * barrier
            metrics["edge_barrier"] = barrier.detach().mean()
        metrics["accept_fraction"] = (preference.accept > 0).float().mean()
        metrics["q_gap"] = _score_gap(preference, candidates)
        return PolicyLoss(total, metrics)


@dataclass(frozen=True)
class DPOObjective:
    """DPO or IPO on the best and the worst of the samples (Sec. 5.2, App. E).

    :param beta: > 0, weight of the implicit regulariser.
    :param loss: :func:`sb3_pmpo.dpo_loss` or ``ipo_loss``.
    :raises ValueError: for a ``beta`` out of its range, or a loss that cannot be called.
    """

    beta: float
    loss: Callable[..., PairLoss]
    duals: ClassVar[None] = None

    def __post_init__(self) -> None:
        hint = "it is the weight of the implicit KL, and nothing else holds the policy"
        check_positive("beta", self.beta, hint)
        make_plain(self, "beta")
        if not callable(self.loss):
            raise ValueError(
                f"loss must be callable, such as dpo_loss, got {self.loss!r}: it maps two "
                "log-probabilities and pairs to a PairLoss"
            )

    def __call__(self, online: D, reference: D, candidates: Candidates) -> PolicyLoss:
        """Compute the loss of the policy on one pair a state.

        :param online: the policy; the gradient flows to it alone.
        :param reference: the policy that drew the samples.
        :param candidates: the samples and their scores.
        :return: the loss ``[*B]``; the pairs' margin and accuracy; the KL, which is not in the
            loss.
        """
        actions = _actions(candidates).detach()
        pairs = best_worst()(candidates)
        result = self.loss(
            online.log_prob(actions), reference.log_prob(actions), pairs, beta=self.beta
        )
        n_pairs = result.paired.sum().clamp(min=1)
        metrics = {
            "margin": result.margin.sum() / n_pairs,
            "pair_accuracy": (result.margin > 0).sum() / n_pairs,
            "kl_joint": online.kl_from(reference).detach().mean(),
            "q_gap": _score_gap(pairs, candidates),
        }
        return PolicyLoss(result.loss, metrics)


def try_loss(loss: Callable[..., PairLoss], beta: float, device: th.device | str = "cpu") -> None:
    """Call a loss of pairs once on made-up samples of two states, so that a fault shows at once.

    :param loss: what is to be used in training.
    :param beta: its argument of that name.
    :param device: where training calls it.
    :raises ValueError: if it cannot be called as :func:`sb3_pmpo.dpo_loss` can, or if
        what it returns is not a :class:`PairLoss` of the states.
    """
    log_prob = th.zeros(2, 2, device=device)
    pairs = best_worst()(Candidates(th.eye(2, device=device)))
    with blaming(
        f"loss={written(loss)}", "give sb3_pmpo.dpo_loss, ipo_loss, or a function like them"
    ):
        result = loss(log_prob, log_prob, pairs, beta=beta)
        if not isinstance(result, PairLoss) or result.loss.shape != (2,):
            raise TypeError(f"it returned {result!r} of two states, not a PairLoss")


@dataclass(frozen=True)
class MPOObjective:
    """MPO: weights from an E-step with a learned temperature, an M-step with learned multipliers.

    :param epsilon: > 0, KL in nats of the weights to the samples.
    :param epsilon_penalty: > 0, the same for weights that favour actions inside the box, which
        are added; None for no such weights.
    :param epsilon_kl: > 0, KL in nats that each dimension may have to the reference, by component.
    :param duals: a temperature ``action``, another ``penalty`` where there is a penalty, and
        multipliers for each component.
    :raises ValueError: for an epsilon that is not above 0, or that has no dual.
    """

    epsilon: float
    epsilon_penalty: float | None
    epsilon_kl: Mapping[str, float]
    duals: Duals

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon, "it is a KL in nats")
        for part, epsilon in self.epsilon_kl.items():
            check_positive(f"epsilon_{part}", epsilon, "it is a KL in nats")
        if self.epsilon_penalty is not None:
            check_positive("epsilon_penalty", self.epsilon_penalty, "None is for no penalty")
        wanted = {"action"} if self.epsilon_penalty is None else {"action", "penalty"}
        lacking = wanted - set(self.duals.log_temperatures)
        lacking |= set(self.epsilon_kl) - set(self.duals.log_multipliers)
        if lacking:
            raise ValueError(
                f"duals must have a temperature or a multiplier for each epsilon, and lack "
                f"{', '.join(sorted(lacking))}: make them with Duals(multipliers=..., "
                "temperatures=...)"
            )
        make_plain(self, "epsilon", "epsilon_penalty")
        plain = {part: float(epsilon) for part, epsilon in self.epsilon_kl.items()}
        object.__setattr__(self, "epsilon_kl", plain)

    def __call__(self, online: D, reference: D, candidates: Candidates) -> PolicyLoss:
        """Compute the sum of the policy's loss and of the duals' losses.

        :param online: the policy; the gradient flows to it and to the duals.
        :param reference: the policy that drew the samples.
        :param candidates: the samples and their scores.
        :return: the loss ``[*B]``, its terms by component, and the duals.
        """
        weights, loss, metrics = self._e_step(candidates)
        for component in online.decoupled(reference, _actions(candidates)):
            name, kl = component.name, component.kl_per_dim
            multipliers = self.duals.multipliers(name)
            terms = weighted_likelihood_loss(component.log_prob, weights, kl, multipliers)
            dual = multiplier_loss(multipliers, kl, epsilon=self.epsilon_kl[name])
            loss = loss + terms.loss + dual
            metrics[f"weighted_log_prob_{name}"] = terms.log_prob.mean()
            metrics[f"kl_{name}"] = terms.kl.mean()
            metrics[f"{name}_multiplier"] = multipliers.detach().mean()
        return PolicyLoss(loss, metrics)

    def _e_step(self, candidates: Candidates) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """Weigh the samples ``[S, *B]``; also the temperatures' loss, and what to log."""
        scores, prior = candidates.scores, candidates.weights
        temperature = self.duals.temperature("action")
        loss = temperature_loss(scores, temperature, prior, epsilon=self.epsilon)
        weights = boltzmann_weights(scores, temperature, prior)
        metrics = {
            "temperature": temperature.detach().mean(),
            "e_step_kl": weights_kl(weights, prior).mean(),
        }
        if self.epsilon_penalty is not None and candidates.outside is not None:
            penalty, inside = self.duals.temperature("penalty"), -candidates.outside
            loss = loss + temperature_loss(inside, penalty, prior, epsilon=self.epsilon_penalty)
            weights = weights + boltzmann_weights(inside, penalty, prior)
            metrics["penalty_temperature"] = penalty.detach().mean()
        return weights, loss, metrics
