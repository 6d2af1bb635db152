"""Labels that come in while a policy learns: from people, programs, verifiers.

Axes: N rows, K steps of a segment.
"""

from __future__ import annotations

import json
import threading
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.logger import Logger

from sb3_pmpo.feedback.columns import by_name, column_name, head, observations_of, stack
from sb3_pmpo.feedback.credit import Credit, credit_weights
from sb3_pmpo.files import whole_file
from sb3_pmpo.offline.columns import Column, DatasetError
from sb3_pmpo.offline.dataset import LabelledDataset, Rows
from sb3_pmpo.offline.spaces import space_from_json, space_to_json
from sb3_pmpo.offline.weights import Labels

FORMAT = "sb3_pmpo feedback"

#: Characters of a source's name in the log; the console shows 36 of a key.
_SHOWN = 24


class FeedbackBuffer:
    """Labelled observations and actions; any thread may add while another one learns.

    :param observation_space: of the observations, as the environment gives them.
    :param action_space: of the actions, in units of the environment.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        space_to_json(observation_space), space_to_json(action_space)  # what it cannot save
        self.observation_space, self.action_space = observation_space, action_space
        self._lock = threading.RLock()
        self._size = 0
        self._columns: dict[str, np.ndarray] = {}
        self._sources: list[str] = []
        self._counts: list[int] = []  # rows of each source
        self._totals = np.zeros(3)  # weight of the accepted, the rejected and all rows
        self._grow(64)

    def __len__(self) -> int:
        return self._size

    def __reduce__(self) -> Any:
        """Refuse a copy, which would not get what is added here.

        :raises TypeError: always.
        """
        raise TypeError(
            "a FeedbackBuffer is shared by threads, not by processes: wrap the environments of a "
            "DummyVecEnv, or give each process a buffer of its own and merge() their files"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> FeedbackBuffer:
        """Share it: a copy of a model learns from the same labels."""
        return self

    def __repr__(self) -> str:
        return (
            f"FeedbackBuffer({len(self)} rows: {self.n_accepted} accepted, {self.n_rejected} "
            f"rejected; sources {self.shares()})"
        )

    @property
    def n_accepted(self) -> int:
        """Count the rows with label 1."""
        with self._lock:
            return int((self._columns["labels"][: self._size] > 0).sum())

    @property
    def n_rejected(self) -> int:
        """Count the rows with label -1."""
        with self._lock:
            return int((self._columns["labels"][: self._size] < 0).sum())

    def shares(self) -> dict[str, float]:
        """Return the share of the rows that each source gave."""
        with self._lock:
            return {
                name: count / max(self._size, 1)
                for name, count in zip(self._sources, self._counts, strict=True)
            }

    def label_totals(self) -> Labels:
        """Sum the rows' weights by label."""
        with self._lock:
            return Labels(*(float(total) for total in self._totals))

    def record(self, logger: Logger) -> None:
        """Log how many rows there are, and each source's share."""
        logger.record("feedback/rows", len(self))
        for number, (source, share) in enumerate(self.shares().items()):
            # The console cuts a key, and fails on two that are then one.
            shown = source if len(source) <= _SHOWN else f"{source[: _SHOWN - 4]}~{number}"
            logger.record(f"feedback/share_{shown or 'unnamed'}", share)

    # ------------------------------------------------------------------ adding

    def add(
        self, observation: Any, action: Any, label: int, weight: float = 1.0, source: str = ""
    ) -> None:
        """Add one answer.

        :param observation: what was seen.
        :param action: what was done, in units of the environment.
        :param label: 1 accepted, -1 rejected, 0 no opinion, which still counts for the KL.
        :param weight: >= 0, how much the answer counts.
        :param source: the name of who gave it, for the log.
        :raises DatasetError: if something is not in its space or range; nothing is added then.
        """
        one = stack([observation], self.observation_space)
        weights = np.array([_as_number("weight", weight)])
        self._add(one, Column([action], "actions").array, label, weights, source)

    def add_segment(
        self,
        observations: Any,
        actions: Any,
        label: int,
        credit: str | Credit = "uniform",
        *,
        delay: int = 0,
        weight: float = 1.0,
        source: str = "",
    ) -> None:
        """Add one answer about the last K steps, shared out over them.

        :param observations: K of them: an array, a dictionary of arrays, or a list.
        :param actions: ``[K, ...]``.
        :param label: 1, -1 or 0.
        :param credit: how the answer's weight is shared out: ``"uniform"``, ``"last"``, or a
            function from K to weights ``[K]``.
        :param delay: by how many steps the answer is late: the last so many are not meant.
        :param weight: >= 0, of the whole answer.
        :param source: who gave it.
        :raises DatasetError: as of :meth:`add`, and if no step is left before the delay.
        """
        done = Column(actions, "actions").array
        seen = stack(observations, self.observation_space)
        if not isinstance(delay, Integral) or delay < 0:
            raise DatasetError(f"delay must be >= 0 steps, a whole number, got {delay!r}")
        for key, values in by_name(seen).items():
            if np.ndim(values) > 0 and len(values) > len(done):
                raise DatasetError(
                    f"a segment has one observation before each of its {len(done)} actions, got "
                    f"{key} of shape {np.shape(values)}: leave out the one after the last action"
                )
        kept = len(done) - delay
        if kept < 1:
            raise DatasetError(
                f"a delay of {delay} steps leaves nothing of a segment of {len(done)}: give a "
                "longer segment"
            )
        weights = _as_number("weight", weight) * credit_weights(credit, kept)
        self._add(head(seen, kept), done[:kept], label, weights, source)

    def merge(self, other: FeedbackBuffer) -> None:
        """Add all that another buffer has, with its sources.

        :raises DatasetError: if its spaces are others.
        """
        for name in ("observation_space", "action_space"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise DatasetError(f"both buffers must have one {name}, got {mine} and {theirs}")
        columns, names = other.snapshot()
        with self._lock:
            numbers = np.array([self._source(name) for name in names], np.int64)
            columns["sources"] = numbers[columns["sources"]]
            self._append(columns)

    def _add(
        self, seen: Any, actions: np.ndarray, label: int, weights: np.ndarray, source: str
    ) -> None:
        if np.ndim(label) > 0 or np.asarray(label).dtype.kind not in "biuf":
            raise DatasetError(f"label must be one of 1, -1 and 0, got {label!r}: add each apart")
        if not isinstance(source, str):
            raise DatasetError(f"source must be a name, such as 'ann', got {source!r}")
        # The data set's checks are the checks here, with its messages.
        rows = LabelledDataset(
            seen,
            actions,
            np.full(len(actions), label),
            weights=weights if weights.any() else None,
            observation_space=self.observation_space,
            action_space=self.action_space,
        )
        if not weights.any():
            return
        copied = rows.rows(np.arange(len(rows)))
        columns = by_name(copied.observations) | {
            "actions": copied.actions,
            "labels": copied.labels,
            "weights": copied.weights,
        }
        with self._lock:
            columns["sources"] = np.full(len(rows), self._source(source))
            self._append(columns)

    def _source(self, name: str) -> int:
        if name not in self._sources:
            self._sources.append(name)
            self._counts.append(0)
        return self._sources.index(name)

    def _append(self, columns: dict[str, np.ndarray]) -> None:
        stop = self._size + len(columns["labels"])
        if stop > len(self._columns["labels"]):
            self._grow(max(stop, 2 * len(self._columns["labels"])))
        for name, values in columns.items():
            self._columns[name][self._size : stop] = values
        self._totals += Labels.of(columns["labels"], columns["weights"])
        for number, count in enumerate(np.bincount(columns["sources"])):
            self._counts[number] += int(count)
        self._size = stop  # last: who reads without the lock sees whole rows

    def _grow(self, capacity: int) -> None:
        types: dict[str, tuple[tuple[int, ...], Any]] = {
            "labels": ((), np.int8),
            "weights": ((), np.float32),
            "sources": ((), np.int64),
            "actions": (self.action_space.shape or (), self.action_space.dtype),
        }
        space = self.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        for key, part in parts.items():
            types[column_name(key)] = (part.shape or (), part.dtype)
        for name, (shape, dtype) in types.items():
            grown = np.zeros((capacity, *shape), dtype)
            if name in self._columns:
                grown[: self._size] = self._columns[name][: self._size]
            self._columns[name] = grown

    # ------------------------------------------------------------------ reading

    def snapshot(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """Copy the columns, all of one moment, and the sources' names."""
        with self._lock:
            columns = {name: values[: self._size].copy() for name, values in self._columns.items()}
            return columns, list(self._sources)

    def rows(self, index: np.ndarray) -> Rows:
        """Copy a batch of rows.

        :param index: ``[B]`` integers in ``[0, N)``.
        """
        with self._lock:
            columns = {name: values[index] for name, values in self._columns.items()}
        return Rows(
            observations_of(columns), columns["actions"], columns["labels"], columns["weights"]
        )

    def labels_and_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Copy the labels and the weights, of one moment."""
        with self._lock:
            labels, weights = self._columns["labels"], self._columns["weights"]
            return labels[: self._size].copy(), weights[: self._size].copy()

    def to_dataset(self) -> LabelledDataset:
        """Copy what is here into a data set.

        :raises DatasetError: if there is nothing yet.
        """
        return self._dataset(self.snapshot()[0])

    def _dataset(self, columns: dict[str, np.ndarray]) -> LabelledDataset:
        """Make a data set, which checks each row."""
        return LabelledDataset(
            observations_of(columns),
            columns["actions"],
            columns["labels"],
            weights=columns["weights"],
            observation_space=self.observation_space,
            action_space=self.action_space,
        )

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` with a header in JSON, whole or not at all; nothing is pickled."""
        columns, names = self.snapshot()
        header = {
            "format": FORMAT,
            "version": 1,
            "sources": names,
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
        }
        with whole_file(path, "npz") as target:
            assert isinstance(target, Path)  # a path was given
            with target.open("wb") as file:
                np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **columns)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote; every row is checked again.

        :raises DatasetError: if it is not such a file, or not whole.
        """
        source = Path(path)
        source = source if source.suffix else source.with_name(f"{source.name}.npz")
        try:
            with np.load(source, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            header = json.loads(str(columns.pop("header")))
            buffer = cls(
                space_from_json(header["observation_space"]),
                space_from_json(header["action_space"]),
            )
            sources = [str(name) for name in header["sources"]]
        except FileNotFoundError:
            raise
        except Exception as error:  # a zip, JSON or header that is broken in any way
            raise DatasetError(f"{source} is no file of feedback: {error}") from error
        buffer._restore(columns, sources, source)
        return buffer

    def _restore(self, columns: dict[str, np.ndarray], sources: list[str], path: Path) -> None:
        if columns.keys() != self._columns.keys():
            raise DatasetError(
                f"{path} must have the columns {sorted(self._columns)}, got {sorted(columns)}"
            )
        numbers, rows = columns["sources"], columns["labels"].size
        if numbers.shape != (rows,) or numbers.dtype.kind not in "iu":
            raise DatasetError(
                f"{path}: sources must be one whole number a row, {rows}, got {numbers.shape} of "
                f"{numbers.dtype}"
            )
        if rows and not (numbers.min() >= 0 and numbers.max() < len(sources)):
            raise DatasetError(f"{path}: a row names a source that the header does not list")
        self._sources, self._counts = sources, [0] * len(sources)
        if rows:
            self._dataset(columns)
            self._append(columns)


def _as_number(name: str, value: Any) -> float:
    """Return a number of any type as Python's.

    :raises DatasetError: for what is no number, or several; its range is checked with the rows.
    """
    if np.ndim(value) > 0 or np.asarray(value).dtype.kind not in "biuf":
        raise DatasetError(
            f"{name} must be one number >= 0, got {value!r}: it is how much the whole answer counts"
        )
    return float(value)
