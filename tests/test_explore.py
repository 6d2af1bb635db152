"""Acting with the model's exploration noise, for what is to be labelled."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pmpo import PMPO
from sb3_pmpo.online.exploration import explore, pink_noise
from sb3_pmpo.tools.label import record_segments


def make_model(n_envs: int = 1, env: str = "Pendulum-v1", **arguments: object) -> PMPO:
    envs = [lambda: gym.make(env)] * n_envs
    return PMPO(
        "MlpPolicy", DummyVecEnv(envs), seed=0, policy_kwargs={"net_arch": [8]}, **arguments
    )


def test_neighbouring_actions_resemble_each_other_in_one_state() -> None:
    model = make_model(exploration_noise=pink_noise)
    seen = np.zeros((1, 3), np.float32)
    smooth = np.concatenate([explore(model, seen) for _ in range(400)])[:, 0]
    apart = np.concatenate([model.predict(seen)[0] for _ in range(400)])[:, 0]
    # Actions of Pendulum are in [-2, 2].
    assert np.abs(smooth).max() <= 2.0
    assert smooth.std() > 0.5
    assert np.corrcoef(smooth[1:], smooth[:-1])[0, 1] > 0.4
    assert abs(np.corrcoef(apart[1:], apart[:-1])[0, 1]) < 0.2


def test_an_episode_that_begins_has_noise_of_its_own() -> None:
    one, other = make_model(2), make_model(2)
    seen = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(explore(one, seen), explore(other, seen))
    begun = explore(one, seen, np.array([False, True]))
    went_on = explore(other, seen, np.array([False, False]))
    assert begun[0] == went_on[0]
    assert begun[1] != went_on[1]


def test_discrete_actions_are_drawn() -> None:
    model = make_model(env="CartPole-v1")
    drawn = [int(explore(model, np.zeros((1, 4), np.float32))[0]) for _ in range(50)]
    assert set(drawn) == {0, 1}


@pytest.mark.parametrize("seen", [np.zeros((3, 3)), np.zeros(3)])
def test_observations_of_other_environments_are_refused(seen: np.ndarray) -> None:
    with pytest.raises(ValueError, match="all 2 environments"):
        explore(make_model(2), seen.astype(np.float32))


class Still(gym.Env):
    """One state, so that actions differ by the noise alone."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Box(-1, 1, (1,))
    render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(("deterministic", "resemble"), [(False, True), (True, False)])
def test_a_clip_for_labels_shows_one_way_of_acting(deterministic: bool, resemble: bool) -> None:
    env = DummyVecEnv([Still])
    model = PMPO(
        "MlpPolicy", env, exploration_noise=pink_noise, seed=0, policy_kwargs={"net_arch": [8]}
    )
    (clip,) = record_segments(model, env, 1, 300, deterministic=deterministic)
    actions = clip.actions[:, 0]
    assert (actions.std() > 0.2) == resemble
    if resemble:
        assert np.corrcoef(actions[1:], actions[:-1])[0, 1] > 0.4


def test_no_clip_for_labels_has_white_noise() -> None:
    """The default has it in half of the episodes."""
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Still(), 300)])
    model = PMPO("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [8]})
    for clip in record_segments(model, env, 6, 300, deterministic=False):
        actions = clip.actions[:, 0]
        assert np.corrcoef(actions[1:], actions[:-1])[0, 1] > 0.3
