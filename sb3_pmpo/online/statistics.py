"""The policy's statistics where collecting has not gathered them: taken from the replay buffer.

Axes: T entries of the buffer, E environments.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pmpo.policies import PMPOPolicy
from sb3_pmpo.replay.checks import check_stored_values

#: Entries of the buffer that are looked at, the newest ones.
ENOUGH = 100_000


def complete_statistics(
    policy: PMPOPolicy,
    buffer: ReplayBuffer,
    gamma: float,
    env: VecNormalize | None,
    *,
    learned: bool,
) -> None:
    """Take the statistics from a buffer that holds more transitions than they have seen.

    Without them every input would be clipped and the critic's unit would be 1: a buffer that was
    filled by hand, or from a file, would look as if all its states were alike. They are taken anew,
    too, where a reading that cannot be true is among the observations, of a sensor that failed in
    the warm-up.
    Those with which a policy has learned stay, because with others it would act otherwise.

    :param policy: whose statistics to complete.
    :param buffer: with transitions, or none.
    :param gamma: the discount factor of the returns.
    :param env: normalises what the policy sees, if given.
    :param learned: whether the policy has taken steps.
    """
    if buffer.size() == 0:
        return
    rows = _newest(buffer)
    stored = buffer.size() * buffer.n_envs

    def may_change(count: float) -> bool:
        return count == 0 or not learned

    of_observations, of_returns = policy.statistics_counts
    if min(of_observations, of_returns) < stored:  # filled elsewhere
        check_stored_values(buffer)
    if may_change(of_observations) and of_observations < math.inf:  # else none is normalised
        observations = _observations(buffer, rows, env, policy.statistics_keys)
        if of_observations < stored or policy.sees_absurd_readings(observations):
            policy.begin_observations_anew(observations)
    if of_returns < stored and may_change(of_returns):
        policy.begin_returns_anew(_returns(buffer, rows, gamma, env).reshape(-1))


def _newest(buffer: ReplayBuffer) -> np.ndarray:
    """Return the rows of the newest entries in the order of time, ``[T]``."""
    size = min(buffer.size(), ENOUGH)
    return (buffer.pos - size + np.arange(size)) % buffer.buffer_size


def _observations(
    buffer: ReplayBuffer, rows: np.ndarray, env: VecNormalize | None, keys: Collection[str]
) -> Any:
    """Copy the observations of the rows; of a dict those that are needed, as pictures are large."""

    def flat(stored: np.ndarray) -> np.ndarray:
        return stored[rows].reshape(-1, *stored.shape[2:])

    stored: Any = buffer.observations
    if isinstance(stored, dict):
        needed = {*keys, *(getattr(env, "norm_obs_keys", None) or ())}
        seen: Any = {key: flat(value) for key, value in stored.items() if key in needed}
    else:
        seen = flat(stored)
    return seen if env is None else env.normalize_obs(seen)


def _returns(
    buffer: ReplayBuffer, rows: np.ndarray, gamma: float, env: VecNormalize | None
) -> np.ndarray:
    """Sum up the discounted rewards of each episode so far; ``[T, E]``."""
    rewards = buffer.rewards[rows]
    if env is not None:
        rewards = env.normalize_reward(rewards)
    ended = buffer.dones[rows] > 0
    returns, so_far = np.empty_like(rewards), np.zeros(rewards.shape[1])
    for t, reward in enumerate(rewards):
        returns[t] = so_far = gamma * so_far + reward
        so_far = np.where(ended[t], 0.0, so_far)
    return returns
