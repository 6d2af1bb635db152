"""Eq. 10 on labelled data: S is the minibatch, ``*B`` is empty, the KL is averaged beforehand.

Axes: S rows of the minibatch, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch as th

from sb3_pmpo.core.losses import check_alpha_beta, check_barrier, pmpo_loss, weighted_log_prob
from sb3_pmpo.core.samples import (
    Candidates,
    Normalisation,
    Preference,
    from_labels,
    mean_over_samples,
)
from sb3_pmpo.objectives import PolicyLoss
from sb3_pmpo.offline.weights import Labels, check_weights


class Part(NamedTuple):
    """A part of the policy with a KL weight of its own.

    :param name: in the log.
    :param log_prob: ``[S]`` of the rows' actions; the gradient reaches this part alone.
    :param kl: scalar, the mean over the data.
    """

    name: str
    log_prob: th.Tensor
    kl: th.Tensor


#: From policy and reference at S states, and the rows there, to the parts that are fitted.
KL = Callable[[Any, Any, Candidates], tuple[Part, ...]]


def data_kl(online: Any, reference: Any, candidates: Candidates) -> tuple[Part, ...]:
    """Estimate the KL to the policy that acted in the data by behaviour cloning (Sec. 5.3).

    ``KL(data || pi) = -E_data[log pi] - entropy``, of which the entropy does not depend on the
    policy and is left out. What is logged is therefore a cross-entropy.

    :param reference: has no influence: the data stand for it.
    """
    log_prob = online.log_prob(_actions(candidates)).squeeze(0)
    return (Part("data", log_prob, -weighted_log_prob(candidates.weights, log_prob)),)


@dataclass(frozen=True)
class reference_kl:  # noqa: N801  # made like a function call
    """Compute the KL to a reference policy in closed form, at the states of the data.

    :param decoupled: fit mean and std of a Gaussian apart, with a KL each.
    """

    decoupled: bool = True

    def __call__(self, online: Any, reference: Any, candidates: Candidates) -> tuple[Part, ...]:
        """Return the parts and their KL."""
        fit = online.decoupled if self.decoupled else online.joint
        return tuple(
            Part(part.name, part.log_prob.squeeze(0), (candidates.weights * part.kl).sum(0))
            for part in fit(reference, _actions(candidates))
        )


def _actions(candidates: Candidates) -> th.Tensor:
    """Return the rows' actions as one sample of each of S states, ``[1, S, A]``."""
    if candidates.actions is None:
        raise ValueError("candidates.actions is None: the objective needs the rows' actions")
    return candidates.actions.unsqueeze(0)


@dataclass(frozen=True)
class LabelObjective:
    """Eq. 10 with the labels that the data have, which are the candidates' scores.

    With ``data_kl`` and ``mean_over_samples`` it is behaviour cloning with the weights
    ``beta + alpha`` of an accepted row, ``beta`` of an unlabelled and ``beta - (1 - alpha)`` of a
    rejected one.

    :param alpha: in [0, 1], weight of the accepted.
    :param betas: >= 0, weights of the parts' KLs; a policy of one part takes the first.
    :param kl: :func:`data_kl` or :class:`reference_kl`.
    :param normalise: ``mean_per_set``, the means of Eq. 10 over accepted and over rejected, or
        ``mean_over_samples``, over all the data.
    :param edge_barrier: >= 0, weight of what keeps a Gaussian's mean from the box's edge.
    :param labels: those of all the data; None for no labels, or for labels that nobody has counted.
    :raises ValueError: for a number out of its range, or weights that learn nothing from these
        labels, or that diverge on them.
    :warns UserWarning: if a policy may run away from rejected rows.
    """

    alpha: float
    betas: tuple[float, float]
    kl: KL = data_kl
    normalise: Normalisation = mean_over_samples
    edge_barrier: float = 0.0
    labels: Labels | None = None
    duals: ClassVar[None] = None

    def __post_init__(self) -> None:
        for beta in self.betas:
            check_alpha_beta(self.alpha, beta)
        check_barrier(self.edge_barrier)
        if self.labels is not None:
            has_parts = isinstance(self.kl, reference_kl) and self.kl.decoupled
            beta = min(self.betas) if has_parts else self.betas[0]
            check_weights(self.alpha, beta, self.labels, self.normalise)

    def __call__(self, online: Any, reference: Any, candidates: Candidates) -> PolicyLoss:
        """Compute the loss, a scalar.

        :param online: the policy at S states; the gradient flows to it alone.
        :param reference: the reference policy at the same states.
        :param candidates: actions ``[S, A]``; labels as scores ``[S]``, accepted above 0 and
            rejected below, each counting by its size; the weights ``[S]`` with which the rows
            average to the mean over the data.
        :return: the loss and the terms of Eq. 10.
        """
        labels = candidates.scores
        members = from_labels(labels, candidates=candidates, normalise=self.normalise)
        preference = Preference(members.accept * labels.abs(), members.reject * labels.abs())
        total = labels.new_zeros(())
        metrics: dict[str, th.Tensor] = {}
        for part, beta in zip(self.kl(online, reference, candidates), self.betas, strict=False):
            terms = pmpo_loss(part.log_prob, preference, part.kl, alpha=self.alpha, beta=beta)
            total = total + terms.loss
            metrics[f"kl_{part.name}"] = terms.kl
            metrics |= _mean_log_probs(part, labels)
        if self.edge_barrier:
            mean = (candidates.weights * online.edge_barrier()).sum(0)
            total = total + self.edge_barrier * mean
            metrics["edge_barrier"] = mean.detach()
        return PolicyLoss(total, metrics)


@th.no_grad()
def _mean_log_probs(part: Part, labels: th.Tensor) -> dict[str, th.Tensor]:
    """Average the log-probability over the batch's accepted and over its rejected rows.

    A kind that the batch has none of is left out: 0 would be a log-probability.
    """
    metrics = {}
    for name, members in (("accept", labels > 0), ("reject", labels < 0)):
        if not bool(members.any()):
            continue
        share = members / members.sum()
        metrics[f"{name}_log_prob_{part.name}"] = weighted_log_prob(share, part.log_prob)
    return metrics
