"""Columns of data sets from SB3's replay buffers and from arrays with D4RL's names.

A reader returns the arguments of :class:`sb3_pmpo.offline.LabelledDataset`, by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pmpo.offline.checks import read_numbers
from sb3_pmpo.offline.columns import CHUNK, Column, DatasetError, flat

#: What arrays with D4RL's names may be called: the first that is there counts.
_TERMINALS, _TIMEOUTS = ("terminals", "terminations", "dones"), ("timeouts", "truncations")
_AS_THEY_ARE = ("observations", "actions", "labels", "rewards", "next_observations", "weights")

#: All names that :func:`read_d4rl_like` reads.
NAMES = frozenset((*_AS_THEY_ARE, *_TERMINALS, *_TIMEOUTS, "episode_ids"))


def read_replay_buffer(buffer: ReplayBuffer, labels: Any = None) -> dict[str, Any]:
    """Copy the transitions of a buffer: one environment after the other, in order of time.

    An episode ends where the buffer says so, and where the next observation that is stored is not
    the one of the following row: SB3's buffers do not know that ``learn`` was called again. Without
    stored next observations (``optimize_memory_usage``) such a cut does not show.

    Whole is an episode whose first row is known to be one, and whose last row is an end: what is
    oldest in a full buffer, what is newest, and what was cut are fragments.

    :param buffer: SB3's, or a subclass with its storage; of Dict observations too.
    :param labels: ``[N]``, in the same order; None for 0 everywhere.
    :raises DatasetError: if it is empty, or if a Box's actions are not in [-1, 1].
    :raises TypeError: if it is no such buffer.
    """
    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(
            f"buffer must be one of Stable-Baselines3's replay buffers, got "
            f"{type(buffer).__name__}: give the model.replay_buffer of an off-policy algorithm, or "
            "LabelledDataset(observations, actions, ...) what others hold"
        )
    order = _order(buffer)
    size = len(order)
    actions = _unscaled(_by_env(buffer.actions, order), buffer.action_space)
    ended = _by_env(buffer.dones, order) > 0
    timeouts = _by_env(buffer.timeouts, order) > 0
    if ended.any() and not buffer.handle_timeout_termination:
        warnings.warn(
            "the buffer has handle_timeout_termination=False and tells no time limit from a "
            "death: every end counts as one. Values learned from it are too low before a time "
            "limit; collect with handle_timeout_termination=True if the environment has one",
            stacklevel=3,
        )
    starts = np.concatenate(([True], ended[:-1]))
    starts[::size] = True  # each environment's first row
    seen = _values(buffer.observations, order)
    following = None if buffer.optimize_memory_usage else _values(buffer.next_observations, order)
    if following is not None:
        starts[1:] |= _differ(following, seen)
    return dict(
        observations=seen,
        actions=actions,
        labels=labels,
        rewards=_by_env(buffer.rewards, order),
        next_observations=following,
        dones=(ended & ~timeouts).astype(np.float32),
        episode_ids=np.cumsum(starts),
        whole=_whole(starts, ended, np.arange(len(starts)) % size == 0 if buffer.full else None),
        observation_space=buffer.observation_space,
        action_space=buffer.action_space,
    )


def _order(buffer: ReplayBuffer) -> np.ndarray:
    """List the rows of each environment whose observations are there, in order of time."""
    size = buffer.size()
    if size == 0:
        raise DatasetError("the replay buffer is empty: collect before you take it over")
    first = buffer.pos if buffer.full else 0
    order = (first + np.arange(size)) % buffer.buffer_size
    if buffer.full and buffer.optimize_memory_usage:
        # The newest next observation lies where the oldest observation was.
        order = order[1:]
    if len(order) == 0:
        raise DatasetError("the replay buffer holds one row, whose observation is overwritten")
    return order


def _unscaled(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Bring actions to the units of a space: SB3 stores those of a Box in [-1, 1].

    :raises DatasetError: if they are beyond.
    """
    if isinstance(space, spaces.Box):
        wrong = np.flatnonzero(~(np.abs(actions) <= 1.0 + 1e-4).reshape(len(actions), -1).all(1))
        if len(wrong):
            raise DatasetError(
                "the buffer's actions must be in [-1, 1], as SB3's algorithms store those of a "
                f"Box; {len(wrong)} of {len(actions)} rows are not, the first at index {wrong[0]}: "
                f"{actions[wrong[0]]}. Were they stored in units of the environment, give them as "
                "they are to LabelledDataset(observations, actions, action_space=...)"
            )
        low, high = space.low.reshape(actions.shape[1:]), space.high.reshape(actions.shape[1:])
        scaled = np.clip(actions, -1.0, 1.0)
        actions = np.clip(low + 0.5 * (scaled + 1.0) * (high - low), low, high)
    return actions.reshape(-1, *(space.shape or ())).astype(space.dtype)


