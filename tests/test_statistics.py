"""The policy's statistics: of a buffer that was filled elsewhere, of a sensor that failed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy.signal import lfilter
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import DictToy, Toy, assert_equal, parameters, small

from sb3_pmpo import PMPO
from sb3_pmpo.networks import RunningMoments, has_absurd_readings
from sb3_pmpo.offline import LabelledDataset
from sb3_pmpo.online import statistics
from sb3_pmpo.online.exploration import seed_of
from sb3_pmpo.policies import MlpPolicy


class Sign(gym.Env):
    """One step; the best action is the sign of x, and what is observed is 1000 + x."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return np.array([1000 + self.x], np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        reward = -float((action[0] - np.sign(self.x)) ** 2)
        return self.reset()[0], reward, True, False, {}


def model_of(env: gym.Env, **arguments: Any) -> PMPO:
    kwargs = {"net_arch": [16]}
    return PMPO("MlpPolicy", env, seed=0, policy_kwargs=kwargs, learning_rate=5e-3, **arguments)


def fill(model: PMPO, n: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(n):
        x, action = rng.uniform(-1, 1, 2)
        observation = np.array([[1000 + x]], np.float32)
        reward = np.array([-((action - np.sign(x)) ** 2)])
        given = np.array([[action]], np.float32), reward, np.array([True]), [{}]
        model.replay_buffer.add(observation, observation, *given)


def test_a_buffer_filled_by_hand_is_learned_from() -> None:
    model = model_of(Sign(), learning_starts=0)
    fill(model, 1000)
    model.set_logger(configure(None, []))
    model.train(250, 64)
    for x in (-0.9, -0.5, 0.5, 0.9):
        action, _ = model.predict(np.array([1000 + x], np.float32), deterministic=True)
        assert action[0] * np.sign(x) > 0.5


def test_a_loaded_buffer_completes_the_statistics(tmp_path: Any) -> None:
    model = model_of(Sign())
    fill(model, 500)
    model.save_replay_buffer(tmp_path / "buffer")
    fresh = model_of(Sign())
    fresh.load_replay_buffer(tmp_path / "buffer")
    moments = fresh.policy.normaliser.moments[0]
    assert moments.count.item() == 500
    assert moments.mean.item() == pytest.approx(1000.0, abs=0.1)
    assert moments.var.item() == pytest.approx(1 / 3, rel=0.1)
    assert fresh.policy.return_moments.mean.item() < -0.5


def test_a_policy_that_has_learned_keeps_its_statistics(tmp_path: Path) -> None:
    """One learned from data has seen no return: the buffer gives those, and no observations."""
    source = model_of(Sign())
    fill(source, 500)
    source.save_replay_buffer(tmp_path / "buffer")
    observations = np.full((50, 1), 990, np.float32) + np.arange(50, dtype=np.float32)[:, None]
    spaces_of = Sign.observation_space, Sign.action_space
    model = PMPO.from_spaces("MlpPolicy", *spaces_of, seed=0, policy_kwargs={"net_arch": [16]})
    data = LabelledDataset(
        observations, np.zeros((50, 1)), np.ones(50), **dict(zip(SPACES, spaces_of, strict=True))
    )
    model.learn_offline(data, 20)
    acted, _ = model.predict(observations, deterministic=True)
    model.set_env(DummyVecEnv([Sign]))
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.policy.return_moments.count.item() == 500
    assert model.policy.normaliser.moments[0].count.item() == 50
    np.testing.assert_array_equal(acted, model.predict(observations, deterministic=True)[0])


SPACES = ("observation_space", "action_space")


def test_an_absurd_reading_in_a_buffer_changes_nothing_that_has_learned(tmp_path: Path) -> None:
    model = model_of(Sign(), learning_starts=20, buffer_size=200).learn(60)
    model.replay_buffer.observations[30] = 1e10  # and long gone from the statistics
    model.save_replay_buffer(tmp_path / "buffer")
    before = parameters(model.policy)
    model.load_replay_buffer(tmp_path / "buffer")
    assert_equal(before, parameters(model.policy))


def test_statistics_of_collecting_stay_as_they_are() -> None:
    """Where the buffer holds no more than they have seen, they are not taken anew."""
    model = model_of(Sign(), learning_starts=20)
    model.learn(60)
    seen = np.unique(model.replay_buffer.next_observations[:60])
    assert model.policy.statistics_count == 60
    assert len(seen) == 60


@pytest.mark.parametrize("at", [100, 900])
def test_one_absurd_reading_leaves_a_feature_visible(at: int) -> None:
    """Of 1000 readings of unit variance one is 1e10: the variance stays within a factor of 3."""
    values = th.randn(1000, 1, generator=th.Generator().manual_seed(0))
    values[at] = 1e10
    moments = RunningMoments((1,))
    for value in values:
        moments.update(value.unsqueeze(0))
    assert 0.5 < moments.var.item() < 3.0
    assert abs(moments.mean.item()) < 0.2


@pytest.mark.parametrize("at", [5, 400])
@pytest.mark.parametrize("rare", [0.2, 0.0])
def test_one_absurd_reading_leaves_a_feature_that_is_mostly_zero_visible(
    rare: float, at: int
) -> None:
    """A contact in one of five readings, or none yet; what begins anew takes the buffer's."""
    generator = np.random.default_rng(0)
    values = th.as_tensor(3.0 * (generator.uniform(size=(2000, 1)) < rare), dtype=th.float32)
    true = values.var(0, correction=0).item()
    values[at] = 1e10
    moments = RunningMoments((1,))
    if at < 10:
        assert has_absurd_readings(values)
        moments.begin_anew(values)
    else:
        for value in values:
            moments.update(value.unsqueeze(0))
    assert moments.var.item() < 4.0 * (1.0 + true)


def test_the_first_change_of_a_constant_feature_is_believed() -> None:
    moments = RunningMoments((1,))
    for value in [0.0] * 100 + [1000.0] * 100:
        moments.update(th.tensor([[value]]))
    assert moments.mean.item() == pytest.approx(500.0, rel=1e-3)


class Spike(gym.ObservationWrapper):
    """The third reading of the run is absurd."""

    n = 0

    def observation(self, observation: np.ndarray) -> np.ndarray:
        self.n += 1
        return observation if self.n != 3 else np.array([1e10], np.float32)


def test_one_absurd_reading_in_the_warm_up_is_forgotten_when_learning_begins() -> None:
    model = model_of(Spike(Sign()), learning_starts=40).learn(45)
    assert model.policy.normaliser.moments[0].var.item() < 200.0


def test_a_real_change_of_scale_is_followed() -> None:
    generator = th.Generator().manual_seed(0)
    moments = RunningMoments((1,))
    for scale in (1e-3, 100.0):
        for value in scale * th.randn(1000, 1, generator=generator):
            moments.update(value.unsqueeze(0))
    assert moments.var.sqrt().item() == pytest.approx(100.0 / 2**0.5, rel=0.3)


def test_an_absurd_reading_in_the_warm_up_is_told_from_a_contact() -> None:
    readings = th.randn(200, 2, generator=th.Generator().manual_seed(0))
    readings[:, 1] = 0.0
    readings[7, 1] = 5.0  # a contact that is rare
    assert not has_absurd_readings(readings)
    readings[0, 0] = 1e10
    assert has_absurd_readings(readings)
    moments = RunningMoments((2,))
    moments.begin_anew(readings)
    assert moments.var[0].item() < 20.0
    assert moments.var[1].item() == pytest.approx(readings[:, 1].var(correction=0).item())


@pytest.mark.parametrize("cost", [1e-4, 1e-6])
def test_a_rare_reward_is_no_outlier_beside_a_small_cost(cost: float) -> None:
    """A cost of each action, and +1 after 50000 steps: the unit is that of the returns seen."""
    model, generator = model_of(Sign()), np.random.default_rng(0)
    rewards = -cost * generator.uniform(size=50_300)
    rewards[50_000] += 1.0
    seen = lfilter([1.0], [1.0, -0.99], rewards)  # discounted so far
    model.policy.return_moments.update(th.tensor(seen[:50_000]).unsqueeze(-1))
    for value in seen[50_000:]:
        model.policy.return_moments.update(th.tensor([[value]]))
    rms = np.sqrt(np.mean(np.square(seen)))
    assert 0.5 * rms < model.policy.critic.scale.item() < 2.0 * rms


def test_one_absurd_return_leaves_the_unit_of_the_critic() -> None:
    model = model_of(Sign())
    for value in [*np.random.default_rng(0).normal(size=999), 1e10]:
        model.policy.update_statistics(np.zeros((1, 1), np.float32), np.array([value]))
    assert model.policy.critic.scale.item() < 2.0


def test_a_resumed_run_has_seeds_of_its_own() -> None:
    assert seed_of(3, 0) == 3
    assert seed_of(None, 500) is None
    assert len({seed_of(3, steps) for steps in range(0, 1000, 100)}) == 10


class Huge(gym.RewardWrapper):
    def reward(self, reward: float) -> float:
        return 1e18


def test_values_whose_squares_overflow_are_refused_by_name() -> None:
    model = model_of(Huge(Sign()))
    message = r"environment 0 returned a reward that is larger than 1e\+16"
    with pytest.raises(ValueError, match=message):
        model.learn(5)
    assert th.isfinite(model.policy.return_moments.var).all()


class Rich(gym.RewardWrapper):
    """Its rewards are allowed, and their sum is not."""

    def reward(self, reward: float) -> float:
        return 9e15


def test_a_return_that_no_float32_squares_is_refused() -> None:
    model = small(Rich(Toy()), gamma=1.0, learning_starts=10)
    with pytest.raises(ValueError, match=r"discounted return of an episode .*1e\+16, got"):
        model.learn(10)
    assert model.policy.return_moments.var.isfinite().all()


def test_pictures_are_not_gathered_for_statistics_that_nobody_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(Sign())
    fill(model, 10)
    monkeypatch.setattr(statistics, "_observations", None)  # of a large buffer a copy is GiBs
    monkeypatch.setattr(MlpPolicy, "statistics_counts", (np.inf, 0.0))
    model.complete_statistics()
    assert model.policy.return_moments.count == 10


def test_of_a_dict_only_the_vectors_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(DictToy(Toy()), policy="MultiInputPolicy", learning_starts=100).learn(20)
    model.policy.normaliser.moments[0].count.fill_(0)
    seen: list[set[str]] = []
    monkeypatch.setattr(MlpPolicy, "begin_observations_anew", lambda _, of: seen.append({*of}))
    model.complete_statistics()
    assert seen == [{"vector"}]
