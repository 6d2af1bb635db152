"""n-step windows over the storage of a HER buffer, with goals relabelled in hindsight.

Axes: B transitions, n steps.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.replay.window import Transitions, Window, n_step_window, observations_around


def gather_relabelled(
    buffer: HerReplayBuffer,
    rows: np.ndarray,
    envs: np.ndarray,
    env: VecNormalize | None,
    *,
    n_steps: int,
    gamma: float,
) -> Transitions:
    """Gather n-step transitions towards goals that their episodes achieved.

    The buffer's strategy picks each goal as seen from the window's first transition, and the
    environment computes the reward of every step of the window anew for it (Andrychowicz et al.,
    2017). As in SB3, to achieve the goal ends nothing: dones are those that were stored.

    :param buffer: with its environment set.
    :param rows: ``[B]`` entries, of complete episodes.
    :param envs: ``[B]`` environments.
    :param env: normalises observations and rewards, if given.
    :param n_steps: n, at least 1.
    :param gamma: discount of one step.
    """
    window = n_step_window(buffer, rows, envs, n_steps)
    before, after = observations_around(buffer, rows, window.last, envs)
    goals = buffer._sample_goals(rows, envs)
    before["desired_goal"] = after["desired_goal"] = goals
    rewards = buffer._normalize_reward(_rewards(buffer, window, envs, goals), env)
    return Transitions(
        buffer._normalize_obs(before, env),
        buffer.actions[rows, envs],
        buffer._normalize_obs(after, env),
        window.returns(rewards, gamma),
        window.dones,
        window.discounts(gamma),
    )


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