def _whole(
    starts: np.ndarray, ended: np.ndarray, headless: np.ndarray | None = None
) -> np.ndarray | None:
    """Say of each row whether its episode is there to its end; None if all are.

    :param starts: ``[N]`` True at the first row of an episode.
    :param ended: ``[N]`` True where the environment's episode ended.
    :param headless: ``[N]`` True at first rows before which others may have been.
    """
    first = np.flatnonzero(starts)
    whole = ended[np.concatenate((first[1:], [len(starts)])) - 1]
    if headless is not None:
        whole = whole & ~headless[first]
    return None if whole.all() else np.repeat(whole, np.diff([*first, len(starts)]))


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


def read_d4rl_like(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Read ``observations, actions, rewards, terminals, timeouts``, and what else is known.

    An episode ends at a terminal and at a timeout; ``episode_ids`` may say it better. Where no end
    is set nothing tells episodes apart. Where some are, rows behind the last one are a fragment.

    :raises DatasetError: if observations or actions are missing.
    """
    if not isinstance(arrays, Mapping):
        raise DatasetError(
            f"arrays must be a dictionary of arrays, got {type(arrays).__name__}: an .npz that "
            "numpy.load has opened is one"
        )
    if not {"observations", "actions"} <= arrays.keys():
        raise DatasetError(
            f"the arrays must have 'observations' and 'actions', got {sorted(arrays)}"
        )
    n = len(Column(arrays["actions"], "actions"))
    terminals, timeouts = _flags(arrays, _TERMINALS, n), _flags(arrays, _TIMEOUTS, n)
    ids, whole = arrays.get("episode_ids"), None
    known = [part > 0 for part in (terminals, timeouts) if part is not None]
    ended = np.logical_or.reduce(known) if known else np.zeros(n, bool)
    if terminals is not None and timeouts is not None and not {*_TERMINALS[:2]} & arrays.keys():
        terminals = np.where(timeouts > 0, np.float32(0), terminals)  # "dones" may hold both
    if ended.any():
        if ids is None:
            ids = np.concatenate(([0], np.cumsum(ended[:-1])))
            whole = _whole(np.diff(ids, prepend=-1) != 0, ended)
        elif timeouts is not None and np.shape(ids) == (n,):  # else an end may be a timeout
            whole = _whole(np.concatenate(([True], np.diff(ids) != 0)), ended)
    columns = {name: arrays.get(name) for name in _AS_THEY_ARE}
    return columns | {"dones": terminals, "episode_ids": ids, "whole": whole}


def _flags(arrays: Mapping[str, Any], names: tuple[str, ...], n: int) -> np.ndarray | None:
    """Read the first of these columns that is there; None if none is.

    :raises DatasetError: if it is not one number a row.
    """
    name = next((name for name in names if name in arrays), None)
    if name is None:
        return None
    found = read_numbers(arrays[name], name, n)
    assert found is not None  # it is there
    return found.astype(np.float32)
