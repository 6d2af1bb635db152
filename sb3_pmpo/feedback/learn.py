"""Given labels beside the critic's, while a policy learns in its environment."""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_pmpo.feedback.buffer import FeedbackBuffer
from sb3_pmpo.offline.learn import LabelLearner


class FeedbackSteps:
    """A policy step on given labels after each of the critic's; nothing while there are none.

    The reference is the lagged one that the critic's step has too, and the KL is in closed form.

    :param model: a PMPO.
    :param buffer: of the labels, which another thread may fill meanwhile.
    :param alpha: None for what the labels ask for.
    :raises DatasetError: if the buffer's spaces are not the model's.
    """

    def __init__(self, model: Any, buffer: FeedbackBuffer, alpha: float | None = None) -> None:
        self.model, self.buffer = model, buffer
        self._learner = LabelLearner(model, buffer, kl="reference", alpha=alpha)

    def __call__(self) -> dict[str, th.Tensor]:
        """Take a step; return what to log."""
        labels = self.buffer.label_totals()
        if not (labels.accepted or labels.rejected):
            return {}
        self._learner.adapt()
        self.buffer.record(self.model.logger)
        metrics = self._learner.steps.step(self._learner.objective)
        return {f"feedback_{name}": value for name, value in metrics.items()}
