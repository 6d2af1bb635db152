"""Return against environment steps and wall-clock: run the suites of :mod:`benchmarks.suites`.

    python -m benchmarks.learning run development            # what is missing, one process a core
    python -m benchmarks.learning run development --tasks walker-walk --seeds 0
    python -m benchmarks.learning run ablation --variant PMPO-S4 \
        '{"n_samples": 4, "labeller": "top_k(2)"}'
    python -m benchmarks.learning list

A run writes one CSV, ``results/runs/<suite>/<algorithm>__<task>__<seed>.csv``. One that reaches the
last step is finished and not run again, here or in another clone. Model and replay buffer lie under
``runs/benchmarks``: a run that was stopped, in whatever way, goes on from its last evaluation.
Wall-clock counts collecting and updating, not evaluating, in processes of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from benchmarks import records
from benchmarks.records import Places
from benchmarks.suites import SUITES, Run, Suite
from sb3_pmpo.tools.runs.pool import run_locally


def train(job: tuple[Run, Places]) -> None:
    """Train in this process, into which the libraries are imported only now."""
    from benchmarks import training

    training.train(*job)


def run_suites(suites: dict[str, Suite], places: Places, workers: int) -> list[str]:
    """Run what is missing of the suites, seed 0 of everything first.

    :param suites: by the name under which their results lie.
    :param workers: processes at a time.
    :return: the runs that failed.
    """
    runs = [run for name, suite in suites.items() for run in suite.runs(name)]
    # Stale rows fail in the process of their run, as every other error does.
    missing = [run for run in runs if not is_finished(run, places)]
    missing.sort(key=lambda run: run.seed)
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished", flush=True)
    ended = run_locally(train, [(run, places) for run in missing], workers)
    failed = {f"{run.suite}/{run.name}": why for (run, _), why in ended if why is not None}
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return [*failed]


def is_finished(run: Run, places: Places) -> bool:
    """Return whether a run's rows reach its last step and are of its arguments."""
    rows = records.read(places.rows(run))
    same = bool(rows) and rows[-1]["arguments"] == json.dumps(run.arguments, sort_keys=True)
    return same and records.is_finished(rows, run)


def list_suites(places: Places) -> None:
    """Print each suite and how much of it is there."""
    for name, suite in SUITES.items():
        runs = suite.runs(name)
        finished = sum(is_finished(run, places) for run in runs)
        steps = max(run.steps for run in runs)
        print(f"{name:22} {finished:4} of {len(runs):4} runs, {steps} steps: "
              f"{len(suite.tasks)} tasks, {', '.join(suite.algorithms)}")  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run what is missing of the suites")
    run.add_argument("suites", nargs="+", choices=list(SUITES), metavar="suite")
    run.add_argument("--tasks", nargs="+", help="only these")
    run.add_argument("--algorithms", nargs="+", help="only these")
    run.add_argument("--seeds", nargs="+", type=int, help="only these")
    run.add_argument("--steps", type=int, help="environment steps, instead of the suite's")
    run.add_argument("--variant", nargs=2, action="append", default=[], metavar=("NAME", "JSON"),
                     help="an algorithm more, with arguments of its own")  # fmt: skip
    run.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    for command in (run, commands.add_parser("list", help="list the suites")):
        command.add_argument("--results", type=Path, default=Places().results)
        command.add_argument("--state", type=Path, default=Places().state)
    return parser.parse_args(arguments)


def main() -> None:
    """Run or list."""
    options = parse()
    places = Places(options.results, options.state)
    if options.command == "list":
        return list_suites(places)
    os.environ.setdefault("MUJOCO_GL", "disabled")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    variants = {name: json.loads(text) for name, text in options.variant}
    suites = {
        name: SUITES[name]
        .with_variants(variants)
        .only(
            tasks=options.tasks,
            algorithms=options.algorithms,
            seeds=options.seeds,
            steps=options.steps,
        )
        for name in options.suites
    }
    if run_suites(suites, places, options.workers):
        sys.exit(1)


if __name__ == "__main__":
    main()
