"""Turn scores into preferences: which of S samples are accepted, which rejected (paper, Sec. 4).

Axes: S samples, *B batch (states, or nothing), A action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch as th


class Candidates(NamedTuple):
    """What a labeller sees of the S samples drawn from the reference policy.

    :param scores: ``[S, *B]`` what is to be maximised: Q values, rewards. No gradient.
    :param actions: ``[S, *B, A]`` the samples as drawn, or None where they are not actions.
    :param tie_break: ``[S, *B]`` of two equal scores the lower of these ranks first; None for
        no preference. Online it is the distance by which an action leaves the box.
    :param value: estimates the value ``[*B]`` of each state from samples other than these, in
        units of the scores; called only by a labeller that wants it. None where nobody can.
    :param counts: ``[S, *B]`` how many samples each candidate stands for, a fraction of one too,
        where all the actions are listed instead of sampled; None for one each.
    """

    scores: th.Tensor
    actions: th.Tensor | None = None
    tie_break: th.Tensor | None = None
    value: Callable[[], th.Tensor] | None = None
    counts: th.Tensor | None = None

    def mean_score(self) -> th.Tensor:
        """Average the scores over the samples, ``[*B]``: an expectation under the reference."""
        if self.counts is None:
            return self.scores.mean(0)
        return (self.scores * self.counts).sum(0) / self.counts.sum(0)


class Preference(NamedTuple):
    """Weights of the samples in the two expectations of Eq. 10. Non-negative, no gradient.

    :param accept: ``[S, *B]`` weights of the accepted samples, zero elsewhere.
    :param reject: ``[S, *B]`` weights of the rejected samples, zero elsewhere.
    """

    accept: th.Tensor
    reject: th.Tensor


class Labeller(Protocol):
    """Any callable from :class:`Candidates` to :class:`Preference`."""

    def __call__(self, candidates: Candidates) -> Preference:
        """Label the samples."""
        ...


class Normalisation(Protocol):
    """How members of a set get weights: :func:`mean_per_set` or :func:`mean_over_samples`."""

    def __call__(self, members: th.Tensor, n_samples: th.Tensor | int | None = None) -> th.Tensor:
        """Map members ``[S, *B]`` to weights of the same shape.

        :param members: boolean, or how many samples of each candidate are in the set.
        :param n_samples: in and out of the set; None for S.
        """
        ...


def mean_per_set(members: th.Tensor, n_samples: th.Tensor | int | None = None) -> th.Tensor:
    """Weigh each member of the set by one over the set's size (Eq. 10 as written).

    :param members: ``[S, *B]`` boolean, or how many samples of each candidate are in the set.
    :param n_samples: has no influence.
    :return: ``[S, *B]`` weights that sum to 1 over S, or to less where there is not even one
        sample in the set.
    """
    weights = _as_weights(members)
    return weights / weights.sum(0).clamp(min=1.0)


def mean_over_samples(members: th.Tensor, n_samples: th.Tensor | int | None = None) -> th.Tensor:
    """Weigh each member by ``1 / S``, whatever the set's size (Eq. 6, first form).

    With it the loss is safe iff ``beta >= 1 - alpha``, not ``2 * (1 - alpha)``.

    :param members: ``[S, *B]`` boolean, or how many samples of each candidate are in the set.
    :param n_samples: in and out of the set; None for S.
    :return: ``[S, *B]`` weights that sum to the set's share of the samples.
    """
    return _as_weights(members) / (len(members) if n_samples is None else n_samples)


def _as_weights(members: th.Tensor) -> th.Tensor:
    return members if members.is_floating_point() else members.to(th.get_default_dtype())


def _weigh(mask: th.Tensor, normalise: Normalisation, counts: th.Tensor | None) -> th.Tensor:
    return normalise(mask) if counts is None else normalise(mask * counts, counts.sum(0))


def from_masks(
    accept: th.Tensor,
    reject: th.Tensor,
    *,
    normalise: Normalisation = mean_per_set,
    counts: th.Tensor | None = None,
) -> Preference:
    """Build a preference from who is accepted and who rejected; either set may be empty.

    :param accept: ``[S, *B]`` boolean.
    :param reject: ``[S, *B]`` boolean, of the same shape.
    :param normalise: how a mask becomes weights.
    :param counts: ``[S, *B]`` that of the candidates.
    :return: the weights of both sets.
    :raises ValueError: if the shapes differ or a sample is in both sets.
    """
    if accept.shape != reject.shape:
        raise ValueError(
            f"accept and reject must have one shape, got {tuple(accept.shape)} and "
            f"{tuple(reject.shape)}"
        )
    both = int((accept & reject).sum())
    if both:
        raise ValueError(f"{both} samples are both accepted and rejected: make the masks disjoint")
    return Preference(_weigh(accept, normalise, counts), _weigh(reject, normalise, counts))


def from_labels(
    labels: th.Tensor, *, normalise: Normalisation = mean_per_set, counts: th.Tensor | None = None
) -> Preference:
    """Build a preference from labels that the user gives.

    :param labels: ``[S, *B]``: positive for accepted, negative for rejected, 0 for neither;
        booleans mean accepted and rejected.
    :param normalise: how the masks become weights.
    :param counts: ``[S, *B]`` that of the candidates.
    :return: the weights of both sets; either may be empty.
    :raises ValueError: if a label is NaN.
    """
    if labels.dtype == th.bool:
        return Preference(_weigh(labels, normalise, counts), _weigh(~labels, normalise, counts))
    if bool(labels.isnan().any()):
        raise ValueError("labels must not be NaN: use 0 for a sample without a label")
    return Preference(_weigh(labels > 0, normalise, counts), _weigh(labels < 0, normalise, counts))


def ranking(candidates: Candidates) -> th.Tensor:
    """Rank the samples of each state, best first; equal scores by ``tie_break``, then by index.

    :return: ``[S, *B]`` integers, 0 for the best sample of a state and S - 1 for its worst.
    """
    scores, tie_break = candidates.scores, candidates.tie_break
    if tie_break is None:
        order = scores.argsort(dim=0, descending=True, stable=True)
    else:
        near = tie_break.argsort(dim=0, stable=True)
        order = scores.gather(0, near).argsort(dim=0, descending=True, stable=True)
        order = near.gather(0, order)
    positions = th.arange(len(scores), device=scores.device)
    positions = positions.view(-1, *[1] * (scores.dim() - 1)).expand_as(order)
    return th.empty_like(order).scatter_(0, order, positions)


@dataclass(frozen=True)
class TopK:
    """Accept the ``k`` best samples and reject the ``k`` worst; see :func:`top_k`."""

    k: int
    normalise: Normalisation = mean_per_set

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def __call__(self, candidates: Candidates) -> Preference:
        """Label the samples by their rank.

        :raises ValueError: if there are fewer than ``2 * k`` samples.
        """
        n_samples, rank = len(candidates.scores), ranking(candidates)
        if candidates.counts is not None:
            return self._by_count(candidates.counts, rank)
        if 2 * self.k > n_samples:
            raise ValueError(
                f"top_k(k) needs at least 2 * k samples, got k={self.k} with {n_samples} "
                f"sample(s): use k <= {n_samples // 2} or draw more samples"
            )
        # The masks are disjoint by construction, so from_masks' check would only cost time.
        return Preference(self.normalise(rank < self.k), self.normalise(rank >= n_samples - self.k))

    def _by_count(self, counts: th.Tensor, rank: th.Tensor) -> Preference:
        """Accept the k best samples where a candidate stands for several, or for less than one."""
        n_samples = counts.sum(0)
        upto = th.zeros_like(counts).scatter(0, rank, counts).cumsum(0)
        upto = th.cat((th.zeros_like(upto[:1]), upto))  # [S + 1, *B] samples ranked before
        accept = upto.clamp(max=self.k).diff(dim=0).gather(0, rank)
        reject = upto.maximum(n_samples - self.k).diff(dim=0).gather(0, rank)
        return Preference(self.normalise(accept, n_samples), self.normalise(reject, n_samples))


def top_k(k: int, *, normalise: Normalisation = mean_per_set) -> TopK:
    """Accept the k best of the S samples, reject the k worst, ignore those between (Sec. 5.2).

    ``top_k(2)`` with 4 samples is the paper's rule, ``top_k(1)`` its best/worst variant.

    :param k: how many on each side, >= 1; at most half the number of samples.
    :param normalise: how the masks become weights.
    :raises ValueError: if ``k < 1``.
    """
    return TopK(k, normalise)


def best_worst(*, normalise: Normalisation = mean_per_set) -> TopK:
    """Accept the best sample and reject the worst: the paper's variant beside DPO (Sec. 5.2)."""
    return top_k(1, normalise=normalise)


