"""One training run that may be killed at any moment and goes on from its last checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import traceback
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rl_zoo3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_pmpo.envs import make_env
from sb3_pmpo.tools.runs.checkpoints import (
    RESULTS,
    Checkpoint,
    SaveModel,
    checkpoints,
    end_trajectory,
    restore_evaluation,
    save_model,
    tidy,
    to_disk,
    write_whole,
)
from sb3_pmpo.tools.settings import to_arguments
from sb3_pmpo.tools.zoo import register


def algorithms() -> dict[str, type[BaseAlgorithm]]:
    """Return all algorithms by the Zoo's names, its own and ours."""
    register()
    return rl_zoo3.ALGOS


class Result(NamedTuple):
    """What a run has come to: ``status`` is new, unfinished, finished or failed.

    :param steps: decisions, up to the last checkpoint if it is not finished.
    :param last: mean return of the last evaluation.
    :param best: the highest mean return of an evaluation.
    """

    status: str
    steps: int = 0
    last: float | None = None
    best: float | None = None


@dataclass(frozen=True)
class Run:
    """What to train and where to put it; steps are decisions, of one environment."""

    algorithm: str
    env: str
    seed: int
    folder: Path
    policy: str
    env_wrapper: list[dict[str, dict[str, Any]]]
    n_timesteps: int
    eval_freq: int
    save_freq: int
    eval_episodes: int
    hyperparameters: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        """Return all but the folder, as it comes back from a JSON file."""
        everything = asdict(self)
        del everything["folder"]
        return json.loads(json.dumps(everything))

    def check_folder(self) -> None:
        """Refuse to go on in the folder of a run with other settings.

        :raises ValueError: naming them.
        """
        path = self.folder / "run.json"
        if not path.exists():
            return
        before, now = json.loads(path.read_text()), self.settings()
        changed = [
            f"{key} (was {before.get(key)!r}, is {now.get(key)!r})"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise ValueError(
                f"{self.folder} holds a run with other settings: {', '.join(changed)}. Set them "
                "back, choose another log_folder, or delete that folder to begin the run anew"
            )

    def result(self) -> Result:
        """Read from the folder how far the run has come."""
        if (self.folder / "finished.json").exists():
            return _read_result("finished", self.folder, "finished.json")
        saved = checkpoints(self.folder)
        return _read_result("unfinished", saved[-1], "progress.json") if saved else Result("new")


def _read_result(status: str, folder: Path, progress: str) -> Result:
    steps = json.loads((folder / progress).read_text())["steps"]
    if not (folder / "evaluations.npz").exists():
        return Result(status, steps)
    with np.load(folder / "evaluations.npz") as evaluations:
        returns = evaluations["results"].mean(1)
    return Result(status, steps, float(returns[-1]), float(returns.max()))


def execute(run: Run) -> Result:
    """Train, from the last checkpoint if there is one, until the run is finished.

    An error is written to ``error.txt`` in the run's folder and not raised.

    :return: how far it came.
    """
    th.set_num_threads(1)  # each process has one core
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.result().status == "finished":  # by a node that died before it could say so
        return run.result()
    try:
        _train(run)
    except Exception:
        return fail(run, traceback.format_exc())
    (run.folder / "error.txt").unlink(missing_ok=True)
    return run.result()


def fail(run: Run, why: str) -> Result:
    """Write ``error.txt`` and return how far the run came."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_whole(run.folder / "error.txt", why.encode())
    return run.result()._replace(status="failed")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def _train(run: Run) -> None:
    folder = run.folder
    _write_json(folder / "run.json", run.settings())
    checkpoint = next(reversed(checkpoints(folder)), None)
    tidy(folder, checkpoint)
    steps = run.result().steps
    # With the same seed, a resumed run would meet the same episodes and the same noise again.
    seed = (
        int(np.random.SeedSequence([run.seed, steps]).generate_state(1)[0]) if steps else run.seed
    )
    with (folder / "log.txt").open("a") as log:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        log.write(f"{now} from step {steps} on {socket.gethostname()}, process {os.getpid()}\n")
    with closing(_make_env(run, seed)) as env, closing(_make_env(run, seed)) as eval_env:
        model = _make_model(run, env) if checkpoint is None else _load(run, env, checkpoint, seed)
        evaluation = EvalCallback(
            eval_env,
            # Not best_model_save_path, which a kill can leave half written.
            callback_on_new_best=SaveModel(folder / "best_model.zip"),
            n_eval_episodes=run.eval_episodes,
            eval_freq=run.eval_freq,
            log_path=str(folder),
            verbose=0,
            warn=False,
        )
        if checkpoint is not None:
            restore_evaluation(evaluation, checkpoint)
        callbacks = CallbackList([evaluation, Checkpoint(folder, run.save_freq, evaluation)])
        remaining = run.n_timesteps - model.num_timesteps
        model.learn(remaining, callbacks, reset_num_timesteps=False)
    _finish(folder, model)


def _finish(folder: Path, model: BaseAlgorithm) -> None:
    save_model(model, folder / "model.zip")
    to_disk(*(folder / name for name in ("model.zip", *RESULTS) if (folder / name).exists()))
    _write_json(folder / "finished.json", {"steps": model.num_timesteps})
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)


def _make_env(run: Run, seed: int) -> VecEnv:
    return make_vec_env(partial(make_env, run.env, run.env_wrapper), n_envs=1, seed=seed)


def _make_model(run: Run, env: VecEnv) -> BaseAlgorithm:
    algorithm = algorithms()[run.algorithm]
    arguments: dict[str, Any] = {"device": "cpu"} | run.hyperparameters
    size = signature(algorithm).parameters.get("buffer_size")
    if size is not None:
        # A checkpoint holds the whole buffer, also what is never filled.
        wanted = arguments.get("buffer_size", size.default)
        arguments["buffer_size"] = min(wanted, run.n_timesteps + 1)
    return algorithm(
        run.policy,
        env,
        seed=run.seed,
        tensorboard_log=str(run.folder / "tensorboard"),
        **to_arguments(arguments),
    )


def _load(run: Run, env: VecEnv, checkpoint: Path, seed: int) -> BaseAlgorithm:
    model = algorithms()[run.algorithm].load(
        checkpoint / "model.zip",
        env=env,
        device=run.hyperparameters.get("device", "cpu"),
        seed=seed,
        tensorboard_log=str(run.folder / "tensorboard"),
    )
    if isinstance(model, OffPolicyAlgorithm):
        model.load_replay_buffer(checkpoint / "replay_buffer.pkl")
        assert model.replay_buffer is not None  # just loaded
        end_trajectory(model.replay_buffer)
    return model
