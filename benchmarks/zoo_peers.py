"""DQN, QR-DQN and PPO on discrete actions at the Zoo's tuned settings: rows beside the suite's.

    python -m benchmarks.zoo_peers

Each run is ``sb3-pmpo train`` with the settings that rl_zoo3 installs and the suite's steps, the
last of 20 evaluations over 20 episodes. The Zoo's settings were tuned for longer runs; a schedule
in them ends with the run. ``results/discrete_zoo.csv`` has a row an evaluation of each run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks import records
from benchmarks.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "discrete_zoo.csv"
FIELDS = (
    *("algorithm", "task", "seed", "steps", "return_mean", "return_min", "return_max", "episodes"),
    *("commit", "machine", "versions"),
)
STEPS = {"CartPole-v1": 20_000, "Acrobot-v1": 20_000, "MountainCar-v0": 100_000}
EVALUATIONS, EPISODES = 20, 20


def settings_of(algorithm: str) -> Path:
    """Return the file of settings that rl_zoo3 installs."""
    found = find_spec("rl_zoo3")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("rl_zoo3 is not installed: pip install -e '.[train]'")
    return Path(found.origin).parent / "hyperparams" / f"{algorithm}.yml"


def train(algorithm: str, task: str, seed: int, state: Path) -> list[records.Row]:
    """Train once; return a row an evaluation."""
    steps = STEPS[task]
    logs = state / str(seed)
    command = [sys.executable, "-m", "sb3_pmpo", "train", "--algo", algorithm, "--env", task]
    command += ["--conf-file", str(settings_of(algorithm)), "-n", str(steps), "--seed", str(seed)]
    command += ["--eval-freq", str(steps // EVALUATIONS), "--eval-episodes", str(EPISODES)]
    command += ["-f", str(logs), "--verbose", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    folder = max((logs / algorithm).glob(f"{task}_*"), key=os.path.getmtime)
    with np.load(folder / "evaluations.npz") as saved:
        evaluations = zip(saved["timesteps"], saved["results"], strict=True)
        about = {"algorithm": f"{algorithm}, the Zoo's settings", "task": task, "seed": seed}
        return [
            about
            | {"steps": int(at), "return_mean": f"{returns.mean():.1f}", "episodes": len(returns)}
            | {"return_min": f"{returns.min():.1f}", "return_max": f"{returns.max():.1f}"}
            | provenance()
            for at, returns in evaluations
        ]


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", default=["ppo", "dqn", "qrdqn"])
    parser.add_argument("--tasks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--state", type=Path, default=Path("runs/zoo_peers"))
    options = parser.parse_args()
    rows = records.read(RESULTS)
    done = {(row["algorithm"].partition(",")[0], row["task"], str(row["seed"])) for row in rows}
    for task, algorithm, seed in product(options.tasks, options.algorithms, options.seeds):
        if (algorithm, task, str(seed)) not in done:
            rows += train(algorithm, task, seed, options.state)
            records.write(RESULTS, rows, FIELDS)
            print(algorithm, task, seed, rows[-1]["steps"], rows[-1]["return_mean"], flush=True)


if __name__ == "__main__":
    main()
