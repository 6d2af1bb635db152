"""The off-policy loop: learning, counting and what an update does."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from toys import DictToy, Guess, Toy, assert_equal, parameters, sample, small, toys

from sb3_pmpo import (
    PMPO,
    Candidates,
    Preference,
    advantage,
    best_worst,
    boltzmann,
    quantile,
    state_value,
    threshold,
    top_k,
)
from sb3_pmpo.core.batch import Batch
from sb3_pmpo.core.labels import Labeller
from sb3_pmpo.critics import QuantileCritic
from sb3_pmpo.online.exploration import pink_noise

SNAPSHOT_ACTIONS = [[-0.33407, 1.32369], [-0.24841, 1.21898]]
SNAPSHOT_STD = [[0.60066, 0.59814], [0.59409, 0.60513]]
SNAPSHOT_Q = [0.05694, 0.06903]


def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the same on every CPU."""
    for module in ("critics", "actor"):
        monkeypatch.setattr(f"sb3_pmpo.{module}.fastest_dtype", lambda *_: th.float32)


def filled(**kwargs: Any) -> PMPO:
    """Make a model that has collected 60 steps and updated nothing."""
    model = small(Toy(), gradient_steps=0, **kwargs)
    return model.learn(60)


class Late(gym.RewardWrapper):
    """All rewards are zero at first."""

    first = 200

    def reward(self, reward: float) -> float:
        self.first -= 1
        return reward * (self.first < 0)


@pytest.mark.parametrize("space", [None, spaces.Discrete(3), spaces.MultiDiscrete([4, 3, 5])])
def test_a_labeller_is_told_what_each_critic_says(space: Any, tmp_path: Path) -> None:
    seen = []

    def labeller(candidates: Any) -> Any:
        if candidates.each is not None:  # not in the trial call
            each = candidates.each()
            th.testing.assert_close(each.mean(0), candidates.scores)
            seen.append((len(each), candidates.reliability().item()))
        return advantage(reliable=True)(candidates)

    env = Toy() if space is None else Guess(space)
    model = small(env, labeller=labeller, policy_kwargs={"net_arch": [8], "n_critics": 3})
    model.learn(60)
    assert {n for n, _ in seen} == {3}
    assert all(0.0 <= reliability <= 1.0 for _, reliability in seen)
    assert len({reliability for _, reliability in seen}) > 1
    by_name = small(env, labeller="advantage(reliable=True)", policy_kwargs={"net_arch": [8]})
    by_name.save(tmp_path / "model")
    loaded = PMPO.load(tmp_path / "model", env, device="cpu").learn(30)
    assert loaded.objective.labeller == advantage(reliable=True)


@pytest.mark.slow
def test_nothing_is_learned_from_zeros_and_the_identity_from_the_first_reward_on() -> None:
    env = IdentityEnvBox(eps=0.5)
    model = PMPO(
        "MlpPolicy", Late(env), learning_rate=3e-3, learning_starts=50, batch_size=64, gamma=0.5,
        seed=0, policy_kwargs={"net_arch": [32]}, buffer_size=200,
    )  # fmt: skip
    model.learn(200)
    states = np.linspace(-1.0, 1.0, 9, dtype=np.float32)[:, None]
    assert np.ptp(model.predict(states, deterministic=True)[0]) < 0.8  # 1.5 if noise were labelled
    model.learn(600, reset_num_timesteps=False)
    mean_return, _ = evaluate_policy(model, env, n_eval_episodes=3, warn=False)
    assert mean_return > 90.0  # of 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("critic_class", "terminates", "low", "high", "steps"),
    [
        (None, False, 48.0, 52.0, 800),
        (QuantileCritic, True, 0.0, 10.0, 500),  # an episode has 10 steps
        # It is faster at where quantiles of rare ends lead: benchmarks/trials.md, "Quantiles".
        (None, True, 5.0, 20.0, 500),
    ],
)
def test_values_far_from_zero_are_learned_and_terminations_end_them(
    critic_class: Any, terminates: bool, low: float, high: float, steps: int
) -> None:
    class Constant(Toy):
        def step(self, action: np.ndarray) -> Any:
            observation, _, *rest = super().step(action)
            return observation, 1.0, *rest

    model = small(
        Constant(terminates=terminates), gamma=0.98, tau=0.5, learning_rate=0.01, learning_starts=0,
        policy_kwargs={"net_arch": [16], "critic_class": critic_class},
    )  # fmt: skip
    model.learn(steps)
    observations = th.zeros(1, 2)
    q_value = model.critic(observations, th.zeros(1, 1))[0].item()
    assert low < q_value < high


