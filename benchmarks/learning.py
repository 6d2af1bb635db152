"""Return against environment steps and wall-clock, PMPO beside its peers in one harness.

    python -m benchmarks.learning run --tasks cartpole-swingup walker-walk --seeds 0 1 2 \
        --algorithms PMPO SAC --steps 50000 --workers 2
    python -m benchmarks.learning final
    python -m benchmarks.learning report

An ablation is a variant of an algorithm, named after it, with arguments of its own:

    python -m benchmarks.learning run --tasks walker-walk --name ablation \
        --algorithms PMPO PMPO-S4 --variant PMPO-S4 '{"n_samples": 4, "top_k": 2}'

SB3's algorithms have their defaults, PMPO the one setting that ships for the whole suite
(zoo_configs/pmpo.yml). The environments are the same: Control Suite, action repeat
2, a step is an environment step, each repeat counted. Runs are resumed where they stopped: after
each evaluation the model, its replay buffer and the rows so far are on disk. Wall-clock counts
collecting and updating, not evaluating; with --workers 2 two runs share the machine, one thread
each.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import multiprocessing
import os
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
STATE = Path("runs/learning")
FIELDS = ("algorithm", "task", "seed", "steps", "train_seconds", "return_mean", "return_min",
          "return_max", "episodes", "action_repeat", "commit", "machine", "versions")  # fmt: skip


#: Keys of a configuration that the harness sets itself, the same for every algorithm.
NOT_ARGUMENTS = {"n_timesteps", "policy", "env_wrapper"}


def run_episodes(model: Any, env: Any, seeds: Iterable[int]) -> list[float]:
    """Run the policy's deterministic action for one episode a seed; return the returns."""
    returns = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def algorithm_class(algorithm: str) -> Any:
    """Return the class of an algorithm or of its variant."""
    from stable_baselines3 import SAC, TD3

    from sb3_pmpo import DPO, MPO, PMPO

    return {"PMPO": PMPO, "MPO": MPO, "DPO": DPO, "SAC": SAC, "TD3": TD3}[algorithm.split("-")[0]]


def make_task(task: str, action_repeat: int) -> Any:
    """Make a Control Suite task as every algorithm gets it."""
    from sb3_pmpo.envs import control_suite, make_env

    name = f"{control_suite.__module__}.control_suite"
    return make_env(f"dm_control/{task}-v0", [{name: {"action_repeat": action_repeat}}])


def make_model(algorithm: str, task: str, env: Any, seed: int, variants: dict[str, Any]) -> Any:
    """Make an algorithm with its shipped setting, or a variant of it, such as PMPO-S4."""
    from sb3_pmpo import top_k
    from sb3_pmpo.configs import load_config

    kwargs = copy.deepcopy(variants.get(algorithm, {}))  # SB3 adds to policy_kwargs
    if algorithm.split("-")[0] in {"PMPO", "MPO", "DPO"}:
        suite = load_config("pmpo", f"dm_control/{task}-v0")
        kwargs = {key: suite[key] for key in suite.keys() - NOT_ARGUMENTS} | kwargs
    if "top_k" in kwargs:
        kwargs["labeller"] = top_k(kwargs.pop("top_k"))
    return algorithm_class(algorithm)("MlpPolicy", env, seed=seed, device="cpu", **kwargs)


