"""Data sets from and to Minari's format (extra ``[offline]``); nothing is asked of its hub.

Minari's infos hold T + 1 entries an episode: that of the reset comes first, and is dropped.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_pmpo.core.checks import written
from sb3_pmpo.offline.columns import CHUNK, DatasetError, flat, refuse_masked, take
from sb3_pmpo.offline.storage import make_array

if TYPE_CHECKING:  # it is the floor above
    from sb3_pmpo.offline.dataset import LabelledDataset

#: Where the infos hold the rows' labels and weights. Others call many things a weight, such as a
#: load that is carried, so that of a row has a name which nobody else writes.
LABEL_KEY, WEIGHT_KEY = "label", "sb3_pmpo_weight"

#: What Minari takes for a new data set.
_ID = re.compile(r"(?:[-\w][-\w/]*[-\w]/)?[-\w]+-v\d+")

#: Where an episode's infos hold its labels, or what makes labels of the infos.
LabelKey = str | Callable[[Mapping[str, Any]], Any]


class Keys(NamedTuple):
    """Where an episode's infos hold what.

    :param label: of the labels, or what makes them of the infos.
    :param weight: of the rows' weights; None if they hold none.
    """

    label: LabelKey = LABEL_KEY
    weight: str | None = WEIGHT_KEY


def read_minari(dataset: Any, *, keys: Keys, folder: str | Path | None) -> dict[str, Any]:
    """Copy all episodes, one after the other, into the arguments of a ``LabelledDataset``.

    :param dataset: a ``minari.MinariDataset``.
    :param keys: of the infos; rows of episodes without them are unlabelled, or weigh 1.
        ``"judge/label"`` is what a dictionary ``judge`` there holds. A function gets an episode's
        infos.
    :param folder: where files for the columns are made; None for memory.
    :raises DatasetError: if it is empty, of spaces that SB3 does not take, or if the infos hold
        something else than labels, or nothing, under a key that was asked for.
    :raises FileExistsError: if the folder holds columns: another data set may be mapped from them.
    """
    try:
        n = int(dataset.total_steps)
    except AttributeError as error:
        raise DatasetError(
            f"dataset must be a minari.MinariDataset, got {dataset!r}: write "
            "from_minari(minari.load_dataset('the id'))"
        ) from error
    if n == 0:
        raise DatasetError("the Minari data set has no steps: record some first")
    _check_space(dataset.observation_space, "observation")
    _check_space(dataset.action_space, "action")
    seen = _allocate(dataset.observation_space, n, "observations", folder)
    following = _allocate(dataset.observation_space, n, "next_observations", folder)
    actions = _allocate(dataset.action_space, n, "actions", folder)
    rewards, dones = np.zeros(n, np.float32), np.zeros(n, np.float32)
    labels, weights, ids = np.zeros(n), np.ones(n), np.zeros(n, np.int64)
    rows = slice(0, 0)
    held: set[str] = set()  # in the infos
    found: set[LabelKey | None] = set()
    for number, episode in enumerate(dataset.iterate_episodes()):
        _check_episode(episode, number)
        rows = slice(rows.stop, rows.stop + len(episode.rewards))
        _fill(seen, rows, episode.observations, slice(0, -1))
        _fill(following, rows, episode.observations, slice(1, None))
        _fill(actions, rows, episode.actions, slice(None))
        rewards[rows], ids[rows] = episode.rewards, number
        dones[rows] = episode.terminations
        infos = episode.infos or {}
        held |= infos.keys()
        for key, column in zip(keys, (labels, weights), strict=True):
            given = _find(infos, key, number)
            if given is not None:
                where = f"the infos' {written(key)} of episode {number}"
                values = _numbers(given, key, where, is_weight=column is weights)
                column[rows] = _of_steps(values, len(episode.rewards), where)
                found.add(key)
    for key, default in zip(keys, Keys(), strict=True):
        if key not in {default, None, *found}:  # it was asked for
            raise DatasetError(f"no episode's infos have {written(key)}, they have {sorted(held)}")
    return dict(
        observations=seen,
        actions=actions,
        labels=labels,
        rewards=rewards,
        next_observations=following,
        dones=dones,
        episode_ids=ids,
        weights=None if (weights == 1.0).all() else weights,
        observation_space=dataset.observation_space,
        action_space=dataset.action_space,
    )


def _check_episode(episode: Any, number: int) -> None:
    """Check what the columns need of an episode.

    :raises DatasetError: if it has not one observation more than steps, or terminates inside.
    """
    steps = len(episode.rewards)
    seen = episode.observations
    for key, values in seen.items() if isinstance(seen, dict) else [("", seen)]:
        name = f"observations[{key!r}]" if key else "observations"
        if len(values) != steps + 1:
            raise DatasetError(
                f"episode {number} needs T+1 {name} for its T steps, {steps + 1}, got "
                f"{len(values)}: record the one after the last action too"
            )
    for name in ("actions", "terminations"):
        if len(getattr(episode, name)) != steps:
            raise DatasetError(
                f"episode {number} must have as many {name} as rewards, {steps}, got "
                f"{len(getattr(episode, name))}"
            )
    inside = np.flatnonzero(np.asarray(episode.terminations)[:-1])
    if len(inside):
        raise DatasetError(
            f"episode {number} must terminate at its last step only, {steps - 1}, but does at "
            f"step {inside[0]}: record it as several, or leave such episodes out with "
            "from_minari(dataset.filter_episodes(lambda one: not one.terminations[:-1].any()))"
        )


def _find(infos: Mapping[str, Any], key: LabelKey | None, episode: int) -> Any:
    """Return what the infos hold under a key, or a key of a key; None if nothing.

    :raises DatasetError: if a function looks for what is not there.
    """
    if callable(key):
        try:
            return key(infos)
        except KeyError as error:
            raise DatasetError(
                f"label_key asks the infos of episode {episode} for {error}, they have "
                f"{sorted(infos)}: let it return None for an episode without labels"
            ) from error
    if key is None:
        return None
    if key in infos:
        return infos[key]
    outer, _, inner = key.partition("/")
    held = infos.get(outer)
    return _find(held, inner, episode) if isinstance(held, Mapping) and inner else None


def _numbers(given: Any, key: LabelKey | None, where: str, *, is_weight: bool) -> np.ndarray:
    """Check that labels or weights of an episode are numbers; return them in a row."""
    if is_weight:
        if isinstance(given, Mapping) or np.asarray(given).dtype.kind not in "biuf":
            raise DatasetError(
                f"{where} must be numbers >= 0, how much each step counts, got "
                f"{type(given).__name__}: name others by weight_key, or none by weight_key=None"
            )
    elif isinstance(given, Mapping):
        raise DatasetError(
            f"{where} must be one number a step, got a dictionary of {sorted(given)}: name one of "
            f"them, such as label_key='{key}/{next(iter(given), 'label')}'"
        )
    elif np.asarray(given).dtype.kind not in "iuf":
        raise DatasetError(
            f"{where} must be numbers, 1 (accepted), -1 (rejected) or 0 (unlabelled), got "
            f"{np.asarray(given).dtype}: say what they mean by a function, such as "
            "label_key=lambda infos: np.where(infos['success'], 1, -1)"
        )
    refuse_masked(given, where)
    return np.asarray(given).reshape(-1)


def _of_steps(values: np.ndarray, length: int, where: str) -> np.ndarray:
    """Drop the reset's entry."""
    if len(values) not in {length, length + 1}:
        raise DatasetError(
            f"{where} must be {length + 1} (the reset's entry and one a step), got {len(values)}"
        )
    return values[-length:]


