"""What any of SB3's algorithms saves, in one atomic step: a crash leaves what was there."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pmpo.files import whole_file, whole_stream
from sb3_pmpo.online.persistence import Persistent
from sb3_pmpo.storage.models import signed


def save_each(saving: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Save several files in their order; one that fails keeps none of the others from it.

    :param saving: what writes each file.
    :raises Exception: the first error, after all have been tried.
    """
    errors = []
    for path, save in saving.items():
        try:
            save(path)
        except Exception as error:
            error.add_note(f"{path} was not saved")
            errors.append(error)
    if errors:
        raise errors[0]


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """Save a model; the pickles in one of SB3's are signed as ours are."""
    with whole_stream(path, "zip") as file:
        if isinstance(model, Persistent):
            model.save(file)
            return
        theirs = io.BytesIO()
        model.save(theirs)
        file.write(signed(theirs.getvalue()))


def save_replay_buffer(model: OffPolicyAlgorithm, path: Path) -> None:
    """Save a model's replay buffer."""
    with whole_stream(path, "pkl") as file:
        model.save_replay_buffer(file)


def save_vec_normalize(env: VecNormalize, path: Path) -> None:
    """Save VecNormalize's statistics for the Zoo's programs, which unpickle them.

    The pickle names nothing that :mod:`sb3_pmpo.storage.pickles` does not know as harmless.
    """
    with whole_file(path, "pkl") as file:
        env.save(str(file))
