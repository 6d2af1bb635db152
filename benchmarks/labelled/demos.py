"""Two demonstrations: ``python -m benchmarks.labelled.demos veto`` (or ``thumbs``).

A trained walker bends its knee into the joint's stop now and then. A judge rejects some of what it
does, and the policy learns from the rejections alone, for a few rounds. Beside it: cloning what was
not rejected; going on with the critic, with a penalty in the reward, with nothing, or with the
rejections as feedback.

The program with a veto rejects actions; the person gives a thumb down to segments. A segment's
label says something of its actions only where they have something in common, so the policy acts
with noise that is correlated in time there.

``demos.json`` has the plan. Rows go to ``results/demos.csv``, and ``results/demos.png`` shows them;
rows that are there are not made again. ``python -m benchmarks.labelled.demos veto 0 1`` makes those
of seeds 0 and 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th

from benchmarks import records
from benchmarks.labelled.judges import Episode, Thumbs, Veto, joint_angle, make_env, roll_out
from benchmarks.labelled.report import draw_demos
from benchmarks.labelled.teachers import buffer_path, teacher_path
from benchmarks.provenance import provenance
from sb3_pmpo import PMPO
from sb3_pmpo.feedback import FeedbackBuffer
from sb3_pmpo.online.exploration import ColouredNoise

PLAN: dict[str, Any] = json.loads(Path(__file__).with_name("demos.json").read_text())
RESULTS = Path("benchmarks/results/demos.csv")
METHODS = ("before", "reject", "clone", "penalty", "critic alone", "reject beside the critic")
FIELDS = ("demo", "method", "seed", "return", "rejected", "commit", "machine", "versions")


class Penalty(gym.Wrapper):
    """Subtract from the reward wherever the joint is beyond its limit."""

    def __init__(self, env: gym.Env, joint: str, limit: float, penalty: float) -> None:
        super().__init__(env)
        self.joint, self.limit, self.penalty = joint, limit, penalty

    def step(self, action: Any) -> Any:
        """Step, and subtract."""
        seen, reward, terminated, truncated, info = self.env.step(action)
        bad = joint_angle(self.env, self.joint) < self.limit
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
            seen_all, done, *rest = (np.array(column) for column in zip(*self._rows, strict=True))
            # What the policy would have done without noise is not at hand: what was done is judged.
            self.judge.judge(Episode(seen_all, done, done, *rest), self.buffer, self._rng)
        return seen, reward, terminated, truncated, info


def load(seed: int, env: gym.Env | None = None) -> PMPO:
    """Load the teacher."""
    teacher = PLAN["teacher"]
    path = teacher_path(teacher["task"], teacher["steps"])
    model = PMPO.load(path, env=env, device="cpu", seed=seed, batch_size=256)
    model.set_random_seed(seed)
    return model


def episodes(model: PMPO, seeds: range, exponent: float | None = None) -> Iterator[Episode]:
    """Act for an episode a seed, without noise or with noise of a spectrum ``1 / f**exponent``."""
    env = make_env(PLAN["teacher"]["task"])
    for seed in seeds:
        noise = None
        if exponent is not None:
            n_actions = model.action_space.shape[0]  # type: ignore[index]  # a Box
            noise = ColouredNoise(1, n_actions, seed, exponents=(exponent,))
        yield roll_out(model, env, seed, PLAN["joint"], noise)


def make_judge(kind: str) -> Veto | Thumbs:
    """Make the judge of a demonstration."""
    make = Veto if kind == "veto" else Thumbs
    return make(PLAN["limit"], **PLAN[kind]["judge"])


def evaluate(model: PMPO, judge: Veto | Thumbs, seed: int) -> dict[str, float]:
    """Return the mean return, and the share that the judge would reject."""
    start = 1000 * seed + 500
    seen = list(episodes(model, range(start, start + PLAN["evaluation_episodes"])))
    returns = [float(episode.rewards.sum()) for episode in seen]
    rejected = np.concatenate([judge.violations(episode) for episode in seen])
    return {"return": float(np.mean(returns)), "rejected": float(rejected.mean())}


def learn_rounds(model: PMPO, kind: str, method: str, seed: int) -> PMPO:
    """Act, have it judged, learn from this round's labels; several times."""
    plan, judge, rng = PLAN[kind], make_judge(kind), np.random.default_rng(seed)
    for number in range(plan["rounds"]):
        buffer = FeedbackBuffer(model.observation_space, model.action_space)
        start = 100 * number + 10_000 * (seed + 1)
        seeds = range(start, start + plan["episodes_a_round"])
        for episode in episodes(model, seeds, plan["noise_exponent"]):
            judge.judge(episode, buffer, rng)
        steps = plan["gradient_steps_a_round"]
        if not buffer.n_rejected:
            break
        if method == "reject":
            beta = tuple(plan["beta"])
            model.learn_from_feedback(buffer, steps, kl=plan["kl"], beta=beta, log_interval=None)
        else:
            data = buffer.to_dataset()
            kept = data.with_labels(np.where(data.labels < 0, 0, 1))
            model.learn_offline(kept, steps, alpha=1.0, beta=0.0, log_interval=None)
    return model


def learn_online(kind: str, method: str, seed: int) -> PMPO:
    """Go on with the critic, with the rejections, a penalty or neither.

    The teacher's replay buffer comes along. Without it the critic forgets within an episode what
    holds the gait.
    """
    teacher, joint = PLAN["teacher"], PLAN["joint"]
    env = make_env(teacher["task"])
    buffer = FeedbackBuffer(env.observation_space, env.action_space)
    if method == "penalty":
        env = Penalty(env, joint, PLAN["limit"], PLAN["penalty"])
    elif method == "reject beside the critic":
        env = Judged(env, make_judge(kind), buffer, joint)
    model = load(seed, env)
    model.load_replay_buffer(buffer_path(teacher["task"], teacher["steps"]))
    model.learning_starts = 0
    model.learn(PLAN["online_decisions"], log_interval=None, feedback=buffer)  # type: ignore[arg-type]  # as SB3 documents it
    return model


def main() -> None:
    """Make the rows that are missing, and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", choices=("veto", "thumbs"))
    parser.add_argument("seeds", nargs="*", type=int, help="default: the plan's")
    options = parser.parse_args()
    th.set_num_threads(1)
    make_rows(options.demo, options.seeds or PLAN["seeds"])
    draw_demos(pd.read_csv(RESULTS), RESULTS.with_suffix(".png"))


def make_rows(kind: str, seeds: list[int]) -> None:
    """Make the rows of a demonstration that are missing."""
    rows = records.read(RESULTS)
    done = {(row["demo"], row["method"], str(row["seed"])) for row in rows}
    for method, seed in product(METHODS, seeds):
        if (kind, method, str(seed)) not in done:
            if method == "before":
                model = load(seed)
            elif method in ("reject", "clone"):
                model = learn_rounds(load(seed), kind, method, seed)
            else:
                model = learn_online(kind, method, seed)
            scores = evaluate(model, make_judge(kind), seed)
            found = {"demo": kind, "method": method, "seed": seed, **scores}
            print(found, flush=True)
            rows.append(found | provenance())
            records.write(RESULTS, rows, FIELDS)


if __name__ == "__main__":
    main()
