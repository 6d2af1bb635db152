"""An environment whose steps a program labels."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_pmpo.feedback.buffer import FeedbackBuffer
from sb3_pmpo.storage.environment_state import register_environment

#: From what was seen, what was done, and the step's info to 1, 0 or -1.
Annotator = Callable[[Any, Any, dict[str, Any]], int]


class FeedbackWrapper(gym.Wrapper):
    """Ask a program about every step, and keep what it says in a buffer.

    :param env: the environment.
    :param annotator: a safety rule, a unit test, a verifier: ``annotator(observation, action,
        info)`` returns 1 (accepted), -1 (rejected) or 0 (no opinion: the step counts for the KL).
    :param feedback: where answers go; several environments may share one.
    :param source: the annotator's name in the log.
    :raises ValueError: if the annotator cannot be called, or the feedback is no buffer.
    """

    def __init__(
        self,
        env: gym.Env,
        annotator: Annotator,
        feedback: FeedbackBuffer,
        source: str = "annotator",
    ) -> None:
        super().__init__(env)
        if not callable(annotator):
            raise ValueError(
                f"annotator must be called as annotator(observation, action, info), got "
                f"{annotator!r}: it returns 1, 0 or -1"
            )
        if not isinstance(feedback, FeedbackBuffer):
            raise ValueError(
                f"feedback must be a FeedbackBuffer, got {feedback!r}: make it with "
                "FeedbackBuffer(env.observation_space, env.action_space)"
            )
        self.annotator, self.feedback, self.source = annotator, feedback, source
        self._seen: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, and remember what is seen."""
        observation, info = self.env.reset(**kwargs)
        self._seen = deepcopy(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and ask about it.

        :raises ValueError: if the annotator returns anything but 1, 0 and -1.
        """
        done = deepcopy(action)  # an environment may scale or clip it where it lies
        observation, reward, terminated, truncated, info = self.env.step(action)
        label = self.annotator(self._seen, done, info)
        if isinstance(label, (bool, np.bool_)) or label not in (-1, 0, 1):
            raise ValueError(
                f"the annotator must return 1, 0 or -1, got {label!r}: False could mean a "
                "rejection or no opinion"
            )
        self.feedback.add(self._seen, done, int(label), source=self.source)
        self._seen = deepcopy(observation)
        return observation, reward, terminated, truncated, info


def _get_state(env: FeedbackWrapper) -> dict[str, Any]:
    return {"seen": env._seen}


def _set_state(env: FeedbackWrapper, state: dict[str, Any]) -> None:
    env._seen = state["seen"]


# The feedback itself is its owner's to save: environments share it.
register_environment(FeedbackWrapper, _get_state, _set_state)
