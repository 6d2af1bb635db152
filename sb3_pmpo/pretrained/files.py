"""The file of a trained policy: safetensors, with a JSON header in its metadata.

The tensors are those of the actor, ``actor.*``, and of the returns' statistics, ``returns.*``.
The header is one JSON object, under the key ``sb3_pmpo``.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch as th

from sb3_pmpo.files import whole
from sb3_pmpo.pretrained.header import (
    PretrainedError,
    Score,
    check_header,
    check_tensors,
    parse,
)

#: The version of the header.
FORMAT = 1
_KEY = "sb3_pmpo"
SUFFIX = ".safetensors"


#: Resamples of a bootstrap, and the values below which it is much too narrow: of three it covers
#: the mean of normal numbers in three of four cases, not in 19 of 20.
RESAMPLES, ENOUGH = 10_000, 10


def scored(returns: Any, seed: int, confidence: float = 0.95) -> Score:
    """Return the mean of some returns and its percentile bootstrap interval.

    :param returns: of the episodes, at least one.
    :param seed: of the first episode; it also seeds the resampling.
    :param confidence: of the interval, in (0, 1).
    """
    values = np.asarray(returns, float)
    low, high = interval(values, confidence)
    return Score(float(values.mean()), low, high, len(values), seed, confidence)


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of ``[N]`` values.

    Of one value, or of equal ones, it has no width.
    """
    # scipy's bootstrap does the same; it would be a dependency of loading a policy.
    random = np.random.default_rng(0)
    means = [
        values[random.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)
    ]
    ends = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(ends[0]), float(ends[1])


def interval_apart(
    ours: np.ndarray, theirs: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the difference of the means of two samples."""
    random = np.random.default_rng(0)
    means = [
        random.choice(ours, len(ours)).mean() - random.choice(theirs, len(theirs)).mean()
        for _ in range(RESAMPLES)
    ]
    ends = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(ends[0]), float(ends[1])


class PretrainedFile(NamedTuple):
    """What a file holds.

    :param about: the header.
    :param tensors: the actor's and the statistics'.
    """

    about: dict[str, Any]
    tensors: Mapping[str, th.Tensor]

    @property
    def score(self) -> Score | None:
        """The score of the header, if it has one."""
        told = self.about.get("score")
        return None if told is None else Score(**told)

    def write(self, path: str | Path) -> PretrainedFile:
        """Write the file in one step; return this.

        :raises PretrainedError: for what :func:`read` would refuse.
        """
        _check(self.about, self.tensors)
        metadata = {_KEY: json.dumps({"format": FORMAT} | self.about)}
        with whole(Path(path)) as writing:
            safetensors.torch.save_file(dict(self.tensors), writing, metadata)
        return self


def _folder() -> Path:
    return Path(str(files("sb3_pmpo.pretrained")))


def names() -> list[str]:
    """Return the names of the policies that ship with this package."""
    return sorted(path.stem for path in _folder().glob(f"*{SUFFIX}"))


def find(name: str | Path) -> Path:
    """Return the file of a policy.

    :raises PretrainedError: if there is none, naming the closest.
    """
    if str(name) in names():
        return _folder() / f"{name}{SUFFIX}"
    if Path(name).suffix == SUFFIX:
        if Path(name).is_file():
            return Path(name)
        raise PretrainedError(f"there is no file {name}: give the path of a {SUFFIX} file")
    close = difflib.get_close_matches(str(name), names(), n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise PretrainedError(
        f"no pretrained policy is called {str(name)!r}{hint} (there are: {', '.join(names())}); "
        f"a file of your own is named by its path, ending in {SUFFIX}"
    )


def read(name: str | Path) -> PretrainedFile:
    """Read a policy's file.

    :param name: one of :func:`names`, or the path of a file.
    :raises PretrainedError: if there is none, or if it is none of ours.
    """
    path = find(name)
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY, "{}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no dict
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(f"{path} is damaged, or no safetensors file: {error}") from error
    try:
        told = parse(text)
        found = told.pop("format", None) if isinstance(told, dict) else None
        if found != FORMAT:
            raise PretrainedError(
                f"it must be a policy that sb3_pmpo.pretrained.save wrote in format {FORMAT}, but "
                f"its header says {found}"
            )
        _check(told, tensors)
    except PretrainedError as error:
        raise PretrainedError(f"{path} cannot be read: {error}") from error
    return PretrainedFile(told, tensors)


def _check(told: Mapping[str, Any], tensors: Mapping[str, th.Tensor]) -> None:
    check_header(told)
    check_tensors(tensors)