class Baseline(Protocol):
    """What a score is compared with: any callable from :class:`Candidates` to ``[*B]``."""

    def __call__(self, candidates: Candidates) -> th.Tensor:
        """Compute the baseline of each state."""
        ...


def mean_score(candidates: Candidates) -> th.Tensor:
    """Return the mean of a state's scores, ``[*B]``; a baseline for :func:`threshold`."""
    return candidates.mean_score()


def state_value(candidates: Candidates) -> th.Tensor:
    """Return the critic's estimate of the state's value, ``[*B]``, from samples of its own.

    Unlike with :func:`mean_score`, all of a state's samples may then be good, or all bad.

    :raises ValueError: if nothing here estimates values.
    """
    if candidates.value is None:
        raise ValueError(
            "candidates.value is None: threshold(state_value) needs a critic; use mean_score"
        )
    return candidates.value()


@dataclass(frozen=True)
class Quantile:
    """The q-quantile of a state's scores, a baseline; see :func:`quantile`."""

    q: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.q <= 1.0:
            raise ValueError(f"q must be in [0, 1], got {self.q}: 0.5 is the median")

    def __call__(self, candidates: Candidates) -> th.Tensor:
        """Interpolate between the scores, or step where they have counts; ``[*B]``."""
        if candidates.counts is None:
            return candidates.scores.quantile(self.q, dim=0)
        scores, order = candidates.scores.sort(dim=0)
        upto = candidates.counts.gather(0, order).cumsum(0)
        below = (upto < self.q * upto[-1]).sum(0, keepdim=True)
        return scores.gather(0, below).squeeze(0)


