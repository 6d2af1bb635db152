"""What is logged under ``train/``: means over the updates since the last log, kept on the device.

Axes: S samples, B states, A action dimensions.
"""

from __future__ import annotations

import torch as th

from sb3_pmpo.core.preference import Candidates
from sb3_pmpo.distributions import Distribution


class MeanMetrics:
    """Means of scalars; nothing is copied from the device before :meth:`pop`."""

    def __init__(self) -> None:
        self._sums: dict[str, th.Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add_scalar(self, name: str, value: th.Tensor | float) -> None:
        """Take in one value, detached."""
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + 1

    def add(self, values: dict[str, th.Tensor]) -> None:
        """Take in one update's values."""
        for name, value in values.items():
            self.add_scalar(name, value)

    def pop(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


def grad_norm(optimizer: th.optim.Optimizer) -> th.Tensor:
    """Compute the Euclidean norm of all the gradients an optimiser is about to apply."""
    grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    return th.nn.utils.get_total_norm(grads)


@th.no_grad()
def sample_metrics(reference: Distribution, candidates: Candidates) -> dict[str, th.Tensor]:
    """Describe the reference and its samples.

    :param reference: over ``[B, A]``.
    :param candidates: samples ``[S, B, A]``, scores ``[S, B]``; ``tie_break`` is the distance
        outside the box, None where no action can leave it.
    :return: what the distribution says of itself; the fraction of samples whose score another
        sample of the same state has; the fraction of samples that leave the box.
    """
    ordered = candidates.scores.sort(dim=0).values
    equal = ordered[1:] == ordered[:-1]  # [S - 1, B]
    tied = th.zeros_like(ordered, dtype=th.bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    metrics = {**reference.describe(), "tie_fraction": tied.float().mean()}
    if candidates.actions is not None and candidates.tie_break is not None:
        metrics["action_saturation"] = (candidates.actions.abs() > 1.0).float().mean()
    return metrics
