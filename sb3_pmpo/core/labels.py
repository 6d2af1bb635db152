"""Labellers: from scored samples to who is accepted, who rejected, with what weight (Sec. 4).

A labeller is any callable from :class:`Candidates` to :class:`Preference`. Those of this module are
made like a function call, ``top_k(2)``, and compare and pickle by their arguments. A labeller may
have an attribute ``balanced``, see :func:`is_balanced`.

Axes: S samples, ``*B`` batch (states, or nothing), A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch as th

from sb3_pmpo.core.checks import (
    INFINITY,
    blaming,
    check_flag,
    check_number,
    check_positive,
    written,
)
from sb3_pmpo.core.e_step import boltzmann_weights
from sb3_pmpo.core.samples import (
    Candidates,
    Normalisation,
    Preference,
    check_preference,
    from_labels,
    mean_over_samples,
    mean_per_set,
)

#: A share of one draw below this is rounding.
ROUNDING = 1e-4

#: A spread of the scores below this share of a return is the critic's noise. While all rewards are
#: zero the spread is 1e-5 to 5e-5 of it (benchmarks/trials.md, "Rewards that are always zero").
NOISE = 5e-5


class Labeller(Protocol):
    """Any callable from :class:`Candidates` to :class:`Preference`."""

    def __call__(self, candidates: Candidates) -> Preference:
        """Label the samples."""
        ...


def is_balanced(labeller: Labeller) -> bool:
    """Say whether accepted and rejected weigh the same in each state, as the labeller says it.

    Such a labeller has an attribute ``balanced`` that is true. The mean of a Gaussian with a fixed
    variance is then safe with a smaller KL weight, see :func:`~sb3_pmpo.core.losses.instability`.
    """
    return bool(getattr(labeller, "balanced", False))


def rejected_share(labeller: Labeller, n_samples: int) -> float:
    """Say which share of the samples a labeller rejects; a half if it does not say.

    Such a labeller has a method ``rejected_share``. The share is what the bound of beta is made of,
    see :func:`~sb3_pmpo.core.losses.instability`, so it is 1 with means over all samples, and less
    where a rejected sample may weigh more than a mean gives it.
    """
    share = getattr(labeller, "rejected_share", None)
    return 0.5 if share is None else float(share(n_samples))


def ranking(candidates: Candidates) -> th.Tensor:
    """Rank the samples of each state, best first; equal scores by ``outside``, then by index.

    :return: ``[S, *B]`` integers, 0 for the best sample of a state and S - 1 for its worst.
    """
    scores, outside = candidates.scores, candidates.outside
    if outside is None:
        order = scores.argsort(dim=0, descending=True, stable=True)
    else:
        near = outside.argsort(dim=0, stable=True)
        order = scores.gather(0, near).argsort(dim=0, descending=True, stable=True)
        order = near.gather(0, order)
    positions = th.arange(len(scores), device=scores.device)
    positions = positions.view(-1, *[1] * (scores.dim() - 1)).expand_as(order)
    return th.empty_like(order).scatter_(0, order, positions)


@dataclass(frozen=True, repr=False)
class top_k:  # noqa: N801  # made like a function call
    """Accept the k best of the samples, reject the k worst, ignore those between (Sec. 5.2).

    ``top_k(2)`` with 4 samples is the paper's rule, ``top_k(1)`` its best/worst variant. Of listed
    actions it accepts the best whose probabilities make k of ``n_samples`` draws.

    :param k: how many on each side, >= 1; at most half the number of samples.
    :param normalise: how the sets become weights.
    :raises ValueError: if ``k < 1``.
    """

    k: int
    normalise: Normalisation = mean_per_set

    def __repr__(self) -> str:
        return written(self)

    def __post_init__(self) -> None:
        check_number("k", self.k, 1, INFINITY, int, "top_k(2) with 4 samples is the paper's")
        object.__setattr__(self, "k", int(self.k))

    def rejected_share(self, n_samples: int) -> float:
        """Return ``k / n_samples``; 1 with a mean over all samples, where ``1 - alpha`` is safe."""
        return _share(self.k / n_samples, self.normalise)

    def __call__(self, candidates: Candidates) -> Preference:
        """Label the samples by their rank.

        :raises ValueError: if there are fewer than ``2 * k`` samples.
        """
        n_samples = candidates.n_samples
        if 2 * self.k > n_samples:
            raise ValueError(
                f"top_k(k) needs at least 2 * k samples, got k={self.k} with {n_samples} "
                f"sample(s): use k <= {n_samples // 2} or draw more samples"
            )
        rank, draws = ranking(candidates), candidates.weights * n_samples  # [S, *B]
        ordered = th.zeros_like(draws).scatter(0, rank, draws)
        upto = ordered.cumsum(0).gather(0, rank)
        best = _within(self.k - (upto - draws), draws)
        worst = _within(upto - (n_samples - self.k), draws)
        return Preference(
            self.normalise(best / n_samples, n_samples),
            self.normalise(worst / n_samples, n_samples),
        )


def _share(of_sets: float, normalise: Normalisation) -> float:
    """Return the share that the bound is made of; a half for means that nobody knows."""
    return {mean_per_set: of_sets, mean_over_samples: 1.0}.get(normalise, 0.5)


def _within(room: th.Tensor, draws: th.Tensor) -> th.Tensor:
    """Return how much of each candidate's draws there is room for, between 0 and all of them."""
    fits = room.clamp(min=0.0).minimum(draws)
    return fits.where(fits > ROUNDING, 0.0)


