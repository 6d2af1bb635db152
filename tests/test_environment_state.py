"""The state of environments of a user's own, told by their attributes."""

from __future__ import annotations

import random
from collections import deque
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


def counting() -> Any:
    n = 0

    def count() -> int:
        nonlocal n
        n += 1
        return n

    return count


def holding(counter: Counter) -> Any:
    return lambda: counter()


def remembering(memory: list[int] = []) -> int:  # noqa: B006  # as users write it
    memory.append(1)
    return len(memory)


def test_a_function_that_has_changed_what_it_holds_is_state() -> None:
    one, other = Own(rule=counting()), Own(rule=counting())
    carried_over(one, other)  # neither was called
    one.rule()
    with pytest.raises(UnknownStateError, match=r"Own\.rule was .*count.*, and is .*count"):
        carried_over(one, other)
    told = environment_state.get_attributes(Own(rule=remembering))
    remembering()
    with pytest.raises(UnknownStateError, match=r"Own\.rule was remembering"):
        environment_state.set_attributes(Own(rule=remembering), told)
    with pytest.raises(UnknownStateError, match=r"Own\.rule is a function"):
        carried_over(Own(rule=holding(Counter())), Own())


def test_functions_that_hold_each_other_are_told() -> None:
    def one(n: int) -> int:
        return other(n - 1) if n else factor

    def other(n: int) -> int:
        return one(n)

    factor = 2
    told = environment_state.get_attributes(Own(rule=one))
    environment_state.set_attributes(Own(rule=one), told)
    factor = 3
    with pytest.raises(UnknownStateError, match=r"Own\.rule was .*one"):
        environment_state.set_attributes(Own(rule=one), told)


def test_wrappers_that_hold_functions_and_arrays_are_told() -> None:
    def make() -> gym.Env:
        env = gym.make("Pendulum-v1")
        env = gym.wrappers.RescaleObservation(env, np.float32(-1), np.float32(1))
        env = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
        return gym.wrappers.TransformReward(env, lambda reward: reward * env.spec.max_episode_steps)

    one = make()
    one.reset(seed=0)
    np.testing.assert_array_equal(carried_over(one, make()).unwrapped.state, one.unwrapped.state)


@pytest.mark.parametrize("held", [Counter(), [Counter()]])
def test_an_object_that_only_is_called_as_in_rendering_may_have_a_state(held: Any) -> None:
    with pytest.raises(UnknownStateError, match=r"Own\.screen is a"):
        carried_over(Own(screen=held), Own(screen=held))


class Shelf(Own):
    total = 0
    things: list[int] = []  # noqa: RUF012  # as users write it


@pytest.mark.parametrize(
    "change", [lambda: setattr(Shelf, "total", 7), lambda: Shelf.things.append(1)]
)
def test_what_the_class_holds_is_compared(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "total", 0)
    monkeypatch.setattr(Shelf, "things", [])
    told = environment_state.get_attributes(Shelf())
    environment_state.set_attributes(Shelf(), told)
    change()
    with pytest.raises(UnknownStateError, match=r"Shelf\.t\w+, an attribute of a class, was"):
        environment_state.set_attributes(Shelf(), told)


class Slotted(Own):
    __slots__ = ("n",)


def test_slots_are_not_told() -> None:
    with pytest.raises(UnknownStateError, match="Slotted has __slots__"):
        environment_state.get_attributes(Slotted())


@pytest.mark.parametrize("empty", [list, dict, set, deque, partial(np.zeros, 2)])
def test_what_two_layers_hold_stays_one_thing(empty: Any) -> None:
    def make() -> Any:
        held = empty()
        env = OwnWrapper(Own(held=held))
        env.also = held
        return env

    other = carried_over(make(), make())
    assert other.also is other.env.held


def test_what_was_one_thing_after_the_reset_may_be_two_by_now() -> None:
    after_reset = np.zeros(2)
    one = Own(last=np.ones(2), before=np.full(2, 5.0))
    other = carried_over(one, Own(last=after_reset, before=after_reset))
    np.testing.assert_array_equal(other.last, one.last)
    np.testing.assert_array_equal(other.before, one.before)


def test_what_the_environment_no_longer_has_goes() -> None:
    assert not {"fresh"} & vars(carried_over(Own(), Own(fresh=True))).keys()
