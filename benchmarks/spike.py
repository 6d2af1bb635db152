"""What one absurd reading of a sensor costs: a reading of 1e10 in the first episode, or none.

    python -m benchmarks.spike --task cartpole-swingup --steps 20000 --seeds 0

The same seed is trained twice at the setting that ships. Rows go to ``results/spike.csv``.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from benchmarks import records
from benchmarks.models import make_model, make_task, run_episodes
from benchmarks.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "spike.csv"
SPIKE, AT = 1e10, 100  # what is read, at which step of the first episode
EPISODES = 20


class Spike(gym.Wrapper):
    """An environment whose sensor is wrong once."""

    steps = 0

    def step(self, action: Any) -> Any:
        """Step; one entry of one observation is absurd."""
        seen, *rest = self.env.step(action)
        self.steps += 1
        if self.steps == AT:
            seen = np.array(seen)
            seen.flat[0] = SPIKE
        return seen, *rest


def train(task: str, seed: int, steps: int, spike: bool) -> float:
    """Train, and return the mean return of episodes without a spike."""
    env = make_task(task, 2)
    model = make_model("PMPO", task, Spike(env) if spike else env, seed, {})
    model.learn(steps // 2, log_interval=None)
    returns = run_episodes(model, make_task(task, 2), range(10_000, 10_000 + EPISODES))
    return float(np.mean(returns))


def main() -> None:
    """Train with a spike and without; write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="cartpole-swingup")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    th.set_num_threads(1)
    rows = []
    for seed, spike in product(args.seeds, (False, True)):
        found = train(args.task, seed, args.steps, spike)
        row = {"task": args.task, "steps": args.steps, "seed": seed, "spike": spike}
        rows.append(row | {"return": round(found, 1)} | provenance())
        print(rows[-1], flush=True)
    records.write(RESULTS, rows, tuple(rows[0]))


if __name__ == "__main__":
    main()
