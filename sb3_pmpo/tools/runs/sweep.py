"""A run of a sweep: its folder, from the first checkpoint to the final model."""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rl_zoo3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_pmpo.envs import make_env, wrap
from sb3_pmpo.files import copy_whole, whole
from sb3_pmpo.storage.strangers import RUN_SETTINGS, sign_settings
from sb3_pmpo.tools.checkpoints import Checkpoints, find, forget, lock
from sb3_pmpo.tools.evaluation import Evaluation
from sb3_pmpo.tools.runs.engine import Job, train
from sb3_pmpo.tools.saving import save_model
from sb3_pmpo.tools.settings import to_arguments
from sb3_pmpo.tools.zoo import register

#: Seconds for the process of a node that was given up to leave its run to another.
PATIENCE = 60.0


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
        path = self.folder / RUN_SETTINGS
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
        finished = self.folder / "finished.json"
        if finished.exists():
            steps = json.loads(finished.read_text())["steps"]
            return _read_result("finished", steps, self.folder / _EVALUATIONS)
        status = "failed" if (self.folder / "error.txt").exists() else "unfinished"
        try:
            found = find(self.folder)
        except ValueError:  # the run will say so
            return Result("unfinished")
        if found is None:
            return Result("new" if status == "unfinished" else status)
        evaluations = found.path(_EVALUATIONS) if _EVALUATIONS in found.files else None
        return _read_result(status, found.step, evaluations)

    def fail(self, why: str) -> None:
        """Write ``error.txt``."""
        with whole(self.folder / "error.txt") as writing:
            writing.write_text(why)


def execute(run: Run) -> None:
    """Train, from the last checkpoint if there is one, until the run is finished.

    An error is written to ``error.txt`` in the run's folder and not raised.
    """
    if run.result().status == "finished":  # by a node that died before it could say so
        forget(run.folder)
        return
    (run.folder / "error.txt").unlink(missing_ok=True)
    try:
        _write_json(run.folder / RUN_SETTINGS, run.settings())
        sign_settings(run.folder, [RUN_SETTINGS])
        with lock(run.folder, PATIENCE) as is_free:
            if not is_free:
                raise RuntimeError(f"another process trains {run.folder}: wait until it has ended")
            _finish(run, train(_job(run)))
    except (Exception, SystemExit):  # of an environment; whatever its status, nothing is finished
        run.fail(traceback.format_exc())


def _job(run: Run) -> Job:
    algorithm = algorithms()[run.algorithm]
    logs = str(run.folder / "tensorboard")
    arguments = {"device": "cpu", "tensorboard_log": logs} | to_arguments(run.hyperparameters)
    return Job(
        folder=run.folder,
        decisions=run.n_timesteps,
        seed=run.seed,
        make_env=lambda seed: make_vec_env(
            partial(make_env, run.env),
            n_envs=1,
            seed=seed,
            # Around the Monitor, as the Zoo has it: lengths of episodes are environment steps.
            wrapper_class=partial(wrap, wrappers=run.env_wrapper),
        ),
        make_model=lambda env: algorithm(run.policy, env, seed=run.seed, **arguments),
        make_checkpoints=partial(_checkpoints, run),
        algorithm=algorithm,
        loading={"device": arguments["device"], "tensorboard_log": logs},
    )


def _finish(run: Run, model: BaseAlgorithm) -> None:
    """Leave the final model in place of the checkpoint."""
    save_model(model, run.folder / "model.zip")
    for path in (run.folder / name for name in _RESULTS):
        if path.exists():
            copy_whole(path, path)  # so that they are on the disk before finished.json
    _write_json(run.folder / "finished.json", {"steps": model.num_timesteps})
    forget(run.folder)


_EVALUATIONS = "evaluations.npz"
_RESULTS = (_EVALUATIONS, "best_model.zip")


def _checkpoints(run: Run, eval_env: VecEnv) -> Checkpoints:
    evaluation = Evaluation(
        eval_env,
        best_model_save_path=run.folder,
        n_eval_episodes=run.eval_episodes,
        eval_freq=run.eval_freq,
        log_path=str(run.folder),
        verbose=0,
        warn=False,
    )
    return LoggedCheckpoints(run.folder, run.save_freq, evaluation)


class LoggedCheckpoints(Checkpoints):
    """Checkpoints with the results of the evaluations; each start is noted in ``log.txt``.

    :param folder: the run's.
    :param save_freq: steps between checkpoints.
    :param evaluation: which writes into the run's folder.
    """

    def __init__(self, folder: Path, save_freq: int, evaluation: Evaluation) -> None:
        super().__init__(folder, save_freq, evaluation, _RESULTS)
        self.before = [evaluation]

    def started(self) -> None:
        """Note the start in ``log.txt``."""
        now, steps = time.strftime("%Y-%m-%dT%H:%M:%S%z"), self.model.num_timesteps
        with (self._folder / "log.txt").open("a") as log:
            log.write(f"{now} from step {steps} on {socket.gethostname()}, process {os.getpid()}\n")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with whole(path) as writing:
        writing.write_text(json.dumps(content, indent=2) + "\n")


def _read_result(status: str, steps: int, path: Path | None) -> Result:
    if path is None or not path.exists():
        return Result(status, steps)
    with np.load(path) as evaluations:
        returns = evaluations["results"].mean(1)
    return Result(status, steps, float(returns[-1]), float(returns.max()))
