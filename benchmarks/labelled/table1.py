"""A stand-in for the paper's Table 1: ``python -m benchmarks.labelled.table1``.

``table1.json`` has the mixture, the weights and the budget. The log is written to ``runs/table1``.
Rows go to ``results/table1.csv``; rows that are there are not made again.

``python -m benchmarks.labelled.table1 --seeds 0 --episodes 20`` makes a part of the picture.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from benchmarks import records
from benchmarks.labelled.judges import make_env, roll_out
from benchmarks.labelled.teachers import teacher_path
from benchmarks.provenance import provenance
from sb3_pmpo import PMPO
from sb3_pmpo.core.samples import mean_over_samples, mean_per_set
from sb3_pmpo.offline import LabelledDataset, ValueFunction, gae, label_by_return

PLAN: dict[str, Any] = json.loads(Path(__file__).with_name("table1.json").read_text())
LOG = Path("runs/table1")
RESULTS = Path("benchmarks/results/table1.csv")
FIELDS = ("row", "seed", "return", "standard_error", "episodes", "accepted", "rejected", "commit",
          "machine", "versions")  # fmt: skip


class Log(NamedTuple):
    """The log, and what labels come from.

    :param data: all episodes, unlabelled.
    :param advantages: ``[N]`` of the value function.
    :param labelled: ``[N]`` True in the first episodes, which may have labels.
    :param best: ``[N]`` True where the best teacher acted.
    """

    data: LabelledDataset
    advantages: np.ndarray
    labelled: np.ndarray
    best: np.ndarray


def write_log() -> LabelledDataset:
    """Let the policies of the mixture act in the task, in random order; or read what is there."""
    if (LOG / "dataset.json").exists():
        return LabelledDataset.load(LOG, in_memory=True)
    order = [number for number, part in enumerate(PLAN["mixture"]) for _ in range(part["episodes"])]
    order = list(np.random.default_rng(0).permutation(order))
    env = make_env(PLAN["task"])
    loaded = {
        number: PMPO.load(teacher_path(part["teacher"], part["steps"]), device="cpu", buffer_size=1)
        for number, part in enumerate(PLAN["mixture"])
    }
    episodes = [
        roll_out(loaded[which], env, seed, "right_knee", deterministic=False)
        for seed, which in enumerate(order)
    ]
    lengths = [len(episode.rewards) for episode in episodes]
    seen = np.concatenate([episode.observations for episode in episodes])
    data = LabelledDataset(
        seen,
        np.concatenate([episode.actions for episode in episodes]),
        rewards=np.concatenate([episode.rewards for episode in episodes]),
        episode_ids=np.repeat(np.arange(len(order)), lengths),
        dones=np.zeros(len(seen)),
        observation_space=env.observation_space,
        action_space=env.action_space,
    )
    data.save(LOG)
    np.save(LOG / "teachers.npy", np.repeat(order, lengths))
    return data


def read_log() -> Log:
    """Fit the value function on all episodes."""
    data = write_log()
    values = ValueFunction(data, PLAN["gamma"], gae(), gradient_steps=PLAN["value_steps"], seed=0)
    teachers = np.load(LOG / "teachers.npy")
    first = data.required("episode_ids") < PLAN["labelled_episodes"]
    return Log(data, values.advantages(), first, teachers == len(PLAN["mixture"]) - 1)


def label(log: Log, kind: str, seed: int) -> LabelledDataset:
    """Give the log the labels of a row of the table."""
    signs = np.sign(log.advantages)
    ours = np.where(log.labelled, signs, 0)
    shuffled = ours.copy()
    shuffled[log.labelled] = np.random.default_rng(seed).permutation(ours[log.labelled])
    labels = {
        "all": np.ones(len(signs)),
        "accept": np.maximum(ours, 0),
        "reject": np.minimum(ours, 0),
        "both": ours,
        "shuffled": shuffled,
        "unlabelled": np.where(log.labelled, 0, 1),
        "oracle": log.best,
        "crr": np.maximum(signs, 0),
        "awr": np.ones(len(signs)),
    }
    if kind == "best returns":
        return label_by_return(log.data, 0.25, 0.0).dataset
    weights = None
    if kind == "awr":
        scaled = log.advantages / log.advantages.std() / PLAN["awr_temperature"]
        weights = np.exp(np.minimum(scaled, 3.0))
    return log.data.with_labels(labels[kind].astype(int), weights)


def learn(log: Log, row: dict[str, Any], seed: int) -> tuple[PMPO, LabelledDataset]:
    """Learn from the log as a row of the table says."""
    data = label(log, row["labels"], seed)
    model = PMPO.from_spaces(
        "MlpPolicy",
        data.observation_space,
        data.action_space,
        seed=seed,
        device="cpu",
        batch_size=PLAN["batch_size"],
        learning_rate=PLAN["learning_rate"],
        policy_kwargs={"net_arch": PLAN["net_arch"]},
    )
    normalise = mean_per_set if row.get("normalise") == "set" else mean_over_samples
    weights = {"alpha": row["alpha"], "beta": row["beta"], "normalise": normalise}
    model.learn_offline(data, PLAN["gradient_steps"], log_interval=None, **weights)
    return model, data


def main() -> None:
    """Make the rows that are missing, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=PLAN["seeds"])
    parser.add_argument("--episodes", type=int, default=PLAN["evaluation_episodes"])
    args = parser.parse_args()
    th.set_num_threads(1)
    log = read_log()
    returns = log.data.episode_returns()
    print(f"{log.data}; returns of {returns.mean():.0f} in the mean, {returns.max():.0f} at best")
    rows = records.read(RESULTS)
    done = {(row["row"], str(row["seed"])) for row in rows}
    env = make_env(PLAN["task"])
    for seed, (name, row) in product(args.seeds, PLAN["rows"].items()):
        if (name, str(seed)) in done:
            continue
        model, data = learn(log, row, seed)
        scores = [
            float(roll_out(model, env, 10_000 + n, "right_knee", deterministic=True).rewards.sum())
            for n in range(args.episodes)
        ]
        found = {
            "row": name,
            "seed": seed,
            "return": round(float(np.mean(scores)), 2),
            "standard_error": round(float(np.std(scores) / np.sqrt(len(scores))), 2),
            "episodes": len(scores),
            "accepted": data.n_accepted,
            "rejected": data.n_rejected,
        }
        print(found, flush=True)
        rows.append(found | provenance())
        records.write(RESULTS, rows, FIELDS)


if __name__ == "__main__":
    main()
