"""The policies: their parts, extractors, optimisers and batch norm."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from toys import DictToy, Toy, parameters, small

from sb3_pmpo import PMPO
from sb3_pmpo.actor import Actor
from sb3_pmpo.policies import MlpPolicy

SMALL_CNN = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}}
SMALL_DICT = {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 8}}


class Normed(BaseFeaturesExtractor):
    """A linear layer and batch norm."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 4) -> None:
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(
            nn.Linear(observation_space.shape[0], features_dim), nn.BatchNorm1d(features_dim)
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


POLYAK = {"tau": 0.1, "reference_tau": 0.1, "reference_update_interval": 1, "policy_delay": 1}


def trained(**policy_kwargs: Any) -> Any:
    return small(Toy(), policy_kwargs={"net_arch": [8], **policy_kwargs}, **POLYAK).learn(40)


def images() -> gym.Env:
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)


@pytest.mark.parametrize(
    ("policy", "make", "policy_kwargs"),
    [
        ("MlpPolicy", Toy, {"net_arch": [8]}),
        ("CnnPolicy", images, SMALL_CNN),
        ("MultiInputPolicy", lambda: DictToy(Toy()), SMALL_DICT),
    ],
)
@pytest.mark.parametrize("share", [False, True])
def test_all_parts_of_every_policy_learn(
    policy: str, make: Any, policy_kwargs: dict[str, Any], share: bool
) -> None:
    kwargs = policy_kwargs | {"share_features_extractor": share}
    model = small(make(), policy, policy_kwargs=kwargs, buffer_size=100, **POLYAK)
    before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
    model.learn(30)
    unmoved = [n for n, value in model.policy.named_parameters() if th.equal(before[n], value)]
    assert unmoved == []
    extractors = [
        part.features_extractor
        for part in (model.actor, model.reference_actor, model.critic, model.critic_target)
    ]
    assert len({id(extractor) for extractor in extractors}) == (3 if share else 4)
    for value in model.policy.state_dict().values():
        assert value.is_floating_point()
        assert value.numel() > 0


@pytest.mark.parametrize(
    ("net_arch", "pi", "qf"),
    [
        (None, [128, 128], [128, 128]),
        ([], [], []),
        ([8], [8], [8]),
        ({"pi": [8, 4], "qf": [6]}, [8, 4], [6]),
        ({"pi": [], "qf": [6]}, [], [6]),
    ],
)
@pytest.mark.parametrize("n_critics", [1, 3])
def test_net_arch(net_arch: Any, pi: list[int], qf: list[int], n_critics: int) -> None:
    model = small(Toy(), policy_kwargs={"net_arch": net_arch, "n_critics": n_critics})
    linear = [layer for layer in model.actor.latent_pi if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == pi
    assert [layer.weight.shape[2] for layer in model.critic.ensemble.hidden] == qf
    model.learn(30)
    observations, actions = th.zeros(5, 2), th.zeros(5, 1)
    q_values = model.critic(observations, actions)
    assert [q.shape for q in q_values] == [(5, 1)] * n_critics
    together = model.critic.q_values(observations, actions.unsqueeze(0))
    th.testing.assert_close(th.stack(q_values).squeeze(-1), together[:, 0])


def test_each_part_starts_as_its_lagged_copy() -> None:
    policy = small(Toy()).policy
    for online, lagged in (
        (policy.actor, policy.reference_actor),
        (policy.critic, policy.critic_target),
    ):
        for name, value in online.state_dict().items():
            assert th.equal(value, lagged.state_dict()[name]), name


def test_parameters_as_one_vector() -> None:
    """SB3's parameters_to_vector() and back; a fused optimizer needs each in one piece, too."""
    learned = trained().policy
    fresh = small(Toy(), policy_kwargs={"net_arch": [8]}).policy
    assert all(parameter.is_contiguous() for parameter in learned.parameters())
    fresh.load_from_vector(learned.parameters_to_vector())
    for name, value in learned.named_parameters():
        assert th.equal(value, dict(fresh.named_parameters())[name]), name


def test_actor_is_a_policy_and_predicts_as_the_policy_does() -> None:
    model = trained()
    assert isinstance(model.actor, BasePolicy)
    observations = np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)
    actions, _ = model.actor.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, model.predict(observations, deterministic=True)[0])
    single, _ = model.predict(observations[0], deterministic=True)
    np.testing.assert_allclose(single, actions[0], rtol=1e-5)


@pytest.mark.parametrize("share", [False, True])
def test_no_gradient_of_the_critic_reaches_a_shared_extractor(share: bool) -> None:
    model = small(
        Toy(),
        gradient_steps=0,
        policy_kwargs={
            "net_arch": [8],
            "features_extractor_class": Normed,
            "share_features_extractor": share,
        },
    ).learn(40)
    assert (model.critic.features_extractor is model.actor.features_extractor) == share
    optimised = {id(p) for g in model.critic.optimizer.param_groups for p in g["params"]}
    extractor = {id(p) for p in model.critic.features_extractor.parameters()}
    assert extractor.isdisjoint(optimised) == share
    model.actor.optimizer.zero_grad()
    model.critic.optimizer.zero_grad()
    model.critic(*(th.rand(6, 2), th.rand(6, 1)))[0].sum().backward()
    touched = [p.grad is not None for p in model.critic.features_extractor.parameters()]
    assert touched == [not share] * len(touched)
    assert all(p.grad is not None for p in model.critic.ensemble.parameters())


