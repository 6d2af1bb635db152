"""Figure 2 of the paper: every algorithm, Gaussian and discretised, on the Control Suite.

    python -m benchmarks.figure2            # what is missing, then the CSV and the figure
    python -m benchmarks.figure2 --draw     # of what is there

One harness (:mod:`benchmarks.learning`), widths 128x128 and batch 128 for the family, so that the
84 runs fit two cores; SAC at SB3's defaults. The three variants of PMPO have the same expected
gradient: on an even split, accept-only with a KL weight of beta - 1 and reject-only with beta + 1
are accept-and-reject with beta (`instability` in core/losses.py), so they differ in variance alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from itertools import product
from typing import Any

from benchmarks import learning

TASKS = ("cartpole-swingup", "walker-walk", "cheetah-run")
SHARED: dict[str, Any] = {"batch_size": 128}
POLICIES: dict[str, dict[str, Any]] = {
    "Gaussian": {"net_arch": [128, 128]},
    "discretised": {"net_arch": [128, 128], "n_bins": 11},
}
#: The KL weights of accept-and-reject, for the mean and for what spreads.
BETA = (1.0, 20.0)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "PMPO-AR": {"beta": BETA},
    "PMPO-A": {"alpha": 1.0, "beta": tuple(beta - 1.0 for beta in BETA)},
    "PMPO-R": {"alpha": 0.0, "beta": tuple(beta + 1.0 for beta in BETA)},
    "PMPO-BW": {"beta": BETA, "top_k": 1},
    "MPO": {},
    "DPO": {"n_samples": 8},
}


def variants() -> dict[str, dict[str, Any]]:
    """Return the arguments of every algorithm, by name; a discretised one's ends in ``-D``."""
    return {
        name + suffix: SHARED | {"policy_kwargs": POLICIES[policy]} | arguments
        for (policy, suffix), (name, arguments) in product(
            {"Gaussian": "", "discretised": "-D"}.items(), ARGUMENTS.items()
        )
    }


def draw() -> None:
    """Gather the rows and draw the median and range over the seeds, a row for each policy."""
    import pandas as pd
    from matplotlib.figure import Figure

    named = {*variants(), "SAC"}
    rows = [
        row
        for path in sorted(learning.STATE.glob("*/rows.csv"))
        for row in learning._read(path)
        if row["algorithm"] in named
    ]
    learning._write(learning.RESULTS / "figure2.csv", rows)
    data = pd.read_csv(learning.RESULTS / "figure2.csv")
    last = data[data.steps == 50_000].groupby(["algorithm", "task"]).return_mean
    print(last.agg(["median", "min", "max", "count"]).to_string())
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(2, len(TASKS), sharex=True, sharey="col")
    for (row, suffix), (column, task) in product(enumerate(("", "-D")), enumerate(TASKS)):
        axis = axes[row, column]
        for colour, name in enumerate((*ARGUMENTS, "SAC")):
            algorithm = name if name == "SAC" else name + suffix
            part = data[(data.algorithm == algorithm) & (data.task == task)]
            if part.empty:
                continue
            curve = part.groupby("steps").return_mean.agg(["median", "min", "max"])
            seeds = f" ({part.seed.nunique()})"
            axis.plot(curve.index, curve["median"], color=f"C{colour}", label=name + seeds)
            axis.fill_between(
                curve.index, curve["min"], curve["max"], color=f"C{colour}", alpha=0.1
            )
        axis.set_title(f"{task}, {tuple(POLICIES)[row]}")
        if axis.lines:
            axis.legend(title="(seeds)", fontsize="x-small", loc="best", framealpha=0.6)
        axis.grid(alpha=0.3)
        axes[1, column].set_xlabel("environment steps")
        axes[row, 0].set_ylabel("return")
    figure.savefig(learning.RESULTS / "figure2.png", dpi=90)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--draw", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.draw:
        os.environ.setdefault("MUJOCO_GL", "disabled")
        settings = (50_000, 5_000, 5, 2, variants())
        jobs = [
            ((algorithm, task, seed), *settings)
            for seed, task, algorithm in product(options.seeds, TASKS, (*variants(), "SAC"))
        ]
        with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
            pool.starmap(learning.run, jobs, chunksize=1)
    draw()


if __name__ == "__main__":
    main()
