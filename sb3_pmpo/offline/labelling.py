"""Labels from a value function, from returns, from any function.

Axes: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sb3_pmpo.core.checks import LARGEST
from sb3_pmpo.offline.columns import CHUNK, DatasetError, refuse_masked
from sb3_pmpo.offline.dataset import LabelledDataset, LabelRates, Rows
from sb3_pmpo.offline.values import Targets, ValueFunction, gae


class LabelReport(NamedTuple):
    """What the labels look like, and how right they are where the truth is known.

    :param rates: shares of accepted, rejected and unlabelled rows.
    :param accept_precision: share of the accepted rows that the truth calls good; None if no truth
        was given, NaN if none was accepted.
    :param reject_precision: share of the rejected rows that the truth calls bad.
    :param fragments: episodes that :func:`label_by_return` left unlabelled, for not all of their
        rows are there.
    """

    rates: LabelRates
    accept_precision: float | None = None
    reject_precision: float | None = None
    fragments: int = 0

    def __str__(self) -> str:
        said = str(self.rates)
        if self.accept_precision is not None and self.reject_precision is not None:
            said += (
                f"; of the accepted {self.accept_precision:.1%} are good, of the rejected "
                f"{self.reject_precision:.1%} are bad"
            )
        if self.fragments:
            said += f"; fragments of episodes, which stay unlabelled: {self.fragments}"
        return said


class Labelled(NamedTuple):
    """A data set with new labels, and what they look like."""

    dataset: LabelledDataset
    report: LabelReport


def label_by_advantage(
    dataset: LabelledDataset,
    margin: float = 0.0,
    gamma: float = 0.99,
    *,
    targets: Targets | None = None,
    only: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    **fit: Any,
) -> Labelled:
    """Accept rows whose advantage is above a margin, reject those below its negative (Sec. 5.3).

    The value function is fitted on all episodes; ``only`` some of them may get labels, as the
    paper labels 40k of 140k.

    :param dataset: with rewards and episodes.
    :param margin: >= 0, in units of the advantages' standard deviation; between the margins a row
        stays unlabelled.
    :param gamma: discount factor, in [0, 1].
    :param targets: :func:`~sb3_pmpo.offline.monte_carlo`, :func:`~sb3_pmpo.offline.td` or
        :func:`~sb3_pmpo.offline.gae`; None for ``gae(0.95)``.
    :param only: ``[N]`` boolean, the rows to label; None for all.
    :param truth: ``[N]`` the sign of which says what is good, for the report; 0 or NaN: unknown.
        Booleans say it, too.
    :param fit: of :class:`~sb3_pmpo.offline.ValueFunction`: ``gradient_steps``, ``seed``, ...
    :return: the data set with labels, and their report.
    :raises DatasetError: if rewards or episodes are missing, or the rewards say nothing.
    """
    if not (margin >= 0.0 and math.isfinite(margin)):
        raise ValueError(f"margin must be finite and >= 0, got {margin}: 0 labels every row")
    chosen = _chosen(only, dataset)
    largest = float(np.abs(dataset.required("rewards")).max())
    if not 0.0 < largest <= LARGEST:
        fault = "all 0, so that no row is better than another" if largest == 0.0 else f"{largest:g}"
        raise DatasetError(
            f"rewards must be some of them other than 0, and no larger than {LARGEST:g}, got "
            f"{fault}: give others, or label by a function of your own"
        )
    values = ValueFunction(dataset, gamma, gae() if targets is None else targets, **fit)
    advantages = values.advantages()
    edge = margin * spread(advantages, dataset.weights)
    labels = np.where(advantages > edge, 1, np.where(advantages < -edge, -1, 0))
    return _labelled(dataset, np.where(chosen, labels, 0), truth)


def spread(values: np.ndarray, weights: np.ndarray | None) -> float:
    """Compute the standard deviation of ``[N]`` values, each counted by its weight."""
    mean = np.average(values, weights=weights)
    return float(np.sqrt(np.average(np.square(values - mean), weights=weights)))


def label_by_return(
    dataset: LabelledDataset,
    top: float = 0.25,
    bottom: float | None = None,
    *,
    only: np.ndarray | None = None,
    truth: np.ndarray | None = None,
) -> Labelled:
    """Accept the episodes with the best returns and reject those with the worst.

    Equal returns get equal labels. Where a share ends among them they stay unlabelled, unless they
    are the best or the worst of all. Fragments of episodes stay unlabelled, for their returns lack
    what is not there; the report counts them.

    :param dataset: with rewards and episodes.
    :param top: share of the whole episodes that is accepted, in (0, 1).
    :param bottom: share that is rejected, in [0, 1 - top]; None for all the others.
    :param only: ``[N]`` boolean, the rows to label; None for all.
    :param truth: as of :func:`label_by_advantage`.
    :raises DatasetError: if rewards are missing, if fewer than two episodes are whole, or if no
        return differs from another.
    """
    if not 0.0 < top < 1.0:
        raise ValueError(f"top must be in (0, 1), got {top}: it is the share that is accepted")
    low = 1.0 - top if bottom is None else bottom
    if not (low >= 0.0 and low + top <= 1.0 + 1e-9):
        raise ValueError(f"bottom must be in [0, 1 - top] = [0, {1.0 - top:g}], got {bottom}")
    if dataset.n_episodes < 2:
        raise DatasetError("there is one episode, with nothing to compare it with: give more")
    whole = dataset.whole_episodes()
    if whole.sum() < 2:
        raise DatasetError(
            f"{whole.sum()} of {len(whole)} episodes are whole, with nothing to compare a return "
            "with: give 2 at least, or label by label_by_advantage(), which takes fragments too"
        )
    chosen = _chosen(only, dataset)
    returns = dataset.episode_returns()[whole]
    if returns.min() == returns.max():
        raise DatasetError(
            f"all {len(returns)} episodes have the return {returns[0]:g}: label them by something "
            "else, with label_by() for instance"
        )
    n_best = max(round(top * len(returns)), 1)
    n_worst = len(returns) - n_best if bottom is None else round(low * len(returns))
    of_whole = np.zeros(len(returns), np.int8)
    of_whole[_best(-returns, n_worst)] = -1
    of_whole[_best(returns, n_best)] = 1
    of_episode = np.zeros(len(whole), np.int8)
    of_episode[whole] = of_whole
    lengths = [rows.stop - rows.start for rows in dataset.episodes()]
    labels = np.repeat(of_episode, lengths)
    return _labelled(dataset, np.where(chosen, labels, 0), truth, int((~whole).sum()))


def _best(returns: np.ndarray, n: int) -> np.ndarray:
    """Mark the n highest, without those that equal one that is left out, but for the highest."""
    if n == 0:
        return np.zeros(len(returns), bool)
    ordered = np.sort(returns)
    lowest = ordered[-n]
    ties = n < len(returns) and lowest == ordered[-n - 1]
    if ties and lowest < ordered[-1]:
        return returns > lowest
    return returns >= lowest


def label_by(
    dataset: LabelledDataset,
    function: Callable[[Rows], np.ndarray],
    *,
    truth: np.ndarray | None = None,
) -> Labelled:
    """Let any function label the rows, a chunk at a time: a rule, a verifier, a model.

    :param function: from :class:`~sb3_pmpo.offline.Rows` to ``[B]`` of -1, 0 and 1.
    :param truth: as of :func:`label_by_advantage`.
    :raises DatasetError: if what it returns is no labels.
    """
    parts = []
    for start in range(0, len(dataset), CHUNK):
        index = np.arange(start, min(start + CHUNK, len(dataset)))
        given = function(dataset.rows(index))
        refuse_masked(given, "the function's labels")
        part = np.asarray(given)
        if part.shape != index.shape:
            raise DatasetError(
                f"the function must return a label for each of {len(index)} rows, got an array of "
                f"shape {part.shape}"
            )
        parts.append(part)
    return _labelled(dataset, np.concatenate(parts), truth)


def _chosen(only: np.ndarray | None, dataset: LabelledDataset) -> np.ndarray:
    if only is None:
        return np.ones(len(dataset), bool)
    refuse_masked(only, "only")
    only = np.asarray(only)
    if only.shape != (len(dataset),) or only.dtype != bool:
        raise DatasetError(
            f"only must be {len(dataset)} booleans, one a row, got {only.dtype} of shape "
            f"{only.shape}"
        )
    return only


def _labelled(
    dataset: LabelledDataset, labels: np.ndarray, truth: np.ndarray | None, fragments: int = 0
) -> Labelled:
    labelled = dataset.with_labels(labels)
    rates = labelled.label_rates()
    if truth is None:
        return Labelled(labelled, LabelReport(rates, fragments=fragments))
    refuse_masked(truth, "truth")
    truth = np.asarray(truth)
    if truth.dtype == bool:
        truth = np.where(truth, 1, -1)
    if truth.shape != (len(dataset),):
        raise DatasetError(f"truth must be one number a row, got shape {truth.shape}")
    known = np.isfinite(truth) & (truth != 0)
    with np.errstate(invalid="ignore"):
        accepted, rejected = known & (labels > 0), known & (labels < 0)
        right = float(np.float64((accepted & (truth > 0)).sum()) / accepted.sum())
        wrong = float(np.float64((rejected & (truth < 0)).sum()) / rejected.sum())
    return Labelled(labelled, LabelReport(rates, right, wrong, fragments))
