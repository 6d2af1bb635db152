"""Goals relabelled in hindsight, for n-step windows over the storage of a HER buffer.

Axes: B transitions, n steps, G goal dimensions.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.replay.window import Window


def relabelled(
    buffer: HerReplayBuffer, window: Window, envs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Choose goals that the windows' episodes achieved, and compute the rewards towards them.

    The buffer's strategy picks each goal as seen from the window's first transition, and the
    environment computes the reward of every step of the window anew for it (Andrychowicz et al.,
    2017). As in SB3, to achieve the goal ends nothing: dones are those that were stored.

    :param buffer: with its environment set.
    :param window: of complete episodes.
    :param envs: ``[B]`` environments.
    :return: goals ``[B, G]`` and rewards ``[B, n]``, 0 outside the windows.
    """
    goals = buffer._sample_goals(window.rows[:, 0], envs)
    return goals, _rewards(buffer, window, envs, goals)


def _rewards(
    buffer: HerReplayBuffer, window: Window, envs: np.ndarray, goals: np.ndarray
) -> np.ndarray:
    """Let the environment compute the rewards of the windows' steps, ``[B, n]``; 0 outside."""
    if buffer.env is None:
        raise ValueError(
            "the HerReplayBuffer has no environment to compute rewards with: give the model one "
            "(model.set_env), or call the buffer's set_env"
        )
    owner, step = np.nonzero(window.inside)
    rows, owners = window.rows[owner, step], envs[owner]
    infos: Any = [{}] * len(rows)
    if buffer.copy_info_dict:
        infos = copy.deepcopy(buffer.infos[rows, owners])
    achieved = buffer.next_observations["achieved_goal"][rows, owners]
    # All environments are taken to be alike, as in SB3.
    computed = buffer.env.env_method("compute_reward", achieved, goals[owner], infos, indices=[0])[
        0
    ]
    rewards = np.zeros(window.inside.shape, np.float32)
    rewards[owner, step] = computed
    return rewards