def test_seeded_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    # A change that is meant to change the numbers replaces them; one that is not has a bug.
    in_float32(monkeypatch)
    model = PMPO(
        "MlpPolicy",
        Toy(low=(-2.0, 0.0), high=(1.0, 3.0)),
        learning_rate=3e-3,
        actor_learning_rate=1e-3,
        learning_starts=20,
        batch_size=32,
        tau=0.01,
        n_steps=3,
        alpha=0.5,
        beta=(1.0, 5.0),
        labeller=top_k(2),
        n_samples=4,
        decoupled=True,
        reference_tau=0.01,
        reference_update_interval=1,
        policy_delay=1,
        gradient_steps=1,
        exploration_noise=pink_noise,
        policy_kwargs={"net_arch": [32], "std_init": 0.6, "std_min": 0.01, "std_max": 1.0},
        seed=0,
        device="cpu",
    )
    model.learn(40)
    observations = np.array([[-0.5, 0.0, 0.5], [0.8, -0.8, 0.1]], np.float32)
    actions, _ = model.predict(observations, deterministic=True)
    scaled = th.as_tensor(model.policy.scale_action(actions))
    std = model.actor.distribution(th.as_tensor(observations)).std
    q_values = model.critic_target(th.as_tensor(observations), scaled)[0].flatten()
    np.testing.assert_allclose(actions, SNAPSHOT_ACTIONS, atol=2e-3)
    np.testing.assert_allclose(std.detach(), SNAPSHOT_STD, atol=2e-3)
    np.testing.assert_allclose(q_values.detach(), SNAPSHOT_Q, atol=2e-3)


def weights_after(seed: int) -> dict[str, th.Tensor]:
    model = small(toys(2), seed=seed, train_freq=2, gradient_steps=-1)
    return parameters(model.learn(80).policy)


def test_one_seed_gives_one_set_of_weights_bit_for_bit() -> None:
    first = weights_after(3)
    np.random.seed(7)
    th.manual_seed(7)
    assert_equal(first, weights_after(3))
    other = weights_after(4)
    assert not any(th.equal(first[name], other[name]) for name in first if "weight" in name)


@pytest.mark.parametrize(
    ("n_envs", "train_freq", "gradient_steps", "updates"),
    [
        (1, 4, 1, 10),  # rollouts end at 4, 8, ...; those at 24 to 60 update
        (1, 4, 3, 30),
        (1, 1, 0, 0),
        (1, (1, "episode"), -1, 40),  # 10 steps each, those at 30 to 60 update
        (2, 3, -1, 42),  # 6 transitions each, those at 24 to 60 update
        (2, 3, 1, 7),
    ],
)
def test_number_of_updates(n_envs: int, train_freq: Any, gradient_steps: int, updates: int) -> None:
    model = small(toys(n_envs), train_freq=train_freq, gradient_steps=gradient_steps)
    before = parameters(model.policy)
    model.learn(60)
    assert model._n_updates == updates
    moved = not th.equal(before["actor.head.linear.weight"], model.actor.head.linear.weight)
    assert moved == (updates > 0)
    assert model.replay_buffer.size() * n_envs == 60


