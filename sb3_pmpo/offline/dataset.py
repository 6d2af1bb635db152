"""Transitions with accept and reject labels.

Axes: N rows, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_pmpo.offline import formats, minari, storage
from sb3_pmpo.offline.checks import (
    ACCEPTED,
    REJECTED,
    check_lengths,
    check_ranges,
    episode_starts,
    read_labels,
    read_numbers,
)
from sb3_pmpo.offline.columns import (
    Column,
    Columns,
    DatasetError,
    flat,
    make_columns,
    take,
)
from sb3_pmpo.offline.spaces import (
    fit_columns,
    form,
    infer_action_space,
    infer_observation_space,
)
from sb3_pmpo.offline.weights import Labels


class Rows(NamedTuple):
    """A batch of rows, as copies in memory.

    :param observations: ``[B, ...]``, or a dictionary of such.
    :param actions: ``[B, ...]`` in units of the environment.
    :param labels: ``[B]`` of -1, 0 and 1.
    :param weights: ``[B]`` >= 0; ones where the data set has none.
    """

    observations: Any
    actions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class LabelRates(NamedTuple):
    """How the labels are shared out.

    :param accepted: share of the rows with label 1.
    :param rejected: share of the rows with label -1.
    :param unlabelled: share of the rows with label 0.
    """

    accepted: float
    rejected: float
    unlabelled: float

    def __str__(self) -> str:
        return (
            f"{self.accepted:.1%} accepted, {self.rejected:.1%} rejected, "
            f"{self.unlabelled:.1%} unlabelled"
        )


class LabelledDataset:
    """Observations, actions, and who says of each whether it was good.

    Columns may be ``np.memmap``: rows are read when a batch asks for them, and nothing is kept.
    The rows of an episode stand together, in order of time.

    :param observations: ``[N, ...]`` what was seen, or a dictionary of such for a Dict space.
    :param actions: ``[N, ...]`` what was done, in units of the environment.
    :param labels: ``[N]`` 1 accepted, -1 rejected, 0 unlabelled; None for 0 everywhere.
    :param rewards: ``[N]``, which learning does not need; for labels from values and returns.
    :param next_observations: like observations, one step later.
    :param dones: ``[N]`` 1 where the episode ended for good, not by a time limit.
    :param episode_ids: ``[N]`` integers, one for each episode. Without them an episode ends where
        ``dones`` says so.
    :param weights: ``[N]`` >= 0: how much each row counts.
    :param whole: ``[N]`` 1 where the row's episode is here from its start to its end, 0 in a
        fragment, whose return says nothing; None for whole ones. :meth:`save` keeps it, Minari's
        format does not.
    :param observation_space: inferred if None.
    :param action_space: inferred if None: a Box is [-1, 1] if all actions are inside.
    :raises DatasetError: naming what is wrong, how many rows are, and the first of them.
    """

    def __init__(
        self,
        observations: Any,
        actions: Any,
        labels: Any = None,
        *,
        rewards: Any = None,
        next_observations: Any = None,
        dones: Any = None,
        episode_ids: Any = None,
        weights: Any = None,
        whole: Any = None,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
    ) -> None:
        seen, done = make_columns(observations, "observations"), make_columns(actions, "actions")
        n = len(flat(done)[0])
        if n == 0:
            raise DatasetError("the data set is empty: it must have at least one row")
        check_lengths([*flat(seen), *flat(done)], n)
        following: Columns | None = None
        if next_observations is not None:
            following = make_columns(next_observations, "next_observations")
            check_lengths(flat(following), n)
        self.observation_space = observation_space or infer_observation_space(seen, following)
        self.action_space = action_space or infer_action_space(done)
        given = {"observation_space": observation_space, "action_space": action_space}
        #: The spaces that were inferred, which only bound what is here.
        self.inferred = frozenset(name for name, space in given.items() if space is None)
        self.observations = fit_columns(seen, self.observation_space, "observations")
        fitted = fit_columns(done, self.action_space, "actions")
        if isinstance(fitted, dict):
            raise DatasetError("actions must be one array, got a dictionary: flatten their space")
        self.actions: Column = fitted
        if following is not None:
            following = fit_columns(following, self.observation_space, "next_observations")
        self.next_observations = following
        self.labels = read_labels(labels, n)
        self.rewards = read_numbers(rewards, "rewards", n)
        self.dones = read_numbers(dones, "dones", n)
        self.weights = read_numbers(weights, "weights", n)
        self.episode_ids = read_numbers(episode_ids, "episode_ids", n)
        self.whole = read_numbers(whole, "whole", n)
        check_ranges(self.dones, self.weights, self.whole)
        self._starts = episode_starts(self.episode_ids, self.dones)
        self._totals = Labels.of(self.labels, self.weights)

    # ------------------------------------------------------------------ what is in it

    def __len__(self) -> int:
        return len(self.actions)

    def __repr__(self) -> str:
        return (
            f"LabelledDataset({len(self)} rows, {self.n_episodes} episodes; {self.label_rates()}; "
            f"observations {self.observation_space}, actions {self.action_space})"
        )

    @property
    def n_accepted(self) -> int:
        """Count the rows with label 1."""
        return int((self.labels == ACCEPTED).sum())

    @property
    def n_rejected(self) -> int:
        """Count the rows with label -1."""
        return int((self.labels == REJECTED).sum())

    @property
    def n_episodes(self) -> int:
        """Count the episodes; 1 where nothing tells them apart."""
        return len(self._starts)

    def label_rates(self) -> LabelRates:
        """Say which shares of the rows are accepted, rejected and unlabelled."""
        accepted, rejected = self.n_accepted / len(self), self.n_rejected / len(self)
        unlabelled = max(0.0, 1.0 - accepted - rejected)  # rounding may leave less than nothing
        return LabelRates(accepted, rejected, unlabelled)

    def episodes(self) -> list[slice]:
        """List the rows of each episode."""
        ends = [*self._starts[1:], len(self)]
        return [slice(int(a), int(b)) for a, b in zip(self._starts, ends, strict=True)]

    def episode_returns(self) -> np.ndarray:
        """Sum the rewards of each episode; of a fragment, those that are here.

        :raises DatasetError: if there are no rewards.
        """
        return np.add.reduceat(self.required("rewards").astype(np.float64), self._starts)

    def whole_episodes(self) -> np.ndarray:
        """Say of each episode whether all of its rows are here, from its start to its end."""
        if self.whole is None:
            return np.ones(self.n_episodes, bool)
        return np.logical_and.reduceat(self.whole > 0, self._starts)

    def required(self, name: str) -> np.ndarray:
        """Return rewards, dones or episode_ids.

        :raises DatasetError: if the data set has none.
        """
        column = getattr(self, name)
        if column is None:
            raise DatasetError(f"the data set has no {name}, which this needs: give {name}=...")
        return column

    def rows(self, index: np.ndarray) -> Rows:
        """Copy a batch of rows into memory.

        :param index: ``[B]`` integers in ``[0, N)``, in any order.
        """
        weights = np.ones(len(index), np.float32) if self.weights is None else self.weights[index]
        return Rows(
            take(self.observations, index), self.actions.take(index), self.labels[index], weights
        )

    def labels_and_weights(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the labels, and the rows' weights if there are any."""
        return self.labels, self.weights

    def label_totals(self) -> Labels:
        """Sum the rows' weights by label."""
        return self._totals

    # ------------------------------------------------------------------ other labels

    def with_labels(self, labels: Any, weights: Any = None) -> LabelledDataset:
        """Return a data set with other labels over the same columns; nothing is copied.

        :param labels: ``[N]`` of -1, 0 and 1.
        :param weights: ``[N]``; None keeps those that there are.
        """
        other = copy(self)
        other.labels = read_labels(labels, len(self))
        if weights is not None:
            other.weights = read_numbers(weights, "weights", len(self))
            check_ranges(None, other.weights, None)
        other._totals = Labels.of(other.labels, other.weights)
        return other

    def with_space(self, name: str, space: spaces.Space) -> LabelledDataset:
        """Return a data set in another space over the same columns; nothing is copied.

        :param name: ``"observation_space"`` or ``"action_space"``.
        :param space: that holds every row.
        :raises DatasetError: naming how many rows it does not hold, and the first of them.
        """
        columns = {"action_space": ["actions"]}.get(name, ["observations", "next_observations"])
        other = copy(self)
        for column in columns:
            if (rows := getattr(self, column)) is not None:
                setattr(other, column, fit_columns(rows, space, column))
        setattr(other, name, space)
        other.inferred = self.inferred - {name}
        return other

    # ------------------------------------------------------------------ files and formats

    def save(self, folder: str | Path) -> Path:
        """Write a folder of ``.npy`` files and a JSON header; nothing is pickled."""
        return storage.save(self, folder)

    @classmethod
    def load(cls, folder: str | Path, *, in_memory: bool = False) -> LabelledDataset:
        """Open what :meth:`save` wrote, mapped from its files or read into memory.

        Every row is checked again, for files can be edited. Another process gets the paths of
        mapped files by a pickle, and none of their rows.
        """
        opened = storage.open_columns(folder, in_memory=in_memory)
        dataset = cls(**opened.arguments)
        dataset.inferred = opened.inferred
        return dataset

    @classmethod
    def from_minari(
        cls,
        dataset: Any,
        *,
        label_key: str | Callable[[Mapping[str, Any]], Any] = "label",
        weight_key: str | None = "sb3_pmpo_weight",
        folder: str | Path | None = None,
    ) -> LabelledDataset:
        """Take over a Minari data set; labels are read from its infos, if they are there.

        :param dataset: a ``minari.MinariDataset``.
        :param label_key: where the infos hold the labels; ``"judge/label"`` is what a dictionary
            there holds. Or a function from an episode's infos to a label for each step, with or
            without one for the reset: ``lambda infos: np.where(infos["success"], 1, -1)``. It
            may return None for an episode without labels.
        :param weight_key: where the infos hold how much each step counts, likewise; None for
            nowhere. The default is where :meth:`to_minari` writes it, for others call many things
            a weight.
        :param folder: map the columns from files made there, instead of memory.
        """
        keys = minari.Keys(label_key, weight_key)
        with storage.kept_if_whole(folder):
            return cls(**minari.read_minari(dataset, keys=keys, folder=folder))

    def to_minari(self, dataset_id: str, **metadata: Any) -> Any:
        """Make a local Minari data set with the labels in its infos; returns it.

        Which episodes are fragments is not kept: Minari calls them truncated.

        :param dataset_id: such as ``"walker/labelled-v0"``.
        :param metadata: passed on to ``minari.create_dataset_from_buffers``.
        """
        return minari.to_minari(self, dataset_id, **metadata)

    @classmethod
    def from_replay_buffer(cls, buffer: Any, labels: Any = None) -> LabelledDataset:
        """Take over the transitions of an SB3 replay buffer, with its actions unscaled.

        Episodes that the buffer holds a part of are marked as fragments.

        :param buffer: its rows come one environment after the other, in order of time. A Box's
            actions lie in it as SB3's algorithms store them, scaled to [-1, 1].
        :param labels: ``[N]`` in the same order; None for 0 everywhere.
        """
        return cls(**formats.read_replay_buffer(buffer, labels))

    @classmethod
    def from_d4rl_like(
        cls,
        arrays: Mapping[str, Any],
        *,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
    ) -> LabelledDataset:
        """Take over arrays with D4RL's names: observations, actions, rewards, terminals, timeouts.

        Rows behind the last end are marked as a fragment.

        :param arrays: also ``next_observations``, ``episode_ids``, ``labels`` and ``weights``, if
            they are there. ``terminations`` is another name of ``terminals``, as is ``dones``, and
            ``truncations`` of ``timeouts``. Other arrays are ignored.
        :param observation_space: inferred if None.
        :param action_space: inferred if None.
        """
        columns = formats.read_d4rl_like(arrays)
        return cls(**columns, observation_space=observation_space, action_space=action_space)


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
