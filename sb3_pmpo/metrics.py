"""What is logged under ``train/``: means over the updates since the last log, kept on the device.

Axes: S samples, B states, A action dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch as th

from sb3_pmpo.core.preference import Candidates
from sb3_pmpo.distributions import Distribution


class MeanMetrics:
    """Means of scalars; nothing is copied from the device before :meth:`means`, in one copy."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self._sums: dict[str, th.Tensor] = {}
        self._numbers: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def add(self, values: Mapping[str, th.Tensor]) -> None:
        """Take in one update's values, detached."""
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name] = th.zeros_like(value)
        th._foreach_add_([self._sums[name] for name in values], list(values.values()))
        self._counts.update(values.keys())

    def add_number(self, name: str, value: float) -> None:
        """Take in one value that is known on the host."""
        self._numbers[name] = self._numbers.get(name, 0.0) + value
        self._counts[name] += 1

    def means(self) -> dict[str, float]:
        """Return the means of what was taken in."""
        totals = dict(self._numbers)
        if self._sums:
            totals |= zip(self._sums, th.stack(list(self._sums.values())).tolist(), strict=True)
        return {name: total / self._counts[name] for name, total in totals.items()}


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
