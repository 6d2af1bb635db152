"""One training run that may be killed at any moment and goes on from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList

from sb3_pmpo.tools.checkpoints import Checkpoints, clean, find, load


class Job(NamedTuple):
    """What to train, and what to measure on the way.

    :param folder: of the checkpoints; the caller holds its :func:`lock`.
    :param decisions: steps of the algorithm until it is finished.
    :param seed: of a run that was never interrupted.
    :param make_env: makes an environment, or several in a vector, from a seed.
    :param make_model: makes the algorithm in an environment, at the run's beginning.
    :param make_checkpoints: makes the callback that measures and saves, with an environment for it.
    :param algorithm: the class, to load a checkpoint.
    :param loading: arguments to load it with.
    """

    folder: Path
    decisions: int
    seed: int
    make_env: Callable[[int], Any]
    make_model: Callable[[Any], BaseAlgorithm]
    make_checkpoints: Callable[[Any], Checkpoints]
    algorithm: type[BaseAlgorithm]
    loading: dict[str, Any]


def train(job: Job) -> BaseAlgorithm:
    """Train what is left of a run, in this process, on one core."""
    th.set_num_threads(1)
    found = find(job.folder)
    seed = job.seed
    if found is not None:  # with the same one, the first episodes of what begins anew came again
        seed = int(np.random.SeedSequence([seed, found.step]).generate_state(1)[0])
    with closing(job.make_env(seed)) as env, closing(job.make_env(seed)) as eval_env:
        checkpoints = job.make_checkpoints(eval_env)
        clean(job.folder)
        checkpoints.restore(found)
        if found is None:
            model = job.make_model(env)
        else:
            model = load(job.algorithm, found, env, seed, **job.loading)
        callbacks = CallbackList([*checkpoints.before, checkpoints])
        model.learn(job.decisions - model.num_timesteps, callbacks, reset_num_timesteps=False)
    return model
