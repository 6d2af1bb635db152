"""Alpha and beta for the labels that there are, and which choices are refused."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np

from sb3_pmpo.core.checks import HEAVIEST, check_number
from sb3_pmpo.core.samples import Normalisation, mean_over_samples
from sb3_pmpo.offline.columns import DatasetError

#: The std's KL weighs so much more than the mean's, as with labels from ranks online
#: (benchmarks/trials.md).
STD_STIFFNESS = 20.0


class LabelWeights(NamedTuple):
    """Alpha, and the KL's weights for the mean and for the std."""

    alpha: float
    betas: tuple[float, float]


class Labels(NamedTuple):
    """How many rows have which label, each counted by its weight.

    :param accepted: of all.
    :param rejected: of all.
    :param total: all rows.
    """

    accepted: float
    rejected: float
    total: float

    @classmethod
    def of(cls, labels: np.ndarray, weights: np.ndarray | None) -> Labels:
        """Count rows ``[N]``, each as 1 where there are no weights."""
        counted = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
        accepted, rejected = counted[labels > 0].sum(), counted[labels < 0].sum()
        return cls(float(accepted), float(rejected), float(counted.sum()))


def choose_weights(
    labels: Labels,
    alpha: float | None,
    beta: float | tuple[float, float] | None,
    *,
    otherwise: float,
    normalise: Normalisation,
    n_parts: int = 2,
) -> LabelWeights:
    """Choose alpha and beta where they are not given.

    One kind of labels determines alpha (App. A); with both it is ``otherwise``. Beta is
    ``2 * (1 - alpha)``: 2 from rejections alone, 1 from both, 0 from acceptances alone. With means
    per set all three have the same expected gradient on an even split. Rejections alone then take
    ``(1 - alpha) / share of rejected rows`` where that is more, below which the push away from
    rejected rows can outweigh the KL. The std's KL weighs :data:`STD_STIFFNESS` times as much.

    :param labels: what there is.
    :param alpha: in [0, 1], or None.
    :param beta: a number for all parts or a pair (mean, std), or None.
    :param otherwise: alpha for labels of both kinds.
    :param normalise: how the sets of labels are averaged.
    :param n_parts: how many of the betas are used.
    :raises DatasetError: if there are no labels.
    :raises ValueError: for a pair that learns nothing, or that would diverge.
    """
    if not labels.accepted and not labels.rejected:
        raise DatasetError(
            "all labels are 0: accept or reject some rows, with label_by_advantage() for instance; "
            "to clone all that was done, accept every row"
        )
    if alpha is not None:
        check_number("alpha", alpha, 0.0, 1.0, float, "it is the weight of the accepted rows")
    else:
        kinds = (labels.accepted > 0) - (labels.rejected > 0)
        alpha = {1: 1.0, 0: otherwise, -1: 0.0}[int(kinds)]
    if beta is None:
        beta = 2.0 * (1.0 - alpha)
        if normalise is not mean_over_samples and not labels.accepted:
            beta = max(beta, safe_beta(alpha, labels))
        beta = (beta, STD_STIFFNESS * beta)
    mean, *rest = beta if isinstance(beta, (tuple, list)) else (beta, beta)
    if len(rest) != 1:
        raise ValueError(f"beta must be a number or a pair (mean, std), got {beta}")
    for each in (mean, rest[0]):
        check_number("beta", each, 0.0, HEAVIEST, float, "it is the weight of the KL")
    chosen = LabelWeights(float(alpha), (float(mean), float(rest[0])))
    _check(chosen.alpha, min(chosen.betas[:n_parts]), labels, normalise)
    return chosen


def safe_beta(alpha: float, labels: Labels) -> float:
    """Return the beta at which a rejected row weighs nothing, with means over each set."""
    return (1.0 - alpha) * labels.total / max(labels.rejected, 1e-12)


def _check(alpha: float, beta: float, labels: Labels, normalise: Normalisation) -> None:
    learns = alpha * labels.accepted + (1.0 - alpha) * labels.rejected
    if not learns:
        kind = "accepted" if alpha == 1.0 else "rejected"
        raise ValueError(
            f"alpha={alpha:g} learns from {kind} rows alone, and there are none: leave alpha out"
        )
    reason = divergence(alpha, beta, labels, normalise)
    if reason is None:
        least = safe_beta(alpha, labels)
        if normalise is not mean_over_samples and not labels.accepted and beta < 0.999 * least:
            warnings.warn(
                f"beta={beta:g} is below (1 - alpha) / (share of rejected rows) = {least:.3g}, "
                "with means over each set: where rejected rows are common the push away from them "
                "outweighs the KL, and the policy may run to the edge of the box; leave beta out, "
                "or average over all rows",
                stacklevel=6,
            )
        return
    if alpha == 0.0 or not labels.accepted:
        raise ValueError(f"{reason}. Nothing else holds the policy, so this is refused")
    warnings.warn(reason, stacklevel=5)


def divergence(alpha: float, beta: float, labels: Labels, normalise: Normalisation) -> str | None:
    """Say why the loss may have no minimum on these labels, or None.

    Averaged over all rows (``mean_over_samples``) a rejected row weighs ``beta - (1 - alpha)``,
    which has to be positive. Averaged over each set (``mean_per_set``) the total is
    ``beta + 2 * alpha - 1``, without which the loss of even one Gaussian for all states falls
    without end.

    :return: the reason.
    """
    if not labels.rejected or alpha == 1.0:
        return None
    if normalise is mean_over_samples:
        if beta > 1.0 - alpha or (labels.accepted and math.isclose(beta, 1.0 - alpha)):
            return None
        bound = f"not above 1 - alpha = {1.0 - alpha:g}, with means over all rows"
    else:
        least = (1.0 - alpha) - (alpha if labels.accepted else 0.0)
        if beta > least:
            return None
        bound = f"not above 1 - 2 * alpha = {least:g}, with means over each set"
    return (
        f"beta={beta:g} is {bound} (alpha={alpha:g}): the KL does not outweigh the push away from "
        "rejected rows, and the policy runs to the edge of the box and to its smallest std; raise "
        f"beta, {2.0 * (1.0 - alpha):g} is usual"
    )
