"""What is logged under ``train/``: means since the last log, kept on the device until then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch as th
from stable_baselines3.common.logger import KVWriter, Logger


class MeanMetrics(KVWriter):
    """Means of scalars; nothing is copied from the device before :meth:`means`, in one copy.

    It is one of the logger's outputs: when the log is written, by whom ever, new means begin.
    """

    def __init__(self) -> None:
        self.clear()

    def follow(self, logger: Logger) -> None:
        """Begin new means whenever this logger writes."""
        if self not in logger.output_formats:
            logger.output_formats.append(self)

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Begin anew: the logger has written the means."""
        self.clear()

    def close(self) -> None:
        """Do nothing: there is no file."""

    def clear(self) -> None:
        """Start anew."""
        self._sums: dict[str, th.Tensor] = {}
        self._numbers: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def add(self, values: Mapping[str, th.Tensor]) -> None:
        """Take in one update's values, detached; none is fine."""
        if not values:
            return
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
