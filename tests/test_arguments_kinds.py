"""Arguments of another type: whole numbers are taken in any, what is wrong is refused by name."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.sac.policies import SACPolicy
from toys import DictToy, Toy, parameters, small, toys

from sb3_pmpo import DPO, MPO, PMPO
from sb3_pmpo.online.exploration import pink_noise

NAN = float("nan")
WHOLE = ["buffer_size", "learning_starts", "batch_size", "gradient_steps", "n_steps", "n_samples"]


@pytest.mark.parametrize("kind", [float, np.int64, np.int32, np.float32])
def test_whole_numbers_are_taken_in_any_type(kind: Any, tmp_path: Any) -> None:
    values = dict(zip(WHOLE, (200, 20, 16, 2, 3, 4), strict=True))
    values |= {"policy_delay": 2, "train_freq": 2, "seed": 3, "stats_window_size": 5}
    plain = small(Toy(), **values).learn(40)
    model = small(
        Toy(),
        policy_kwargs={"net_arch": [kind(16)], "n_critics": kind(2)},
        **{name: kind(value) for name, value in values.items()},
    ).learn(40)
    for name in WHOLE:
        assert type(getattr(model, name)) is int
    for name, value in parameters(plain.policy).items():
        assert th.equal(value, model.policy.state_dict()[name]), name
    model.save(tmp_path / "model")
    PMPO.load(tmp_path / "model", env=Toy(), batch_size=kind(8), device="cpu").learn(30)


@pytest.mark.parametrize("algorithm", [PMPO, MPO, DPO])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", "mlp"),
        ("policy", SACPolicy),
        ("policy", 3),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", "x"),
        ("verbose", "yes"),
        ("device", "gpu"),
        ("device", "meta"),
        ("tensorboard_log", 3),
        ("compile", "no"),
        ("optimize_memory_usage", 1),
        ("use_sde", "no"),
        ("learning_rate", 1e6),
        ("batch_size", 10**12),
        ("train_freq", (1, 2, 3)),
        ("train_freq", 10**30),
        ("gradient_steps", 10**30),
        ("buffer_size", 10**15),
        ("policy_kwargs", [1]),
        ("policy_kwargs", {1: 2}),
        ("replay_buffer_class", "ReplayBuffer"),
        ("replay_buffer_class", RolloutBuffer),
        ("replay_buffer_class", DictReplayBuffer),
        ("replay_buffer_class", HerReplayBuffer),
        *[("replay_buffer_kwargs", value) for value in (3, 0, [], "", np.array([1, 2]))],
        ("exploration_noise", pink_noise(1, 1, 0)),
    ],
)
def test_what_is_wrong_is_refused_by_name_value_and_remedy(
    algorithm: type, name: str, value: Any
) -> None:
    arguments: dict[str, Any] = {"policy": "MlpPolicy", "buffer_size": 300, name: value}
    with pytest.raises(ValueError, match=name) as refusal:
        algorithm(env=Toy(), **arguments)
    message = str(refusal.value)
    shown = value.__name__ if isinstance(value, type) else repr(value)
    # Addresses are left out: they say nothing to a user.
    assert re.sub(" at 0x[0-9a-f]+", "", shown) in message or str(value) in message
    assert ": " in message


@pytest.mark.parametrize("env", [3, "NoSuchTask-v0", Toy, None, object()])
def test_an_environment_that_is_none(env: Any) -> None:
    with pytest.raises(ValueError, match="env"):
        small(env)


POLICY_KWARGS = [
    ({"net_arch": 8}, "net_arch must be a list of widths, got 8"),
    ({"net_arch": ["8"]}, "each width of net_arch=.* must be a whole number >= 1"),
    ({"net_arch": [8.5]}, "each width of net_arch=.* must be a whole number >= 1"),
    ({"net_arch": dict(pi=[8], vf=[8])}, "net_arch must have the keys 'pi' and 'qf'"),
    ({"net_arch": dict(pi=8, qf=8)}, r"net_arch\['pi'\] must be a list of widths, got 8"),
    ({"activation_fn": "relu"}, "activation_fn must be a class, got 'relu'"),
    ({"activation_fn": th.nn.ReLU()}, r"activation_fn must be a class, got ReLU\(\)"),
    ({"activation_fn": th.nn.Linear}, "activation_fn=.*Linear.* failed with TypeError"),
    ({"activation_fn": th.nn.GLU}, r"activation_fn=.*GLU.* it makes \(2, 3, 2\) of \(2, 3, 4\)"),
    ({"features_extractor_class": "NatureCNN"}, "features_extractor_class must be a subclass"),
    ({"features_extractor_class": th.nn.Flatten}, "features_extractor_class must be a subclass"),
    ({"features_extractor_class": NatureCNN}, "the observation space must be an image"),
    ({"features_extractor_class": CombinedExtractor}, "CombinedExtractor takes a Dict"),
    (
        {"features_extractor_kwargs": {"features_dim": 8}},
        "features_extractor_kwargs=.*features_dim",
    ),
    ({"optimizer_class": "adam"}, "optimizer_class must be a subclass of .*, got 'adam'"),
    ({"optimizer_class": th.optim.LBFGS}, "optimizer_class=LBFGS .* wants a closure"),
    ({"optimizer_kwargs": {"weight_decay": -1}}, "optimizer_kwargs=.*-1.*Invalid weight_decay"),
    ({"optimizer_kwargs": {"lr": 1.0}}, "optimizer_kwargs=.*lr"),
    ({"critic_class": "QuantileCritic"}, "critic_class must be a subclass of .*, got 'Quantile"),
    ({"critic_kwargs": {"foo": 1}}, "critic_kwargs=.*foo"),
    ({"n_quantiles": 10**9}, "n_quantiles=1000000000"),
    ({"std_init": "x"}, "std_init must be a number >= 0.0 .*, got 'x'"),
    ({"std_min": 1e-30}, "std_min must be a number >= 0.0001"),
    ({"layer_norm": "yes"}, "layer_norm must be True or False, got 'yes'"),
    ({"use_sde": "no"}, "use_sde must be True or False, got 'no'"),
]


@pytest.mark.parametrize(("policy_kwargs", "message"), POLICY_KWARGS)
def test_policy_kwargs_are_refused_by_name(policy_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(Toy(), policy_kwargs=policy_kwargs)


def test_an_unknown_one_of_policy_kwargs_has_the_closest_named() -> None:
    with pytest.raises(TypeError, match=r"net_arc=\[8\], which MlpPolicy|did you mean 'net_arch'"):
        small(Toy(), policy_kwargs={"net_arc": [8]})
    with pytest.raises(TypeError, match="did you mean 'n_critics'"):
        small(DictToy(Toy()), "MultiInputPolicy", policy_kwargs={"n_critic": 1})


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": (8, 8)},
        {"net_arch": []},
        {"net_arch": dict(pi=[], qf=[8.0])},
        {"activation_fn": partial(th.nn.LeakyReLU, 0.1)},
        {"features_extractor_class": FlattenExtractor, "features_extractor_kwargs": {}},
        {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
        {"normalize_observations": np.bool_(False)},
    ],
)
def test_what_is_right_is_taken(policy_kwargs: dict[str, Any]) -> None:
    small(Toy(), policy_kwargs=policy_kwargs).learn(30)


BUFFER_KWARGS = [
    ({"foo": 1}, "replay_buffer_kwargs={'foo': 1}.*foo"),
    ({"n_steps": 3}, "replay_buffer_kwargs has n_steps=3.*use n_steps=3 of the algorithm"),
    ({"handle_timeout_termination": "no"}, "handle_timeout_termination.* got 'no'"),
    ({"buffer_size": 3}, "replay_buffer_kwargs={'buffer_size': 3}"),
]


@pytest.mark.parametrize(("kwargs", "message"), BUFFER_KWARGS)
def test_replay_buffer_kwargs_are_refused_by_name(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(Toy(), replay_buffer_kwargs=kwargs)


def two(**kwargs: Any) -> Any:
    return small(Toy(low=(-1.0, -1.0), high=(1.0, 1.0)), **kwargs)


def test_action_noise_has_the_shape_of_the_actions() -> None:
    with pytest.raises(ValueError, match=r"action_noise .* shape \(2,\), got \(1,\)"):
        two(action_noise=NormalActionNoise(np.zeros(1), np.ones(1)))
    with pytest.raises(ValueError, match="action_noise must draw finite noise"):
        two(action_noise=NormalActionNoise(np.zeros(2), np.full(2, NAN)))
    two(action_noise=NormalActionNoise(np.zeros(2), np.ones(2))).learn(30)


def test_trying_the_noises_changes_no_seeded_run() -> None:
    noise = NormalActionNoise(np.zeros(1), np.zeros(1))
    with_noise = small(Toy(), action_noise=noise)
    state = np.random.get_state()[1]
    small(Toy())
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    assert isinstance(with_noise.action_noise, NormalActionNoise)


def test_noise_of_a_loaded_model_follows_the_number_of_environments(tmp_path: Any) -> None:
    model = small(toys(2), action_noise=NormalActionNoise(np.zeros(1), np.ones(1))).learn(20)
    assert isinstance(model.action_noise, VectorizedActionNoise)
    model.save(tmp_path / "model")
    for n_envs in (1, 3):
        loaded = PMPO.load(tmp_path / "model", env=toys(n_envs), device="cpu")
        loaded.learn(30, reset_num_timesteps=False)


NOISES = [
    (lambda n, a, s: None, "exploration_noise=.* failed with TypeError"),
    (lambda: None, "exploration_noise=.* failed with TypeError"),
]


@pytest.mark.parametrize(("factory", "message"), NOISES)
def test_exploration_noise_is_tried(factory: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two(exploration_noise=factory)


@pytest.mark.parametrize("labeller", [lambda: None, lambda c: 1 / 0])
def test_a_labeller_that_cannot_be_called_is_named(labeller: Any) -> None:
    with pytest.raises(ValueError, match=r"labeller=.* failed with .*: .* Remedy: give an object"):
        small(Toy(), labeller=labeller)


@pytest.mark.parametrize("beta", [[], (1.0,), (1.0, 2.0, 3.0)])
def test_beta_is_a_number_or_a_pair(beta: Any) -> None:
    with pytest.raises(ValueError, match=r"beta must be a number or a pair .* got [\[(]"):
        small(Toy(), beta=beta)


def test_decoupled_is_a_flag() -> None:
    with pytest.raises(ValueError, match="decoupled must be True or False, got 'no'"):
        small(Toy(), decoupled="no")


@pytest.mark.parametrize("loss", [th.nn.MSELoss(), lambda *a, **k: None])
def test_a_loss_of_pairs_is_tried(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"loss=.* failed with TypeError"):
        small(Toy(), algorithm=DPO, loss=loss)


@pytest.mark.parametrize(
    "rate", [lambda p: NAN, lambda p: -p, lambda p: "x", lambda: 1.0, lambda p: 1e6]
)
def test_a_schedule_is_tried_at_the_start(rate: Any) -> None:
    for name in ("learning_rate", "actor_learning_rate"):
        with pytest.raises(ValueError, match=f"{name}=<function"):
            small(Toy(), **{name: rate})


def test_a_schedule_that_goes_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"learning_rate at progress 0\.\d+ must be a number"):
        small(Toy(), learning_rate=lambda p: 1e-3 if p > 0.5 else NAN).learn(60)


def test_episodes_of_several_environments_are_not_counted() -> None:
    with pytest.raises(ValueError, match=r"train_freq must count steps .* several environments"):
        small(toys(2), train_freq=(1, "episode"))


@pytest.mark.parametrize("algorithm", [PMPO, MPO, DPO])
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[("total_timesteps", value, TypeError) for value in ("10", None, [5], True, 3j)],
        *[("total_timesteps", value, ValueError) for value in (-5, NAN, float("inf"), 10.5)],
        *[("log_interval", value, ValueError) for value in (0, -1, 0.5)],
        ("log_interval", "4", TypeError),
        *[("callback", value, TypeError) for value in (3, "eval", [3], CheckpointCallback)],
    ],
)
def test_wrong_arguments_of_learn_are_refused_before_a_step(
    algorithm: Any, name: str, value: Any, error: type[Exception]
) -> None:
    model = small(Toy(), algorithm=algorithm)
    with pytest.raises(error, match=f"^{name} must be .*got"):
        model.learn(**{"total_timesteps": 20, name: value})
    assert model.num_timesteps == 0
    assert model.learn(np.int64(2), log_interval=None, callback=lambda *_: True).num_timesteps == 2
    assert model.learn(3.0, reset_num_timesteps=False).num_timesteps == 5
