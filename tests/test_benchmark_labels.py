"""The measure of the labels' quality, on what is known.

Axes: S actions, B states.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch as th

from benchmarks import labels
from benchmarks.models import make_model, make_task
from sb3_pmpo import PMPO

TASK = "cartpole-swingup"
SMALL = {"policy_kwargs": {"net_arch": [16]}, "learning_starts": 100, "batch_size": 32}


class KnownQ:
    """Scores that are a function of the action."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def score(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return observations[:, 0] + self.sign * actions[..., 0]  # [S, B]


def test_agreement_is_within_states_and_between_them() -> None:
    rng = np.random.default_rng(0)
    observations = th.as_tensor(100.0 * rng.standard_normal((30, 1)))
    actions = th.as_tensor(rng.standard_normal((8, 30, 1)))
    q = KnownQ(1.0).score(observations, actions).numpy()
    scored = labels.Scored(observations, actions, q[..., None] + np.zeros(3))
    same = labels.agreement(KnownQ(1.0), scored)
    assert same == {key: pytest.approx(1.0) for key in ("within", "rank", "between")}
    opposite = labels.agreement(KnownQ(-1.0), scored)
    assert opposite["within"] == pytest.approx(-1.0)
    assert opposite["rank"] == pytest.approx(-1.0)
    assert opposite["between"] > 0.99  # the states' own values hide it


@pytest.fixture(scope="module")
def agent() -> PMPO:
    model = make_model("PMPO", TASK, make_task(TASK, labels.ACTION_REPEAT), 0, SMALL)
    return model.learn(120, log_interval=None)


def test_an_outcome_goes_on_from_the_given_state(agent: PMPO) -> None:
    env, rng = make_task(TASK, labels.ACTION_REPEAT), np.random.default_rng(0)
    episode = labels.play(agent, env, rng, decisions=1)[0]
    assert len(episode.rewards) == 500
    noise = np.zeros((1, 1))
    # Replay one decision of the middle: the same state and action give the same next observation.
    t = 200
    action = np.ones(1, np.float32)
    ends = [labels.outcome(agent, env, episode.states[t], action, noise) for _ in range(2)]
    np.testing.assert_allclose(ends[0][1], ends[1][1], atol=1e-6)
    other = labels.outcome(agent, env, episode.states[t], -action, noise)
    assert not np.allclose(ends[0][1], other[1])


def test_values_are_the_discounted_rewards_of_a_constant_reward(agent: PMPO) -> None:
    rng = np.random.default_rng(0)
    size = agent.observation_space.shape[0]
    episode = labels.Episode(rng.standard_normal((501, size)).astype(np.float32), np.ones(500), [])
    values = labels.Values(agent, [episode], sweeps=8, updates=100)
    expected = 1.0 / (1.0 - agent.gamma)
    np.testing.assert_allclose(values(episode.observations).mean(), expected, rtol=0.2)


@pytest.mark.parametrize("grow", [False, True])
def test_a_fresh_critic_learns_from_the_same_buffer(agent: PMPO, grow: bool) -> None:
    newest, seen = agent.replay_buffer.pos, []
    fresh = make_model("PMPO", TASK, make_task(TASK, labels.ACTION_REPEAT), 1, SMALL)
    step = fresh.learner.critic_step
    fresh.learner.critic_step = lambda *a: seen.append(agent.replay_buffer.pos) or step(*a)
    before = [parameter.clone() for parameter in fresh.critic.parameters()]
    labels.fresh_critic(agent, fresh, grow=grow)
    assert len(seen) == agent.n_updates
    assert seen[-1] == agent.replay_buffer.pos == newest
    assert (seen[0] < newest) is grow
    after = list(fresh.critic.parameters())
    assert not any(th.equal(one, other) for one, other in zip(before, after, strict=True))
    actors = (fresh.reference_actor.parameters(), agent.reference_actor.parameters())
    for ours, theirs in zip(*actors, strict=True):
        th.testing.assert_close(ours, theirs)
