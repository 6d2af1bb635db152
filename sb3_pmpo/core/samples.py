"""What is labelled, and what labels are: weighted samples, and their weights in two expectations.

Axes: S samples, ``*B`` batch (states, prompts, or nothing), A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch as th


@dataclass(frozen=True, eq=False)
class Candidates:
    """A weighted set of S samples of the reference policy, with scores: what a labeller sees.

    Drawn samples all have the weight ``1 / S``. Where the actions are few they are listed instead,
    and each has its probability for a weight. A rule that uses the weights serves both.

    :param scores: ``[S, *B]`` what is to be maximised: Q values, rewards. No gradient.
    :param actions: ``[S, *B, A]`` the samples as drawn, or None where they are not actions.
    :param weights: ``[S, *B]`` of the samples in an expectation under the reference; they sum to 1
        over S. None for ``1 / S`` each.
    :param outside: ``[S, *B]`` distance by which each action leaves the box. Of two equal scores
        the one nearer to the box ranks first. None where nothing can leave.
    :param value: estimates the value ``[*B]`` of each state from samples other than these, in
        units of the scores; called only by a labeller that wants it. None where nobody can.
    :param n_samples: how many draws the set stands for; None for S. A listed set stands for as
        many as were asked for.
    :param unit: the size of a return, in units of the scores: a scalar that says which differences
        are small. None where nobody knows it.
    :param each: computes the scores ``[N, S, *B]`` by each of N critics; called only by a labeller
        that wants them. None where there is one judge.
    """

    scores: th.Tensor
    actions: th.Tensor | None = None
    weights: th.Tensor = None  # type: ignore[assignment]  # __post_init__ fills it in
    outside: th.Tensor | None = None
    value: Callable[[], th.Tensor] | None = None
    n_samples: int = 0
    unit: th.Tensor | None = None
    each: Callable[[], th.Tensor] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            object.__setattr__(self, "weights", uniform_weights(self.scores))
        elif self.weights.shape != self.scores.shape:
            raise ValueError(
                f"weights must have the shape {tuple(self.scores.shape)} of the scores, got "
                f"{tuple(self.weights.shape)}: they sum to 1 over the samples of each state"
            )
        if not self.n_samples:
            object.__setattr__(self, "n_samples", len(self.scores))

    def mean_score(self) -> th.Tensor:
        """Average the scores over the samples, ``[*B]``: an expectation under the reference.

        Where all are equal it is that score to the last digit, so that rounding is no preference.
        """
        mean = (self.weights * self.scores).sum(0)
        return th.where(self.scores.amax(0) == self.scores.amin(0), self.scores[0], mean)

    def reliability(self) -> th.Tensor:
        """Estimate the share of the scores' variance within the states that is no critic's noise.

        It is Cronbach's alpha over the batch: ``N / (N - 1) * (1 - sum_n var_n / var_sum)``, with
        variances of the deviations from each state's mean. Where two critics spread alike and
        correlate by r it is ``2 r / (1 + r)`` (Spearman and Brown).

        :return: scalar in [0, 1]; 1 where one judge scores, or all the scores of a state are equal.
        """
        each = self.scores.unsqueeze(0) if self.each is None else self.each().detach()
        n_critics = len(each)
        if n_critics < 2:
            return each.new_ones(())
        deviations = each - (self.weights * each).sum(1, keepdim=True)
        size = deviations.abs().amax()  # the squares of large scores are not finite
        deviations = deviations / th.where(size > 0.0, size, 1.0)
        apart = (self.weights * deviations.square()).sum()
        together = (self.weights * deviations.sum(0).square()).sum()
        alpha = n_critics / (n_critics - 1) * (1.0 - apart / together)
        return th.where(apart > 0.0, alpha, 1.0).clamp(0.0, 1.0)


def uniform_weights(like: th.Tensor) -> th.Tensor:
    """Return the weights ``1 / S`` of drawn samples, of the shape ``[S, *B]`` of a tensor."""
    # In half precision sums of many of them would not be 1.
    dtype = th.promote_types(like.dtype, th.float32)
    return th.full((), 1.0 / len(like), dtype=dtype, device=like.device).expand(like.shape)


class Preference(NamedTuple):
    """Weights of the samples in the two expectations of Eq. 10. Non-negative, no gradient.

    :param accept: ``[S, *B]`` weights of the accepted samples, zero elsewhere.
    :param reject: ``[S, *B]`` weights of the rejected samples, zero elsewhere.
    """

    accept: th.Tensor
    reject: th.Tensor


class Normalisation(Protocol):
    """How the members of a set get weights: :func:`mean_per_set` or :func:`mean_over_samples`."""

    def __call__(self, mass: th.Tensor, n_samples: int) -> th.Tensor:
        """Map the members' mass to their weights, ``[S, *B]`` both.

        :param mass: the candidates' weights, zero outside the set.
        :param n_samples: draws that all candidates together stand for.
        """
        ...


def mean_per_set(mass: th.Tensor, n_samples: int) -> th.Tensor:
    """Average over the members of the set (Eq. 10 as written).

    :param mass: ``[S, *B]`` the candidates' weights, zero outside the set.
    :param n_samples: draws that all candidates together stand for.
    :return: ``[S, *B]`` weights that sum to 1 over S, or to less where there is not even one
        sample in the set.
    """
    return mass / mass.sum(0).clamp(min=1.0 / n_samples)


def mean_over_samples(mass: th.Tensor, n_samples: int) -> th.Tensor:
    """Average over all the samples, whatever the set's size (Eq. 6, first form).

    With it the loss is safe iff ``beta >= 1 - alpha``, not ``2 * (1 - alpha)``.

    :param mass: ``[S, *B]`` the candidates' weights, zero outside the set.
    :param n_samples: has no influence.
    :return: the mass: weights that sum to the set's share of the samples.
    """
    return mass


def from_masks(
    accept: th.Tensor,
    reject: th.Tensor,
    *,
    candidates: Candidates | None = None,
    normalise: Normalisation = mean_per_set,
) -> Preference:
    """Build a preference from who is accepted and who rejected; either set may be empty.

    :param accept: ``[S, *B]`` boolean.
    :param reject: ``[S, *B]`` boolean, of the same shape.
    :param candidates: whose masks these are; None for samples that all weigh the same.
    :param normalise: how a set becomes weights.
    :return: the weights of both sets.
    :raises ValueError: if they are not boolean, the shapes differ or a sample is in both sets.
    """
    for name, mask in (("accept", accept), ("reject", reject)):
        if mask.dtype != th.bool:
            raise ValueError(
                f"{name} must be boolean, got {mask.dtype}: write {name} > 0, or call from_labels "
                "with labels above and below 0"
            )
    if accept.shape != reject.shape:
        raise ValueError(
            f"accept and reject must have one shape, got {tuple(accept.shape)} and "
            f"{tuple(reject.shape)}"
        )
    both = int((accept & reject).sum())
    if both:
        raise ValueError(f"{both} samples are both accepted and rejected: make the masks disjoint")
    return _weigh(accept, reject, candidates, normalise)


def from_labels(
    labels: th.Tensor,
    *,
    candidates: Candidates | None = None,
    normalise: Normalisation = mean_per_set,
) -> Preference:
    """Build a preference from labels that the user gives.

    :param labels: ``[S, *B]``: positive for accepted, negative for rejected, 0 for neither;
        booleans mean accepted and rejected.
    :param candidates: whose labels these are; None for samples that all weigh the same.
    :param normalise: how the sets become weights.
    :return: the weights of both sets; either may be empty.
    :raises ValueError: if a label is NaN.
    """
    if labels.dtype == th.bool:
        return _weigh(labels, ~labels, candidates, normalise)
    if bool(labels.isnan().any()):
        raise ValueError("labels must not be NaN: use 0 for a sample without a label")
    return _weigh(labels > 0, labels < 0, candidates, normalise)


def _weigh(
    accept: th.Tensor, reject: th.Tensor, candidates: Candidates | None, normalise: Normalisation
) -> Preference:
    weights = uniform_weights(accept) if candidates is None else candidates.weights
    n_samples = len(accept) if candidates is None else candidates.n_samples
    return Preference(
        normalise(accept * weights, n_samples), normalise(reject * weights, n_samples)
    )


def check_preference(given: object, scores: th.Tensor) -> None:
    """Check what a labeller returned.

    :raises ValueError: naming what is wrong with it and how to mend it.
    """
    remedy = "return from_masks(accept=..., reject=..., candidates=candidates)"
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(
            f"labeller must return a Preference (accept, reject), got {given!r}: {remedy}"
        )
    for name, weights in zip(("accept", "reject"), given, strict=True):
        if not isinstance(weights, th.Tensor) or weights.shape != scores.shape:
            what = tuple(weights.shape) if isinstance(weights, th.Tensor) else repr(weights)
            raise ValueError(
                f"labeller must return weights of the scores' shape {tuple(scores.shape)} for "
                f"{name}, got {what}: {remedy}"
            )
        if not weights.is_floating_point():
            raise ValueError(
                f"labeller must return floating-point weights for {name}, got {weights.dtype}: "
                f"{remedy}"
            )
        if not bool(((weights >= 0.0) & weights.isfinite()).all()):
            raise ValueError(
                f"labeller must return finite weights >= 0 for {name}, got {weights.tolist()}: "
                f"{remedy}"
            )
