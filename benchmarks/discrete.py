"""Discrete and MultiDiscrete actions: PMPO beside SB3's DQN and PPO at the same steps.

    python -m benchmarks.discrete

CartPole-v1, and Reacher-v5 with 5 torques for each of its 2 joints: MultiDiscrete([5, 5]), for DQN,
which has no MultiDiscrete, as Discrete(25). Every algorithm at its defaults with ``MlpPolicy``.
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

RESULTS = Path(__file__).parent / "results"
N_TORQUES = 5


class Torques(gym.ActionWrapper):
    """Five torques for each joint of a Box of actions, as MultiDiscrete or as one Discrete."""

    def __init__(self, env: gym.Env, flat: bool) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, spaces.Box)
        joints = env.action_space.shape[0]
        self.levels = np.linspace(env.action_space.low, env.action_space.high, N_TORQUES)
        self.flat = flat
        sizes = [N_TORQUES] * joints
        self.action_space = (
            spaces.Discrete(N_TORQUES**joints) if flat else spaces.MultiDiscrete(sizes)
        )

    def action(self, action: Any) -> np.ndarray:
        """Look up the torques."""
        joints = self.levels.shape[1]
        index = np.unravel_index(action, [N_TORQUES] * joints) if self.flat else action
        return self.levels[np.asarray(index).astype(int), np.arange(joints)]


def make(task: str, algorithm: str) -> gym.Env:
    """Make a task for an algorithm."""
    env = gym.make(task)
    return Torques(env, flat=algorithm == "DQN") if task.startswith("Reacher") else env


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
    """Run everything and write a row for each run as it ends."""
    from benchmarks.provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["CartPole-v1", "Reacher-v5"])
    parser.add_argument("--algorithms", nargs="+", default=["PMPO", "DQN", "PPO"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    th.set_num_threads(1)
    with (RESULTS / "discrete.csv").open("w", newline="") as file:
        writer = None
        for seed, task, algorithm in product(options.seeds, options.tasks, options.algorithms):
            row = run(task, algorithm, seed, options.steps) | provenance()
            if writer is None:
                writer = csv.DictWriter(file, row.keys())
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(*list(row.values())[:8], flush=True)


if __name__ == "__main__":
    main()