@pytest.mark.filterwarnings("ignore:the replay buffer holds one transition")
def test_smallest_sizes_run() -> None:
    model = small(Toy(), buffer_size=1, batch_size=1, learning_starts=1)
    model.learn(6)
    assert model._n_updates == 5
    assert all(value.isfinite().all() for value in parameters(model.policy).values())


# ------------------------------------------------------------------ the update


def test_learning_rate_zero_changes_no_parameter() -> None:
    model = small(Toy(), learning_rate=0.0, actor_learning_rate=None, tau=0.3, reference_tau=0.3)
    before = dict(model.policy.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}
    model.learn(60)
    assert model._n_updates > 30
    assert_equal(before, dict(model.policy.named_parameters()))


def test_each_learning_rate_follows_its_own_schedule() -> None:
    seen = []

    def critic_schedule(progress: float) -> float:
        seen.append(progress)
        return 1e-2 * progress

    model = small(Toy(), learning_rate=critic_schedule, actor_learning_rate=lambda p: 1e-4 + p)
    model.learn(60)
    progress = model._current_progress_remaining
    assert progress == pytest.approx(1.0 - 60 / 60)
    assert min(seen) == progress
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * progress)
    assert model.actor.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 + progress)
    model.actor_lr_schedule = lambda _: 0.0
    actor, critic = parameters(model.actor.head), parameters(model.critic.ensemble)
    model.lr_schedule = lambda _: 0.1
    model.train(1, batch_size=16)
    assert_equal(actor, parameters(model.actor.head))
    assert not th.equal(critic["output.weight"], model.critic.ensemble.output.weight)


def test_one_learning_rate_serves_both() -> None:
    model = filled(actor_learning_rate=None)
    model.lr_schedule = lambda _: 0.125
    model.train(1, batch_size=16)
    optimizers = model.actor.optimizer, model.critic.optimizer
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [0.125, 0.125]


def test_policy_delay_counts_updates_of_the_critic() -> None:
    model = filled(policy_delay=3)
    moved = []
    for _ in range(7):
        before = parameters(model.actor.head)
        model.train(1, batch_size=16)
        moved.append(not th.equal(before["linear.bias"], model.actor.head.linear.bias))
    assert moved == [True, False, False, True, False, False, True]


@pytest.mark.filterwarnings("ignore:a run that goes on from a checkpoint begins new episodes")
def test_a_held_policy_waits_for_its_step_also_where_a_checkpoint_goes_on(tmp_path: Path) -> None:
    model = small(Toy(), learning_starts=0)
    given = parameters(model.actor.head)
    model.policy_held_until = 40
    model.learn(20)
    assert model.n_updates == 20
    assert model.policy_delay == 2
    assert_equal(parameters(model.actor.head), given)
    model.save_checkpoint(tmp_path)
    resumed = PMPO.load_checkpoint(tmp_path, Toy())
    resumed.learn(19, reset_num_timesteps=False)
    assert_equal(parameters(resumed.actor.head), given)
    resumed.learn(8, reset_num_timesteps=False)
    moved = parameters(resumed.actor.head)
    assert not th.equal(moved["linear.bias"], given["linear.bias"])
    resumed.learn(8)  # counts anew, and is held no more
    assert not th.equal(parameters(resumed.actor.head)["linear.bias"], moved["linear.bias"])


def test_hard_refresh_is_keyed_to_the_number_of_updates() -> None:
    model = filled(reference_tau=1.0, reference_update_interval=5, policy_delay=1)
    refreshed = []
    for _ in range(12):
        before = parameters(model.reference_actor.head)
        model.train(1, batch_size=16)
        after = parameters(model.reference_actor.head)
        refreshed.append(not th.equal(before["linear.weight"], after["linear.weight"]))
        if refreshed[-1]:
            assert_equal(after, parameters(model.actor.head))
    assert np.flatnonzero(refreshed).tolist() == [4, 9]


