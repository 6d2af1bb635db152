"""Do a critic's scores order a state's actions as their outcomes do? The quality of PMPO's labels.

    python -m benchmarks.labels walker-walk

Trains an agent at its shipped setting and stops. Of states that its reference policy visits, S
actions each are followed by rollouts of that policy, whose end is valued by a state-value function
fitted to many more episodes of it. Beside the mean of these outcomes, three critics are judged: the
agent's own; a fresh one, trained on the agent's replay buffer and reference; and a fresh one that
saw the same buffer grow, as the agent's did, while policy and number of updates are the same.

Axes: S actions, B states, T decisions.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any, NamedTuple

import numpy as np
import torch as th
from scipy.stats import spearmanr
from torch import nn

from benchmarks.models import make_model, make_task
from benchmarks.provenance import provenance
from benchmarks.records import Places, write
from sb3_pmpo.replay import Replay

ACTION_REPEAT, N_ACTIONS, HORIZON, LAMBDA = 2, 8, 12, 0.98


class Episode(NamedTuple):
    """One episode of the reference policy.

    :param observations: ``[T + 1, O]``.
    :param rewards: ``[T]``.
    :param states: T states of the physics, before each decision.
    """

    observations: np.ndarray
    rewards: np.ndarray
    states: list[np.ndarray]


class Scored(NamedTuple):
    """Actions and what came of them.

    :param observations: ``[B, O]``.
    :param actions: ``[S, B, A]``, in [-1, 1] but for what the policy draws outside.
    :param outcomes: ``[S, B, rollouts]`` discounted returns.
    """

    observations: th.Tensor
    actions: th.Tensor
    outcomes: np.ndarray


def act(model: Any, observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Draw the reference policy's action ``[A]`` for standard normal ``noise``."""
    with th.no_grad():
        policy = model.reference_actor.distribution(th.as_tensor(observation[None]))
        return policy.at_quantile(th.as_tensor(noise, dtype=th.float32))[0].numpy()


def play(model: Any, env: Any, rng: np.random.Generator, decisions: int) -> list[Episode]:
    """Run whole episodes of the reference policy, at least so many decisions in all."""
    simulation, n_actions = env.unwrapped._env, env.action_space.shape[0]
    episodes: list[Episode] = []
    while sum(len(episode.rewards) for episode in episodes) < decisions:
        observation, _ = env.reset(seed=10_000 + len(episodes))
        observations, rewards, states, over = [observation], [], [], False
        while not over:
            states.append(simulation.physics.get_state().copy())
            action = act(model, observation, rng.standard_normal(n_actions))
            observation, reward, terminated, truncated, _ = env.step(action.clip(-1.0, 1.0))
            observations.append(observation)
            rewards.append(reward)
            over = terminated or truncated
        episodes.append(Episode(np.array(observations), np.array(rewards), states))
    return episodes


class Values:
    """A state-value function fitted to TD(lambda) returns; time limits are bootstrapped over."""

    def __init__(self, model: Any, episodes: list[Episode], sweeps: int, updates: int) -> None:
        self.normalise, self.gamma = model.policy.normaliser, model.gamma
        self.scale = float(model.critic.scale)
        width = episodes[0].observations.shape[1]
        layers: list[nn.Module] = []
        for sizes in itertools.pairwise([width, 256, 256]):
            layers += [nn.Linear(*sizes), nn.LayerNorm(sizes[1]), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Linear(256, 1))
        self.optimizer = th.optim.Adam(self.network.parameters())
        observations = np.concatenate([episode.observations[:-1] for episode in episodes])
        for _ in range(sweeps):
            targets = np.concatenate([self._returns(episode) for episode in episodes])
            self._regress(th.as_tensor(observations), th.as_tensor(targets).float(), updates)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Return the values of ``[B, O]``."""
        with th.no_grad():
            scaled = self.network(self.normalise(th.as_tensor(observations)))
        return self.scale * scaled[:, 0].numpy()

    def _returns(self, episode: Episode) -> np.ndarray:
        values, returns = self(episode.observations), np.zeros(len(episode.rewards))
        following = values[-1]
        for t in reversed(range(len(returns))):
            mixed = (1.0 - LAMBDA) * values[t + 1] + LAMBDA * following
            following = returns[t] = episode.rewards[t] + self.gamma * mixed
        return returns

    def _regress(self, observations: th.Tensor, targets: th.Tensor, updates: int) -> None:
        inputs = self.normalise(observations)
        for update in range(updates):
            self.optimizer.param_groups[0]["lr"] = 1e-3 * (1.0 - 0.9 * update / updates)
            rows = th.randint(len(inputs), (512,))
            error = self.network(inputs[rows])[:, 0] - targets[rows] / self.scale
            self.optimizer.zero_grad()
            error.square().mean().backward()
            self.optimizer.step()


def outcome(
    model: Any, env: Any, state: np.ndarray, action: np.ndarray, noise: np.ndarray
) -> tuple[float, np.ndarray]:
    """Set the physics, act, go on with the policy: discounted rewards and last observation."""
    simulation = env.unwrapped._env
    with simulation.physics.reset_context():
        simulation.physics.set_state(state)
    simulation._step_count, simulation._reset_next_step = 0, False
    total, discount = 0.0, 1.0
    for draw in noise:
        observation, reward, *_ = env.step(action.clip(-1.0, 1.0))
        total, discount = total + discount * reward, discount * model.gamma
        action = act(model, observation, draw)
    return total, observation


def score(
    model: Any, env: Any, episodes: list[Episode], rng: np.random.Generator, n: int, repeats: int
) -> Scored:
    """Follow S actions in each of n states by ``repeats`` rollouts, the same noise for all S."""
    values = Values(model, episodes, sweeps=8, updates=800)
    size, discount = env.action_space.shape[0], model.gamma**HORIZON
    observations, actions, outcomes = [], [], []
    for _ in range(n):
        episode = episodes[rng.integers(len(episodes))]
        t = rng.integers(len(episode.states))
        observation = episode.observations[t]
        drawn = [act(model, observation, rng.standard_normal(size)) for _ in range(N_ACTIONS)]
        returns = np.zeros((N_ACTIONS, repeats))
        for repeat in range(repeats):
            noise = rng.standard_normal((HORIZON, size))
            runs = [outcome(model, env, episode.states[t], action, noise) for action in drawn]
            ends = values(np.array([end for _, end in runs]))
            returns[:, repeat] = np.array([total for total, _ in runs]) + discount * ends
        observations.append(observation)
        actions.append(drawn)
        outcomes.append(returns)
    stacked = th.as_tensor(np.array(actions)).transpose(0, 1)
    moved = np.array(outcomes).transpose(1, 0, 2)
    return Scored(th.as_tensor(np.array(observations)), stacked, moved)


def fresh_critic(model: Any, fresh: Any, *, grow: bool) -> None:
    """Train a new agent's critic, by its own update, on the old one's data and reference.

    :param model: the trained agent.
    :param fresh: an untrained one with the same arguments.
    :param grow: let the buffer grow from the warm-up's end to all of it meanwhile.
    """
    for part in ("normaliser", "return_moments"):
        getattr(fresh.policy, part).load_state_dict(getattr(model.policy, part).state_dict())
    for actor in (fresh.actor, fresh.reference_actor):
        actor.load_state_dict(model.reference_actor.state_dict())
    fresh.replay_buffer, newest = model.replay_buffer, model.replay_buffer.pos
    fresh.policy.set_training_mode(True)
    learner, rate = fresh.learner, fresh.lr_schedule(1.0)
    learner.set_learning_rates(rate, rate)
    learner.scale_rates()
    replay = Replay(model.replay_buffer, model.n_steps, model.gamma)
    updates = model.n_updates
    for update in range(updates):
        if grow:
            first = model.learning_starts
            fresh.replay_buffer.pos = first + (newest - first) * (update + 1) // updates
        batch = replay.sample(fresh.batch_size)
        learner.critic_step(batch, learner.td_target(batch, fresh.pessimism))
        learner.critic_lag.move(fresh.tau)
    fresh.replay_buffer.pos = newest


def correlation_within(one: np.ndarray, other: np.ndarray) -> float:
    """Correlate two scores ``[S, B]``, each as the deviation from its state's mean."""
    pairs = [(scores - scores.mean(0)).ravel() for scores in (one, other)]
    return float(np.corrcoef(*pairs)[0, 1])


