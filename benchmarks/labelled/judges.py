"""Scripted judges of a walker: a program with a veto, and a person with a thumb."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_pmpo.envs import make_dmc_env
from sb3_pmpo.feedback import FeedbackBuffer
from sb3_pmpo.online.exploration import ExplorationNoise, draw


class Episode(NamedTuple):
    """What happened in T decisions.

    :param observations: ``[T, ...]`` before each decision.
    :param actions: ``[T, A]`` what was done, in units of the environment.
    :param likeliest: ``[T, A]`` what the policy would have done without noise.
    :param rewards: ``[T]``.
    :param joint: ``[T]`` the joint's angle after each decision, in radians.
    """

    observations: np.ndarray
    actions: np.ndarray
    likeliest: np.ndarray
    rewards: np.ndarray
    joint: np.ndarray


def make_env(task: str) -> gym.Env:
    """Make the environment that teachers are trained in."""
    return make_dmc_env(task, action_repeat=2)


def joint_angle(env: gym.Env, joint: str) -> float:
    """Read a joint's angle."""
    physics: Any = env.unwrapped.physics  # type: ignore[attr-defined]  # dm_control's
    return float(physics.named.data.qpos[joint].item())


def roll_out(
    model: Any,
    env: gym.Env,
    seed: int,
    joint: str,
    noise: ExplorationNoise | None = None,
) -> Episode:
    """Act for an episode, without noise where none is given."""
    seen, _ = env.reset(seed=seed)
    rows: list[tuple[Any, ...]] = []
    over = False
    while not over:
        likeliest, _ = model.predict(seen, deterministic=True)
        action = likeliest
        if noise is not None:
            action = draw(model.policy, seen[None], noise, None)[0][0]
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((seen, action, likeliest, reward, joint_angle(env, joint)))
        seen, over = after, terminated or truncated
    return Episode(*(np.array(column) for column in zip(*rows, strict=True)))


class Veto:
    """Reject torques that do not brake a joint on its way to a limit.

    The program is asked about the torque of each decision and, where it steps in, about others of
    the motor's whole range, which it need not see done. It rejects a motor's torque and nothing
    else. So what it labels is the likeliest action with that torque in it, which it would reject as
    well: the other motors' noise would push them about.

    :param limit: in radians; below is a violation.
    :param margin: radians before the limit at which the program steps in.
    :param horizon: decisions that it looks ahead, at the joint's speed of now.
    :param brake: torque from which on it is content; a rejected one counts by what it lacks.
    :param motor: the joint's number among the actions.
    :param asked: torques of a decision where it steps in, the one that was done among them.
    """

    def __init__(
        self, limit: float, *, margin: float, horizon: float, brake: float, motor: int, asked: int
    ) -> None:
        self.limit, self.margin, self.horizon = limit, margin, horizon
        self.brake, self.motor, self.asked = brake, motor, asked

    def violations(self, episode: Episode) -> np.ndarray:
        """Say of each decision whether the joint was beyond its limit after it."""
        return episode.joint < self.limit

    def judge(self, episode: Episode, buffer: FeedbackBuffer, rng: np.random.Generator) -> None:
        """Label each decision of an episode."""
        before = np.concatenate([episode.joint[:1], episode.joint[:-1]])
        speed = np.diff(np.concatenate([before[:1], before]))
        ahead = before + self.horizon * np.minimum(speed, 0.0)
        late = ahead < self.limit + self.margin
        rows = zip(episode.observations, episode.likeliest, episode.actions, late, strict=True)
        for seen, likeliest, done, steps_in in rows:
            others = rng.uniform(-1.0, 1.0, self.asked - 1) if steps_in else ()
            for torque in (done[self.motor], *others):
                action = likeliest.copy()
                action[self.motor] = torque
                lacking = max(self.brake - float(torque), 0.0) if steps_in else 0.0
                if lacking > 0.0:
                    buffer.add(seen, action, -1, lacking, "veto")
                else:
                    buffer.add(seen, action, 0, source="veto")


class Thumbs:
    """Thumbs down on segments in which the joint went beyond its limit, late and sometimes wrong.

    :param limit: in radians; a segment that has been below it deserves a thumb down.
    :param segment: decisions that an answer is about.
    :param delay: decisions by which it is late, which the buffer is told.
    :param wrong: share of the answers that are the opposite.
    """

    def __init__(self, limit: float, *, segment: int, delay: int, wrong: float) -> None:
        self.limit, self.segment, self.delay, self.wrong = limit, segment, delay, wrong

    def violations(self, episode: Episode) -> np.ndarray:
        """Say of each segment whether it deserves a thumb down."""
        whole = len(episode.joint) // self.segment * self.segment
        lowest = episode.joint[:whole].reshape(-1, self.segment).min(1)
        return lowest < self.limit

    def judge(self, episode: Episode, buffer: FeedbackBuffer, rng: np.random.Generator) -> None:
        """Answer each segment; the person presses ``delay`` decisions after its end."""
        down = self.violations(episode)
        down ^= rng.random(len(down)) < self.wrong
        for number, bad in enumerate(down):
            start = number * self.segment
            stop = min(start + self.segment + self.delay, len(episode.rewards))
            late = stop - start - self.segment
            buffer.add_segment(
                episode.observations[start:stop],
                episode.actions[start:stop],
                -1 if bad else 0,
                delay=late,
                weight=self.segment,
                source="person",
            )
