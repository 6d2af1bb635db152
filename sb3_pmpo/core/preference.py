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
    """

    scores: th.Tensor
    actions: th.Tensor | None = None
    tie_break: th.Tensor | None = None
    value: Callable[[], th.Tensor] | None = None


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
    """How a mask becomes weights: :func:`mean_per_set` or :func:`mean_over_samples`."""

    def __call__(self, mask: th.Tensor) -> th.Tensor:
        """Map a boolean mask ``[S, *B]`` to weights of the same shape."""
        ...


def mean_per_set(mask: th.Tensor) -> th.Tensor:
    """Weigh each member of the set by one over the set's size (Eq. 10 as written).

    :param mask: ``[S, *B]`` boolean, true for members.
    :return: ``[S, *B]`` weights that sum to 1 over S, or to 0 where the set is empty.
    """
    weights = mask.to(th.get_default_dtype())
    return weights / weights.sum(0).clamp(min=1.0)


def mean_over_samples(mask: th.Tensor) -> th.Tensor:
    """Weigh each member by ``1 / S``, whatever the set's size (Eq. 6, first form).

    With it the loss is safe iff ``beta >= 1 - alpha``, not ``2 * (1 - alpha)``.

    :param mask: ``[S, *B]`` boolean, true for members.
    :return: ``[S, *B]`` weights that sum to the set's share of the samples.
    """
    return mask.to(th.get_default_dtype()) / mask.shape[0]


def from_masks(
    accept: th.Tensor, reject: th.Tensor, *, normalise: Normalisation = mean_per_set
) -> Preference:
    """Build a preference from who is accepted and who rejected; either set may be empty.

    :param accept: ``[S, *B]`` boolean.
    :param reject: ``[S, *B]`` boolean, of the same shape.
    :param normalise: how a mask becomes weights; see design of the two choices above.
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
    return Preference(normalise(accept), normalise(reject))


def from_labels(labels: th.Tensor, *, normalise: Normalisation = mean_per_set) -> Preference:
    """Build a preference from labels that the user gives.

    :param labels: ``[S, *B]``: positive for accepted, negative for rejected, 0 for neither;
        booleans mean accepted and rejected.
    :param normalise: how the masks become weights.
    :return: the weights of both sets; either may be empty.
    :raises ValueError: if a label is NaN.
    """
    if labels.dtype == th.bool:
        return Preference(normalise(labels), normalise(~labels))
    if bool(labels.isnan().any()):
        raise ValueError("labels must not be NaN: use 0 for a sample without a label")
    return Preference(normalise(labels > 0), normalise(labels < 0))


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
        n_samples = len(candidates.scores)
        if 2 * self.k > n_samples:
            raise ValueError(
                f"top_k(k) needs at least 2 * k samples, got k={self.k} with {n_samples} "
                f"sample(s): use k <= {n_samples // 2} or draw more samples"
            )
        rank = ranking(candidates)
        # The masks are disjoint by construction, so from_masks' check would only cost time.
        return Preference(self.normalise(rank < self.k), self.normalise(rank >= n_samples - self.k))


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
    return candidates.scores.mean(0)


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
        """Interpolate between the scores; ``[*B]``."""
        return candidates.scores.quantile(self.q, dim=0)


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
        return from_labels(candidates.scores >= baseline, normalise=self.normalise)


def threshold(baseline: float | Baseline, *, normalise: Normalisation = mean_per_set) -> Threshold:
    """Accept the samples with ``f(y, x) >= b(x)`` and reject the others (Sec. 4).

    The sets are as large as they come out: uneven, or empty for a state.

    :param baseline: b, a number in units of the scores, or a function of the candidates:
        :func:`mean_score`, :func:`quantile`, :func:`state_value`, or your own.
    :param normalise: how the masks become weights.
    :raises ValueError: if the number is not finite.
    """
    return Threshold(baseline, normalise)


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
        scores = candidates.scores.detach()
        success = ((scores - scores.amax(0)) / self.temperature).exp()  # 1 for the best
        failure = 1.0 - success
        total = failure.sum(0)  # 0 where all the scores are equal
        return Preference(success / success.sum(0), failure / th.where(total > 0.0, total, 1.0))


def boltzmann(temperature: float) -> Boltzmann:
    """Take ``p(S | y, x) = exp((f(y, x) - max f) / temperature)`` for the preference (Sec. 4).

    The accepted weigh in proportion to p, which is MPO's E-step at a given temperature; the
    rejected in proportion to ``1 - p``, the complement's. Each side sums to 1; nobody is rejected
    where all the scores are equal.

    :param temperature: > 0, in units of the scores.
    :raises ValueError: unless it is finite and > 0.
    """
    return Boltzmann(temperature)