def test_polyak_refresh_moves_by_tau() -> None:
    model = filled(reference_tau=0.25, reference_update_interval=1, tau=0.125)
    for online, lagged, tau in (
        (model.actor, model.reference_actor, 0.25),
        (model.critic, model.critic_target, 0.125),
    ):
        before = [value.clone() for value in lagged.parameters()]
        model.train(1, batch_size=16)
        for old, now, new in zip(before, lagged.parameters(), online.parameters(), strict=True):
            th.testing.assert_close(now, old + tau * (new - old))


@pytest.mark.parametrize("tau", [0.0, 0.01, 1.0])
def test_tau_moves_every_tensor_of_the_critic_target(tau: float) -> None:
    model = filled(tau=tau, policy_kwargs={"net_arch": [16, 16]})
    before = [value.clone() for value in model.critic_target.parameters()]
    assert_equal(parameters(model.critic), parameters(model.critic_target))
    model.train(5, batch_size=16)
    for old, target, online in zip(
        before, model.critic_target.parameters(), model.critic.parameters(), strict=True
    ):
        assert not th.equal(old, online)
        assert th.equal(old, target) == (tau == 0.0)
        assert th.equal(online, target) == (tau == 1.0)


def test_statistics_are_gathered_while_collecting_and_not_in_train() -> None:
    model = filled()
    moments = model.policy.normaliser.moments[0]
    stored = model.replay_buffer
    assert moments.count.item() == 60
    # New observations, those after a reset instead of those at an episode's end.
    new = np.where(stored.dones[:60] > 0, 0.0, stored.next_observations[:60, 0])
    resets = stored.observations[1:60, 0][stored.dones[:59, 0] > 0]
    expected = np.concatenate([new[stored.dones[:60, 0] == 0], resets])
    np.testing.assert_allclose(
        moments.mean * 60, expected.sum(0) + model._last_obs[0], rtol=1e-4, atol=1e-5
    )
    before = parameters(model.policy.normaliser) | parameters(model.policy.return_moments)
    model.train(5, batch_size=16)
    after = parameters(model.policy.normaliser) | parameters(model.policy.return_moments)
    assert_equal(before, after)


def test_discounted_returns_restart_with_each_episode() -> None:
    model = small(toys(2), gamma=0.5)
    steps = [([1.0, 2.0], [False, False]), ([4.0, 0.0], [True, False]), ([1.0, 1.0], [False] * 2)]
    returns = [model._advance_returns(np.array(r), np.array(done)).tolist() for r, done in steps]
    assert returns == [[1.0, 2.0], [4.5, 1.0], [1.0, 1.5]]


def test_lagged_networks_are_in_no_optimiser_and_have_no_gradient() -> None:
    model = filled()
    model.train(2, batch_size=16)
    optimised = [
        {id(p) for group in part.optimizer.param_groups for p in group["params"]}
        for part in (model.actor, model.critic)
    ]
    assert optimised[0] == {id(p) for p in model.actor.parameters()}
    assert optimised[1] == {id(p) for p in model.critic.parameters()}
    for lagged in (model.reference_actor, model.critic_target):
        for parameter in lagged.parameters():
            assert not parameter.requires_grad
            assert parameter.grad is None
            assert not any(id(parameter) in group for group in optimised)


def test_candidates_are_scored_in_the_box_and_tied_by_the_distance_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Candidates] = []

    def labeller(candidates: Candidates) -> Preference:
        seen.append(candidates)
        return top_k(2)(candidates)

    model = filled(labeller=labeller, n_samples=6, policy_delay=1, policy_kwargs={"std_init": 0.95})
    in_float32(monkeypatch)
    observations = sample(model, 16).observations
    expected = [
        model.critic_target.q_values(observations, th.full((1, 16, 1), end)).mean(0)[0]
        for end in (-1.0, 1.0)
    ]
    model.learner.improve(observations, model.n_samples)
    actions, scores = seen[-1].actions, seen[-1].scores
    assert actions.shape == (6, 16, 1)
    assert th.equal(seen[-1].weights, th.full((6, 16), 1 / 6))
    for end, q_value in zip((-1.0, 1.0), expected, strict=True):
        outside = actions[..., 0] * end > 1.0
        assert outside.any()
        th.testing.assert_close(scores[outside], q_value.expand(6, 16)[outside])
    distance = (actions[..., 0].abs() - 1.0).clamp(min=0.0)
    th.testing.assert_close(seen[-1].outside, distance)