def agreement(critic: Any, scored: Scored) -> dict[str, float]:
    """Compare the mean of the critics, within each state, with the outcomes.

    :return: the correlation of the deviations from the states' means; the mean of the states'
        rank correlations; the correlation of the states' means.
    """
    with th.no_grad():
        q = critic.score(scored.observations, scored.actions).numpy()  # [S, B]
    truth = scored.outcomes.mean(-1)
    ranks = [spearmanr(ours, theirs).statistic for ours, theirs in zip(q.T, truth.T, strict=True)]
    return {
        "within": correlation_within(q, truth),
        "rank": float(np.mean(ranks)),
        "between": float(np.corrcoef(q.mean(0), truth.mean(0))[0, 1]),
    }


def main() -> None:
    """Read the command line, measure, write the CSV, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--decisions", type=int, default=13_000, help="of the agent's training")
    parser.add_argument("--states", type=int, default=400)
    parser.add_argument("--rollouts", type=int, default=12, help="of each action")
    parser.add_argument("--value-decisions", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arguments", type=json.loads, default={}, help="PMPO's, as JSON")
    parser.add_argument("--fresh", type=json.loads, help="those of the fresh ones; default: same")
    options = parser.parse_args()
    th.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    env = make_task(options.task, ACTION_REPEAT)
    model = make_model("PMPO", options.task, env, options.seed, options.arguments)
    model.learn(options.decisions, log_interval=None)
    print(f"trained {options.decisions} decisions", flush=True)
    episodes = play(model, env, rng, options.value_decisions)
    scored = score(model, env, episodes, rng, options.states, options.rollouts)
    print(f"followed {N_ACTIONS} actions in each of {options.states} states", flush=True)
    half = options.rollouts // 2
    one, other = scored.outcomes[..., :half].mean(-1), scored.outcomes[..., half:].mean(-1)
    between_halves = correlation_within(one, other)
    critics = {"the agent's": model.critic_target}
    for name, grow in (("fresh", False), ("fresh, growing buffer", True)):
        arguments = options.arguments if options.fresh is None else options.fresh
        fresh = make_model("PMPO", options.task, env, options.seed + 1, arguments)
        fresh_critic(model, fresh, grow=grow)
        critics[name] = fresh.critic_target
    settings = {key: value for key, value in vars(options).items() if key != "task"}
    rows = [
        {"task": options.task, "critic": name, **agreement(critic, scored)}
        | {"outcomes_halves": between_halves}
        | settings
        | provenance()
        for name, critic in critics.items()
    ]
    path = Places().results / f"labels_{options.task}.csv"
    write(path, rows, tuple(rows[0]))
    print(f"{'critic':24}{'within':>9}{'rank':>9}{'between':>9}")
    for row in rows:
        figures = "".join(f"{row[key]:9.3f}" for key in ("within", "rank", "between"))
        print(f"{row['critic']:24}{figures}")
    print(f"within, of the outcomes' two halves: {between_halves:.3f}; written to {path}")


if __name__ == "__main__":
    main()