def run(
    job: tuple[str, str, int],
    steps: int,
    interval: int,
    episodes: int,
    repeat: int,
    variants: dict[str, Any],
) -> None:
    """Train one (algorithm, task, seed), evaluating every ``interval`` environment steps."""
    import torch as th

    th.set_num_threads(1)
    algorithm, task, seed = job
    folder = STATE / f"{algorithm}__{task}__{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    env, eval_env = make_task(task, repeat), make_task(task, repeat)
    model = make_model(algorithm, task, env, seed, variants)
    rows = _read(folder / "rows.csv")
    if rows:
        model = type(model).load(folder / "model", env=env, device="cpu", seed=seed)
        model.load_replay_buffer(folder / "buffer.pkl")
    done = int(rows[-1]["steps"]) if rows else 0
    seconds = float(rows[-1]["train_seconds"]) if rows else 0.0
    while done < steps:
        started = time.perf_counter()
        model.learn(interval // repeat, log_interval=None, reset_num_timesteps=done == 0)
        seconds += time.perf_counter() - started
        done += interval
        returns = run_episodes(model, eval_env, range(10_000, 10_000 + episodes))
        rows.append(_row(job, done, seconds, returns, repeat))
        model.save(folder / "model")
        model.save_replay_buffer(folder / "buffer.pkl")
        _write(folder / "rows.csv", rows)
        print(f"{algorithm:6} {task:20} seed {seed} step {done:7} {seconds:6.0f} s  return "
              f"{rows[-1]['return_mean']}", flush=True)  # fmt: skip


def final(folder: Path, episodes: int) -> dict[str, Any]:
    """Evaluate the saved model of a run again, over more episodes than a curve's point has."""
    import torch as th

    th.set_num_threads(1)
    last = _read(folder / "rows.csv")[-1]
    repeat = int(last["action_repeat"])
    model = algorithm_class(last["algorithm"]).load(folder / "model", device="cpu")
    env = make_task(last["task"], repeat)
    returns = run_episodes(model, env, range(20_000, 20_000 + episodes))
    job = (last["algorithm"], last["task"], int(last["seed"]))
    row = _row(job, int(last["steps"]), float(last["train_seconds"]), returns, repeat)
    return row | {key: last[key] for key in ("commit", "machine", "versions")}


def _row(
    job: tuple[str, str, int], steps: int, seconds: float, returns: list[float], repeat: int
) -> dict[str, Any]:
    from benchmarks.provenance import provenance

    algorithm, task, seed = job
    return {
        "algorithm": algorithm,
        "task": task,
        "seed": seed,
        "steps": steps,
        "train_seconds": round(seconds, 1),
        "return_mean": round(sum(returns) / len(returns), 1),
        "return_min": round(min(returns), 1),
        "return_max": round(max(returns), 1),
        "episodes": len(returns),
        "action_repeat": repeat,
        **provenance(),
    }


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def report(name: str) -> None:
    """Gather the rows of all the runs into one CSV, a table and a figure."""
    import pandas as pd

    rows = [row for path in sorted(STATE.glob("*/rows.csv")) for row in _read(path)]
    RESULTS.mkdir(exist_ok=True)
    _write(RESULTS / f"{name}.csv", rows)
    data = pd.read_csv(RESULTS / f"{name}.csv")
    last = data[data.steps == data.groupby("task").steps.transform("min").clip(lower=50_000)]
    table = last.groupby(["task", "algorithm"]).agg(
        seeds=("seed", "nunique"),
        median=("return_mean", "median"),
        lowest=("return_mean", "min"),
        highest=("return_mean", "max"),
        minutes=("train_seconds", lambda s: round(s.median() / 60, 1)),
    )
    print(f"At {last.steps.max()} environment steps:\n{table}")
    plot(data, RESULTS / f"{name}.png")


def plot(data: Any, path: Path) -> None:
    """Draw the median over the seeds, and their range, against steps and against wall-clock."""
    from matplotlib.figure import Figure

    tasks = list(data.task.unique())
    figure = Figure(figsize=(4.2 * len(tasks), 6.4), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        for colour, algorithm in enumerate(sorted(data.algorithm.unique())):
            part = data[(data.task == task) & (data.algorithm == algorithm)]
            if part.empty:
                continue
            curve = part.groupby("steps").return_mean.agg(["median", "min", "max"])
            minutes = part.groupby("steps").train_seconds.median() / 60
            for axis, x in zip(axes[:, column], (curve.index, minutes), strict=True):
                axis.plot(x, curve["median"], color=f"C{colour}", label=algorithm)
                axis.fill_between(x, curve["min"], curve["max"], color=f"C{colour}", alpha=0.15)
        axes[0, column].set(title=task, xlabel="environment steps", ylim=(0, 1000))
        axes[1, column].set(xlabel="minutes of training", ylim=(0, 1000))
        for axis in axes[:, column]:
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("return")
    axes[1, 0].set_ylabel("return")
    seeds = data.groupby(["task", "algorithm"]).seed.nunique().max()
    axes[0, -1].legend(loc="upper left", title=f"median and range, {seeds} seeds")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="run what is missing, then report")
    train.add_argument("--tasks", nargs="+", default=["cartpole-swingup", "walker-walk"])
    train.add_argument("--algorithms", nargs="+", default=["PMPO", "SAC"])
    train.add_argument("--variant", nargs=2, action="append", default=[], metavar=("NAME", "JSON"))
    train.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    train.add_argument("--steps", type=int, default=50_000)
    train.add_argument("--interval", type=int, default=5_000)
    train.add_argument("--episodes", type=int, default=5)
    train.add_argument("--action-repeat", type=int, default=2)
    train.add_argument("--workers", type=int, default=2)
    again = commands.add_parser("final", help="evaluate the last models over more episodes")
    again.add_argument("--episodes", type=int, default=30)
    again.add_argument("--name", default="learning_final")
    again.add_argument("--workers", type=int, default=2)
    for command in (train, commands.add_parser("report", help="gather, tabulate and draw")):
        command.add_argument("--name", default="learning", help="of the files in results/")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    if options.command == "final":
        os.environ.setdefault("MUJOCO_GL", "disabled")
        folders = [path.parent for path in sorted(STATE.glob("*/rows.csv"))]
        with context.Pool(options.workers) as pool:
            rows = pool.starmap(final, [(folder, options.episodes) for folder in folders])
        _write(RESULTS / f"{options.name}.csv", rows)
        for row in rows:
            print(*(row[key] for key in ("algorithm", "task", "seed", "steps", "return_mean")))
        return
    if options.command == "run":
        os.environ.setdefault("MUJOCO_GL", "disabled")
        jobs = [(a, t, s) for s, t, a in product(options.seeds, options.tasks, options.algorithms)]
        variants = {name: json.loads(arguments) for name, arguments in options.variant}
        settings = (
            options.steps,
            options.interval,
            options.episodes,
            options.action_repeat,
            variants,
        )
        with context.Pool(options.workers, maxtasksperchild=1) as pool:
            pool.starmap(run, [(job, *settings) for job in jobs], chunksize=1)
    report(options.name)


if __name__ == "__main__":
    main()
