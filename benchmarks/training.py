"""What a benchmark measures of a run: the callback that the package's engine of runs carries."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.models import algorithm_class, make_model, make_task, run_episodes
from benchmarks.provenance import provenance
from benchmarks.records import Places, Row
from benchmarks.suites import Run
from sb3_pmpo.tools.runs import engine
from sb3_pmpo.tools.runs.checkpoints import Checkpoint

#: The seeds of the evaluation's episodes, the same for every run.
EVALUATION_SEED = 10_000


def train(run: Run, places: Places) -> None:
    """Train what is left of a run; a stop or a crash loses what came after the last evaluation.

    :raises ValueError: if the run's rows are of other arguments.
    """
    path = places.rows(run)
    rows = records.read(path)
    _check_arguments(rows, run)
    if not records.is_finished(rows, run) and not engine.train(Training(run, places)):
        print(f"{run.suite}/{run.name} is trained by another process: left to it ({path})")


@dataclass(frozen=True)
class Training(engine.Job):
    """A run of a suite, as the engine wants it."""

    run: Run
    places: Places

    @property
    def state_folder(self) -> Path:
        """Not beside the rows, which are committed."""
        return self.places.checkpoints(self.run)

    @property
    def decisions(self) -> int:
        """A decision is as many environment steps as its action is repeated."""
        return self.run.steps // self.run.action_repeat

    @property
    def first_seed(self) -> int:
        """The run's."""
        return self.run.seed

    @property
    def algorithm_class(self) -> Any:
        """The class that the algorithm's name starts with."""
        return algorithm_class(self.run.algorithm)

    def make_env(self, seed: int) -> Any:
        """Make the task as the algorithm gets it."""
        return make_task(self.run.task, self.run.action_repeat, self.run.algorithm)

    def make_model(self, env: Any) -> Any:
        """Make the algorithm with the run's arguments."""
        run = self.run
        return make_model(run.algorithm, run.task, env, run.seed, run.arguments)

    def make_checkpoint(self, eval_env: Any) -> Checkpoint:
        """Make the callback that measures."""
        return Measure(self.run, self.places, eval_env)


class Measure(Checkpoint):
    """Evaluate between rollouts, write a row, save; the clock stands still meanwhile.

    An algorithm with long rollouts is measured at the first end of one after a row's steps.

    :param run: the run.
    :param places: where rows and checkpoints are.
    :param eval_env: the environment of the evaluations.
    """

    def __init__(self, run: Run, places: Places, eval_env: Any) -> None:
        super().__init__(places.checkpoints(run), run.interval // run.action_repeat)
        self._run, self._path, self._eval_env = run, places.rows(run), eval_env
        self._rows: list[Row] = []
        self._about = (
            provenance()
        )  # of the code as it was imported, whatever is committed meanwhile

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._started = time.perf_counter()

    def _on_training_end(self) -> None:
        if not records.is_finished(self._rows, self._run):
            self.save()

    def measure(self) -> None:
        """Add a row."""
        seconds, run = time.perf_counter() - self._started, self._run
        steps = self.model.num_timesteps * run.action_repeat
        steps = run.steps if steps >= run.steps else steps // run.interval * run.interval
        episodes = run.episodes if steps < run.steps else run.last_episodes
        seeds = range(EVALUATION_SEED, EVALUATION_SEED + episodes)
        returns = run_episodes(self.model, self._eval_env, seeds)
        last = self._rows[-1] if self._rows else {"train_seconds": 0.0, "peak_rss_mib": 0.0}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        row = {
            "algorithm": run.algorithm,
            "task": run.task,
            "seed": run.seed,
            "steps": steps,
            "train_seconds": round(float(last["train_seconds"]) + seconds, 1),
            "return_mean": round(sum(returns) / len(returns), 1),
            "return_min": round(min(returns), 1),
            "return_max": round(max(returns), 1),
            "episodes": len(returns),
            "action_repeat": run.action_repeat,
            "peak_rss_mib": round(max(float(last["peak_rss_mib"]), peak), 1),
            "arguments": json.dumps(run.arguments, sort_keys=True),
        }
        self._rows.append(row | self._about)

    def saved(self) -> None:
        """Write the rows, and go on."""
        records.write(self._path, self._rows)
        run, row = self._run, self._rows[-1]
        print(f"{run.suite} {run.algorithm} {run.task} seed {run.seed} step {row['steps']} "
              f"{row['train_seconds']:.0f} s return {row['return_mean']}", flush=True)  # fmt: skip
        self._started = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self._rows}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the rows so far: the checkpoint is the truth, the file may be behind it or ahead."""
        self._rows = state["rows"]
        _check_arguments(self._rows, self._run)
        records.write(self._path, self._rows)


def _check_arguments(rows: list[Row], run: Run) -> None:
    arguments = json.dumps(run.arguments, sort_keys=True)
    if rows and rows[-1]["arguments"] != arguments:
        raise ValueError(
            f"{run.suite}/{run.name} was run with {rows[-1]['arguments']}, not {arguments}: give "
            "the variant another name, or delete its rows and its checkpoints"
        )
