"""Spaces of every kind: what is supported runs, what is not is refused with the remedy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage
from toys import small

from sb3_pmpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, PMPOPolicy
from sb3_pmpo.space_checks import check_action_space, check_observation_space, first_observations

INF = np.inf


def box(low: Any, high: Any, shape: Any = None, dtype: Any = np.float32) -> spaces.Box:
    if shape is None:
        low, high = np.array(low, dtype), np.array(high, dtype)
    return spaces.Box(low, high, shape, dtype)


class AnyEnv(gym.Env):
    """Random observations of a space; episodes of five steps."""

    def __init__(self, observations: spaces.Space, actions: spaces.Space) -> None:
        self.observation_space, self.action_space, self.steps = observations, actions, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 5, False, {}


VECTOR = box(-1, 1, (2,))

ACTIONS = [
    (box([0.0, -1.0], [0.0, 1.0]), r"low < high in each dimension.* \[0, 0\] in dimension 0"),
    (box(-3e38, 3e38, (2,)), r"that float32 can hold, got \[-3e\+38, 3e\+38\] in dimension 0"),
    (box(-1e308, 1e308, (1,), np.float64), "that float32 can hold"),
    (box(-INF, INF, (1,)), "finite bounds"),
    (box(0, 5, (2,), np.int64), "must be of float32 or float64"),
    (box(-1, 1, (2,), np.float16), "must be of float32 or float64"),
    (box(-1, 1, ()), r"must have an axis.*: use shape \(1,\)"),
    (box(-1, 1, (0,)), "must have entries"),
    (spaces.Discrete(3, start=1), "must start at 0"),
    (spaces.MultiDiscrete([[2, 3], [2, 2]]), "one axis"),
    (spaces.MultiBinary(3), r"MultiBinary\(n\) is MultiDiscrete\(\[2\] \* n\)"),
    (spaces.Tuple((VECTOR, VECTOR)), "must be a bounded Box, Discrete or MultiDiscrete"),
    (spaces.Dict(a=VECTOR), "must be a bounded Box, Discrete or MultiDiscrete"),
    (spaces.Text(3), "must be a bounded Box, Discrete or MultiDiscrete"),
    (spaces.Discrete(10**9), "at most 1000000 choices"),
]


@pytest.mark.parametrize(("space", "message"), ACTIONS)
def test_action_spaces_that_are_refused(space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=f"the action space.*{message}"):
        small(AnyEnv(VECTOR, space))
    with pytest.raises(ValueError, match="the action space"):
        PMPOPolicy(VECTOR, space, lambda _: 1e-3)


SUPPORTED = "must be a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict of them"
OBSERVATIONS = [
    (box(0, 1, ()), "must have an axis"),
    (box(0, 1, (2, 0)), "must have entries"),
    (spaces.Dict(), "must not be empty"),
    (spaces.Dict(a=spaces.Dict(b=VECTOR)), "key 'a' must not be nested"),
    (spaces.Dict(a=VECTOR, b=spaces.Text(3)), f"key 'b' {SUPPORTED}"),
    (spaces.Text(3), SUPPORTED),
    (spaces.Sequence(VECTOR), SUPPORTED),
    (spaces.Graph(VECTOR, None), SUPPORTED),
    (spaces.Tuple((VECTOR,)), SUPPORTED),
    (spaces.MultiDiscrete([[2, 3], [2, 2]]), "must have one axis"),
    (spaces.MultiDiscrete([2, 10**9]), "at most 1000000 choices"),
]


@pytest.mark.parametrize(("space", "message"), OBSERVATIONS)
def test_observation_spaces_that_are_refused(space: spaces.Space, message: str) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=f"the observation space.*{message}"):
        small(AnyEnv(space, VECTOR), policy)
    with pytest.raises(ValueError, match="the observation space"):
        PMPOPolicy(space, VECTOR, lambda _: 1e-3)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(a=spaces.Discrete(3, start=2), b=spaces.MultiDiscrete([2, 2], start=[1, -1])),
        spaces.Dict(a=spaces.MultiBinary((2, 2)), b=box(-1, 1, (2, 3))),
        box(-1, 1, (2,), np.float16),
        box(0, 1, (3,), np.bool_),
        spaces.MultiBinary((2, 2)),
        box(0, 255, (3, 40, 36), np.uint8),
    ],
)
def test_observation_spaces_that_run(space: spaces.Space) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = small(AnyEnv(space, box([-1.0, 0.0], [1.1, 1e10])), policy).learn(30)
    assert model._n_updates > 0


def test_made_up_observations_are_in_their_space() -> None:
    space = spaces.Dict(
        a=spaces.Discrete(3, start=2), b=box(5, 6, (2, 2)), c=spaces.MultiDiscrete([2], start=[-1])
    )
    made = first_observations(space, 2)
    for i in range(2):
        one = {key: value[i] for key, value in made.items()}
        assert space.contains({**one, "a": np.int64(one["a"])})
    check_observation_space(space)
    check_action_space(box(-1, 1, (2, 2)))


# ---------------------------------------------------------------------- images


BYTES = box(0, 255, (36, 36, 3), np.uint8)
IMAGES = [
    (VECTOR, {}, "must be an image, .* use the policy 'MlpPolicy'"),
    (box(0, 255, (3, 20, 20), np.uint8), {}, "at least 36 x 36 for NatureCNN"),
    (box(0, 255, (20, 20, 3), np.uint8), {}, "at least 36 x 36 for NatureCNN"),
    (box(0, 1, (3, 36, 36)), {}, "must be an image, .*'normalize_images': False"),
    (box(0, 1, (36, 36, 3)), {"normalize_images": False}, "channels of images first.*Transpose"),
]


@pytest.mark.parametrize(("space", "policy_kwargs", "message"), IMAGES)
def test_images_that_are_refused(space: spaces.Space, policy_kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(AnyEnv(space, VECTOR), "CnnPolicy", policy_kwargs=policy_kwargs)


def test_vec_normalize_over_channel_last_images_names_the_remedy() -> None:
    env = DummyVecEnv([lambda: AnyEnv(BYTES, VECTOR)])
    kwargs: dict[str, Any] = {"policy_kwargs": {"normalize_images": False, "net_arch": [8]}}
    for given in (kwargs, {}):
        with pytest.raises(ValueError, match=r"VecNormalize\(VecTransposeImage\(env\)\)"):
            small(VecNormalize(env, norm_obs=False), "CnnPolicy", **given)
    env = DummyVecEnv([lambda: AnyEnv(BYTES, VECTOR)])
    small(VecNormalize(VecTransposeImage(env)), "CnnPolicy", **kwargs).learn(25)


@pytest.mark.parametrize("policy", ["CnnPolicy", "MlpPolicy"])
def test_float_images_pass_as_they_are(policy: str) -> None:
    space = box(0, 1, (1, 36, 36))
    kwargs: dict[str, Any] = {"normalize_images": False, "net_arch": [8]}
    model = small(AnyEnv(space, VECTOR), policy, policy_kwargs=kwargs)
    model.policy.update_statistics(np.zeros((4, 1, 36, 36), np.float32), np.zeros(4))
    image = th.full((1, 1, 36, 36), 0.5)
    assert th.equal(model.policy.normaliser(image), image)  # though it was constant so far


def test_an_array_with_three_axes_and_no_bounds_is_no_image() -> None:
    model = small(AnyEnv(box(-INF, INF, (2, 3, 4)), VECTOR))
    assert len(model.policy.normaliser.moments) == 1


def test_a_dict_wants_its_policy_and_its_policy_a_dict() -> None:
    with pytest.raises(ValueError, match=r"policy must be 'MultiInputPolicy' .*got 'MlpPolicy'"):
        small(AnyEnv(spaces.Dict(a=VECTOR), VECTOR))
    with pytest.raises(ValueError, match=r"CombinedExtractor takes a Dict, .* 'MlpPolicy'"):
        small(AnyEnv(VECTOR, VECTOR), "MultiInputPolicy")


@pytest.mark.parametrize("key", ["", "with.dot", "keys", "training"])
def test_keys_that_torch_cannot_name_a_module_by(key: str) -> None:
    with pytest.raises(ValueError, match=f"key '{key}' cannot name a part of CombinedExtractor"):
        small(AnyEnv(spaces.Dict({key: VECTOR}), VECTOR), "MultiInputPolicy")


# ---------------------------------------------------------------------- hindsight


GOALS = spaces.Dict(observation=VECTOR, achieved_goal=VECTOR, desired_goal=VECTOR)


class GoalEnv(AnyEnv):
    """With rewards for any goal."""

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> Any:
        return -np.abs(achieved - desired).sum(-1)


HINDSIGHT = [
    (AnyEnv(spaces.Dict(a=VECTOR), VECTOR), {}, "replay_buffer_class=HerReplayBuffer needs a Dict"),
    (AnyEnv(GOALS, VECTOR), {}, "replay_buffer_class=HerReplayBuffer needs an environment with"),
    (GoalEnv(GOALS, VECTOR), {"n_sampled_goal": -1}, "n_sampled_goal.* >= 0, got -1"),
    (GoalEnv(GOALS, VECTOR), {"goal_selection_strategy": "foo"}, "must be one of .*, got 'foo'"),
    (GoalEnv(GOALS, VECTOR), {"copy_info_dict": 3}, "copy_info_dict.* True or False, got 3"),
]


@pytest.mark.parametrize(("env", "kwargs", "message"), HINDSIGHT)
def test_what_hindsight_needs(env: gym.Env, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(
            env,
            "MultiInputPolicy",
            replay_buffer_class=HerReplayBuffer,
            replay_buffer_kwargs=kwargs,
        )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (VECTOR, "add replay_buffer_kwargs=dict.handle_timeout_termination=False"),
        (spaces.Dict(a=VECTOR), "optimize_memory_usage must be False for a Dict"),
    ],
)
def test_where_memory_cannot_be_saved(space: spaces.Space, message: str) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=message):
        small(AnyEnv(space, VECTOR), policy, optimize_memory_usage=True)


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_an_image_of_bytes_without_channels_is_no_vector(within: bool, divided: bool) -> None:
    """A pixel that was constant so far would be clipped as soon as it changes."""
    grey = box(0, 255, (4, 5), np.uint8)
    space = spaces.Dict(grey=grey) if within else grey
    image = np.full((1, 4, 5), 51, np.uint8)
    policy = (MultiInputPolicy if within else MlpPolicy)(
        space, spaces.Box(-1.0, 1.0, (1,)), lambda _: 1e-3, net_arch=[4], normalize_images=divided
    )
    seen = {"grey": image} if within else image
    policy.update_statistics(seen, np.zeros(1))
    image[0, 0, 0] = 255
    features = policy.actor.features(policy.obs_to_tensor(seen)[0])
    pixels = th.tensor([[255.0] + [51.0] * 19])
    th.testing.assert_close(features, pixels / 255 if divided else pixels)


def test_an_image_without_channels_for_a_cnn_is_named_with_its_remedy() -> None:
    with pytest.raises(ValueError, match=r"ReshapeObservation with \(1, 40, 40\)\), or use"):
        CnnPolicy(box(0, 255, (40, 40), np.uint8), spaces.Box(-1.0, 1.0, (1,)), lambda _: 1e-3)
