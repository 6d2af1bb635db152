"""n-step returns as windows over what a buffer stores, whatever its class.

Axes: T entries (a ring), E environments, B transitions, n steps, G goal dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pmpo.replay.episodes import next_observations, terminations

Observations = np.ndarray | dict[str, np.ndarray]


class Window(NamedTuple):
    """The transitions that follow one another from each of those drawn.

    :param rows: ``[B, n]`` their entries.
    :param inside: ``[B, n]`` which of them belong to the window; the first always does.
    :param last: ``[B]`` the entry of the window's last transition.
    :param dones: ``[B]`` 1 where the window ended in a termination, 0 where it bootstraps.
    """

    rows: np.ndarray
    inside: np.ndarray
    last: np.ndarray
    dones: np.ndarray

    def returns(self, rewards: np.ndarray, gamma: float) -> np.ndarray:
        """Sum discounted rewards, ``[B]``.

        :param rewards: ``[B, n]``; those outside the windows do not count.
        :param gamma: discount of one step.
        """
        steps = np.arange(self.rows.shape[1], dtype=np.float32)
        total: np.ndarray = (rewards * (self.inside * gamma**steps)).sum(1)
        return total.astype(np.float32)

    def discounts(self, gamma: float) -> np.ndarray:
        """Give gamma to the power of the steps really taken, ``[B]``."""
        length: np.ndarray = self.inside.sum(1).astype(np.float32)
        return (gamma**length).astype(np.float32)


def n_step_window(buffer: ReplayBuffer, rows: np.ndarray, envs: np.ndarray, n_steps: int) -> Window:
    """Follow the drawn transitions for up to ``n_steps``.

    A window stops at an episode's end, be it a termination, a time limit or a cut
    (:func:`sb3_pmpo.replay.close_open_episodes`), and at the newest entry. Where it stops without
    a termination, the return is bootstrapped from there.

    :param buffer: holds dones and timeouts ``[T, E]``.
    :param rows: ``[B]`` first entry of each window.
    :param envs: ``[B]`` environment of each window.
    :param n_steps: n, at least 1.
    """
    size = buffer.buffer_size
    steps = (rows[:, None] + np.arange(n_steps)) % size  # [B, n]
    stops = buffer.dones[steps, envs[:, None]] > 0
    stops |= steps == (buffer.pos - 1) % size
    stops[:, -1] = True
    length = stops.argmax(1)  # steps after the first one
    last = steps[np.arange(len(rows)), length]
    inside = np.arange(n_steps) <= length[:, None]
    return Window(steps, inside, last, terminations(buffer, last, envs))


#: From windows and their environments ``[B]`` to goals ``[B, G]`` and rewards ``[B, n]``.
Relabel = Callable[[Window, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Transitions(NamedTuple):
    """What a batch is made of, in NumPy; observations and rewards normalised.

    :param observations: B of them.
    :param actions: ``[B, A]``.
    :param next_observations: B of them, those after the windows' last transitions.
    :param rewards: ``[B]`` discounted sums.
    :param dones: ``[B]``.
    :param discounts: ``[B]``.
    """

    observations: Observations
    actions: np.ndarray
    next_observations: Observations
    rewards: np.ndarray
    dones: np.ndarray
    discounts: np.ndarray


def gather(
    buffer: ReplayBuffer,
    rows: np.ndarray,
    envs: np.ndarray,
    env: VecNormalize | None,
    *,
    n_steps: int,
    gamma: float,
    relabel: Relabel | None = None,
) -> Transitions:
    """Gather n-step transitions from a buffer's arrays.

    :param buffer: of any class of SB3's; from a HER buffer, transitions with their true goals.
    :param rows: ``[B]`` entries.
    :param envs: ``[B]`` environments.
    :param env: normalises observations and rewards, if given.
    :param n_steps: n, at least 1.
    :param gamma: discount of one step.
    :param relabel: chooses other goals, of a HER buffer; None for those that were stored.
    """
    window = n_step_window(buffer, rows, envs, n_steps)
    before, after = observations_around(buffer, rows, window.last, envs)
    if relabel is None:
        raw_rewards = buffer.rewards[window.rows, envs[:, None]]
    else:
        goals, raw_rewards = relabel(window, envs)
        before["desired_goal"] = after["desired_goal"] = goals
    rewards = buffer._normalize_reward(raw_rewards, env)
    return Transitions(
        buffer._normalize_obs(before, env),
        buffer.actions[rows, envs],
        buffer._normalize_obs(after, env),
        window.returns(rewards, gamma),
        window.dones,
        window.discounts(gamma),
    )


def observations_around(
    buffer: ReplayBuffer, first: np.ndarray, last: np.ndarray, envs: np.ndarray
) -> tuple[Any, Any]:
    """Gather the observations before the first and after the last transitions of windows."""
    if isinstance(buffer, DictReplayBuffer):
        return (
            {key: value[first, envs] for key, value in buffer.observations.items()},
            {key: value[last, envs] for key, value in buffer.next_observations.items()},
        )
    return buffer.observations[first, envs], next_observations(buffer, last, envs)
