r"""Figure 1 of the paper: standard test functions, value against function evaluations.

    python -m benchmarks.bandits
    python -m benchmarks.bandits --functions Rosenbrock --dimensions 2 --budget 60000 \
        --policies Gaussian diagonal --name rosenbrock

Every objective, Gaussian and discretised, on Sphere, Rosenbrock and both functions that go by the
name of Schwefel, in 2 and 10 dimensions, 20 seeds, beside CMA-ES (``cma``, popsize 4, else its
defaults) and random search on the same budget. All of a seed start at one random point of the box,
with half of its half width as std. The rows are quantiles over the seeds of the value at the mean
(the mode, or CMA-ES's mean; not counted as an evaluation) and of the best value so far.
"""

from __future__ import annotations

import argparse
import csv
import json
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

RESULTS = Path(__file__).parent / "results"
STATE = Path("runs/bandits")
QUANTILES = (0.25, 0.5, 0.75)


def sphere(x: th.Tensor) -> th.Tensor:
    """Sum the squares."""
    return x.square().sum(-1)


def rosenbrock(x: th.Tensor) -> th.Tensor:
    """Make a curved valley with its minimum at one."""
    here, following = x[..., :-1], x[..., 1:]
    return (100.0 * (following - here.square()).square() + (1.0 - here).square()).sum(-1)


def schwefel_1_2(x: th.Tensor) -> th.Tensor:
    """Take the double sum: an ellipse that is not parallel to the axes."""
    return x.cumsum(-1).square().sum(-1)


def schwefel_2_26(x: th.Tensor) -> th.Tensor:
    """Make many local minima, of which the best is near 421 in each dimension."""
    return 418.9828872724338 * x.shape[-1] - (x * x.abs().sqrt().sin()).sum(-1)


class Problem(NamedTuple):
    """A function on a box, the same bounds for each dimension."""

    function: Callable[[th.Tensor], th.Tensor]
    low: float
    high: float
    n_bins: int


PROBLEMS = {
    "Sphere": Problem(sphere, -5.0, 5.0, 101),
    "Rosenbrock": Problem(rosenbrock, -5.0, 10.0, 151),
    "Schwefel 1.2": Problem(schwefel_1_2, -500.0, 500.0, 101),
    "Schwefel 2.26": Problem(schwefel_2_26, -500.0, 500.0, 101),
}
METHODS = ("PMPO-AR", "PMPO-A", "PMPO-R", "DPO", "MPO")


def objective(method: str, policy: str, dims: int, seeds: int) -> Any:
    """Make an objective; the three of PMPO have one expected gradient."""
    from sb3_pmpo.bandit import mpo_objective
    from sb3_pmpo.core.labels import top_k
    from sb3_pmpo.core.losses import dpo_loss
    from sb3_pmpo.objectives import DPOObjective, PMPOObjective

    if method == "DPO":
        return DPOObjective(5.0 if policy != "discretised" else 1.0, dpo_loss)
    if method == "MPO":
        n_dims = 1 if policy == "Gaussian" else dims
        return mpo_objective(n_dims, runs=(seeds,), categorical=policy == "discretised")
    alpha, beta = {"PMPO-AR": (0.5, 1.0), "PMPO-A": (1.0, 0.0), "PMPO-R": (0.0, 2.0)}[method]
    return PMPOObjective(alpha, beta, beta, top_k(2))


def checkpoints(budget: int) -> list[int]:
    """Space evaluations evenly on a logarithmic axis, in multiples of 4."""
    return sorted({4 * round(n / 4) for n in np.geomspace(4, budget, 40)})


Curve = Iterator[tuple[int, th.Tensor | None, th.Tensor]]  # evaluations, at the mean, best


def starts(problem: Problem, dims: int, seeds: int) -> th.Tensor:
    """Draw a start for each seed, ``[seeds, dims]``, the same for every method."""
    generator = th.Generator().manual_seed(0)
    uniform = th.rand(seeds, dims, dtype=th.float64, generator=generator)
    return problem.low + (problem.high - problem.low) * uniform


def run_bandit(
    problem: Problem, dims: int, seeds: int, budget: int, method: str, policy: str
) -> Curve:
    """Run all seeds of one objective in step."""
    from sb3_pmpo.bandit import Bandit

    th.manual_seed(1)
    ones = th.ones(dims, dtype=th.float64)
    search = Bandit(
        problem.low * ones,
        problem.high * ones,
        starts(problem, dims, seeds),
        objective=objective(method, policy, dims, seeds),
        n_bins=problem.n_bins if policy == "discretised" else None,
        full_covariance=policy == "Gaussian",
    )
    marks = set(checkpoints(budget))
    best = th.full((seeds,), float("inf"), dtype=th.float64)
    for used in range(4, budget + 1, 4):
        values = problem.function(search.ask())
        best = best.minimum(values.amin(0))
        search.tell(values)
        if used in marks:
            yield used, problem.function(search.mode()), best


def run_random(problem: Problem, dims: int, seeds: int, budget: int) -> Curve:
    """Draw points uniformly."""
    generator = th.Generator().manual_seed(1)
    points = th.rand(budget, seeds, dims, dtype=th.float64, generator=generator)
    values = problem.function(problem.low + (problem.high - problem.low) * points)
    best = values.cummin(0).values
    for used in checkpoints(budget):
        yield used, None, best[used - 1]