def quantile(q: float) -> Quantile:
    """Compare with the q-quantile of the state's scores, interpolated.

    :param q: in [0, 1]; 0.75 accepts about the best quarter and rejects the rest.
    :raises ValueError: if q is outside [0, 1].
    """
    return Quantile(q)


@dataclass(frozen=True)
class Threshold:
    """Accept what reaches a baseline and reject what does not; see :func:`threshold`."""

    baseline: float | Baseline
    normalise: Normalisation = mean_per_set

    def __post_init__(self) -> None:
        if not callable(self.baseline) and not math.isfinite(self.baseline):
            raise ValueError(f"baseline must be finite or callable, got {self.baseline}")

    def __call__(self, candidates: Candidates) -> Preference:
        """Label the samples; either set may be empty."""
        baseline = self.baseline(candidates) if callable(self.baseline) else self.baseline
        accept = candidates.scores >= baseline
        return from_labels(accept, normalise=self.normalise, counts=candidates.counts)


def threshold(baseline: float | Baseline, *, normalise: Normalisation = mean_per_set) -> Threshold:
    """Accept the samples with ``f(y, x) >= b(x)`` and reject the others (Sec. 4).

    The sets are as large as they come out: uneven, or empty for a state.

    :param baseline: b, a number in units of the scores, or a function of the candidates:
        :func:`mean_score`, :func:`quantile`, :func:`state_value`, or your own.
    :param normalise: how the masks become weights.
    :raises ValueError: if the number is not finite.
    """
    return Threshold(baseline, normalise)


