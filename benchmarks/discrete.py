"""Discrete and MultiDiscrete actions: PMPO beside SB3's DQN and PPO at the same steps.

    python -m benchmarks.discrete

CartPole-v1 for 10000 steps, and the Control Suite's ball_in_cup-catch with 3 forces for each of its
2 actuators, MultiDiscrete([3, 3]), for DQN, which has no MultiDiscrete, as Discrete(9): 20000
decisions at action repeat 2. Every algorithm at its defaults with ``MlpPolicy``. Rows that are in
the file are not run again.
"""

from __future__ import annotations

import argparse
import csv
import time
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_pmpo.envs import make_env

RESULTS = Path(__file__).parent / "results"
N_FORCES = 3
#: Steps, counted in decisions, of each task.
TASKS = {"CartPole-v1": 10_000, "dm_control/ball_in_cup-catch-v0": 20_000}


class Forces(gym.ActionWrapper):
    """A few forces for each actuator of a Box of actions, as MultiDiscrete or as one Discrete."""

    def __init__(self, env: gym.Env, flat: bool) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, spaces.Box)
        actuators = env.action_space.shape[0]
        self.levels = np.linspace(env.action_space.low, env.action_space.high, N_FORCES)
        self.flat = flat
        sizes = [N_FORCES] * actuators
        self.action_space = (
            spaces.Discrete(N_FORCES**actuators) if flat else spaces.MultiDiscrete(sizes)
        )

    def action(self, action: Any) -> np.ndarray:
        """Look up the forces."""
        actuators = self.levels.shape[1]
        index = np.unravel_index(action, [N_FORCES] * actuators) if self.flat else action
        return self.levels[np.asarray(index).astype(int), np.arange(actuators)]


def make(task: str, algorithm: str) -> gym.Env:
    """Make a task for an algorithm."""
    if not task.startswith("dm_control/"):
        return gym.make(task)
    wrappers = [{"sb3_pmpo.envs.control_suite": {"action_repeat": 2}}]
    return Forces(make_env(task, wrappers), flat=algorithm == "DQN")


def run(task: str, algorithm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train and evaluate once."""
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    from sb3_pmpo import DPO, MPO, PMPO

    classes = {"PMPO": PMPO, "MPO": MPO, "DPO": DPO, "DQN": DQN, "PPO": PPO}
    model = classes[algorithm]("MlpPolicy", Monitor(make(task, algorithm)), seed=seed, device="cpu")
    started = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - started
    env = Monitor(make(task, algorithm))
    env.reset(seed=10_000)
    mean, std = evaluate_policy(model, env, n_eval_episodes=30)
    return {
        "task": task, "algorithm": algorithm, "seed": seed, "steps": steps,
        "return_mean": round(float(mean), 2), "return_std": round(float(std), 2),
        "episodes": 30, "train_seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    """Run what is missing and write a row for each run as it ends."""
    from benchmarks.provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--algorithms", nargs="+", default=["PMPO", "DQN", "PPO"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS / "discrete.csv")
    options = parser.parse_args()
    th.set_num_threads(1)
    done = set()
    if options.output.exists():
        with options.output.open(newline="") as file:
            done = {(row["task"], row["algorithm"], row["seed"]) for row in csv.DictReader(file)}
    for seed, task, algorithm in product(options.seeds, options.tasks, options.algorithms):
        if (task, algorithm, str(seed)) in done:
            continue
        row = run(task, algorithm, seed, TASKS[task]) | provenance()
        is_new = not options.output.exists()
        with options.output.open("a", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        print(*list(row.values())[:8], flush=True)


if __name__ == "__main__":
    main()
