"""Models and replay buffers of any of SB3's algorithms, loaded as ours are: no stranger's runs.

SB3's own loaders unpickle whatever a file holds.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import stable_baselines3.common.off_policy_algorithm as off_policy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pmpo.online.persistence import Persistent
from sb3_pmpo.storage.buffers import load_buffer
from sb3_pmpo.storage.models import ModelFile
from sb3_pmpo.storage.pickles import UntrustedFileError


def load_model(
    algorithm: type[BaseAlgorithm],
    path: str | Path,
    *,
    custom_objects: dict[str, Any] | None = None,
    **arguments: Any,
) -> BaseAlgorithm:
    """Load a model as ``algorithm.load`` does, without running what a stranger wrote.

    :param algorithm: its class.
    :param path: of the file.
    :param custom_objects: SB3's, which go before what is in the file.
    :param arguments: of ``algorithm.load``.
    :raises UntrustedFileError: for a pickle that is neither this user's nor harmless.
    """
    if issubclass(algorithm, Persistent):
        return algorithm.load(path, custom_objects=custom_objects, **arguments)
    file = ModelFile(path, custom_objects, trust=False)
    try:
        return algorithm.load(file.content, custom_objects=file.items, **arguments)
    except pickle.UnpicklingError as error:  # SB3 reads weights with weights_only=True
        raise UntrustedFileError(
            f"the weights in {path} are not only numbers, and are not loaded even with --trust, as "
            f"with SB3: {str(error).partition('. ')[0]}"
        ) from error


@dataclass(frozen=True)
class Loader:
    """Stands where the Zoo looks for an algorithm to call its ``load``.

    :param algorithm: its class.
    :param fixed: arguments that go before the Zoo's.
    """

    algorithm: type[BaseAlgorithm]
    fixed: dict[str, Any] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        return self.algorithm.__name__

    def load(self, path: str, **kwargs: Any) -> BaseAlgorithm:
        """Load, with the Zoo's arguments."""
        return load_model(self.algorithm, path, **kwargs | self.fixed)


@contextmanager
def buffers_as_data() -> Iterator[None]:
    """Let SB3's ``load_replay_buffer`` read files by our :func:`load_buffer`."""

    def load(path: str, verbose: int = 0) -> ReplayBuffer:
        return load_buffer(path)

    with patch.object(off_policy, "load_from_pkl", load):
        yield
