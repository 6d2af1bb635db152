"""Values that are no numbers, from wherever: refused by the right name, and nothing is spoiled."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from toys import DictToy, Toy, small, toys

from sb3_pmpo import PMPO, Candidates, Preference, top_k
from sb3_pmpo.online.checks import check_finite, check_finite_actions
from sb3_pmpo.online.exploration import pink_noise
from sb3_pmpo.policies import MlpPolicy, MultiInputPolicy

NAN, INF = float("nan"), float("inf")


class DiscreteToy(Toy):
    """A Toy of two choices."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(2)  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        return self._observe(), 0.0, False, False, {}


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("make", [Toy, DiscreteToy])
def test_predict_refuses_an_observation_that_is_not_finite(make: Any, value: float) -> None:
    model = small(make())
    model.predict(np.zeros(2, np.float32))
    for policy in (model, model.policy, model.actor):
        with pytest.raises(ValueError, match=r"the observation must be finite, got .*: mend"):
            policy.predict(np.array([0.0, value], np.float32))


def test_predict_names_the_key() -> None:
    model = small(DictToy(Toy()), "MultiInputPolicy")
    observation = model.env.reset()
    observation["vector"][0, 0] = NAN
    with pytest.raises(ValueError, match="the observation's 'vector' must be finite"):
        model.predict(observation)


@pytest.mark.parametrize("what", ["observation", "reward", "reset"])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_the_statistics_of_vec_normalize_stay_what_they_were(tmp_path: Any, what: str) -> None:
    env = VecNormalize(DummyVecEnv([Toy, lambda: Toy(fault=(what, 13, NAN))]))
    model = small(env)
    with pytest.raises(ValueError, match="environment 1"):
        model.learn(100)
    for moments in (env.obs_rms, env.ret_rms):
        assert np.isfinite(moments.mean).all()
        assert np.isfinite(moments.var).all()
    assert np.isfinite(env.returns).all()
    env.save(str(tmp_path / "statistics"))
    model.save(tmp_path / "model")
    sane = VecNormalize.load(str(tmp_path / "statistics"), toys(2))
    loaded = PMPO.load(tmp_path / "model", env=sane, device="cpu").learn(60)
    assert all(value.isfinite().all() for value in loaded.policy.state_dict().values())


def test_half_precision_is_checked_too() -> None:
    good = np.ones((1, 2), np.float16)
    check_finite(good, np.zeros(1), [], 1)
    for value in (NAN, INF):
        with pytest.raises(ValueError, match="not finite at step 1"):
            check_finite(good * np.float16(value), np.zeros(1), [], 1)


def test_statistics_that_are_not_finite_are_refused_when_they_are_loaded(tmp_path: Any) -> None:
    env = VecNormalize(toys(1))
    model = small(env).learn(30)
    model.save(tmp_path / "model")
    spoiled = VecNormalize(toys(1))
    spoiled.obs_rms.mean = np.full(2, NAN)
    for use in (
        lambda: small(spoiled),
        lambda: model.set_env(spoiled),
    ):
        with pytest.raises(ValueError, match=r"VecNormalize's statistics of observations .*finite"):
            use()
    with pytest.raises(ValueError, match=r"VecNormalize must be outside .*VecFrameStack"):
        small(VecFrameStack(VecNormalize(toys(1)), 2))
    env.ret_rms.var = np.array(INF)
    with pytest.raises(ValueError, match="VecNormalize's statistics of returns"):
        model.learn(10)
    state = model.policy.state_dict()
    state["return_moments.var"] = th.tensor([NAN])
    with pytest.raises(ValueError, match=r"return_moments\.var must be finite"):
        model.policy.load_state_dict(state)
    model.policy.return_moments.var.fill_(NAN)
    model.save(tmp_path / "spoiled")
    with pytest.raises(ValueError, match=r"return_moments\.var must be finite"):
        PMPO.load(tmp_path / "spoiled")


