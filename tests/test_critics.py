"""The critic's contract: a second critic by ``critic_class``, and auxiliary losses on features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from torch import nn
from toys import DictToy, Guess, Toy, assert_equal, parameters, sample, small

from sb3_pmpo import DPO, MPO, PMPO
from sb3_pmpo.core.batch import Batch
from sb3_pmpo.critics import CriticLoss, QuantileCritic, StateActionCritic
from sb3_pmpo.networks import EnsembleQ


class MeanSquaredCritic(StateActionCritic):
    """The plain ensemble: each critic's one output is a mean, fitted by least squares."""

    def __init__(self, *, n_critics: int, n_quantiles: int, layer_norm: bool, **parts: Any) -> None:
        super().__init__(**parts)
        widths = self.features_dim + self.code_dim, 1, self.net_arch, self.activation_fn
        self.members = nn.ModuleList(nn.Sequential(*create_mlp(*widths)) for _ in range(n_critics))

    def q_values(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        codes = self.encode(actions)  # [S, B, ...]
        inputs = th.cat((features.expand(*codes.shape[:-1], -1), codes), -1)
        return th.cat([member(inputs) for member in self.members], -1)  # [S, B, N]

    def score(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        return self.q_values(self.state_features(observations), actions).mean(-1)

    def bootstrap(
        self, observations: Any, actions: th.Tensor, weights: th.Tensor, pessimism: float
    ) -> th.Tensor:
        q_values = self.q_values(self.state_features(observations), actions)
        values = q_values.mean(-1).lerp(q_values.amin(-1), pessimism)
        return (weights * values).sum(0).unsqueeze(-1)

    def loss(self, batch: Batch, target: th.Tensor, weights: th.Tensor | None = None) -> CriticLoss:
        features = self.state_features(batch.observations)
        errors = self.q_values(features, batch.actions.unsqueeze(0))[0] - target  # [B, N]
        squares = errors.square().sum(-1) if weights is None else weights * errors.square().sum(-1)
        loss, distance = 0.5 * squares.mean(), errors.detach().abs().mean(-1)
        auxiliary = self.auxiliary_loss(batch, features, weights)
        return CriticLoss(loss, None, distance, {"critic_loss": loss.detach()}, auxiliary)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": self.body_parameters(nn.Identity())}]

    def rate_scales(self) -> list[float]:
        return [1.0]

    def compile_body(self) -> None:
        self.members.compile()


class NextFeaturesAndReward(nn.Module):
    """Predicts the features of the next state and the reward, by one linear layer."""

    def __init__(self, features_dim: int, code_dim: int) -> None:
        super().__init__()
        self.predict = nn.Linear(features_dim + code_dim, features_dim + 1)

    def forward(
        self, features: th.Tensor, actions: th.Tensor, next_features: th.Tensor, batch: Batch
    ) -> th.Tensor:
        assert not next_features.requires_grad
        assert features.shape == next_features.shape
        assert actions.dtype == th.float32
        predicted = self.predict(th.cat((features, actions), -1))
        goal = th.cat((next_features, batch.rewards.unsqueeze(-1)), -1)
        return (predicted - goal).square().mean(-1)


class Mlp(BaseFeaturesExtractor):
    """One hidden layer."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 6) -> None:
        super().__init__(observation_space, features_dim)
        (width,) = observation_space.shape
        self.net = nn.Sequential(nn.Linear(width, features_dim), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


PLAIN: dict[str, Any] = {"net_arch": [16], "critic_class": MeanSquaredCritic}
AUXILIARY: dict[str, Any] = {
    "net_arch": [16],
    "features_extractor_class": Mlp,
    "critic_kwargs": {"auxiliary_class": NextFeaturesAndReward},
}
CRITICS = [QuantileCritic, MeanSquaredCritic]


@pytest.mark.parametrize("algorithm", [PMPO, MPO, DPO])
@pytest.mark.parametrize(
    ("make", "policy"),
    [
        (Toy, "MlpPolicy"),
        (lambda: DictToy(Toy()), "MultiInputPolicy"),
        (lambda: Guess(spaces.MultiDiscrete([2, 3])), "MlpPolicy"),
    ],
)
def test_another_critic_trains_saves_loads_and_goes_on(
    algorithm: type, make: Any, policy: str, tmp_path: Path
) -> None:
    model = small(make(), policy, algorithm, policy_kwargs=PLAIN)
    first = parameters(model.policy)
    model.learn(40)
    assert isinstance(model.critic, MeanSquaredCritic)
    moved = {
        name for name, value in parameters(model.policy).items() if (value != first[name]).any()
    }
    assert {f"critic.members.{n}.0.weight" for n in (0, 1)} <= moved
    assert {f"critic_target.members.{n}.0.weight" for n in (0, 1)} <= moved
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=make(), device="cpu")
    assert isinstance(loaded.critic, MeanSquaredCritic)
    assert_equal(parameters(model.policy), parameters(loaded.policy))
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(20, reset_num_timesteps=False)
    assert all(value.isfinite().all() for value in parameters(loaded.policy).values())


@pytest.mark.slow
def test_the_plain_critic_learns_the_identity() -> None:
    model = small(
        IdentityEnvBox(eps=0.5), policy_kwargs=PLAIN, gamma=0.0, learning_rate=1e-2,
        buffer_size=2000, batch_size=64, policy_delay=1, reference_tau=0.05,
    )  # fmt: skip
    model.learn(600)  # after 300 one seed of three has 61 to 84, with any tau from 0.01 to 0.05
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=5, warn=False)
    assert mean > 90.0  # of 100


@pytest.mark.parametrize("critic_class", CRITICS)
def test_a_critic_keeps_the_contract(critic_class: type) -> None:
    """Shapes; errors without gradient; weights of the transitions scale their share."""
    model = small(Toy(), gradient_steps=0, policy_kwargs=PLAIN | {"critic_class": critic_class})
    model.learn(60)
    batch, critic = sample(model, 12), model.critic
    actions = th.rand(5, 12, 1) * 2 - 1
    assert critic.score(batch.observations, actions).shape == (5, 12)
    even = th.full((5, 12), 1 / 5)
    target = model.learner.td_target(batch, 0.5)
    assert not target.requires_grad
    assert target.shape == critic.bootstrap(batch.observations, actions, even, 0.5).shape
    values = [critic.bootstrap(batch.observations, actions, even, p).mean(-1) for p in (0.0, 1.0)]
    assert (values[1] <= values[0] + 1e-6).all()
    mean = critic.score(batch.observations, actions).mean(0)
    th.testing.assert_close(values[0], mean, rtol=2e-2, atol=2e-2)  # scored in bfloat16, maybe
    loss = critic.loss(batch, target)
    assert loss.errors.shape == (12,)
    assert not loss.errors.requires_grad
    assert all(value.shape == () and not value.requires_grad for value in loss.metrics.values())
    assert loss.auxiliary is None
    trained = [p for group in critic.parameter_groups() for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in critic.parameters()}
    assert len(critic.rate_scales()) == len(critic.parameter_groups())
    assert critic.rate_scales()[0] == 1.0

    def gradients(weights: th.Tensor | None) -> list[th.Tensor]:
        loss = critic.loss(batch, target, weights)
        return list(th.autograd.grad(loss.outputs, trained, loss.gradient))

    for plain, half in zip(gradients(None), gradients(th.full((12,), 0.5)), strict=True):
        th.testing.assert_close(0.5 * plain, half, rtol=2e-2, atol=1e-4)
    silent = th.zeros(12)
    assert all((gradient == 0.0).all() for gradient in gradients(silent))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("critic_class", CRITICS)
def test_an_auxiliary_loss_shapes_the_extractor_of_the_critic(
    critic_class: type, share: bool
) -> None:
    """Where the extractor is the actor's, the critic's losses leave it alone."""
    kwargs = AUXILIARY | {"critic_class": critic_class, "share_features_extractor": share}
    model = small(Toy(), gradient_steps=0, policy_kwargs=kwargs).learn(60)
    batch = sample(model, 16)
    loss = model.critic.loss(batch, model.learner.td_target(batch, 0.5)).auxiliary
    assert loss.shape == ()
    loss.backward()
    reached = {name for name, p in model.critic.named_parameters() if p.grad is not None}
    expected = {"auxiliary.predict.weight", "auxiliary.predict.bias"}
    if not share:
        expected |= {"features_extractor.net.0.weight", "features_extractor.net.0.bias"}
    assert reached == expected
    for name, parameter in model.critic.named_parameters():
        if name in reached:
            assert parameter.grad.abs().max() > 0.0
    model.critic.optimizer.zero_grad()
    model.learner.scale_rates()
    metrics, errors = model.learner.critic_step(batch, model.learner.td_target(batch, 0.5))
    assert metrics["auxiliary_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert errors.shape == (16,)


def test_weights_of_the_transitions_weigh_the_auxiliary_loss() -> None:
    model = small(Toy(), gradient_steps=0, policy_kwargs=AUXILIARY).learn(60)
    batch = sample(model, 4)
    target = model.learner.td_target(batch, 0.5)
    every = [model.critic.loss(batch, target, 4.0 * row).auxiliary for row in th.eye(4).unbind()]
    weights = th.tensor([1.0, 0.5, 0.0, 2.0])
    weighed = model.critic.loss(batch, target, weights).auxiliary
    th.testing.assert_close(weighed, weights @ th.stack(every) / 4.0)


def test_an_auxiliary_loss_is_learned_saved_and_loaded(tmp_path: Path) -> None:
    model = small(Toy(), policy_kwargs=AUXILIARY, learning_rate=3e-3, gamma=0.0)
    model.learn(40, log_interval=None)
    first = model.metrics.means()["auxiliary_loss"]
    model.learn(300, log_interval=None, reset_num_timesteps=False)
    batch = sample(model, 64)
    last = model.critic.loss(batch, model.learner.td_target(batch, 0.5)).auxiliary.item()
    assert last < 0.7 * first
    model.save(tmp_path / "model")
    loaded = PMPO.load(tmp_path / "model", env=Toy(), device="cpu")
    assert_equal(parameters(model.policy), parameters(loaded.policy))
    assert isinstance(loaded.critic.auxiliary, NextFeaturesAndReward)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_weight_decay_does_not_depend_on_the_unit_of_the_returns(size: float) -> None:
    """One state, one step; the values of three actions are 0.8, 1 and 1.2 of the size."""
    optimizer = {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.01}}
    model = small(Toy(), policy_kwargs={"net_arch": [32], **optimizer}, learning_rate=3e-3)
    critic, actions = model.critic, th.tensor([[-1.0], [0.0], [1.0]]).repeat(8, 1)
    values = size * (1.0 + 0.2 * actions)
    model.policy.update_statistics(np.zeros((24, 2), np.float32), values[:, 0].numpy())
    batch = Batch(th.zeros(24, 2), actions, th.zeros(24, 2), values[:, 0], th.ones(24), 0.0)
    for _ in range(400):
        model.learner.scale_rates()
        model.learner.critic_step(batch, values)
    with th.no_grad():
        found = critic.score(th.zeros(24, 2), actions.unsqueeze(0))[0, :3] / size
    th.testing.assert_close(found, th.tensor([0.8, 1.0, 1.2]), atol=0.06, rtol=0.0)


@pytest.mark.parametrize("normalises", [False, True])
def test_an_ensemble_in_bfloat16_is_that_in_float32_but_for_rounding(
    normalises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors that normalise in bfloat16 and on those that do not, with the gradients."""
    monkeypatch.setattr("sb3_pmpo.networks.NORMALISES_BFLOAT16", normalises)
    th.manual_seed(0)
    ensemble = EnsembleQ(5, 2, [64, 64], 2, n_quantiles=4)
    features, actions = th.randn(32, 5), th.rand(3, 32, 2) * 2 - 1
    values, gradients = [], []
    for dtype in (th.float32, th.bfloat16):
        ensemble.zero_grad()
        value = ensemble(features, actions, dtype, quantiles=True)
        assert value.dtype == th.float32
        value.square().sum().backward()
        values.append(value.detach())
        gradients.append(th.cat([p.grad.flatten() for p in ensemble.parameters()]))
    for exact, rounded in (values, gradients):
        assert not exact.equal(rounded)
        assert (rounded - exact).norm() < 0.02 * exact.norm()


class Pairs(MeanSquaredCritic):
    """Returns its loss as a plain tuple."""

    def loss(self, batch: Batch, target: th.Tensor, weights: th.Tensor | None = None) -> Any:
        return tuple(super().loss(batch, target, weights))[:3]


class OneError(MeanSquaredCritic):
    """Returns one error for all the transitions."""

    def loss(self, batch: Batch, target: th.Tensor, weights: th.Tensor | None = None) -> Any:
        loss = super().loss(batch, target, weights)
        return loss._replace(errors=loss.errors.mean())


@pytest.mark.parametrize(
    ("critic", "reason"),
    [(Pairs, r"a tuple, not a CriticLoss"), (OneError, r"shape \(\) for a batch of 2, not \[B\]")],
)
def test_a_loss_that_is_none_is_refused_when_the_model_is_made(critic: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"critic_class={critic.__name__}.*{reason}"):
        PMPO("MlpPolicy", Toy(), policy_kwargs=PLAIN | {"critic_class": critic}, device="cpu")


class Counting(QuantileCritic):
    """Counts its losses, as statistics of one's own may."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.register_buffer("calls", th.zeros(()))

    def loss(self, *given: Any, **more: Any) -> CriticLoss:
        self.calls += 1
        return super().loss(*given, **more)


def test_the_trial_of_a_critic_leaves_its_statistics() -> None:
    model = small(Toy(), policy_kwargs={"net_arch": [8], "critic_class": Counting})
    assert model.critic.calls == model.critic_target.calls == 0
    model.learn(24)
    assert model.critic.calls == 4  # of the steps 21 to 24
