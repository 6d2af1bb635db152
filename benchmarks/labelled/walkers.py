"""Logs of walker-run: policies that were trained for several tasks act in it.

    python -m benchmarks.labelled.walkers table1     # a stand-in for the paper's Table 1
    python -m benchmarks.labelled.walkers shares     # the same with more and less bad data

``table1.json`` and ``shares.json`` have the mixtures, the weights and the budget. Logs are written
to ``runs/labelled``. Rows go to ``results/labelled_table1.csv`` and ``labelled_shares.csv`` there;
rows that are there are not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from benchmarks.labelled.judges import make_env, roll_out
from benchmarks.labelled.rows import Domain, Log, as_log, join, measure, random_order, read_plan
from benchmarks.labelled.teachers import teacher_path
from sb3_pmpo import PMPO
from sb3_pmpo.offline import LabelledDataset
from sb3_pmpo.online.exploration import ColouredNoise

LOGS = Path("runs/labelled")
RESULTS = Path("benchmarks/results")
TASK = "walker-run"
#: The judges read a joint, which no row here needs.
JOINT = "right_knee"


def score(model: Any, env: gym.Env, seed: int) -> float:
    """Return an episode's return."""
    return float(roll_out(model, env, seed, JOINT).rewards.sum())


def write_log(name: str, mixture: list[dict[str, Any]]) -> tuple[LabelledDataset, np.ndarray]:
    """Let the policies of a mixture act in the task, in random order; or read what is there.

    :return: the data; ``[N]`` the number in the mixture of who acted.
    """
    folder = LOGS / name
    if (folder / "dataset.json").exists():
        return LabelledDataset.load(folder, in_memory=True), np.load(folder / "teachers.npy")
    order = random_order(mixture)
    env = make_env(TASK)
    loaded = [
        PMPO.load(teacher_path(part["teacher"], part["steps"]), device="cpu", buffer_size=1)
        for part in mixture
    ]
    n_actions = env.action_space.shape[0]  # type: ignore[index]  # a Box
    episodes = [
        roll_out(loaded[which], env, seed, JOINT, ColouredNoise(1, n_actions, seed, exponents=(0,)))
        for seed, which in enumerate(order)
    ]
    data = join(
        env,
        [episode.observations for episode in episodes],
        [episode.actions for episode in episodes],
        [episode.rewards for episode in episodes],
    )
    data.save(folder)
    teachers = np.repeat(order, [len(episode.rewards) for episode in episodes])
    np.save(folder / "teachers.npy", teachers)
    return data, teachers


def read_log(name: str, mixture: list[dict[str, Any]], plan: dict[str, Any]) -> Log:
    """Write or read a log; the last of its mixture is the best policy."""
    data, teachers = write_log(name, mixture)
    returns = data.episode_returns()
    print(
        f"{name}: {data}; returns of {returns.mean():.0f} in the mean, {returns.max():.0f} at best"
    )
    best = teachers == len(mixture) - 1
    return as_log(name, data, best, plan["labelled_episodes"], plan)


def mixtures(plan: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """List a plan's mixtures by the names of their logs."""
    if "mixture" in plan:
        return {"table1": plan["mixture"]}
    found = {}
    for share in plan["bad_shares"]:
        bad = round(share * plan["episodes"] / len(plan["bad"]))
        good = plan["episodes"] - bad * len(plan["bad"])
        found[f"bad {share:g}"] = [
            *(teacher | {"episodes": bad} for teacher in plan["bad"]),
            plan["good"] | {"episodes": good},
        ]
    return found


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", choices=("table1", "shares"))
    parser.add_argument("--seeds", type=int, nargs="+")
    args = parser.parse_args()
    th.set_num_threads(1)
    plan = read_plan(args.plan)
    logs = [read_log(name, mixture, plan) for name, mixture in mixtures(plan).items()]
    results = RESULTS / f"labelled_{args.plan}.csv"
    measure(logs, Domain(lambda: make_env(TASK), score), plan, results, args.seeds or plan["seeds"])


if __name__ == "__main__":
    main()