@pytest.mark.parametrize("name", ["observations", "next_observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [NAN, INF, -1e25])
def test_a_buffer_that_was_filled_elsewhere_is_checked(
    name: str, value: float, tmp_path: Any
) -> None:
    said = rf"the buffer's {name} must be finite and no larger than 1e\+16, got .* in row 3"
    model = small(Toy()).learn(15)
    vars(model.replay_buffer)[name][3, 0] = value
    model.save_replay_buffer(tmp_path / "buffer")
    other = small(Toy())
    with pytest.raises(ValueError, match=said):
        other.load_replay_buffer(tmp_path / "buffer")
    other.replay_buffer = model.replay_buffer  # by hand
    with pytest.raises(ValueError, match=said):
        other.learn(30)


class Late:
    """Noise, or labels, that begin well and go wrong."""

    def __init__(self, good: Any, bad: Any, calls: int) -> None:
        self.good, self.bad, self.left = good, bad, calls

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        return self.bad(*args) if self.left < 0 else self.good(*args)

    def reset(self, env: int) -> None:
        pass


def test_noise_that_goes_wrong_is_blamed_itself() -> None:
    def make(n_envs: int, action_dim: int, seed: int) -> Late:
        shape = (n_envs, action_dim)
        return Late(lambda: np.zeros(shape), lambda: np.full(shape, NAN), 5)

    with pytest.raises(ValueError, match="exploration_noise must draw finite numbers"):
        small(Toy(), exploration_noise=make).learn(60)


def test_labels_that_go_wrong_are_blamed_themselves() -> None:
    def spoiled(candidates: Candidates) -> Preference:
        good = top_k(2)(candidates)
        return Preference(good.accept * NAN, good.reject)

    labeller = Late(top_k(2), spoiled, 3)
    with pytest.raises(ValueError, match="labeller must return finite weights"):
        small(Toy(), labeller=labeller, policy_delay=1).learn(60)


def test_scores_that_are_no_numbers_are_blamed_on_the_critics() -> None:
    model = small(Toy(), policy_delay=1).learn(40)
    with th.no_grad():
        for parameter in model.critic_target.parameters():
            parameter.fill_(NAN)
    with pytest.raises(ValueError, match="critics have diverged"):
        model.train(1, 16)


def test_a_policy_that_is_sound_is_not_said_to_have_diverged() -> None:
    model = small(Toy(), exploration_noise=pink_noise).learn(30)
    model.policy.return_moments.mean.fill_(NAN)
    with pytest.raises(ValueError, match=r"diverged \(return_moments"):
        check_finite_actions(np.array([NAN]), 3, model.policy)
    model.policy.return_moments.mean.fill_(0.0)
    with pytest.raises(ValueError, match="its parameters are finite"):
        check_finite_actions(np.array([NAN]), 3, model.policy)


class Choices(Toy):
    """A Toy whose observation is a choice, of which one is not in its space."""

    def __init__(self, space: spaces.Space, values: list[Any]) -> None:
        super().__init__()
        self.observation_space, self.values = space, values  # type: ignore[assignment]

    def _observe(self) -> Any:
        self._x = np.zeros(2)
        return self.values[self.np_random.integers(len(self.values))]


@pytest.mark.parametrize("start", [0, 2, -5])
def test_choices_may_start_anywhere(start: int) -> None:
    space = spaces.Discrete(3, start=start)
    model = small(Choices(space, [start, start + 1, start + 2])).learn(60)
    assert model._n_updates > 0
    codes = model.actor.features(th.arange(start, start + 3))
    th.testing.assert_close(codes, th.eye(3))
    model = small(Choices(space, [start, start + 3]))
    with pytest.raises(ValueError, match="an observation that is not in Discrete"):
        model.learn(60)


def test_multi_discrete_choices_may_start_anywhere() -> None:
    space = spaces.MultiDiscrete([2, 3], start=[5, -1])
    model = small(Choices(space, [np.array([5, 1]), np.array([6, -1])])).learn(60)
    codes = model.actor.features(th.tensor([[5, 1], [6, -1]]))
    th.testing.assert_close(codes, th.tensor([[1.0, 0, 0, 0, 1], [0, 1, 1, 0, 0]]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: Toy(low=(-1.0, -1.0), high=(1.0, 1.0)), "observation_space must be the model's"),
        (lambda: Toy(low=(-2.0,)), "action_space must be the model's"),
        (lambda: toys(2), "n_envs must be the model's, 1, got 2"),
    ],
)
def test_a_buffer_of_another_task_is_refused(tmp_path: Any, other: Any, message: str) -> None:
    small(other()).learn(20).save_replay_buffer(tmp_path / "buffer")
    model = small(Toy()).learn(20)
    before = model.replay_buffer
    with pytest.raises(ValueError, match=f"the buffer's {message}"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is before
    model.learn(20)


@pytest.mark.parametrize(
    ("space", "observation", "message"),
    [
        (spaces.Discrete(3), 7, "0 to 2, of Discrete(3), got 7"),
        (spaces.Discrete(3), np.array([0, 7]), "0 to 2, of Discrete(3), got [0 7]"),
        (spaces.Discrete(3), 1.5, "0 to 2, of Discrete(3), got 1.5"),
        (spaces.Discrete(3, start=-1), 2, "-1 to 1, of Discrete(3, start=-1), got 2"),
        (spaces.Discrete(3), "a", "the observation must be of numbers, got 'a'"),
        (spaces.MultiDiscrete([2, 3]), [[0, 0], [0, 9]], "to [1, 2], of MultiDiscrete([2 3])"),
        (spaces.MultiBinary(2), [2, 0], "0 to 1, of MultiBinary(2), got [2 0]"),
        (
            spaces.Dict(a=spaces.Discrete(3), b=spaces.MultiBinary(2)),
            {"a": np.array([7]), "b": np.zeros((1, 2))},
            "the observation's 'a' must be whole numbers from 0 to 2, of Discrete(3), got [7]",
        ),
        (
            spaces.Dict(a=spaces.Discrete(3), b=spaces.MultiBinary(2)),
            {"b": [0, 1]},
            "the observation must have the key 'a', got ['b']",
        ),
    ],
)
def test_predict_names_a_choice_that_there_is_not(
    space: spaces.Space, observation: Any, message: str
) -> None:
    kind = MultiInputPolicy if isinstance(space, spaces.Dict) else MlpPolicy
    policy = kind(space, spaces.Box(-1.0, 1.0, (1,)), lambda _: 1e-3, net_arch=[4])
    with pytest.raises(ValueError, match=re.escape(message)):
        policy.predict(observation)
