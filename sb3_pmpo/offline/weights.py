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
) -> LabelWeights:
    """Choose alpha and beta where they are not given.

    One kind of labels determines alpha (App. A); with both it is ``otherwise``. Beta is
    ``2 * (1 - alpha)``: 2 from rejections alone, 1 from both, 0 from acceptances alone. With means
    per set all three have the same expected gradient on an even split. Where few of the rows are
    rejected and none accepted, it is that over the share of the rejected: so a rejected row keeps
    half of the weight of an unlabelled one, by either normalisation. The std's KL weighs
    :data:`STD_STIFFNESS` times as much.

    :param labels: what there is.
    :param alpha: in [0, 1], or None.
    :param beta: the mean's, of which the std has :data:`STD_STIFFNESS` times as much; or a pair
        (mean, std); or None.
    :param otherwise: alpha for labels of both kinds.
    :param normalise: how the sets of labels are averaged.
    :raises DatasetError: if there are no labels.
    :raises ValueError: for a number out of its range.
    """
    if not labels.accepted and not labels.rejected:
        raise DatasetError(
            "all labels are 0, or all rows that have one weigh 0: accept or reject some rows, with "
            "label_by_advantage() for instance; to clone all that was done, accept every row"
        )
    if alpha is not None:
        check_number("alpha", alpha, 0.0, 1.0, float, "it is the weight of the accepted rows")
    else:
        kinds = (labels.accepted > 0) - (labels.rejected > 0)
        alpha = {1: 1.0, 0: otherwise, -1: 0.0}[int(kinds)]
    if beta is None:
        beta = 2.0 * (1.0 - alpha)
        if normalise is not mean_over_samples and labels.rejected and not labels.accepted:
            beta = 2.0 * safe_beta(alpha, labels)
    if isinstance(beta, (tuple, list)) and len(beta) != 2:
        raise ValueError(f"beta must be a number or a pair (mean, std), got {beta}")
    for each in beta if isinstance(beta, (tuple, list)) else (beta,):
        check_number("beta", each, 0.0, HEAVIEST, float, "it is the weight of the KL")
    pair = beta if isinstance(beta, (tuple, list)) else (beta, STD_STIFFNESS * float(beta))
    return LabelWeights(float(alpha), (float(pair[0]), float(pair[1])))


def safe_beta(alpha: float, labels: Labels) -> float:
    """Return the beta at which a rejected row weighs nothing, with means over each set."""
    return (1.0 - alpha) * labels.total / max(labels.rejected, 1e-12)


def check_weights(alpha: float, beta: float, labels: Labels, normalise: Normalisation) -> None:
    """Refuse weights that learn nothing from these labels, or that diverge on them.

    :raises ValueError: for such weights.
    :warns UserWarning: if a policy may run away from rejected rows.
    """
    learns = alpha * labels.accepted + (1.0 - alpha) * labels.rejected
    if not learns:
        kind = "accepted" if alpha == 1.0 else "rejected"
        raise ValueError(
            f"alpha={alpha:g} learns from {kind} rows alone, and there are none: leave alpha out"
        )
    if (reason := divergence(alpha, beta, labels, normalise)) is not None:
        raise ValueError(f"{reason}. Nothing else holds the policy, so this is refused")
    if (reason := danger(alpha, beta, labels, normalise)) is not None:
        warnings.warn(reason, stacklevel=4)


def divergence(alpha: float, beta: float, labels: Labels, normalise: Normalisation) -> str | None:
    """Say why the loss falls without end on these labels, or None.

    The weights of all rows sum to ``beta + alpha * a - (1 - alpha) * r``, with the shares a and r
    of accepted and rejected rows (``mean_over_samples``), or 1 for a kind that there is
    (``mean_per_set``). Where the sum is not positive, the loss of even one Gaussian for all states
    has no minimum. From rejections alone each rejected row has to weigh more than 0, too: nothing
    else says where a policy that tells it from the others should go.

    :return: the reason.
    """
    if not labels.rejected or alpha == 1.0:
        return None
    means = "means over all rows" if normalise is mean_over_samples else "means over each set"
    if alpha == 0.0 or not labels.accepted:
        rule, least = _bound_of_a_row(alpha, labels, normalise)
    elif normalise is mean_over_samples:
        rule = "(1 - alpha) * (share of rejected rows) - alpha * (share of accepted rows)"
        rejected, accepted = labels.rejected / labels.total, labels.accepted / labels.total
        least = (1.0 - alpha) * rejected - alpha * accepted
    else:
        rule, least = "1 - 2 * alpha", 1.0 - 2.0 * alpha
    if beta > least and not math.isclose(beta, least, abs_tol=1e-9):
        return None
    return _too_small(alpha, beta, f"not above {rule} = {least:.4g}, with {means}", least)


def danger(alpha: float, beta: float, labels: Labels, normalise: Normalisation) -> str | None:
    """Say why a policy that tells rejected rows from others may run away, or None.

    It does where a rejected row weighs less than 0, which one loss over all rows may hide.

    :return: the reason.
    """
    if not labels.rejected or alpha == 1.0:
        return None
    rule, least = _bound_of_a_row(alpha, labels, normalise)
    if normalise is mean_over_samples:
        if beta >= least or math.isclose(beta, least):
            return None
        bound = f"not above {rule} = {least:.4g}, with means over all rows"
        return _too_small(alpha, beta, bound, least)
    if beta >= 0.999 * least:
        return None
    return (
        f"beta={beta:g} is below {rule} = {least:.3g}, "
        "with means over each set: a policy that tells rejected rows from others may run to the "
        f"edge of the box there, for nothing outweighs the push; raise beta, {2.0 * least:.3g} is "
        "safe, or average over all rows"
    )


def _bound_of_a_row(alpha: float, labels: Labels, normalise: Normalisation) -> tuple[str, float]:
    """Return the rule for, and the beta at which a rejected row weighs nothing."""
    if normalise is mean_over_samples:
        return "1 - alpha", 1.0 - alpha
    return "(1 - alpha) / (share of rejected rows)", safe_beta(alpha, labels)


def _too_small(alpha: float, beta: float, bound: str, least: float) -> str:
    usual = 2.0 * max(least, 1.0 - alpha)
    return (
        f"beta={beta:g} is {bound} (alpha={alpha:g}): the KL does not outweigh the push away from "
        "rejected rows, and the policy runs to the edge of the box and to its smallest std; raise "
        f"beta, {usual:.3g} is usual"
    )