def _check_space(space: spaces.Space, what: str) -> None:
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    for part in parts:
        if isinstance(part, (spaces.Dict, spaces.Tuple)) or part.shape is None:
            raise DatasetError(
                f"the {what} space {space} is not supported: Stable-Baselines3 takes Box, "
                "Discrete, MultiDiscrete, MultiBinary, or a Dict of these for observations"
            )


def _allocate(space: spaces.Space, n: int, name: str, folder: str | Path | None) -> Any:
    if isinstance(space, spaces.Dict):
        return {
            key: _allocate(part, n, f"{name}/{number}", folder)
            for number, (key, part) in enumerate(space.spaces.items())
        }
    return make_array(folder, name, (n, *(space.shape or ())), space.dtype)


def _fill(target: Any, rows: slice, values: Any, part: slice) -> None:
    if isinstance(target, dict):
        for key, array in target.items():
            _fill(array, rows, values[key], part)
    else:
        target[rows] = np.asarray(values)[part].reshape(target[rows].shape)


def to_minari(dataset: LabelledDataset, dataset_id: str, **metadata: Any) -> Any:
    """Make a local data set; labels and weights go into the infos, with an entry for the reset.

    :param dataset: with ``next_observations``: an episode has one observation more than actions.
    :param dataset_id: such as ``"walker/labelled-v0"``; it must not exist yet.
    :param metadata: of ``minari.create_dataset_from_buffers``: ``env``, ``author``, ... Pictures
        are kept as they are; Minari's own ``jpeg_encoding=True`` changes them.
    :raises DatasetError: if there are no ``next_observations``, or no episode has them, or if
        Minari could not write the id, or not read a key of a Dict again.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.storage import get_dataset_path

    if dataset.next_observations is None:
        raise DatasetError(
            "Minari wants the observation after an episode's last action, and the data set has no "
            "next_observations: give next_observations=..."
        )
    _check_names(dataset, dataset_id)
    _check_successors(dataset)
    buffers = [
        EpisodeBuffer(id=number, **_episode(dataset, np.arange(rows.start, rows.stop)))
        for number, rows in enumerate(dataset.episodes())
    ]
    folder = get_dataset_path(dataset_id)
    was_there = folder.exists()
    try:
        return minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            observation_space=dataset.observation_space,
            action_space=dataset.action_space,
            **{"jpeg_encoding": False} | metadata,
        )
    except BaseException:  # Ctrl-C too: Minari would list what is not whole
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_names(dataset: LabelledDataset, dataset_id: str) -> None:
    """Check what becomes names of folders, and of groups in an HDF5 file.

    :raises DatasetError: for what could not be found again.
    """
    if not (isinstance(dataset_id, str) and _ID.fullmatch(dataset_id)):
        raise DatasetError(
            f"dataset_id must be of the form 'name-v0' or 'group/name-v0', got {dataset_id!r}: "
            "Minari wants a version"
        )
    space = dataset.observation_space
    for key in space.spaces if isinstance(space, spaces.Dict) else ():
        if "/" in key or key in {"", ".", ".."}:
            raise DatasetError(
                f"a key of Dict observations must be a name without '/' for Minari, got {key!r}, "
                "which its files would hold as a folder: rename it, or use LabelledDataset.save()"
            )


def _check_successors(dataset: LabelledDataset) -> None:
    """Check that within an episode each observation is what came next; Minari keeps one of both.

    :raises DatasetError: naming the first row where it is not.
    """
    assert dataset.next_observations is not None  # to_minari has asked
    pairs = [*zip(flat(dataset.next_observations), flat(dataset.observations), strict=True)]
    for rows in dataset.episodes():
        for start in range(rows.start, rows.stop - 1, CHUNK):
            index = np.arange(start, min(start + CHUNK, rows.stop - 1))
            differ = (one.take(index) != other.take(index + 1) for one, other in pairs)
            wrong = np.logical_or.reduce([each.reshape(len(index), -1).any(1) for each in differ])
            if wrong.any():
                raise DatasetError(
                    f"next_observations of row {index[wrong][0]} must be the observation of the "
                    "next row of its episode, for Minari keeps one of the two: give episode_ids "
                    "that part episodes, with one a row for transitions that do not follow another"
                )


def _episode(dataset: LabelledDataset, index: np.ndarray) -> dict[str, Any]:
    """Gather what Minari keeps of the episode that is these rows."""
    assert dataset.next_observations is not None  # to_minari has asked
    zeros = np.zeros(len(index))
    ended = (zeros if dataset.dones is None else dataset.dones[index]) > 0
    cut = np.zeros(len(index), bool)
    cut[-1] = not ended[-1]
    rewards = zeros if dataset.rewards is None else dataset.rewards[index]
    infos = {LABEL_KEY: np.concatenate(([0], dataset.labels[index])).astype(np.int64)}
    if dataset.weights is not None:
        infos[WEIGHT_KEY] = np.concatenate(([1.0], dataset.weights[index]))
    return {
        "observations": _join(
            take(dataset.observations, index), take(dataset.next_observations, index[-1:])
        ),
        "actions": dataset.actions.take(index),
        "rewards": rewards.tolist(),
        "terminations": ended.tolist(),
        "truncations": cut.tolist(),
        "infos": infos,
    }


def _join(before: Any, after: Any) -> Any:
    if isinstance(before, dict):
        return {key: np.concatenate((part, after[key])) for key, part in before.items()}
    return np.concatenate((before, after))
