"""CUDA graphs of the update: the same updates as without, on a GPU; the parts that need none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from toys import DictToy, Guess, Toy, assert_equal, parameters, small

from sb3_pmpo import DPO, MPO, PMPO, Candidates, Preference, top_k
from sb3_pmpo.distributions.gaussian import _gram_schmidt, _unique_qr
from sb3_pmpo.graphs import WARM_UP, set_capturable, set_learning_rate


@pytest.mark.parametrize("shape", [(5, 4, 1), (5, 4, 4), (2, 7, 6, 3)])
def test_gram_schmidt_is_the_unique_qr(shape: tuple[int, ...]) -> None:
    matrices = th.randn(shape, dtype=th.float64, generator=th.Generator().manual_seed(0))
    th.testing.assert_close(_gram_schmidt(matrices), _unique_qr(matrices))


@pytest.mark.parametrize("capturable", [True, False])
def test_an_optimiser_steps_the_same_with_its_rate_on_the_device(capturable: bool) -> None:
    steps = []
    for switch in (False, True):
        weight = th.nn.Parameter(th.ones(3))
        optimizer = th.optim.Adam([weight], lr=0.1, fused=True)
        if switch:  # there, or there and back
            set_capturable(optimizer, weight.device)
            set_capturable(optimizer, weight.device if capturable else None)
        set_learning_rate(optimizer.param_groups[0], 0.05)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.05)
        weight.sum().backward()
        optimizer.step()
        steps.append(weight.detach())
    assert th.equal(*steps)
    assert isinstance(optimizer.param_groups[0]["lr"], th.Tensor) == capturable


def test_a_model_saved_with_graphs_loads_without(tmp_path: Path) -> None:
    model = small(Toy(), device="cpu").learn(60)
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        set_capturable(optimizer, th.device("cpu"))  # as on a GPU
    model.save(tmp_path / "model")
    loaded = PMPO.load(tmp_path / "model", Toy(), device="cpu")
    assert_equal(parameters(loaded.policy), parameters(model.policy))
    for optimizer in (loaded.actor.optimizer, loaded.critic.optimizer):
        for group in optimizer.param_groups:
            assert isinstance(group["lr"], float)
            assert not group["capturable"]
    loaded.replay_buffer = model.replay_buffer
    loaded.learn(20, reset_num_timesteps=False)


class Waits(FlattenExtractor):
    """A features extractor that no graph can hold: it waits for the GPU."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations) + 0.0 * observations.sum().item()


def two_dims() -> Toy:
    return Toy((-1.0, -1.0), (1.0, 1.0))


def collected(
    policy: str = "MlpPolicy", algorithm: type = PMPO, env: Any = None, **kwargs: Any
) -> Any:
    """Make a model on the GPU that has collected 60 steps and updated nothing."""
    env = env or (two_dims() if policy == "MlpPolicy" else DictToy(two_dims()))
    model = small(env, policy, algorithm, device="cuda", gradient_steps=0, **kwargs)
    return model.learn(60)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (PMPO, {}),
        (PMPO, {"policy_delay": 3}),  # a plan for each phase of the 4 updates
        (PMPO, {"reference_tau": 1.0, "reference_update_interval": 8}),
        (PMPO, {"n_steps": 3}),
        (PMPO, {"policy_kwargs": {"n_bins": 5, "net_arch": [16]}}),  # 25 actions, listed
        (PMPO, {"policy_kwargs": {"n_bins": 11, "net_arch": [16]}}),  # 121, sampled
        (MPO, {}),
        (DPO, {}),
    ],
)
@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
def test_graphs_do_the_same_updates(policy: str, algorithm: type, arguments: Any) -> None:
    compare_updates(
        collected(policy, algorithm, **arguments),
        collected(policy, algorithm, compile=True, **arguments),
    )


@pytest.mark.gpu
def test_graphs_do_the_same_updates_of_discrete_actions() -> None:
    made = {flag: collected(env=Guess(spaces.Discrete(3)), compile=flag) for flag in (False, True)}
    compare_updates(made[False], made[True])


def compare_updates(plain: Any, graphs: Any) -> None:
    for model in (plain, graphs):
        model.set_random_seed(1)  # the random numbers of a replay are those of the calls
        for _ in range(12):  # up to three plans, each captured in its fourth call
            model.train(4, 16)
    assert graphs.learner.graphs._captured
    assert not graphs.learner.graphs._refused
    for name, value in parameters(graphs.policy).items():
        th.testing.assert_close(value, parameters(plain.policy)[name], rtol=1e-2, atol=1e-3)
    for name, value in plain.metrics.means().items():
        assert graphs.metrics.means()[name] == pytest.approx(value, rel=1e-2, abs=1e-3), name


