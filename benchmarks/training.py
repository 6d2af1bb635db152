"""Train one run, evaluating it on the way, from where it stopped to its last step."""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from typing import Any

from benchmarks import checkpoints, records
from benchmarks.models import algorithm_class, make_model, make_task, run_episodes
from benchmarks.provenance import provenance
from benchmarks.records import Places
from benchmarks.suites import Run

#: The seeds of the evaluation's episodes, the same for every run.
EVALUATION_SEED = 10_000


def train(run: Run, places: Places) -> None:
    """Train what is left of a run; a stop or a crash loses what came after the last evaluation.

    :raises ValueError: if the run's rows are of other arguments.
    """
    path, folder = places.rows(run), places.checkpoints(run)
    if records.is_finished(_rows_of(run, places), run):
        return
    with checkpoints.lock(folder) as is_free:
        if is_free:
            _train(run, places)
        else:
            print(f"{run.suite}/{run.name} is trained by another process: left to it ({path})")


def _train(run: Run, places: Places) -> None:
    import torch as th

    th.set_num_threads(1)
    about = provenance()  # of the code as it was imported, whatever is committed meanwhile
    env, eval_env = (make_task(run.task, run.action_repeat) for _ in range(2))
    model, rows = _start_or_resume(run, places, env)
    if rows:  # the checkpoint is the truth, and the file may be behind it or ahead
        records.write(places.rows(run), rows)
    while not records.is_finished(rows, run):
        done = int(rows[-1]["steps"]) if rows else 0
        steps = min(done + run.interval, run.steps)
        started = time.perf_counter()
        model.learn(
            steps // run.action_repeat - model.num_timesteps,  # decisions
            log_interval=None,
            reset_num_timesteps=done == 0,
        )
        seconds = time.perf_counter() - started
        episodes = run.episodes if steps < run.steps else run.last_episodes
        returns = run_episodes(model, eval_env, range(EVALUATION_SEED, EVALUATION_SEED + episodes))
        rows = [*rows, _row(run, steps, seconds, returns, rows) | about]
        checkpoints.save(places.checkpoints(run), model, rows)
        records.write(places.rows(run), rows)
        print(f"{run.suite} {run.algorithm} {run.task} seed {run.seed} step {steps} "
              f"{rows[-1]['train_seconds']:.0f} s return {rows[-1]['return_mean']}",
              flush=True)  # fmt: skip
        _stop_if_orphaned()


def _start_or_resume(run: Run, places: Places, env: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Return the model and its rows so far, with their numbers as such."""
    saved = checkpoints.list_checkpoints(places.checkpoints(run))
    if not saved:
        return make_model(run.algorithm, run.task, env, run.seed, run.arguments), []
    rows = records.read(saved[-1] / "rows.csv")
    _check_arguments(rows, run)
    # A seed of its own, else the random numbers of the beginning would come again.
    seed = run.seed + int(rows[-1]["steps"])
    model = algorithm_class(run.algorithm).load(
        saved[-1] / "model.zip", env=env, device="cpu", seed=seed
    )
    checkpoints.load_buffer(saved[-1] / "buffer.pkl", model.replay_buffer)
    return model, rows


def _rows_of(run: Run, places: Places) -> list[dict[str, Any]]:
    rows = records.read(places.rows(run))
    _check_arguments(rows, run)
    return rows


def _check_arguments(rows: list[dict[str, Any]], run: Run) -> None:
    arguments = json.dumps(run.arguments, sort_keys=True)
    if rows and rows[-1]["arguments"] != arguments:
        raise ValueError(
            f"{run.suite}/{run.name} was run with {rows[-1]['arguments']}, not {arguments}: give "
            "the variant another name, or delete its rows and its checkpoints"
        )


def _row(
    run: Run, steps: int, seconds: float, returns: list[float], before: list[dict[str, Any]]
) -> dict[str, Any]:
    last = before[-1] if before else {"train_seconds": 0.0, "peak_rss_mib": 0.0}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return {
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


def _stop_if_orphaned() -> None:
    """End when the process that started this one was killed; the next start goes on from here."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit("the harness is gone: stopping after this evaluation")
