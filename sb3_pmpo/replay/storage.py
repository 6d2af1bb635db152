"""Which transitions of a buffer are drawn, and how the ones drawn are found again.

Axes: T entries (a ring), E environments, B transitions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer


class Draw(NamedTuple):
    """Transitions drawn from a buffer.

    :param rows: ``[B]`` their entries.
    :param envs: ``[B]`` their environments.
    :param weights: ``[B]`` importance weights, or None where all weigh the same.
    """

    rows: np.ndarray
    envs: np.ndarray
    weights: np.ndarray | None = None


class Chooses(ABC):
    """A buffer that chooses which of its transitions are replayed, beside an SB3 buffer class.

    It inherits from this class first and from one of SB3's second, which stores. What it chose is
    gathered from the arrays, so n-step windows, hindsight goals and cut episodes are none of its
    business.
    """

    @abstractmethod
    def choose(self, batch_size: int, progress_remaining: float) -> Draw:
        """Draw transitions, in an order that says nothing about them.

        :param batch_size: B.
        :param progress_remaining: of the training, from 1 at its start to 0 at its end.
        """

    @abstractmethod
    def update_priorities(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """Take what an update has learned of the transitions.

        :param indices: ``[B]`` the transitions: ``row * n_envs + env``.
        :param errors: ``[B]`` TD errors.
        """


_SAMPLE = {ReplayBuffer.sample, DictReplayBuffer.sample, HerReplayBuffer.sample}
_GET = {ReplayBuffer._get_samples, DictReplayBuffer._get_samples}


def is_gathered(buffer: ReplayBuffer) -> bool:
    """Say whether transitions may be gathered from the buffer's arrays.

    They may where SB3's own methods do no more than that. A class with methods of its own may do
    anything, and is asked itself.
    """
    kind = type(buffer)
    if not (isinstance(buffer, Chooses) or kind.sample in _SAMPLE) or kind._get_samples not in _GET:
        return False
    return not isinstance(buffer, HerReplayBuffer) or (
        type(buffer)._get_real_samples is HerReplayBuffer._get_real_samples
        and type(buffer)._get_virtual_samples is HerReplayBuffer._get_virtual_samples
    )


def draw_uniformly(buffer: ReplayBuffer, batch_size: int) -> Draw:
    """Draw transitions as SB3's classes do, with the same random numbers."""
    if isinstance(buffer, HerReplayBuffer):
        complete = buffer.ep_length > 0
        if not complete.any():
            raise RuntimeError(
                "HerReplayBuffer replays complete episodes, and none has ended yet: choose "
                "learning_starts greater than the longest episode"
            )
        chosen = np.random.choice(np.flatnonzero(complete), size=batch_size, replace=True)
        return Draw(*np.divmod(chosen, buffer.n_envs))
    if buffer.optimize_memory_usage and buffer.full:
        # The entry at `pos` has lost its observation to the newest transition.
        rows = np.random.randint(1, buffer.buffer_size, size=batch_size) + buffer.pos
        rows %= buffer.buffer_size
    else:
        rows = np.random.randint(0, buffer.size(), size=batch_size)
    return Draw(rows, np.random.randint(0, buffer.n_envs, size=batch_size))