def test_batch_norm_statistics_reach_the_lagged_copies_and_predict_leaves_them() -> None:
    model = trained(features_extractor_class=Normed)
    for online, lagged in (
        (model.actor, model.reference_actor),
        (model.critic, model.critic_target),
    ):
        norm, old = (part.features_extractor.net[1] for part in (online, lagged))
        assert norm.num_batches_tracked > 0
        th.testing.assert_close(norm.running_mean, old.running_mean)
        th.testing.assert_close(norm.running_var, old.running_var)
        assert not old.training
    model.policy.set_training_mode(True)
    assert model.actor.features_extractor.training
    before = parameters(model.policy)
    first, _ = model.predict(np.zeros((3, 2), np.float32), deterministic=True)
    assert not model.actor.features_extractor.training
    assert np.ptp(first) == 0.0
    after = parameters(model.policy)
    assert all(th.equal(before[name], after[name]) for name in before)


def test_batch_norm_is_in_evaluation_mode_while_collecting() -> None:
    model = small(
        Toy(),
        learning_starts=0,
        gradient_steps=0,
        policy_kwargs={"net_arch": [8], "features_extractor_class": Normed},
    ).learn(20)
    assert model.actor.features_extractor.net[1].num_batches_tracked == 0


def test_custom_extractor_and_its_arguments() -> None:
    arguments = {"features_dim": 7}
    model = trained(features_extractor_class=Normed, features_extractor_kwargs=arguments)
    assert model.actor.features_extractor.features_dim == 7
    assert model.critic.features_dim == 7
    assert arguments == {"features_dim": 7}


@pytest.mark.parametrize("optimizer_kwargs", [None, {}, {"weight_decay": 0.5, "foreach": False}])
@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.AdamW, th.optim.RMSprop])
def test_optimizers(optimizer_class: Any, optimizer_kwargs: Any) -> None:
    model = trained(optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs)
    for part in (model.actor, model.critic):
        assert type(part.optimizer) is optimizer_class
        group = part.optimizer.param_groups[0]
        for name, value in (optimizer_kwargs or {}).items():
            assert group[name] == value
        assert group["lr"] > 0


def test_normaliser_can_be_left_out_and_skips_what_is_no_vector() -> None:
    without = trained(normalize_observations=False)
    assert not any("normaliser" in name for name in without.policy.state_dict())
    model = small(DictToy(Toy()), "MultiInputPolicy", policy_kwargs=SMALL_DICT)
    assert model.policy.normaliser.keys == ["vector"]
    raw = {
        "vector": th.tensor([[3.0, 5.0]]),
        "code": th.tensor([[0.0, 1.0, 0.0]]),
        "image": th.rand(1, 1, 36, 36),
    }
    model.policy.normaliser.update({"vector": np.array([[1.0, 1.0], [3.0, 5.0]])})
    normalised = model.policy.normaliser(raw)
    th.testing.assert_close(normalised["vector"], th.tensor([[1.0, 1.0]]))
    assert normalised["code"] is raw["code"]
    assert normalised["image"] is raw["image"]


def test_return_scale_is_the_root_mean_square_of_the_returns() -> None:
    policy = small(Toy()).policy
    assert policy.critic.scale.item() == 1.0
    policy.update_statistics(np.zeros((2, 2)), np.zeros(2))
    assert policy.critic.scale.item() == 1.0
    policy.update_statistics(np.zeros((2, 2)), np.array([30.0, 40.0]))
    assert policy.critic.scale.item() == pytest.approx(25.0)
    assert policy.critic_target.scale.item() == pytest.approx(25.0)


def test_the_output_layer_learns_in_units_of_the_return_scale() -> None:
    model = small(Toy(), learning_rate=1e-3).learn(30)
    observations, actions = th.rand(4, 2), th.rand(4, 1)
    before = model.critic(observations, actions)[0]
    model.policy.return_moments.mean.fill_(7.0)
    model.policy.return_moments.var.zero_()
    # The scale is a learning rate: what is already learned does not move with it.
    th.testing.assert_close(model.critic(observations, actions)[0], before)
    model.train(1, 16)
    body, output = model.critic.optimizer.param_groups
    assert body["lr"] == pytest.approx(1e-3)
    assert output["lr"] == pytest.approx(7e-3)
    trained = {id(p) for p in model.critic.ensemble.output.parameters()}
    assert {id(p) for p in output["params"]} == trained


def test_the_parts_have_the_attributes_of_sb3s() -> None:
    policy = small(Toy(), policy_kwargs={"activation_fn": th.nn.Tanh}).policy
    assert policy.activation_fn is th.nn.Tanh
    assert PMPO("MlpPolicy", Toy(), buffer_size=100).policy.net_arch == [128, 128]
    assert policy.actor.features_dim == policy.critic.features_dim == 2


def test_a_subclass_makes_its_own_actor() -> None:
    class Wider(MlpPolicy):
        def make_actor(self, features_extractor: Any = None) -> Actor:
            actor = super().make_actor(features_extractor)
            actor.head.std_max = 2.0
            return actor

    policy = PMPO(Wider, Toy(), buffer_size=100).policy
    assert policy.actor.head.std_max == policy.reference_actor.head.std_max == 2.0


def test_a_policy_of_ones_own_may_have_arguments_by_name_alone() -> None:
    class Mine(MlpPolicy):
        def __init__(self, *args: Any, extra: float = 1.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.extra = extra

    model = small(Toy(), Mine, policy_kwargs={"net_arch": [8], "extra": 2.0})  # type: ignore[arg-type]
    assert model.policy.extra == 2.0
    with pytest.raises(TypeError, match=r"extras=2\.0, which Mine lacks: did you mean 'extra'"):
        small(Toy(), Mine, policy_kwargs={"extras": 2.0})  # type: ignore[arg-type]
