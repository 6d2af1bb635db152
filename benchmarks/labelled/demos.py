"""Two demonstrations: ``python -m benchmarks.labelled.demos veto`` (or ``thumbs``).

A trained walker acts, a judge rejects some of what it does, and the policy learns from the
rejections alone, for a few rounds. Beside it: cloning what was not rejected; going on with the
critic for as many steps, with the rejections as feedback, with nothing, or with a penalty in the
reward.

``demos.json`` has the plan. Rows go to ``results/demos.csv``; rows that are there are not made
again. ``python -m benchmarks.labelled.demos veto 0 1`` makes those of seeds 0 and 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from benchmarks import records
from benchmarks.labelled.judges import Episode, Thumbs, Veto, joint_angle, make_env, roll_out
from benchmarks.labelled.teachers import buffer_path, teacher_path
from benchmarks.provenance import provenance
from sb3_pmpo import PMPO
from sb3_pmpo.feedback import FeedbackBuffer

PLAN: dict[str, Any] = json.loads(Path(__file__).with_name("demos.json").read_text())
RESULTS = Path("benchmarks/results/demos.csv")
METHODS = ("before", "reject", "clone", "reject beside the critic", "critic alone", "penalty")
FIELDS = ("demo", "method", "seed", "return", "rejected", "commit", "machine", "versions")


class Penalty(gym.Wrapper):
    """Subtract from the reward wherever the judge rejects what was just done."""

    def __init__(self, env: gym.Env, judge: Any, penalty: float, joint: str) -> None:
        super().__init__(env)
        self.judge, self.penalty, self.joint = judge, penalty, joint
        self._rewards: list[float] = []

    def reset(self, **kwargs: Any) -> Any:
        """Begin an episode."""
        self._rewards = []
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        """Step, and subtract."""
        seen, reward, terminated, truncated, info = self.env.step(action)
        self._rewards.append(float(reward))
        if isinstance(self.judge, Veto):
            bad = joint_angle(self.env, self.joint) < self.judge.limit
        else:
            recent = self._rewards[-self.judge.segment :]
            bad = float(np.mean(recent)) < self.judge.threshold
        return seen, float(reward) - self.penalty * bad, terminated, truncated, info


class Judged(gym.Wrapper):
    """Let the judge see each episode when it is over."""

    def __init__(self, env: gym.Env, judge: Any, buffer: FeedbackBuffer, joint: str) -> None:
        super().__init__(env)
        self.judge, self.buffer, self.joint = judge, buffer, joint
        self._rng, self._seen = np.random.default_rng(0), np.zeros(0)
        self._rows: list[tuple[Any, ...]] = []

    def reset(self, **kwargs: Any) -> Any:
        """Begin an episode."""
        self._rows = []
        self._seen, info = self.env.reset(**kwargs)
        return self._seen, info

    def step(self, action: Any) -> Any:
        """Step; at the episode's end, ask."""
        seen, reward, terminated, truncated, info = self.env.step(action)
        self._rows.append((self._seen, action, reward, joint_angle(self.env, self.joint)))
        self._seen = seen
        if terminated or truncated:
            columns = (np.array(column) for column in zip(*self._rows, strict=True))
            self.judge.judge(Episode(*columns), self.buffer, self._rng)
        return seen, reward, terminated, truncated, info


def load(seed: int, env: gym.Env | None = None) -> PMPO:
    """Load the teacher."""
    teacher = PLAN["teacher"]
    path = teacher_path(teacher["task"], teacher["steps"])
    model = PMPO.load(path, env=env, device="cpu", seed=seed, batch_size=256)
    model.set_random_seed(seed)
    return model


def episodes(model: PMPO, number: int, seed: int, *, deterministic: bool) -> Iterator[Episode]:
    """Act for several episodes."""
    env = make_env(PLAN["teacher"]["task"])
    for episode in range(number):
        start = 1000 * seed + episode + (500 if deterministic else 0)
        yield roll_out(model, env, start, PLAN["veto"]["joint"], deterministic=deterministic)


