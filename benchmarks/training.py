"""What a benchmark measures of a run: the callback that the package's engine of runs carries."""

from __future__ import annotations

import json
import resource
import time
from typing import Any

from benchmarks import records
from benchmarks.models import algorithm_class, make_model, make_task, run_episodes
from benchmarks.provenance import provenance
from benchmarks.records import Places, Row
from benchmarks.suites import Run
from sb3_pmpo.tools.checkpoints import Checkpoints, lock
from sb3_pmpo.tools.runs import engine
from sb3_pmpo.tools.runs.engine import Job

#: The seeds of the evaluation's episodes, the same for every run.
EVALUATION_SEED = 10_000


def train(run: Run, places: Places) -> None:
    """Train what is left of a run; a stop or a crash loses what came after the last evaluation.

    :raises ValueError: if the run's rows are of other arguments.
    """
    path, folder = places.rows(run), places.checkpoints(run)
    rows = records.read(path)
    _check_arguments(rows, run)
    if records.is_finished(rows, run):
        return
    job = Job(
        folder=folder,
        decisions=run.steps // run.action_repeat,
        seed=run.seed,
        make_env=lambda _: make_task(run.task, run.action_repeat, run.algorithm),
        make_model=lambda env: make_model(run.algorithm, run.task, env, run.seed, run.arguments),
        make_checkpoints=lambda eval_env: Measure(run, places, eval_env),
        algorithm=algorithm_class(run.algorithm),
        loading={"device": "cpu"},
    )
    with lock(folder) as is_free:
        if is_free:
            engine.train(job)
        else:
            print(f"{run.suite}/{run.name} is trained by another process: left to it ({path})")


class Measure(Checkpoints):
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

    def started(self) -> None:
        """Start the clock."""
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
