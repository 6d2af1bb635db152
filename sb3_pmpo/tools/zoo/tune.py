"""``sb3-pmpo tune``: its arguments, and the workers of this machine."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from sb3_pmpo.command_line import Parser, count
from sb3_pmpo.tools.zoo.launch import run_train
from sb3_pmpo.tools.zoo.stopping import INTERRUPTED, sigterm_interrupts
from sb3_pmpo.tools.zoo.study import study_name
from sb3_pmpo.tools.zoo.tuning import Options, TuningManager


def tune(arguments: Sequence[str]) -> int:
    """Run ``sb3-pmpo tune``; return the exit status."""
    parser = _parser()
    ours, zoos = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(zoos):
        parser.print_help()
        print("\nThe other arguments are the Zoo's:\n")
    options = Options(**vars(ours))
    zoos = [*_study(zoos, options.workers), *zoos, "--optimize-hyperparameters"]
    interrupted = False
    if options.workers > 1:
        try:
            _run_workers(zoos, options)
        except KeyboardInterrupt:
            interrupted = True
        options = replace(options, only_report=True)
    run_train("tune", zoos, partial(TuningManager, options=options))
    return INTERRUPTED if interrupted else 0


def _study(zoos: Sequence[str], workers: int) -> list[str]:
    """Return what is missing of storage and name; the user's own come after and go first.

    Each algorithm has a study of its own for each environment.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--storage")  # or --storage=x, or --stor x, which the Zoo takes too
    parser.add_argument("--algo", default="pmpo")
    parser.add_argument("--env", default="")
    given = parser.parse_known_args(zoos)[0]
    name = ["--study-name", study_name(given.algo, given.env)]
    if workers > 1:
        return ["--storage", "logs/tune.log", *name]
    return name if given.storage else []


def _run_workers(zoos: Sequence[str], options: Options) -> None:
    """Run processes that share the study.

    :raises KeyboardInterrupt: on Ctrl-C and SIGTERM, after they have ended.
    :raises SystemExit: if all of them failed.
    """
    ours = ["--trial-seeds", options.trial_seeds, "--objective", options.objective]
    ours += ["--beat", options.beat, "--grace", options.grace, "--quiet"]
    command = [sys.executable, "-m", "sb3_pmpo", "tune", *map(str, ours), *zoos]
    workers = [subprocess.Popen(command) for _ in range(options.workers)]
    try:
        with sigterm_interrupts():
            failed = sum(worker.wait() != 0 for worker in workers)
    except KeyboardInterrupt:
        _stop(workers)
        raise
    if failed == options.workers:
        raise SystemExit("every worker failed; see above")


def _stop(workers: Sequence[subprocess.Popen]) -> None:
    for worker in workers:
        try:
            worker.wait(timeout=2)  # a terminal's Ctrl-C has reached it too; once is enough
        except subprocess.TimeoutExpired:
            worker.terminate()
    for worker in workers:
        worker.wait()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="sb3-pmpo tune", add_help=False, allow_abbrev=False,
        description="Search hyperparameters with Optuna. Run it on several machines with one "
        "--storage (a database's URL, or a *.log file that all of them see) and --study-name.",
    )  # fmt: skip
    parser.add_argument(
        "--trial-seeds", type=count, default=1, help="seeds of each trial (default: 1)"
    )
    parser.add_argument(
        "--objective", choices=("mean", "lcb"), default="mean",
        help="over the seeds: their mean, or mean - std / sqrt(seeds) (default: mean)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", "--n-jobs", type=count, default=1,
        help="processes on this machine (default: 1); the Zoo's --n-jobs, of threads, is the same",
    )  # fmt: skip
    parser.add_argument(
        "--beat",
        type=float,
        default=10.0,
        help="seconds between a worker's signs of life (default: 10)",
    )
    parser.add_argument(
        "--grace", type=float, default=120.0,
        help="seconds without one after which another worker takes its trial up (default: 120)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="leave the report to another worker")
    return parser
