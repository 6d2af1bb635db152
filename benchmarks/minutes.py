"""Minutes of 100k environment steps, each algorithm of the suite ``peers`` at its own defaults.

    python -m benchmarks.minutes --rounds 7
    python -m benchmarks.minutes --algorithms PMPO PMPO-without-embeddings SAC

One process on one core, walker-walk with an action repeat of 2. The algorithms take turns, so that
a slow spell of the machine hits them all. A figure is the median over the rounds, to be compared
within one run. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch as th

from benchmarks.models import make_model, make_task
from benchmarks.provenance import provenance
from benchmarks.suites import SUITES
from benchmarks.throughput import RESULTS, take_one_core, write_rounds

TASK, ACTION_REPEAT, STEPS = "walker-walk", 2, 100_000
#: Decisions before the rounds: the random ones that come first, then what compilers need.
WARM_UP = 100, 200


def main() -> None:
    """Read the command line, measure, write the CSV, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--decisions", type=int, default=150, help="of a turn")
    known = SUITES["development"].algorithms | SUITES["peers"].algorithms
    parser.add_argument("--algorithms", nargs="+", choices=list(known), help="default: the peers")
    options = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "disabled")
    th.set_num_threads(1)
    about = {"core": str(take_one_core())} | provenance() | {"decisions": str(options.decisions)}
    models = {}
    for name in options.algorithms or SUITES["peers"].algorithms:
        arguments = known[name] | {"learning_starts": WARM_UP[0], "buffer_size": STEPS}
        env = make_task(TASK, ACTION_REPEAT, name)
        models[name] = make_model(name, TASK, env, 0, arguments)
        models[name].learn(sum(WARM_UP), log_interval=None)
    minutes: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(options.rounds):
        for name, model in models.items():
            started = time.perf_counter()
            model.learn(options.decisions, log_interval=None, reset_num_timesteps=False)
            turn = time.perf_counter() - started
            minutes[name].append(turn * STEPS / ACTION_REPEAT / options.decisions / 60)
    path = RESULTS / ("minutes_of_some.csv" if options.algorithms else "minutes.csv")
    write_rounds(path, "minutes_of_100k", minutes, about)
    base = statistics.median(minutes.get("SAC") or next(iter(minutes.values())))
    print(f"{'algorithm':20}{'minutes':>10}{'of SB3 SAC':>12}")
    for name, values in minutes.items():
        middle = statistics.median(values)
        print(f"{name:20}{middle:10.1f}{middle / base:12.2f}")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
