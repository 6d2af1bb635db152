"""One training run that may be killed at any moment and goes on from its last checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList

from sb3_pmpo.tools.runs.checkpoints import (
    Checkpoint,
    checkpoints,
    load_buffer,
    lock,
    replay_buffer,
    steps_of,
)


class Job(ABC):
    """What to train, what to measure on the way, and where the state of it is."""

    @property
    @abstractmethod
    def state_folder(self) -> Path:
        """The folder of the lock and of the checkpoints."""

    @property
    @abstractmethod
    def decisions(self) -> int:
        """Steps of the algorithm until it is finished."""

    @property
    @abstractmethod
    def first_seed(self) -> int:
        """The seed of a run that was never interrupted."""

    @property
    @abstractmethod
    def algorithm_class(self) -> type[BaseAlgorithm]:
        """What loads a checkpoint."""

    @abstractmethod
    def make_env(self, seed: int) -> Any:
        """Make an environment, or several in a vector."""

    @abstractmethod
    def make_model(self, env: Any) -> BaseAlgorithm:
        """Make the algorithm at the run's beginning."""

    @abstractmethod
    def make_checkpoint(self, eval_env: Any) -> Checkpoint:
        """Make the callback that measures and saves."""

    def load_arguments(self) -> dict[str, Any]:
        """Return what :meth:`load` gets beside the environment and the seed."""
        return {"device": "cpu"}

    def finish(self, model: BaseAlgorithm) -> None:  # noqa: B027  # most leave nothing
        """Write what is left to write."""


def train(job: Job, patience: float = 0.0) -> bool:
    """Train what is left of a run, in this process, on one core.

    :param patience: seconds to wait for another process that trains it.
    :return: False if another process does; it is left to it.
    """
    th.set_num_threads(1)
    with lock(job.state_folder, patience) as is_free:
        if is_free:
            _train(job)
    return is_free


def _train(job: Job) -> None:
    found = next(reversed(checkpoints(job.state_folder)), None)
    seed = resumed_seed(job.first_seed, 0 if found is None else steps_of(found))
    with closing(job.make_env(seed)) as env, closing(job.make_env(seed)) as eval_env:
        checkpoint = job.make_checkpoint(eval_env)
        checkpoint.restore(found)
        model = job.make_model(env) if found is None else _load(job, env, found, seed)
        model.learn(
            job.decisions - model.num_timesteps,
            CallbackList([*checkpoint.before, checkpoint]),
            reset_num_timesteps=False,
        )
        job.finish(model)


def resumed_seed(seed: int, steps: int) -> int:
    """Return another seed for each start: with the same one, the same episodes would come again."""
    return int(np.random.SeedSequence([seed, steps]).generate_state(1)[0]) if steps else seed


def _load(job: Job, env: Any, checkpoint: Path, seed: int) -> BaseAlgorithm:
    model = job.algorithm_class.load(
        checkpoint / "model.zip", env=env, seed=seed, **job.load_arguments()
    )
    buffer = replay_buffer(model)
    if buffer is not None:
        load_buffer(checkpoint / "replay_buffer.pkl", buffer)
    return model