@pytest.mark.gpu
def test_graphs_follow_a_rate_and_a_state_that_somebody_replaces() -> None:
    model = collected(compile=True)
    for _ in range(WARM_UP + 1):
        model.train(4, 16)
    assert model.learner.graphs._captured
    model.critic.optimizer.param_groups[0]["lr"] = 0.5
    model.train(4, 16)
    assert not model.learner.graphs._captured
    for _ in range(WARM_UP):
        model.train(4, 16)
    assert model.learner.graphs._captured
    model.actor.optimizer.load_state_dict(model.actor.optimizer.state_dict())
    assert not model.learner.graphs._captured


@pytest.mark.gpu
def test_an_optimiser_that_cannot_be_captured_gets_no_graphs() -> None:
    kwargs = {"net_arch": [16], "optimizer_class": th.optim.SGD}
    with pytest.warns(UserWarning, match="without CUDA graphs with SGD"):
        model = small(Toy(), device="cuda", compile=True, policy_kwargs=kwargs)
    assert model.learner.graphs is None


@pytest.mark.gpu
def test_graphs_follow_the_learning_rate() -> None:
    model = collected(compile=True, learning_rate=lambda left: 1e-3 * (left > 0.5))
    for progress, moves in ((1.0, True), (0.0, False)):
        model._current_progress_remaining = progress
        before = parameters(model.actor)
        for _ in range(6):
            model.train(4, 16)
        after = parameters(model.actor)
        assert any(not th.equal(before[name], after[name]) for name in before) == moves
    assert model.learner.graphs._captured


@pytest.mark.gpu
def test_a_compiled_model_learns_saves_loads_and_resumes(tmp_path: Path) -> None:
    compiled = small(Toy(), device="cuda", compile=True).learn(200)
    assert compiled.learner.graphs._captured
    compiled.save(tmp_path / "model")
    for arguments in ({}, {"compile": False}, {"compile": False, "device": "cpu"}):
        loaded = PMPO.load(tmp_path / "model", env=Toy(), **({"device": "cuda"} | arguments))
        for name, value in parameters(loaded.policy).items():
            assert th.equal(value.cpu(), parameters(compiled.policy)[name].cpu())
        loaded.replay_buffer = compiled.replay_buffer
        loaded.replay_buffer.device = loaded.device
        loaded.learn(100, reset_num_timesteps=False)
    compiled.replay_buffer.device = compiled.device
    compiled.set_parameters(str(tmp_path / "model.zip"), device="cuda")
    before = parameters(compiled.actor)
    compiled.learn(100, reset_num_timesteps=False)
    after = parameters(compiled.actor)
    assert any(not th.equal(before[name], after[name]) for name in before)


@pytest.mark.gpu
def test_a_labeller_may_hold_a_network_on_the_gpu() -> None:
    """It is tried there too, before the training."""
    judge = th.nn.Linear(2, 1, device="cuda").requires_grad_(False)

    def labeller(candidates: Candidates) -> Preference:
        return top_k(2)(Candidates(judge(candidates.actions).squeeze(-1)))

    model = collected(labeller=labeller, beta=2.0)
    model.train(4, 16)
    assert all(value.isfinite().all() for value in parameters(model.actor).values())


@pytest.mark.gpu
def test_what_cannot_be_captured_runs_as_usual() -> None:
    kwargs = {"net_arch": [16], "features_extractor_class": Waits}
    model = collected(compile=True, policy_kwargs=kwargs)
    learns_after_a_refusal(model, 4, WARM_UP)


@pytest.mark.gpu
def test_the_policy_may_refuse_when_the_critics_have_been_captured() -> None:
    def waits(candidates: Candidates) -> Preference:
        assert candidates.scores.sum().item() != 0.0
        return top_k(2)(candidates)

    model = collected(compile=True, policy_delay=4, labeller=waits, beta=2.0)
    # One update at a time: the critics' alone is captured in the fifth, the policy's fails later.
    learns_after_a_refusal(model, 1, 12)


def learns_after_a_refusal(model: Any, updates: int, calls_before: int) -> None:
    for _ in range(calls_before):
        model.train(updates, 16)
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        model.train(updates, 16)
    before = parameters(model.actor)
    for _ in range(8):
        model.train(updates, 16)
    after = parameters(model.actor)
    assert any(not th.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in after.values())
