"""What the default makes of rewards that are always zero, beside a task's own rewards.

    python -m benchmarks.zero_rewards --tasks cartpole-swingup walker-walk

Every 500 decisions: the mean absolute deviation of a state's scores ("spread") over the size of a
return, and how far the policy's mode varies over the states of the replay buffer. While all the
rewards are zero nothing is known to depend on the action, and the mode should not vary.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th

from benchmarks.models import make_task
from benchmarks.provenance import provenance
from sb3_pmpo import PMPO

RESULTS = Path(__file__).parent / "results" / "zero_rewards.csv"
STATES = 256


class NoReward(gym.RewardWrapper):
    """The task without its rewards."""

    def reward(self, reward: Any) -> float:
        """Return 0."""
        return 0.0


@th.no_grad()
def measure(model: PMPO) -> dict[str, str]:
    """Measure the scores of the reference's samples, and the policy's mode."""
    observations = model.replay_buffer.sample(STATES).observations
    _, candidates = model.learner.propose(observations, model.n_samples)
    deviation = candidates.weights * (candidates.scores - candidates.mean_score())
    spread, scale = deviation.abs().sum(0).mean(), model.critic.scale
    mode = model.actor.distribution(observations).mode()
    values = {
        "spread": spread,
        "return_scale": scale,
        "ratio": spread / scale,
        "mode_std": mode.std(0).mean(),
        "mode_size": mode.abs().mean(),
    }
    return {name: f"{float(value):.3g}" for name, value in values.items()}


def main() -> None:
    """Train each task with its rewards and without; write the CSV, print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["cartpole-swingup"])
    parser.add_argument("--decisions", type=int, default=2000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "disabled")
    th.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for task in options.tasks:
        for rewards in ("none", "the task's"):
            env = make_task(task, 2)
            model: Any = PMPO("MlpPolicy", NoReward(env) if rewards == "none" else env, seed=0)
            while model.num_timesteps < options.decisions:
                model.learn(options.every, reset_num_timesteps=False, log_interval=None)
                row = {"task": task, "rewards": rewards, "decisions": model.num_timesteps}
                rows.append(row | measure(model) | provenance())
                print(*list(rows[-1].values())[:8], flush=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
