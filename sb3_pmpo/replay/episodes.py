"""Ends of episodes that the environment did not report: it was reset in the middle of one.

SB3's buffers learn of an episode's end from the environment alone. Where ``learn()`` is called
again, another environment is set or a buffer is loaded, the entry after the newest one belongs to
another episode, and windows of n steps, hindsight goals and next observations would run into it.

Axes: T entries (a ring), E environments, B transitions.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.replay.storage import is_gathered

#: What stands in ``dones`` at the last transition of an episode that was cut, where the buffer
#: keeps no ``timeouts``. It is true, so that every window ends there, and as a factor it is nothing
#: (``1 - CUT == 1``), so that the return is bootstrapped. The next transition that is stored there
#: overwrites it, as it would not overwrite ``timeouts``.
CUT = float(np.finfo(np.float32).tiny)

#: Name of the attribute of a memory-efficient buffer that keeps the observations that follow a
#: cut, by entry and environment. It is saved with the buffer.
_FOLLOWING = "observations_after_cuts"


def close_open_episodes(buffer: ReplayBuffer) -> None:
    """Mark each environment's newest transition as the last of its episode, if it is not.

    The end is a time limit's: the return is bootstrapped from the next observation. To be called
    whenever the next transition will not continue the newest one. Calling it twice changes
    nothing.

    A memory-efficient buffer keeps the next observation in the entry that the next transition
    overwrites, so it is copied. A class of the user's with sampling of its own does not read the
    copy: there the end is a termination, as SB3 marks it.
    """
    if buffer.size() == 0:
        return
    newest = (buffer.pos - 1) % buffer.buffer_size
    opened = np.flatnonzero(buffer.dones[newest] == 0)
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():  # it warns of what is wanted here
            warnings.filterwarnings("ignore", "The last trajectory in the replay buffer")
            buffer.truncate_last_trajectory()
    if len(opened) == 0:
        return
    if buffer.optimize_memory_usage and not is_gathered(buffer):
        buffer.dones[newest, opened] = 1.0
        return
    if buffer.optimize_memory_usage:
        _keep_following(buffer, newest, opened)
    if buffer.handle_timeout_termination:
        buffer.dones[newest, opened] = 1.0
        buffer.timeouts[newest, opened] = 1.0
    else:
        buffer.dones[newest, opened] = CUT


def close_other_episodes(buffer: ReplayBuffer, observations: Any) -> None:
    """Mark the open episodes as ended, if they do not lead to where the environments are.

    A buffer that was assigned, or loaded with ``truncate_last_traj=False``, may be of elsewhere.

    :param observations: ``[E, ...]`` that the next transitions begin with, or a dict of such.
    """
    if buffer.size() == 0 or not is_gathered(buffer):
        return
    newest = (buffer.pos - 1) % buffer.buffer_size
    opened = np.flatnonzero(buffer.dones[newest] == 0)
    if isinstance(observations, dict):
        pairs = [(buffer.next_observations[key][newest, opened], observations[key])
                 for key in observations]  # fmt: skip
    else:
        pairs = [(next_observations(buffer, np.full_like(opened, newest), opened), observations)]
    for stored, seen in pairs:
        now = np.asarray(seen)[opened].astype(stored.dtype).reshape(stored.shape)
        if not np.array_equal(stored, now):
            close_open_episodes(buffer)
            return


def terminations(buffer: ReplayBuffer, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
    """Say which transitions end in a termination, ``[B]``: 1 where nothing is bootstrapped."""
    dones = buffer.dones[rows, envs] * (1.0 - buffer.timeouts[rows, envs])
    return np.where(dones == CUT, 0.0, dones).astype(np.float32)


def has_cuts(buffer: ReplayBuffer) -> bool:
    """Say whether a memory-efficient buffer may hold next observations of cut episodes."""
    return bool(_following_of(buffer))


def next_observations(buffer: ReplayBuffer, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
    """Gather the observations after these transitions, ``[B, ...]``; not of a Dict space."""
    if not buffer.optimize_memory_usage:
        return buffer.next_observations[rows, envs]
    following = buffer.observations[(rows + 1) % buffer.buffer_size, envs]  # a copy
    kept = _following_of(buffer)
    for i in np.flatnonzero(buffer.dones[rows, envs] == CUT):
        following[i] = kept[int(rows[i]), int(envs[i])]
    return following


def _keep_following(buffer: ReplayBuffer, row: int, envs: np.ndarray) -> None:
    """Copy the observations that the next transition overwrites; forget those of lost entries."""
    kept = {
        (old, env): value
        for (old, env), value in _following_of(buffer).items()
        if buffer.dones[old, env] == CUT
    }
    following = buffer.observations[(row + 1) % buffer.buffer_size]
    kept |= {(row, int(env)): following[env].copy() for env in envs}
    vars(buffer)[_FOLLOWING] = kept


def _following_of(buffer: ReplayBuffer) -> dict[tuple[int, int], np.ndarray]:
    kept: dict[tuple[int, int], np.ndarray] = vars(buffer).get(_FOLLOWING, {})
    return kept