def best_worst(*, normalise: Normalisation = mean_per_set) -> top_k:
    """Accept the best sample and reject the worst: the paper's variant beside DPO (Sec. 5.2)."""
    return top_k(1, normalise=normalise)


@dataclass(frozen=True)
class advantage:  # noqa: N801  # made like a function call
    """Accept the samples above their state's mean score, reject those below, weighed by how far.

    A sample's weight is its score minus its state's mean score, over the mean absolute deviation of
    the whole batch. A state in which the action matters therefore weighs more. Ranks weigh all
    states alike, so in states where the action hardly matters they teach the critic's noise. In
    each state the accepted and the rejected weigh the same; over the states the mean is 1.

    Before the first reward every deviation is noise. So weights shrink by
    ``1 - (NOISE * candidates.unit / s)^2``, where ``s`` is the batch's mean deviation, and are 0
    where ``s`` is below ``NOISE * candidates.unit``, a small share of a return. That share is
    measured at the default learning rate. In a trial at ten times that rate the noise was above it.

    :param limit: a sample that is worse by more than so many of the batch's mean deviations is
        rejected as if it were worse by that many; None for no limit. A categorical policy is safe
        iff ``beta >= 2 * (1 - alpha) * limit``: a rejected action whose probability p is small is
        pushed away by up to ``2 * limit * p``, and the KL holds it by ``beta * p``. A small limit
        slows learning (benchmarks/trials.md).
    :param reliable: multiply the weights by :meth:`Candidates.reliability`, so that a policy moves
        less where the critics disagree on what its actions are worth.
    :raises ValueError: unless the limit is > 0.
    """

    limit: float | None = None
    reliable: bool = False
    balanced: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_flag("reliable", self.reliable, "whether the critics' disagreement counts")
        if self.limit is not None:
            check_positive("limit", self.limit, "None is no limit", INFINITY)

    def rejected_share(self, n_samples: int) -> float:
        """Return ``1 / (2 * limit)``, whose bound is ``2 * (1 - alpha) * limit``; else a half."""
        return 0.5 if self.limit is None else min(0.5 / self.limit, 1.0)

    def __call__(self, candidates: Candidates) -> Preference:
        """Weigh the samples; the only action that there is weighs nothing.

        :raises ValueError: if one sample was drawn, which has nothing to be compared with.
        """
        if candidates.n_samples < 2:
            raise ValueError(
                f"advantage() needs at least 2 samples, got {candidates.n_samples}: draw more"
            )
        deviation = candidates.scores.detach() - candidates.mean_score().detach()  # [S, *B]
        weighted = candidates.weights * deviation
        spread = weighted.abs().sum(0).mean()  # 0 where all the scores are equal
        weights = 2.0 * weighted / th.where(spread > 0.0, spread, 1.0)
        if self.limit is not None:
            weights = weights.maximum(-2.0 * self.limit * candidates.weights)
        if candidates.unit is not None:
            size = deviation.abs().mean()  # the spread, but for the probabilities of listed actions
            noise = NOISE * candidates.unit / th.where(size > 0.0, size, 1.0)
            weights = weights * (1.0 - noise.square()).clamp(min=0.0)
        if self.reliable:
            weights = weights * candidates.reliability()
        return Preference(weights.clamp(min=0.0), (-weights).clamp(min=0.0))


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
class quantile:  # noqa: N801  # made like a function call
    """Compare with the q-quantile of the state's scores, interpolated; a baseline.

    It is that of ``n_samples`` draws of which each candidate makes its share.

    :param q: in [0, 1]; 0.75 accepts about the best quarter and rejects the rest.
    :raises ValueError: if q is outside [0, 1].
    """

    q: float

    def __post_init__(self) -> None:
        check_number("q", self.q, 0.0, 1.0, float, "0.5 is the median")

    def __call__(self, candidates: Candidates) -> th.Tensor:
        """Interpolate between the scores; ``[*B]``."""
        n_samples = candidates.n_samples
        possible = candidates.scores.where(candidates.weights > 0.0, INFINITY)
        scores, order = possible.sort(dim=0)
        upto = (candidates.weights * n_samples).gather(0, order).cumsum(0)  # [S, *B] draws
        first = th.cat((th.zeros_like(upto[:1]), upto[:-1]))  # a candidate's first draw
        last = (upto - 1.0).maximum(first)  # and its last one
        place = self.q * (n_samples - 1)
        left = (first <= place + ROUNDING).sum(0, keepdim=True) - 1
        right = (left + 1).clamp(max=len(scores) - 1)
        here, there = scores.gather(0, left), scores.gather(0, right)
        start, width = last.gather(0, left), first.gather(0, right) - last.gather(0, left)
        share = ((place - start) / width.clamp(min=ROUNDING)).clamp(0.0, 1.0)
        return here.lerp(there.where(there.isfinite(), here), share).squeeze(0)


