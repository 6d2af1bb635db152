"""The critic on learned embeddings: what it predicts in closed form, and what its losses reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from torch import nn
from toys import DictToy, Guess, Toy, assert_equal, parameters, sample, small

from sb3_pmpo import PMPO
from sb3_pmpo.core.batch import Batch
from sb3_pmpo.critics import QuantileCritic
from sb3_pmpo.embeddings import EmbeddingCritic
from sb3_pmpo.policies import MlpPolicy

KWARGS: dict[str, Any] = {
    "net_arch": [16],
    "critic_class": EmbeddingCritic,
    "critic_kwargs": {"embedding_dim": 6},
}


class Sum(nn.Module):
    """Adds an action of one number to an embedding of two: ``z + a``."""

    def forward(self, given: th.Tensor) -> th.Tensor:
        return given[..., :2] + given[..., 2:]


def adding_critic() -> EmbeddingCritic:
    """Make one whose embeddings are ``z(s) = s`` and ``e = s + a``, and which predicts ``e``."""
    policy = MlpPolicy(
        spaces.Box(-9.0, 9.0, (2,)),
        spaces.Box(-1.0, 1.0, (1,)),
        lambda _: 1e-3,
        normalize_observations=False,
        critic_class=EmbeddingCritic,
        critic_kwargs={"embedding_dim": 2},
    )
    made = policy.critic.embedding
    made.of_state, made.of_action, made.predict = nn.Identity(), Sum(), nn.Identity()
    return policy.critic


def made_up(n: int) -> Batch:
    return Batch(
        th.randn(n, 2), th.rand(n, 1) * 2 - 1, th.randn(n, 2), th.randn(n), th.zeros(n), 0.99
    )


def auxiliary(critic: Any, batch: Batch, weights: th.Tensor | None = None) -> th.Tensor:
    found = critic.loss(batch, th.zeros(len(batch.rewards), 1), weights).auxiliary
    assert found is not None
    return found


def test_the_loss_is_how_far_the_next_embedding_is_from_what_is_predicted() -> None:
    critic, batch = adding_critic(), made_up(5)
    each = (batch.observations + batch.actions - batch.next_observations).square().mean(-1)
    weights = th.rand(5)
    th.testing.assert_close(auxiliary(critic, batch), each.mean())
    th.testing.assert_close(auxiliary(critic, batch, weights), (weights * each).mean())
    exact = batch._replace(next_observations=batch.observations + batch.actions)
    assert auxiliary(critic, exact) == 0.0
    over = batch._replace(dones=th.tensor([1.0, 0.0, 1.0, 1.0, 1.0]))  # no state follows
    th.testing.assert_close(auxiliary(critic, over), each[1] / 5)


def test_the_ensemble_sees_what_is_raw_and_what_is_embedded() -> None:
    critic, batch = adding_critic(), made_up(4)
    actions = th.rand(3, 4, 1) * 4 - 2
    of_state, of_action = critic.inputs(batch.observations, actions)
    th.testing.assert_close(of_state, batch.observations.repeat(1, 2))
    inside = actions.clamp(-1.0, 1.0)
    th.testing.assert_close(of_action, th.cat((inside, batch.observations + inside), -1))
    both = critic.q_values(batch.observations, actions)
    th.testing.assert_close(both, critic.ensemble(of_state, of_action))


@pytest.mark.parametrize("share", [False, True])
def test_values_and_predictions_shape_the_embeddings_and_no_target_does(share: bool) -> None:
    model = small(
        Toy(), gradient_steps=0, policy_kwargs=KWARGS | {"share_features_extractor": share}
    ).learn(60)
    critic, batch = model.critic, sample(model, 12)
    following = batch.next_observations.clone().requires_grad_()
    batch = batch._replace(next_observations=following)
    target = model.learner.td_target(batch, 0.5)
    assert not target.requires_grad
    loss = critic.loss(batch, target)

    def reached(outputs: th.Tensor, gradient: th.Tensor | None) -> set[str]:
        named = dict(critic.named_parameters())
        found = th.autograd.grad(
            outputs, list(named.values()), gradient, retain_graph=True, allow_unused=True
        )
        moved = [each is not None and bool(each.abs().sum() > 0.0) for each in found]
        parts = [name.removeprefix("embedding.").split(".")[0] for name in named]
        return {part for part, each in zip(parts, moved, strict=True) if each}

    assert reached(loss.outputs, loss.gradient) == {"of_state", "of_action", "ensemble"}
    assert reached(loss.auxiliary, None) == {"of_state", "of_action", "predict"}
    loss.auxiliary.backward()
    assert following.grad is None
    trained = [p for group in critic.parameter_groups() for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in critic.parameters()}


@pytest.mark.parametrize(
    ("make", "policy"),
    [
        (Toy, "MlpPolicy"),
        (lambda: DictToy(Toy()), "MultiInputPolicy"),
        (lambda: Guess(spaces.MultiDiscrete([2, 3])), "MlpPolicy"),
    ],
)
def test_it_trains_saves_loads_and_goes_on(make: Any, policy: str, tmp_path: Path) -> None:
    model = small(make(), policy, policy_kwargs=KWARGS)
    before = parameters(model.policy)
    model.learn(40, log_interval=None)
    assert model.metrics.means()["auxiliary_loss"] > 0.0
    after = parameters(model.policy)
    for part in ("of_state.0.weight", "of_action.0.weight", "predict.weight"):
        assert not after[f"critic.embedding.{part}"].equal(before[f"critic.embedding.{part}"])
    lagged = "critic_target.embedding.predict.weight"
    assert not after[lagged].equal(before[lagged])
    model.save(tmp_path / "model")
    loaded = PMPO.load(tmp_path / "model", env=make(), device="cpu")
    assert_equal(after, parameters(loaded.policy))
    loaded.learn(20)
    assert all(value.isfinite().all() for value in parameters(loaded.policy).values())


@pytest.mark.parametrize(
    ("make", "kind", "expected"),
    [
        (Toy, EmbeddingCritic, (1, 2, 0.02, 0.02)),
        (lambda: Guess(spaces.Discrete(3)), QuantileCritic, (4, 4, 0.005, 0.005)),
    ],
)
def test_the_action_space_chooses_the_critics_and_their_updates(
    make: Any, kind: type, expected: tuple[float, ...]
) -> None:
    model = PMPO("MlpPolicy", make(), buffer_size=10, device="cpu")
    assert type(model.critic) is type(model.critic_target) is kind
    names = ("gradient_steps", "policy_delay", "tau", "reference_tau")
    assert tuple(getattr(model, name) for name in names) == expected
    given = PMPO("MlpPolicy", make(), buffer_size=10, device="cpu", gradient_steps=3, tau=0.5)
    assert (given.gradient_steps, given.policy_delay, given.tau) == (3, expected[1], 0.5)


@pytest.mark.parametrize(("net_arch", "width"), [([24, 16], 24), ([], 128), (None, 128)])
def test_an_embedding_is_as_wide_as_the_critics(net_arch: Any, width: int) -> None:
    policy_kwargs = {"net_arch": {"pi": [8], "qf": net_arch}} if net_arch is not None else None
    model = PMPO("MlpPolicy", Toy(), buffer_size=10, device="cpu", policy_kwargs=policy_kwargs)
    assert model.critic.embedding.width == width


def test_a_model_that_was_saved_before_there_were_embeddings_keeps_its_critics(
    tmp_path: Path,
) -> None:
    named = {"net_arch": [16], "critic_class": QuantileCritic}
    model = small(Toy(), policy_kwargs=named).learn(40)
    del model.policy_kwargs["critic_class"]  # as its file had it
    model.save(tmp_path / "model")
    for kwargs in ({}, {"policy_kwargs": {"net_arch": [16]}}, {"policy_kwargs": named}):
        loaded = PMPO.load(tmp_path / "model", env=Toy(), device="cpu", **kwargs)
        assert type(loaded.critic) is QuantileCritic
        assert_equal(parameters(model.policy), parameters(loaded.policy))
    loaded.learn(20)
    loaded.save(tmp_path / "again")
    again = PMPO.load(tmp_path / "again", device="cpu")
    assert_equal(parameters(loaded.policy), parameters(again.policy))


class Chooses(MlpPolicy):
    """Takes no critics from the user."""

    def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any) -> None:
        super().__init__(
            observation_space, action_space, lr_schedule, [8], critic_class=QuantileCritic
        )


def test_a_policy_that_chooses_its_critics_is_asked_for_none(tmp_path: Path) -> None:
    model = small(Toy(), Chooses, policy_kwargs={})
    model.save(tmp_path / "model")
    loaded = PMPO.load(tmp_path / "model", device="cpu", custom_objects={"policy_class": Chooses})
    assert_equal(parameters(model.policy), parameters(loaded.policy))


@pytest.mark.parametrize("width", [0, -3, 2.5, "wide"])
def test_a_width_that_is_none_is_refused(width: Any) -> None:
    kwargs = KWARGS | {"critic_kwargs": {"embedding_dim": width}}
    with pytest.raises((ValueError, TypeError), match=f"embedding_dim must be .*{width}"):
        PMPO("MlpPolicy", Toy(), policy_kwargs=kwargs, device="cpu")
