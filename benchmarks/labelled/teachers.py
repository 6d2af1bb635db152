"""Train the policies that act in the logs: ``python -m benchmarks.labelled.teachers``.

Levels of each are saved as ``runs/teachers/<task>-<steps>.zip``, with the replay buffer beside it;
those that exist are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from sb3_pmpo import PMPO
from sb3_pmpo.envs import make_dmc_env
from sb3_pmpo.tools.settings import load_config, to_arguments

PLAN = Path(__file__).with_name("teachers.json")
RUNS = Path("runs/teachers")
ACTION_REPEAT = 2


def teacher_path(task: str, steps: int) -> Path:
    """Return where a level of a task's policy is."""
    return RUNS / f"{task}-{steps}.zip"


def buffer_path(task: str, steps: int) -> Path:
    """Return where the replay buffer of a level is."""
    return RUNS / f"{task}-{steps}-buffer.pkl"


class SaveLevels(BaseCallback):
    """Save the policy at given environment steps."""

    def __init__(self, task: str, levels: list[int]) -> None:
        super().__init__()
        self.task, self.levels = task, levels

    def _on_step(self) -> bool:
        steps = self.num_timesteps * ACTION_REPEAT
        if steps in self.levels:
            self.model.save_replay_buffer(buffer_path(self.task, steps))  # type: ignore[attr-defined]  # it is a PMPO
            self.model.save(teacher_path(self.task, steps))
            print(f"{self.task}: level at {steps} steps", flush=True)
        return True


def train(task: str, levels: list[int]) -> None:
    """Train one policy to the last of its levels."""
    if all(teacher_path(task, steps).exists() for steps in levels):
        return
    settings = load_config(f"dm_control/{task}-v0")
    for key in ("env_wrapper", "n_timesteps"):
        settings.pop(key, None)
    arguments = to_arguments(settings) | {"buffer_size": max(levels)}
    env = make_dmc_env(task, action_repeat=ACTION_REPEAT)
    model = PMPO(env=env, seed=0, device="cpu", **arguments)
    model.learn(max(levels) // ACTION_REPEAT, callback=SaveLevels(task, levels))


def main() -> None:
    """Train the policies of the plan, or those named on the command line."""
    plan = json.loads(PLAN.read_text())
    named = [name for name in plan if name != "about"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(named)}; default: all")
    tasks = parser.parse_args().tasks or named
    if unknown := set(tasks) - set(named):
        parser.error(f"no plan has {', '.join(sorted(unknown))}: there are {', '.join(named)}")
    RUNS.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        train(task, plan[task])


if __name__ == "__main__":
    main()
