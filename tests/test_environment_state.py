"""The state of environments of a user's own, told by their attributes."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from toys import Toy

from sb3_pmpo.storage import environment_state, vec_env_state
from sb3_pmpo.storage.environment_state import UnknownStateError, register_environment


def increase(by: int, state: Any = None) -> int:
    return by


class Own(gym.Env):
    """An environment whose attributes have names that libraries use for rendering."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, **attributes: Any) -> None:
        self.clock = 0
        self.screen = "title"
        self.isopen = True
        self.move = self.walk
        self.rule = increase
        vars(self).update(attributes)

    @classmethod
    def from_nothing(cls) -> Any:
        return cls()

    def walk(self) -> None:
        self.clock += 1

    def swim(self) -> None:
        self.clock += 2


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> int:
        self.n += 1
        return self.n

    def step(self) -> int:
        return self()


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_state, "_ADAPTERS", {})
    register_environment(Own)


def carried_over(one: gym.Env, other: gym.Env) -> gym.Env:
    adapters = environment_state.registered()
    environment_state.set_state(other, environment_state.get_state(one, adapters), adapters)
    return other


def test_what_is_called_as_in_rendering_is_told_where_it_is_data() -> None:
    one = Own(clock=7, screen="game", isopen=False)
    other = carried_over(one, Own())
    assert (other.clock, other.screen, other.isopen) == (7, "game", False)


def test_what_renders_stays_the_new_environments_own() -> None:
    window = object()
    assert carried_over(Own(screen=object()), Own(screen=window)).screen is window


def test_rendering_of_gymnasiums_environments_stays_their_own() -> None:
    one, other = gym.make("CartPole-v1").unwrapped, gym.make("CartPole-v1").unwrapped
    one.reset(seed=0)
    other.screen, one.isopen = "the window", False
    carried_over(one, other)
    assert (other.screen, other.isopen) == ("the window", True)
    np.testing.assert_array_equal(other.state, one.state)


class OwnWrapper(gym.ObservationWrapper, RecordConstructorArgs):
    """A wrapper of a user's, with a method of the environment that it wraps."""

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.clock, self.of_the_env = 3, env.unwrapped.walk

    def observation(self, observation: Any) -> Any:
        return observation


def test_a_users_wrapper_is_told_as_his_environment_is() -> None:
    one, other = OwnWrapper(Own()), OwnWrapper(Own())
    one.clock, one.env.clock = 5, 6
    carried_over(one, other)
    assert (other.clock, other.env.clock) == (5, 6)


def test_a_window_is_not_replaced_by_what_was_there_before_it() -> None:
    window = object()
    assert carried_over(Own(screen=None), Own(screen=window)).screen is window


@pytest.mark.parametrize(
    "rule",
    [
        *(increase, np.add, np.random.rand, random.random, Own.from_nothing),
        *(partial(increase, 3), partial(increase, by=3), partial(increase, (1, "a"))),
        partial(np.clip, a_min=0, a_max=1),
    ],
)
def test_the_same_function_is_no_state(rule: Any) -> None:
    carried_over(Own(rule=rule, clock=5), Own(rule=rule))


@pytest.mark.parametrize(
    "rule",
    [
        *(Counter().step, Counter(), random.Random(3).random, np.random.default_rng(0).random),
        *(partial(increase, Counter()), partial(increase, state=[]), partial(increase, ([],))),
    ],
)
def test_a_function_that_holds_a_state_is_no_constant(rule: Any) -> None:
    with pytest.raises(UnknownStateError, match=r"Own\.rule is a"):
        carried_over(Own(rule=rule), Own())


def test_a_function_that_is_another_now_is_state() -> None:
    one, other = Own(), Own()
    one.move = one.swim
    with pytest.raises(UnknownStateError, match=r"Own\.move was method .*swim, and is .*walk"):
        carried_over(one, other)
    with pytest.raises(UnknownStateError, match=r"Own\.rule was partial .*3.*, and is .*increase"):
        carried_over(Own(rule=partial(increase, 3)), Own())


class Counted(DummyVecEnv):
    """It may count more than its base does."""


class Timed(VecMonitor):
    """It may keep a clock."""


@pytest.mark.parametrize("make", [Counted, lambda toys: Timed(DummyVecEnv(toys))])
def test_a_class_made_from_sb3s_may_have_a_state_of_its_own(make: Any) -> None:
    with pytest.raises(UnknownStateError, match=r"how to tell the state of (Counted|Timed)"):
        vec_env_state.get_state(make([Toy]))
