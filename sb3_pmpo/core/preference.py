"""Turn scores into preferences: which of S samples are accepted, which rejected (paper, Sec. 4).

Axes: S samples, *B batch (states, or nothing), A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch as th


class Candidates(NamedTuple):
    """What a labeller sees of the S samples drawn from the reference policy.

    :param scores: ``[S, *B]`` what is to be maximised: Q values, rewards. No gradient.
    :param actions: ``[S, *B, A]`` the samples as drawn, or None where they are not actions.
    :param tie_break: ``[S, *B]`` of two equal scores the lower of these ranks first; None for
        no preference. Online it is the distance by which an action leaves the box.
    """

    scores: th.Tensor
    actions: th.Tensor | None = None
    tie_break: th.Tensor | None = None


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


def ranking(candidates: Candidates) -> th.Tensor:
    """Rank the samples of each state, best first; equal scores by ``tie_break``, then by index.

    :return: ``[S, *B]`` integers, 0 for the best sample of a state and S - 1 for its worst.
    """
    scores, _, tie_break = candidates
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
