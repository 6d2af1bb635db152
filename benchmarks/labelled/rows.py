"""The rows that every log is learned from with: labels, weights of the loss, an evaluation.

A plan, a JSON file beside this one, has ``rows``: by name, the labels of :func:`label`, ``alpha``,
``beta``, and ``normalise``, ``"set"`` for means over each set of labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from benchmarks import records
from benchmarks.provenance import provenance
from sb3_pmpo import PMPO
from sb3_pmpo.core.samples import mean_over_samples, mean_per_set
from sb3_pmpo.offline import LabelledDataset, ValueFunction, gae, label_by_return

FIELDS = ("log", "row", "seed", "score", "standard_error", "episodes", "accepted", "rejected",
          "commit", "machine", "versions")  # fmt: skip


class Log(NamedTuple):
    """A log, and what its labels come from.

    :param name: in the column ``log``.
    :param data: all episodes, unlabelled.
    :param advantages: ``[N]`` of the value function.
    :param labelled: ``[N]`` True in the episodes that may have labels.
    :param best: ``[N]`` True where the best policy acted.
    """

    name: str
    data: LabelledDataset
    advantages: np.ndarray
    labelled: np.ndarray
    best: np.ndarray


class Domain(NamedTuple):
    """A task, and what an episode of it is worth.

    :param make_env: makes the environment.
    :param score: of an episode from a seed, by model and environment.
    :param policy: SB3's name of it.
    """

    make_env: Callable[[], gym.Env]
    score: Callable[[Any, gym.Env, int], float]
    policy: str = "MlpPolicy"


def read_plan(name: str) -> dict[str, Any]:
    """Read a plan of this folder."""
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text())


def random_order(parts: list[dict[str, Any]]) -> list[int]:
    """Return the number of the part that acts in each episode; each has its ``episodes``."""
    order = [number for number, part in enumerate(parts) for _ in range(part["episodes"])]
    return list(np.random.default_rng(0).permutation(order))


def join(
    env: gym.Env, observations: list[Any], actions: list[np.ndarray], rewards: list[np.ndarray]
) -> LabelledDataset:
    """Put episodes behind each other, each ended by a time limit.

    :param env: whose spaces they have.
    :param observations: of each episode, an array or a dictionary of arrays.
    :param actions: of each episode.
    :param rewards: of each episode.
    """
    lengths = [len(episode) for episode in rewards]
    if isinstance(observations[0], dict):
        keys = observations[0]
        seen: Any = {key: np.concatenate([each[key] for each in observations]) for key in keys}
    else:
        seen = np.concatenate(observations)
    return LabelledDataset(
        seen,
        np.concatenate(actions),
        rewards=np.concatenate(rewards),
        episode_ids=np.repeat(np.arange(len(lengths)), lengths),
        dones=np.zeros(sum(lengths)),
        observation_space=env.observation_space,
        action_space=env.action_space,
    )


def as_log(
    name: str, data: LabelledDataset, best: np.ndarray, labelled_episodes: int, plan: dict[str, Any]
) -> Log:
    """Fit the value function on all episodes; the first ones may have labels."""
    values = ValueFunction(data, plan["gamma"], gae(), gradient_steps=plan["value_steps"], seed=0)
    first = data.required("episode_ids") < labelled_episodes
    return Log(name, data, values.advantages(), first, best)


def label(log: Log, kind: str, plan: dict[str, Any], seed: int) -> LabelledDataset:
    """Give a log the labels of a row."""
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
        scaled = log.advantages / log.advantages.std() / plan["awr_temperature"]
        weights = np.exp(np.minimum(scaled, 3.0))
    return log.data.with_labels(labels[kind].astype(int), weights)


def learn(data: LabelledDataset, row: dict[str, Any], plan: dict[str, Any], policy: str,
          seed: int) -> PMPO:  # fmt: skip
    """Learn from labelled data as a row says."""
    model = PMPO.from_spaces(
        policy,
        data.observation_space,
        data.action_space,
        seed=seed,
        device="cpu",
        batch_size=plan["batch_size"],
        learning_rate=plan["learning_rate"],
        policy_kwargs={"net_arch": plan["net_arch"]},
    )
    normalise = mean_per_set if row.get("normalise") == "set" else mean_over_samples
    weights = {"alpha": row["alpha"], "beta": row["beta"], "normalise": normalise}
    model.learn_offline(data, plan["gradient_steps"], log_interval=None, **weights)
    return model


def evaluate(model: Any, domain: Domain, seed: int, episodes: int) -> dict[str, Any]:
    """Return the mean score of new episodes and its standard error."""
    env = domain.make_env()
    scores = [domain.score(model, env, 10_000 + 1000 * seed + n) for n in range(episodes)]
    error = float(np.std(scores) / np.sqrt(len(scores)))
    return {
        "score": round(float(np.mean(scores)), 3),
        "standard_error": round(error, 3),
        "episodes": episodes,
    }


def measure(
    logs: Iterable[Log], domain: Domain, plan: dict[str, Any], results: Path, seeds: Iterable[int]
) -> None:
    """Make the rows that are missing, seed by seed."""
    rows = records.read(results)
    done = {(row["log"], row["row"], str(row["seed"])) for row in rows}
    for seed, log, (name, row) in product(seeds, list(logs), plan["rows"].items()):
        if (log.name, name, str(seed)) in done:
            continue
        data = label(log, row["labels"], plan, seed)
        try:
            model = learn(data, row, plan, domain.policy, seed)
        except ValueError as error:  # refused since the plan was fixed; its rows are there
            print(f"{log.name}, {name}, seed {seed}: {error}", flush=True)
            continue
        found = {"log": log.name, "row": name, "seed": seed}
        found |= evaluate(model, domain, seed, plan["evaluation_episodes"])
        found |= {"accepted": data.n_accepted, "rejected": data.n_rejected}
        print(found, flush=True)
        rows.append(found | provenance())
        records.write(results, rows, FIELDS)
