"""Data sets from SB3's replay buffers and from arrays with D4RL's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pmpo.offline.columns import CHUNK, DatasetError, flat
from sb3_pmpo.offline.dataset import LabelledDataset
from sb3_pmpo.offline.spaces import form


def from_replay_buffer(buffer: ReplayBuffer, labels: Any = None) -> LabelledDataset:
    """Copy the transitions of a buffer: one environment after the other, in order of time.

    An episode ends where the buffer says so, and where the next observation that is stored is not
    the one of the following row: SB3's buffers do not know that ``learn`` was called again. Without
    stored next observations (``optimize_memory_usage``) such a cut does not show.

    :param buffer: SB3's, or a subclass with its storage; of Dict observations too.
    :param labels: ``[N]``, in the same order; None for 0 everywhere.
    :raises DatasetError: if it is empty.
    """
    size = buffer.size()
    if size == 0:
        raise DatasetError("the replay buffer is empty: collect before you take it over")
    first = buffer.pos if buffer.full else 0
    order = (first + np.arange(size)) % buffer.buffer_size
    if buffer.full and buffer.optimize_memory_usage:
        # The newest next observation lies where the oldest observation was.
        order, size = order[1:], size - 1
    if size == 0:
        raise DatasetError("the replay buffer holds one row, whose observation is overwritten")
    actions = _by_env(buffer.actions, order)
    space = buffer.action_space
    if isinstance(space, spaces.Box):  # SB3 stores them in [-1, 1]
        actions = np.clip(actions, -1.0, 1.0)
        low, high = space.low.ravel(), space.high.ravel()
        actions = np.clip(low + 0.5 * (actions + 1.0) * (high - low), low, high)
    actions = actions.reshape(-1, *(space.shape or ())).astype(space.dtype)
    ended = _by_env(buffer.dones, order) > 0
    timeouts = _by_env(buffer.timeouts, order) > 0
    starts = np.concatenate(([True], ended[:-1]))
    starts[::size] = True  # each environment's first row
    seen = _values(buffer.observations, order)
    following = None if buffer.optimize_memory_usage else _values(buffer.next_observations, order)
    if following is not None:
        starts[1:] |= _differ(following, seen)
    return LabelledDataset(
        seen,
        actions,
        labels,
        rewards=_by_env(buffer.rewards, order),
        next_observations=following,
        dones=(ended & ~timeouts).astype(np.float32),
        episode_ids=np.cumsum(starts),
        observation_space=buffer.observation_space,
        action_space=space,
    )


def _by_env(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Bring ``[buffer_size, n_envs, ...]`` to ``[n_envs * size, ...]``."""
    chosen = array[order].swapaxes(0, 1)
    return np.ascontiguousarray(chosen).reshape(-1, *chosen.shape[2:])


def _differ(following: Any, seen: Any) -> np.ndarray:
    """Say of each row but the last whether what followed it is not what the next one saw."""
    pairs = [*zip(flat(following), flat(seen), strict=True)]
    differ = np.zeros(len(pairs[0][0]) - 1, bool)
    for one, other in pairs:
        for start in range(0, len(differ), CHUNK):
            rows = slice(start, min(start + CHUNK, len(differ)))
            # Who filled the buffer may have rounded one of the two.
            wrong = ~np.isclose(one[rows], other[rows.start + 1 : rows.stop + 1], atol=1e-5)
            differ[rows] |= wrong.reshape(len(wrong), -1).any(1)
    return differ


def _values(arrays: Any, order: np.ndarray) -> Any:
    if isinstance(arrays, dict):
        return {key: _by_env(array, order) for key, array in arrays.items()}
    return _by_env(arrays, order)


def from_d4rl_like(
    arrays: Mapping[str, Any],
    *,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
) -> LabelledDataset:
    """Read ``observations, actions, rewards, terminals, timeouts``, and what else is known.

    An episode ends at a terminal and at a timeout.

    :raises DatasetError: if observations or actions are missing.
    """
    missing = [name for name in ("observations", "actions") if name not in arrays]
    if missing:
        raise DatasetError(
            f"the arrays must have 'observations' and 'actions', got {sorted(arrays)}"
        )
    found = {
        name: np.asarray(arrays[name]) if name in arrays else None
        for name in ("labels", "rewards", "weights", "terminals", "timeouts")
    }
    terminals, timeouts = found.pop("terminals"), found.pop("timeouts")
    return LabelledDataset(
        arrays["observations"],
        arrays["actions"],
        dones=None if terminals is None else np.ravel(terminals).astype(np.float32),
        next_observations=arrays.get("next_observations"),
        episode_ids=_ids(terminals, timeouts),
        observation_space=observation_space,
        action_space=action_space,
        **found,
    )


def _ids(terminals: np.ndarray | None, timeouts: np.ndarray | None) -> np.ndarray | None:
    """Count the episodes by their ends; None where nothing tells them apart."""
    ends = [np.ravel(part) > 0 for part in (terminals, timeouts) if part is not None]
    if not ends:
        return None
    if len({len(end) for end in ends}) > 1:
        raise DatasetError(
            f"terminals and timeouts must have one length, got {[len(end) for end in ends]}"
        )
    ended = np.logical_or.reduce(ends)
    return np.concatenate(([0], np.cumsum(ended[:-1])))


def concatenate(datasets: list[LabelledDataset]) -> LabelledDataset:
    """Put data sets of the same spaces behind each other, in memory: what was seen, done and said.

    Rewards and episodes are left out.

    :raises DatasetError: if the spaces differ.
    """
    first = datasets[0]
    for other in datasets[1:]:
        for name in ("observation_space", "action_space"):
            one, two = getattr(first, name), getattr(other, name)
            if form(one) != form(two):
                raise DatasetError(f"the data sets must have one {name}, got {one} and {two}")
    rows = [part.rows(np.arange(len(part))) for part in datasets]
    seen: Any = [part.observations for part in rows]
    if isinstance(seen[0], dict):
        joined: Any = {key: np.concatenate([part[key] for part in seen]) for key in seen[0]}
    else:
        joined = np.concatenate(seen)
    return LabelledDataset(
        joined,
        np.concatenate([part.actions for part in rows]),
        np.concatenate([part.labels for part in rows]),
        weights=np.concatenate([part.weights for part in rows]),
        observation_space=first.observation_space,
        action_space=first.action_space,
    )
