"""Minibatches of labelled rows: rare labels are drawn more often, and weigh less in return.

Axes: S rows of the minibatch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Drawn(NamedTuple):
    """Rows of a minibatch.

    :param rows: ``[S]`` indices.
    :param weights: ``[S]`` with which ``sum(weights * f)`` has the mean of f over all rows as its
        expectation, each row counted by its own weight.
    """

    rows: np.ndarray
    weights: np.ndarray


class LabelSampler:
    """Draw half of a minibatch from all rows, and the rest from those that have labels.

    The KL needs all rows, the two expectations need labelled ones, of which there may be few. A row
    is weighed by how much more often it is drawn than by chance, so that no mean changes.

    :param labels: ``[N]`` of -1, 0 and 1.
    :param weights: ``[N]`` of the rows, or None.
    :param accepted: whether the accepted rows count.
    :param rejected: whether the rejected rows count.
    :param all_rows: whether the KL counts.
    """

    def __init__(
        self,
        labels: np.ndarray,
        weights: np.ndarray | None,
        *,
        accepted: bool,
        rejected: bool,
        all_rows: bool,
    ) -> None:
        self.n = len(labels)
        self._labels = labels
        self._weights = None if weights is None else weights / weights.mean()
        #: How many rows as light as the lightest of them all rows together are.
        self.n_samples = self.n
        if self._weights is not None:
            self.n_samples = math.ceil(self.n / float(self._weights[self._weights > 0].min()))
        wanted = [label for label, counts in ((1, accepted), (-1, rejected)) if counts]
        counts = np.ones(self.n, bool) if weights is None else weights > 0  # else drawn in vain
        members = {
            label: np.flatnonzero((labels == label) & counts).astype(np.int64) for label in wanted
        }
        self._members = {label: rows for label, rows in members.items() if len(rows)}
        of_all = float(all_rows) if not self._members else 0.5 * all_rows
        of_each = (1.0 - of_all) / max(len(self._members), 1)
        self._quotas = {0: of_all} | dict.fromkeys(self._members, of_each)

    def draw(self, size: int, rng: np.random.Generator) -> Drawn:
        """Draw S rows, with replacement."""
        counts = rng.multinomial(size, list(self._quotas.values()))
        parts = []
        for label, count in zip(self._quotas, counts, strict=True):
            if label == 0:
                parts.append(rng.integers(0, self.n, count))
            else:
                members = self._members[label]
                parts.append(members[rng.integers(0, len(members), count)])
        rows = np.concatenate(parts)
        density = np.full(len(rows), self._quotas[0] / self.n)
        for label, members in self._members.items():
            density[self._labels[rows] == label] += self._quotas[label] / len(members)
        weights = 1.0 / (self.n * density * size)
        if self._weights is not None:
            weights *= self._weights[rows]
        return Drawn(rows, weights.astype(np.float32))
