"""Given labels beside the critic's, while a policy learns in its environment.

Axes: S rows of the minibatch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch as th

from sb3_pmpo.core.samples import Normalisation, mean_over_samples
from sb3_pmpo.feedback.buffer import FeedbackBuffer
from sb3_pmpo.offline.learn import count_labels, make_objective, sampler_for
from sb3_pmpo.offline.objective import LabelObjective
from sb3_pmpo.offline.run import LabelSteps, check_spaces
from sb3_pmpo.offline.weights import Labels, choose_weights


class FeedbackSteps:
    """A policy step on given labels after each of the critic's; nothing while there are none.

    The reference is the lagged one that the critic's step has too, and the KL is in closed form.

    :param model: a PMPO.
    :param buffer: of the labels, which another thread may fill meanwhile.
    :param normalise: how the sets of labels are averaged.
    :raises DatasetError: if the buffer's spaces are not the model's.
    """

    def __init__(
        self, model: Any, buffer: FeedbackBuffer, normalise: Normalisation = mean_over_samples
    ) -> None:
        check_spaces(model, buffer)
        self.model, self.buffer, self.normalise = model, buffer, normalise
        self._counted: Labels | None = None
        self._steps: LabelSteps | None = None
        self._objective: LabelObjective | None = None

    def __call__(self) -> dict[str, th.Tensor]:
        """Take a step; return what to log."""
        counted = count_labels(self.buffer) if len(self.buffer) else None
        if counted is None or not (counted.accepted or counted.rejected):
            return {}
        if self._steps is None or self._kinds(counted) != self._kinds(self._counted):
            self._adapt(counted)
        self._counted = counted
        assert self._steps is not None  # _adapt made it
        assert self._objective is not None  # the same
        record_shares(self.model, self.buffer)
        metrics = self._steps.step(self._objective)
        return {f"feedback_{name}": value for name, value in metrics.items()}

    def _adapt(self, counted: Labels) -> None:
        """Choose alpha and beta for the kinds of labels that there are now."""
        weights = choose_weights(
            counted, None, None, otherwise=self.model.alpha, normalise=self.normalise
        )
        sampler = partial(sampler_for, weights=weights)
        # Drawn here, not before: an empty buffer leaves SB3's random numbers as they are.
        rng = np.random.default_rng(np.random.randint(2**31))
        self._steps = LabelSteps(self.model, self.buffer, self.model.batch_size, sampler, rng)
        self._objective = make_objective(
            self.model, weights, kl="reference", normalise=self.normalise
        )

    @staticmethod
    def _kinds(labels: Labels | None) -> tuple[bool, bool]:
        return (False, False) if labels is None else (labels.accepted > 0, labels.rejected > 0)


def record_shares(model: Any, buffer: FeedbackBuffer) -> None:
    """Log how many rows there are, and each source's share."""
    model.logger.record("feedback/rows", len(buffer))
    for source, share in buffer.shares().items():
        model.logger.record(f"feedback/share_{source or 'unnamed'}", share)
