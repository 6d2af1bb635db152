"""Proportional prioritised replay (Schaul et al., 2016) over SB3's buffers.

Axes: T entries (a ring), E environments, B transitions.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.replay.storage import Chooses, Draw
from sb3_pmpo.replay.sum_tree import SumTree


class Prioritized(Chooses):
    """Draws transition i with probability ``P(i) = p_i^alpha / sum_k p_k^alpha``.

    ``p_i`` is the TD error that the transition had when it was last replayed, plus ``epsilon``. A
    transition not replayed yet has the greatest priority so far. What this does to the expected
    update of the critics is undone by the importance weights ``w_i = (N P(i))^-beta / max_j w_j``,
    with the maximum over the batch. Undone in part, that is: beta grows over the training from its
    first value to 1, as the paper has it, since the bias matters the most at the end. The policy's
    steps have no such weights: it improves more often where the critics were wrong.

    :param args: of SB3's class.
    :param alpha: how far priorities count, in [0, 1]; 0 draws uniformly.
    :param beta: how far the weights undo it at the start, in [0, 1]; 1 all the way.
    :param epsilon: what is added to each error, > 0, so that no transition is lost.
    :param kwargs: of SB3's class.
    :raises ValueError: if one of them is out of range.
    """

    # What SB3's class, which comes second among the bases, has.
    buffer_size: int
    n_envs: int
    pos: int
    full: bool
    optimize_memory_usage: bool

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.6,
        beta: float = 0.4,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        _check("alpha", alpha, 0.0, 1.0, "0.6 is the paper's, 0 draws uniformly")
        _check("beta", beta, 0.0, 1.0, "0.4 is the paper's, 1 corrects in full from the start")
        _check("epsilon", epsilon, sys.float_info.min, np.inf, "1e-6 is usual")
        super().__init__(*args, **kwargs)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.epsilon = float(epsilon)
        self._greatest = 1.0  # of the priorities so far, to the power of alpha
        self._tree = SumTree(self.buffer_size * self.n_envs)

    @property
    def priorities(self) -> np.ndarray:
        """``p^alpha`` of each transition, ``[T, E]``; 0 of what cannot be replayed. To read."""
        return self._tree.values.reshape(self.buffer_size, self.n_envs)

    def reset(self) -> None:
        """Forget all transitions and their priorities."""
        super().reset()  # type: ignore[misc]  # SB3's class comes second
        self._tree = SumTree(self.buffer_size * self.n_envs)

    def choose(self, batch_size: int, progress_remaining: float) -> Draw:
        """Draw in proportion to the priorities, one from each of B equal parts of their sum."""
        total = self._tree.total
        if total == 0.0:
            raise RuntimeError(
                "there is nothing to replay yet: collect first; a HER buffer replays complete "
                "episodes only, so learning_starts must be greater than the longest episode"
            )
        parts = (np.arange(batch_size) + np.random.random_sample(batch_size)) / batch_size
        # The order of the tree must not show: a batch is split, between updates and by HER.
        indices = self._tree.find(np.random.permutation(parts) * total)
        beta = 1.0 - (1.0 - self.beta) * min(max(progress_remaining, 0.0), 1.0)
        priorities = self._tree.values[indices]
        # N and the sum of the priorities cancel out.
        weights = (priorities / priorities.min()) ** -beta
        rows, envs = np.divmod(indices, self.n_envs)
        return Draw(rows, envs, weights.astype(np.float32))

    def update_priorities(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """Set the priorities of transitions that were replayed.

        :param indices: ``[B]`` as the batch had them.
        :param errors: ``[B]`` TD errors; their sign does not count.
        :raises ValueError: if an error is not finite.
        """
        errors = np.asarray(errors, np.float64)
        if not np.isfinite(errors).all():
            raise ValueError(
                f"TD errors must be finite, got {errors[~np.isfinite(errors)][0]}: the critics "
                "have diverged; a smaller learning_rate or rewards of a smaller scale may help"
            )
        values = (np.abs(errors) + self.epsilon) ** self.alpha
        self._greatest = max(self._greatest, float(values.max(initial=0.0)))
        known = self._tree.values[indices] > 0.0  # still there to be replayed
        self._tree.set(indices[known], values[known])

    def sample(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: SB3's tuple of samples has no place for weights."""
        raise TypeError(
            f"{type(self).__name__} works with sb3_pmpo's algorithms only: SB3's know no "
            "importance weights and report no TD errors"
        )

    def _set(self, rows: np.ndarray, envs: np.ndarray, value: float) -> None:
        self._tree.set((rows[:, None] * self.n_envs + envs).ravel(), value)


class ReplayedAtOnce(Prioritized):
    """A transition can be replayed as soon as it is stored; :class:`Prioritized` has the rest."""

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store as SB3 does; what is new comes first."""
        row = self.pos
        super().add(*args, **kwargs)  # type: ignore[misc]  # SB3's class comes second
        self._set(np.array([row]), np.arange(self.n_envs), self._greatest)
        if self.optimize_memory_usage:  # the entry that follows has lost its observation
            self._set(np.array([self.pos]), np.arange(self.n_envs), 0.0)


class PrioritizedReplayBuffer(ReplayedAtOnce, ReplayBuffer):
    """Prioritised replay, off by default: see :class:`Prioritized` for its arguments.

    ::

        PMPO("MlpPolicy", env, replay_buffer_class=PrioritizedReplayBuffer,
             replay_buffer_kwargs={"alpha": 0.6, "beta": 0.4})

    With ``optimize_memory_usage``, n-step returns and several environments alike. The algorithms
    take :class:`PrioritizedDictReplayBuffer` in its place where observations are a Dict;
    :class:`PrioritizedHerReplayBuffer` relabels goals.
    """


class PrioritizedDictReplayBuffer(ReplayedAtOnce, DictReplayBuffer):
    """:class:`PrioritizedReplayBuffer` over SB3's DictReplayBuffer."""


class PrioritizedHerReplayBuffer(Prioritized, HerReplayBuffer):
    """:class:`PrioritizedReplayBuffer` over SB3's HerReplayBuffer.

    A transition can be replayed when its episode has ended, with true and with relabelled goals;
    it has one priority for both.
    """

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store as SB3 does; episodes come first when they end, and go when one is overwritten."""
        row, size = self.pos, self.buffer_size
        ends = self.ep_start[row] + self.ep_length[row]
        for env in np.flatnonzero(self.ep_length[row] > 0):
            self._set(np.arange(row, ends[env]) % size, np.array([env]), 0.0)
        super().add(*args, **kwargs)

    def _compute_episode_length(self, env_idx: int) -> None:
        start, end = self._current_ep_start[env_idx], self.pos
        super()._compute_episode_length(env_idx)
        rows = np.arange(start, end + (self.buffer_size if end < start else 0)) % self.buffer_size
        self._set(rows, np.array([env_idx]), self._greatest)


def prioritized_class(buffer_class: type, space: spaces.Space) -> type:
    """Take the class over Dict observations where the space is one."""
    is_dict = isinstance(space, spaces.Dict)
    if buffer_class is PrioritizedReplayBuffer and is_dict:
        return PrioritizedDictReplayBuffer
    return buffer_class


def _check(name: str, value: Any, low: float, high: float, hint: str) -> None:
    if not isinstance(value, (int, float, np.number)) or not low <= value <= high:
        wanted = f"in [{low:g}, {high:g}]" if np.isfinite(high) else "> 0 and finite"
        raise ValueError(f"{name} of prioritised replay must be {wanted}, got {value!r}: {hint}")