def run_cma(problem: Problem, dims: int, seeds: int, budget: int) -> Curve:
    """Run CMA-ES, a seed after the other; a run that has converged keeps its last values."""
    import cma

    marks = checkpoints(budget)
    curves = np.full((2, len(marks), seeds), np.inf)
    for seed, start in enumerate(starts(problem, dims, seeds).tolist()):
        options = {
            "popsize": 4, "seed": seed + 1, "verbose": -9, "maxfevals": budget,
            "bounds": [problem.low, problem.high],
        }  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search = cma.CMAEvolutionStrategy(start, (problem.high - problem.low) / 4, options)
            best, used = np.inf, 0
            while not search.stop():
                points = search.ask()
                values = problem.function(th.tensor(np.array(points))).tolist()
                search.tell(points, values)
                used, best = used + len(points), min(best, *values)
                mean = problem.function(th.tensor(np.asarray(search.result.xfavorite)))
                reached = np.searchsorted(marks, used)  # this mark and those after it
                curves[0, reached:, seed], curves[1, reached:, seed] = float(mean), best
    for index, used in enumerate(marks):
        yield used, th.tensor(curves[0, index]), th.tensor(curves[1, index])


PEERS = {"CMA-ES": run_cma, "random search": run_random}


def measure(
    name: str, dims: int, method: str, policy: str, seeds: int, budget: int
) -> list[dict[str, Any]]:
    """Return a row for each checkpoint of one method on one problem."""
    arguments = (PROBLEMS[name], dims, seeds, budget)
    peer = PEERS.get(method)
    curve = peer(*arguments) if peer else run_bandit(*arguments, method, policy)
    rows = []
    for used, at_mean, best in curve:
        row: dict[str, Any] = {
            "function": name, "dimensions": dims, "method": method, "policy": policy,
            "seeds": seeds, "evaluations": used,
        }  # fmt: skip
        for label, values in (("mean", at_mean), ("best", best)):
            for q in QUANTILES:
                value = float("nan") if values is None else values.quantile(q).item()
                row[f"{label}_q{round(100 * q)}"] = f"{value:.3e}"
        rows.append(row)
    return rows


def main() -> None:
    """Run what the command line asks for, or what is left of it; write the CSV and the figure."""
    import pandas as pd
    from tqdm import tqdm

    from benchmarks.provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--dimensions", nargs="+", type=int, default=[2, 10])
    parser.add_argument("--policies", nargs="+", default=["Gaussian", "discretised"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=20_000, help="function evaluations")
    parser.add_argument("--name", default="bandits", help="of the files in results/")
    options = parser.parse_args()
    th.set_num_threads(1)
    state = STATE / options.name
    state.mkdir(parents=True, exist_ok=True)
    methods = [*product(METHODS, options.policies), *((peer, "") for peer in PEERS)]
    rows: list[dict[str, Any]] = []
    for name, dims, (method, policy) in tqdm(
        list(product(options.functions, options.dimensions, methods))
    ):
        done = state / f"{name} {dims} {method} {policy}.json"
        if not done.exists():
            measured = measure(name, dims, method, policy, options.seeds, options.budget)
            done.write_text(json.dumps(measured))
        rows += json.loads(done.read_text())
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{options.name}.csv").open("w", newline="") as file:
        # What is the same in every row stands once.
        file.write("# " + "; ".join(f"{k}: {v}" for k, v in provenance().items()) + "\n")
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    plot(pd.read_csv(RESULTS / f"{options.name}.csv", comment="#"), RESULTS / f"{options.name}.png")


def plot(data: Any, path: Path) -> None:
    """Draw the medians and quartiles of the value at the mean, a row for each kind of policy."""
    from matplotlib.figure import Figure

    problems = list(data[["function", "dimensions"]].drop_duplicates().itertuples(index=False))
    policies = list(data.policy.dropna().unique())
    size = (max(8.0, 3.1 * len(problems)), 3.2 * len(policies))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(policies), len(problems), sharex=True, squeeze=False)
    for column, (function, dims) in enumerate(problems):
        part = data[(data.function == function) & (data.dimensions == dims)]
        for axis, policy in zip(axes[:, column], policies, strict=True):
            for colour, method in enumerate((*METHODS, *PEERS)):
                own = part[(part.method == method) & (part.policy.isna() | (part.policy == policy))]
                kind = "best" if method == "random search" else "mean"
                low, middle, high = (own[f"{kind}_q{q}"].clip(lower=1e-12) for q in (25, 50, 75))
                axis.plot(own.evaluations, middle, color=f"C{colour}", label=method)
                axis.fill_between(own.evaluations, low, high, color=f"C{colour}", alpha=0.15)
            axis.set(xscale="log", yscale="log")
            axis.set_title(f"{function}, {dims}-D, {policy}", fontsize="medium")
            axis.grid(alpha=0.3)
        axes[-1, column].set_xlabel("function evaluations")
    for axis in axes[:, 0]:
        axis.set_ylabel("value at the mean\n(random search: best)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = min(len(labels), int(figure.get_figwidth() / 2))  # of a narrow figure two rows
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
