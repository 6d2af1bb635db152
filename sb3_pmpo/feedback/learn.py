"""Given labels beside the critic's, while a policy learns in its environment."""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_pmpo.core.checks import check_number
from sb3_pmpo.feedback.buffer import FeedbackBuffer
from sb3_pmpo.offline.learn import LabelLearner


class FeedbackSteps:
    """A policy step on given labels after each of the critic's; nothing while there are none.

    The reference is the lagged one that the critic's step has too, and the KL is in closed form.

    :param model: a PMPO.
    :param buffer: of the labels, which another thread may fill meanwhile.
    :param alpha: None for what the labels ask for. With 1 nothing is learned while there are no
        accepted rows, with 0 while there are no rejected ones.
    :raises TypeError: if it is no such buffer.
    :raises ValueError: if alpha is not in [0, 1].
    :raises DatasetError: if the buffer's spaces are not the model's.
    """

    def __init__(self, model: Any, buffer: FeedbackBuffer, alpha: float | None = None) -> None:
        if not isinstance(buffer, FeedbackBuffer):
            raise TypeError(
                f"feedback must be a FeedbackBuffer, got {type(buffer).__name__}: learn_offline "
                "learns from data sets"
            )
        if alpha is not None:
            hint = "it is the weight of the accepted rows; None lets the labels decide"
            check_number("feedback_alpha", alpha, 0.0, 1.0, float, hint)
        self.model, self.buffer, self._alpha = model, buffer, alpha
        self._learner = LabelLearner(model, buffer, kl="reference", alpha=alpha)

    def __call__(self) -> dict[str, th.Tensor]:
        """Take a step; return what to log."""
        labels = self.buffer.label_totals()
        accepted = labels.accepted if self._alpha != 0.0 else 0.0
        rejected = labels.rejected if self._alpha != 1.0 else 0.0
        if not (accepted or rejected):
            return {}
        self._learner.adapt()
        self.buffer.record(self.model.logger)
        metrics = self._learner.steps.step(self._learner.objective)
        return {f"feedback_{name}": value for name, value in metrics.items()}