@dataclass(frozen=True, repr=False)
class threshold:  # noqa: N801  # made like a function call
    """Accept the samples with ``f(y, x) >= b(x)`` and reject the others (Sec. 4).

    The sets are as large as they come out: uneven, or empty for a state.

    :param baseline: b, a number in units of the scores, or a function of the candidates:
        :func:`mean_score`, :class:`quantile`, :func:`state_value`, or your own.
    :param normalise: how the sets become weights.
    :raises ValueError: if the number is not finite.
    """

    baseline: float | Baseline
    normalise: Normalisation = mean_per_set

    def __repr__(self) -> str:
        return written(self)

    def __post_init__(self) -> None:
        if not callable(self.baseline):
            hint = "give a number, or a callable such as mean_score"
            check_number("baseline", self.baseline, -INFINITY, INFINITY, float, hint)

    def rejected_share(self, n_samples: int) -> float:
        """Return a half; 1 with a mean over all samples, where ``1 - alpha`` is safe."""
        return _share(0.5, self.normalise)

    def __call__(self, candidates: Candidates) -> Preference:
        """Label the samples; either set may be empty."""
        baseline = self.baseline(candidates) if callable(self.baseline) else self.baseline
        accept = candidates.scores >= baseline
        return from_labels(accept, candidates=candidates, normalise=self.normalise)


@dataclass(frozen=True)
class boltzmann:  # noqa: N801  # made like a function call
    """Take ``p(S | y, x) = exp((f(y, x) - max f) / temperature)`` for the preference (Sec. 4).

    The accepted weigh in proportion to p, which is MPO's E-step at a given temperature; the
    rejected in proportion to ``1 - p``, the complement's. Each side sums to 1; nobody is rejected
    where all the scores are equal.

    :param temperature: > 0, in units of the scores.
    :raises ValueError: unless it is finite and > 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature, "it is in units of the scores", INFINITY)

    def __call__(self, candidates: Candidates) -> Preference:
        """Weigh the samples."""
        scores, weights = candidates.scores.detach(), candidates.weights
        possible = scores.where(weights > 0.0, -INFINITY)
        failure = 1.0 - ((possible - possible.amax(0)) / self.temperature).exp()  # 0 for the best
        failure = failure * weights
        total = failure.sum(0)  # 0 where all the scores are equal
        return Preference(
            boltzmann_weights(scores, self.temperature, weights),
            failure / th.where(total > 0.0, total, 1.0),
        )


def try_labeller(
    labeller: Labeller, n_samples: int, action_dim: int, device: th.device | str = "cpu"
) -> None:
    """Call a labeller once on made-up samples of two states, so that a fault shows at once.

    :param labeller: what is to be used in training.
    :param n_samples: S.
    :param action_dim: A.
    :param device: where the training will be; a labeller may hold a network there.
    :raises ValueError: if it cannot be called, or if what it returns is not a :class:`Preference`
        of finite, non-negative weights ``[S, B]``.
    """
    scores = th.arange(float(n_samples), device=device).unsqueeze(-1).expand(-1, 2).clone()
    candidates = Candidates(
        scores,
        th.zeros(n_samples, 2, action_dim, device=device),
        outside=th.zeros_like(scores),
        value=lambda: th.zeros(2, device=device),
    )
    remedy = "give an object that labels Candidates, such as top_k(2) or advantage()"
    with blaming(f"labeller={written(labeller)} with n_samples={n_samples}", remedy):
        labels = labeller(candidates)
    check_preference(labels, scores)


def check_labels(preference: Preference, candidates: Candidates) -> None:
    """Check what a labeller returned in training, where that costs next to nothing: on a CPU.

    A GPU would wait for it, and within a CUDA graph it cannot be asked.

    :raises ValueError: naming the labeller, or the scores where these are the cause.
    """
    scores = candidates.scores
    if scores.is_cuda:
        return
    if bool(scores.isnan().any()):
        raise ValueError(
            "the scores of the candidates must be numbers, got NaN: the critics have diverged; a "
            "smaller learning_rate or rewards of a smaller scale may help"
        )
    check_preference(preference, scores)