def make_judge(kind: str) -> Veto | Thumbs:
    """Set the judge's threshold by what the teacher does."""
    seen = list(episodes(load(0), PLAN["evaluation_episodes"], 99, deterministic=True))
    plan = PLAN[kind]
    if kind == "veto":
        angles = np.concatenate([episode.joint for episode in seen])
        limit = float(np.quantile(angles, plan["quantile"]))
        return Veto(limit, **{name: plan[name] for name in ("margin", "horizon", "brake", "motor")})
    length = plan["segment"]
    means = np.concatenate(
        [e.rewards[: len(e.rewards) // length * length].reshape(-1, length).mean(1) for e in seen]
    )
    threshold = float(np.quantile(means, plan["worst_share"]))
    return Thumbs(threshold, length, plan["delay"], plan["wrong"])


def evaluate(model: PMPO, judge: Veto | Thumbs, seed: int) -> dict[str, float]:
    """Return the mean return, and the share that the judge would reject."""
    seen = list(episodes(model, PLAN["evaluation_episodes"], seed, deterministic=True))
    returns = [float(episode.rewards.sum()) for episode in seen]
    rejected = np.concatenate([judge.violations(episode) for episode in seen])
    return {"return": float(np.mean(returns)), "rejected": float(rejected.mean())}


def learn_rounds(model: PMPO, method: str, judge: Veto | Thumbs, seed: int) -> PMPO:
    """Act, have it judged, learn from this round's labels; several times."""
    rng = np.random.default_rng(seed)
    for number in range(PLAN["rounds"]):
        buffer = FeedbackBuffer(model.observation_space, model.action_space)
        acted = 100 * number + 10_000 * (seed + 1)
        for episode in episodes(model, PLAN["episodes_a_round"], acted, deterministic=False):
            judge.judge(episode, buffer, rng)
        steps = PLAN["gradient_steps_a_round"]
        if not buffer.n_rejected:
            break
        if method == "reject":
            model.learn_from_feedback(buffer, steps, beta=tuple(PLAN["beta"]), log_interval=None)
        else:
            data = buffer.to_dataset()
            kept = data.with_labels(np.where(data.labels < 0, 0, 1))
            model.learn_offline(kept, steps, alpha=1.0, beta=0.0, log_interval=None)
    return model


def learn_online(kind: str, method: str, judge: Veto | Thumbs, seed: int) -> PMPO:
    """Go on with the critic for as many decisions, with the rejections, a penalty or neither.

    The teacher's replay buffer comes along. Without it the critic forgets within an episode what
    holds the gait.
    """
    env, joint = make_env(PLAN["teacher"]["task"]), PLAN["veto"]["joint"]
    buffer = FeedbackBuffer(env.observation_space, env.action_space)
    if method == "penalty":
        env = Penalty(env, judge, PLAN[kind]["penalty"], joint)
    elif method == "reject beside the critic":
        env = Judged(env, judge, buffer, joint)
    model = load(seed, env)
    steps = PLAN["rounds"] * PLAN["episodes_a_round"] * 500
    teacher = PLAN["teacher"]
    model.load_replay_buffer(buffer_path(teacher["task"], teacher["steps"]))
    model.learning_starts = 0
    model.learn(steps, log_interval=None, feedback=buffer)  # type: ignore[arg-type]  # as SB3 documents it
    return model


def main() -> None:
    """Make the rows that are missing."""
    th.set_num_threads(1)
    kind = sys.argv[1] if len(sys.argv) > 1 else "veto"
    rows = records.read(RESULTS)
    done = {(row["demo"], row["method"], str(row["seed"])) for row in rows}
    judge = make_judge(kind)
    print(kind, vars(judge), flush=True)
    seeds = [int(seed) for seed in sys.argv[2:]] or PLAN["seeds"]
    for seed, method in product(seeds, METHODS):
        if (kind, method, str(seed)) not in done:
            if method == "before":
                model = load(seed)
            elif method in ("reject", "clone"):
                model = learn_rounds(load(seed), method, judge, seed)
            else:
                model = learn_online(kind, method, judge, seed)
            found = {"demo": kind, "method": method, "seed": seed, **evaluate(model, judge, seed)}
            print(found, flush=True)
            rows.append(found | provenance())
            records.write(RESULTS, rows, FIELDS)


if __name__ == "__main__":
    main()
