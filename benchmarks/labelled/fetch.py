"""A second domain: FetchPush-v4 from a log of scripts of mixed quality.

    python -m benchmarks.labelled.fetch

``fetch.json`` has the scripts, the weights and the budget. The score is the share of episodes at
whose end the object is at its goal. gymnasium-robotics 1.4.2 fails with MuJoCo 3.17, so this runs
in an environment of its own, as README.md says. Rows go to ``results/labelled_fetch.csv``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from benchmarks.labelled.rows import Domain, as_log, join, measure, random_order, read_plan
from sb3_pmpo.offline import LabelledDataset

RESULTS = Path("benchmarks/results/labelled_fetch.csv")
#: Metres: how far behind the object the gripper begins to push, and how high it travels.
BEHIND, HEIGHT = 0.08, 0.12
#: From metres to the action's units.
GAIN = 12.0


def make_env() -> gym.Env:
    """Make the environment, in which an episode has 50 decisions."""
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    return gym.make("FetchPush-v4")


def push(seen: dict[str, np.ndarray], goal: np.ndarray) -> np.ndarray:
    """Move behind the object and push it to a goal; it needs no memory."""
    gripper, thing = seen["observation"][:3], seen["observation"][3:6]
    to_goal = goal[:2] - thing[:2]
    distance = float(np.linalg.norm(to_goal))
    if distance < 0.02:
        return np.zeros(4)
    direction = to_goal / distance
    offset = gripper[:2] - thing[:2]
    aside = abs(float(offset @ np.array([-direction[1], direction[0]])))
    behind = thing[:2] - BEHIND * direction
    low = gripper[2] < thing[2] + 0.03
    near = float(np.linalg.norm(gripper[:2] - behind))
    target = np.array([*behind, thing[2] + HEIGHT])
    if low and aside < 0.02 and float(offset @ direction) < 0.0:
        target = np.array([*(thing[:2] + direction * min(distance, 0.05) / 2), thing[2]])
    elif near < 0.02:
        target[2] = thing[2]
    elif gripper[2] < thing[2] + 0.8 * HEIGHT:
        target[:2] = gripper[:2]  # rise before it travels
    return np.append(np.clip(GAIN * (target - gripper), -1.0, 1.0), 0.0)


def act(env: gym.Env, script: dict[str, Any], seed: int) -> dict[str, Any]:
    """Let a script act for an episode; return the columns, and whether it succeeded."""
    rng = np.random.default_rng(seed)
    seen, _ = env.reset(seed=seed)
    wrong = rng.normal(size=2)
    shift = np.append(script["wrong_by"] * wrong / np.linalg.norm(wrong), 0.0)
    rows: list[tuple[Any, ...]] = []
    over, info = False, dict[str, Any]()
    while not over:
        action = push(seen, seen["desired_goal"] + shift)
        action = np.clip(action + script["noise"] * rng.normal(size=4), -1.0, 1.0)
        after, reward, terminated, truncated, info = env.step(action.astype(np.float32))
        rows.append((seen, action, reward))
        seen, over = after, terminated or truncated
    observations, actions, rewards = zip(*rows, strict=True)
    stacked = {key: np.stack([row[key] for row in observations]) for key in seen}
    columns = {"observations": stacked, "actions": np.array(actions, np.float32)}
    return columns | {"rewards": np.array(rewards), "success": float(info["is_success"])}


def write_log(plan: dict[str, Any]) -> tuple[LabelledDataset, np.ndarray]:
    """Let the scripts act, in random order; return the data and ``[N]`` which script acted."""
    env = make_env()
    scripts = plan["scripts"]
    order = random_order(scripts)
    episodes = [act(env, scripts[which], seed) for seed, which in enumerate(order)]
    for number in range(len(scripts)):
        won = [e["success"] for e, which in zip(episodes, order, strict=True) if which == number]
        print(f"{scripts[number]}: {np.mean(won):.0%} of its episodes succeed", flush=True)
    columns = ("observations", "actions", "rewards")
    data = join(env, *([episode[name] for episode in episodes] for name in columns))
    return data, np.repeat(order, [len(episode["rewards"]) for episode in episodes])


def score(model: Any, env: gym.Env, seed: int) -> float:
    """Return 1 if the object is at its goal at the end of an episode."""
    seen, _ = env.reset(seed=seed)
    over, info = False, dict[str, Any]()
    while not over:
        action, _ = model.predict(seen, deterministic=True)
        seen, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    return float(info["is_success"])


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+")
    args = parser.parse_args()
    th.set_num_threads(1)
    plan = read_plan("fetch")
    data, scripts = write_log(plan)
    log = as_log("fetch", data, scripts == 0, plan["labelled_episodes"], plan)
    measure(
        [log],
        Domain(make_env, score, "MultiInputPolicy"),
        plan,
        RESULTS,
        args.seeds or plan["seeds"],
    )


if __name__ == "__main__":
    main()
