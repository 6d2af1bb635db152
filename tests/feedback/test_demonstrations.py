"""The judges of the two demonstrations on a toy whose answer is known: a joint with a stop.

A torque moves a joint, which a spring brings back. The policy that is given pushes it beyond a
limit. What helps is known: less torque near the limit, and the same as before elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gymnasium import spaces

from benchmarks.labelled.judges import Episode, Thumbs, Veto
from sb3_pmpo import PMPO
from sb3_pmpo.feedback import FeedbackBuffer
from sb3_pmpo.offline import LabelledDataset

BOX = spaces.Box(-1.0, 1.0, (1,))
SEEN = spaces.Box(-10.0, 10.0, (1,))
LIMIT, PUSH, STEPS = -1.0, -0.5, 60


def roll_out(model: PMPO, noise: np.ndarray) -> Iterator[Episode]:
    """Act for an episode a row of noise, ``[E, T]``, all at once; each begins elsewhere."""
    joint = np.linspace(0.0, 2.0, len(noise), dtype=np.float32)[:, None]
    rows = []
    for column in noise.T:
        likeliest, _ = model.predict(joint, deterministic=True)
        done = np.clip(likeliest + column[:, None], -1.0, 1.0).astype(np.float32)
        seen, joint = joint, 0.8 * joint + 0.5 * done
        rows.append((seen, done, likeliest, np.zeros(len(noise)), joint[:, 0]))
    seen, done, likeliest, rewards, joints = (np.stack(each, 1) for each in zip(*rows, strict=True))
    for row in range(len(noise)):
        yield Episode(seen[row], done[row], likeliest[row], rewards[row], joints[row])


@pytest.fixture
def pushing() -> PMPO:
    """A policy that pushes with -0.5, so that the joint comes to rest at -1.25."""
    rng = np.random.default_rng(0)
    seen = rng.uniform(-2.0, 2.0, (2000, 1)).astype(np.float32)
    done = np.clip(PUSH + 0.2 * rng.standard_normal((2000, 1)), -1, 1).astype(np.float32)
    data = LabelledDataset(seen, done, np.ones(2000), observation_space=SEEN, action_space=BOX)
    model = PMPO.from_spaces(
        "MlpPolicy", SEEN, BOX, seed=0, batch_size=128, learning_rate=3e-3,
        policy_kwargs={"net_arch": [32], "std_init": 0.3}, device="cpu",
    )  # fmt: skip
    model.learn_offline(data, 300, log_interval=None)
    return model


def share(model: PMPO, judge: Veto | Thumbs) -> float:
    """Return what the judge would reject of what the policy does without noise."""
    episodes = roll_out(model, np.zeros((1, STEPS)))
    return float(np.concatenate([judge.violations(each) for each in episodes]).mean())


def test_a_program_keeps_a_joint_inside_its_limit_by_rejections_alone(pushing: PMPO) -> None:
    judge = Veto(LIMIT, margin=0.3, horizon=0, brake=0.0, motor=0, asked=6)
    rng, feedback = np.random.default_rng(1), FeedbackBuffer(SEEN, BOX)
    before = share(pushing, judge)
    for episode in roll_out(pushing, 0.2 * rng.standard_normal((40, STEPS))):
        judge.judge(episode, feedback, rng)
    assert feedback.n_accepted == 0
    pushing.learn_from_feedback(feedback, 800, kl="data", beta=1.05, log_interval=None)
    assert before > 0.5
    assert share(pushing, judge) <= 0.2 * before
    (after,) = roll_out(pushing, np.zeros((1, STEPS)))
    assert after.joint[20:].mean() < LIMIT / 4  # it does not flee from the limit


def test_late_and_wrong_thumbs_on_segments_are_better_than_none(pushing: PMPO) -> None:
    judge = Thumbs(LIMIT, segment=10, delay=3, wrong=0.1)
    rng = np.random.default_rng(2)
    before = share(pushing, judge)
    for _ in range(3):
        feedback = FeedbackBuffer(SEEN, BOX)
        # A push of its own for each episode: what the actions of a segment have in common.
        noise = np.repeat(0.3 * rng.standard_normal((60, 1)), STEPS, 1)
        for episode in roll_out(pushing, noise):
            judge.judge(episode, feedback, rng)
        pushing.learn_from_feedback(feedback, 150, beta=(1.05, 20.0), log_interval=None)
    assert feedback.n_accepted == 0
    assert before > 0.5
    assert share(pushing, judge) <= 0.5 * before