def test_target_uses_discounts_and_ends_at_terminations() -> None:
    model = filled(n_steps=1, gamma=0.5)
    batch = sample(model, 8)
    target = partial(model.learner.td_target, pessimism=model.pessimism)
    assert batch.discounts == 0.5
    ended = batch._replace(dones=th.ones(8))
    rewards = batch.rewards.unsqueeze(-1).expand(8, 8)  # the same for every quantile
    assert th.equal(target(ended), rewards)
    zero = batch._replace(dones=th.zeros(8), discounts=th.zeros(8))
    assert th.equal(target(zero), rewards)
    assert not th.equal(target(batch._replace(dones=th.zeros(8))), rewards)


@pytest.mark.parametrize(
    "labeller",
    [best_worst(), threshold(state_value), threshold(quantile(0.75)), boltzmann(1.0)],
)
def test_every_labeller_trains(labeller: Labeller) -> None:
    model = filled(labeller=labeller, alpha=0.5, beta=(2.0, 3.0), policy_delay=1)
    before = parameters(model.actor)
    model.train(3, 16)
    after = parameters(model.actor)
    assert all(value.isfinite().all() for value in after.values())
    assert any(not th.equal(before[name], after[name]) for name in before)


def test_state_value_is_the_mean_of_samples_of_its_own() -> None:
    seen: list[Candidates] = []

    def labeller(candidates: Candidates) -> Preference:
        seen.append(candidates)
        return top_k(2)(candidates)

    model = filled(labeller=labeller, policy_delay=1, n_samples=8)
    model.learner.improve(sample(model, 16).observations, model.n_samples)
    candidates = seen[-1]
    value = candidates.value()
    assert value.shape == (16,)
    assert not value.requires_grad
    spread = candidates.scores.amax(0) - candidates.scores.amin(0)
    assert ((value - candidates.scores.mean(0)).abs() <= 2 * spread).all()


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
def test_each_update_has_a_batch_and_targets_of_its_own(policy: str, n_steps: int) -> None:
    env = Toy() if policy == "MlpPolicy" else DictToy(Toy())
    model = small(env, policy, gradient_steps=0, gamma=0.0, policy_delay=2, n_steps=n_steps)
    model.learn(60)
    pairs: list[tuple[Batch, th.Tensor]] = []
    step = model.learner.critic_step
    model.learner.critic_step = lambda *pair: pairs.append(pair) or step(*pair)
    model.train(5, 8)  # in groups of 2, 2 and 1
    assert len(pairs) == 5
    for batch, target in pairs:
        assert len(batch.actions) == len(batch.dones) == 8
        own = model.learner.td_target(batch, 0.5)
        assert own.shape == (8, 8)  # one observation for each, 8 quantiles
        assert th.equal(target, batch.rewards.unsqueeze(-1).expand(8, 8))
    assert not th.equal(pairs[0][0].rewards, pairs[1][0].rewards)


def test_action_noise_outlives_a_callback_that_cannot_begin() -> None:
    class Fails(BaseCallback):
        def _init_callback(self) -> None:
            raise OSError("disk full")

        def _on_step(self) -> bool:
            return True

    noise = NormalActionNoise(np.zeros(1), np.ones(1))
    model = small(Toy(), action_noise=noise).learn(25)
    with pytest.raises(OSError, match="disk full"):
        model.learn(5, callback=Fails(), reset_num_timesteps=False)
    assert model.action_noise is noise