def boltzmann_weights(
    scores: th.Tensor, temperature: th.Tensor | float, counts: th.Tensor | None = None
) -> th.Tensor:
    """Weigh the samples of the reference by ``exp(score / temperature)``: MPO's E-step (App. G.1).

    :param scores: ``[S, *B]``.
    :param temperature: > 0, in units of the scores.
    :param counts: ``[S, *B]`` how many samples each candidate stands for; None for one each.
    :return: ``[S, *B]`` weights that sum to 1 over S, without gradient.
    """
    logits = scores.detach() / temperature
    return (logits if counts is None else logits + counts.log()).softmax(0).detach()


@dataclass(frozen=True)
class Advantage:
    """Weigh the samples by how far they are from the mean; see :func:`advantage`."""

    def __call__(self, candidates: Candidates) -> Preference:
        """Weigh the samples.

        :raises ValueError: if there is only one, which has nothing to be compared with.
        """
        counts = candidates.counts
        if len(candidates.scores) < 2:
            raise ValueError(
                f"advantage() needs at least 2 samples, got {len(candidates.scores)}: draw more"
            )
        deviation = candidates.scores.detach() - candidates.mean_score().detach()  # [S, *B]
        share = 1.0 / len(deviation) if counts is None else counts / counts.sum(0)
        weighted = share * deviation
        spread = weighted.abs().sum(0).mean()  # 0 where all the scores are equal
        weights = 2.0 * weighted / th.where(spread > 0.0, spread, 1.0)
        return Preference(weights.clamp(min=0.0), (-weights).clamp(min=0.0))


def advantage() -> Advantage:
    """Accept what is better than its state's mean, reject what is worse, in proportion to how far.

    The deviations ``f(y, x) - mean_y f(y, x)`` are in units of their mean absolute value over the
    whole batch: a state counts by how much depends on the action there, where ranks make all
    states equal and with them the noise of those in which nothing does. Accepted and rejected
    weigh the same in each state, and 1 in the mean over the states, so that the loss of a mean of
    fixed variance is safe at any ``beta > 0`` with ``alpha`` of 0.5.
    """
    return Advantage()


@dataclass(frozen=True)
class Boltzmann:
    """Weigh the samples by their scores instead of dividing them; see :func:`boltzmann`."""

    temperature: float

    def __post_init__(self) -> None:
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature must be finite and > 0, got {self.temperature}: it is in units of "
                "the scores"
            )

    def __call__(self, candidates: Candidates) -> Preference:
        """Weigh the samples."""
        scores, counts = candidates.scores.detach(), candidates.counts
        drawn = scores if counts is None else scores.where(counts > 0.0, -math.inf)
        failure = 1.0 - ((drawn - drawn.amax(0)) / self.temperature).exp()  # 0 for the best
        if counts is not None:
            failure = failure * counts
        total = failure.sum(0)  # 0 where all the scores are equal
        return Preference(
            boltzmann_weights(scores, self.temperature, counts),
            failure / th.where(total > 0.0, total, 1.0),
        )


def boltzmann(temperature: float) -> Boltzmann:
    """Take ``p(S | y, x) = exp((f(y, x) - max f) / temperature)`` for the preference (Sec. 4).

    The accepted weigh in proportion to p, which is MPO's E-step at a given temperature; the
    rejected in proportion to ``1 - p``, the complement's. Each side sums to 1; nobody is rejected
    where all the scores are equal.

    :param temperature: > 0, in units of the scores.
    :raises ValueError: unless it is finite and > 0.
    """
    return Boltzmann(temperature)
