"""Exported policies do what predict does, for every kind of policy, observation and action."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pmpo import PMPO
from sb3_pmpo.export import (
    OPSET,
    TOLERANCE,
    DeterministicPolicy,
    ExportError,
    check,
    run,
    sample_observations,
    to_onnx,
    to_torchscript,
)

VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)
PIXELS = spaces.Box(0, 255, (3, 36, 36), np.uint8)
MIXED = spaces.Dict(
    joints=VECTOR,
    camera=PIXELS,
    gear=spaces.Discrete(3),
    wheel=spaces.MultiDiscrete([2, 3]),
    doors=spaces.MultiBinary(2),
)
BOX = spaces.Box(np.array([-3.0, 1.0], np.float32), np.array([0.5, 40.0], np.float32))

KINDS: dict[str, tuple[str, spaces.Space, spaces.Space, dict[str, Any]]] = {
    "Gaussian": ("MlpPolicy", VECTOR, BOX, {}),
    "a Box with two axes": ("MlpPolicy", VECTOR, spaces.Box(-1.0, 2.0, (2, 2)), {}),
    "discretised": ("MlpPolicy", VECTOR, BOX, {"n_bins": 7}),
    "Discrete": ("MlpPolicy", spaces.Discrete(5), spaces.Discrete(4), {}),
    "MultiDiscrete": ("MlpPolicy", VECTOR, spaces.MultiDiscrete([2, 4]), {}),
    "Dict": ("MultiInputPolicy", MIXED, BOX, {}),
    "pixels": ("CnnPolicy", PIXELS, BOX, {}),
}


def make(kind: str) -> PMPO:
    """Make a policy with weights and statistics of its own, not those of the beginning."""
    policy, observations, actions, kwargs = KINDS[kind]
    model = PMPO.from_spaces(policy, observations, actions, policy_kwargs=kwargs, seed=1)
    model.policy.update_statistics(sample_observations(observations, 50, seed=2), np.zeros(50))
    with th.no_grad():
        for parameter in model.actor.head.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_both_files_act_as_predict_does(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    seen = sample_observations(model.observation_space, 1000)
    for path in (to_onnx(model, tmp_path / "p.onnx"), to_torchscript(model, tmp_path / "p.pt")):
        found = check(path, model, seen)
        assert found.observations == 1000
        assert found.error <= TOLERANCE
    parts = DeterministicPolicy(model).split(seen)
    alone = run(tmp_path / "p.onnx", tuple(part[:1] for part in parts))  # any batch size
    expected, _ = model.predict(seen, deterministic=True)
    assert alone.dtype == expected.dtype
    assert len(np.unique(expected)) > 1  # not one action everywhere


def test_the_statistics_of_vec_normalize_are_in_the_file(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2), norm_reward=False)
    env.reset()
    for _ in range(20):
        env.step(np.array([env.action_space.sample() for _ in range(2)]))
    model = PMPO("MlpPolicy", env, seed=0)
    path = to_onnx(model, tmp_path / "p.onnx")
    seen = np.random.default_rng(0).normal(size=(1000, 3), scale=5).astype(np.float32)
    assert check(path, model, seen).error <= TOLERANCE
    unnormalised, _ = model.predict(seen, deterministic=True)
    assert np.abs(run(path, (seen,)) - unnormalised).max() > 0.01
    env.obs_rms.mean += 1.0
    with pytest.raises(ExportError, match="is not the policy"):
        check(path, model, seen)


def test_the_files_say_what_they_are(tmp_path: Path) -> None:
    model = make("Dict")
    written = onnx.load(to_onnx(model, tmp_path / "p.onnx"))
    assert written.producer_name == "sb3-pmpo export"
    assert [each.version for each in written.opset_import if not each.domain] == [OPSET]
    assert {each.name for each in written.graph.input} == set(MIXED.spaces)
    told = json.loads(written.metadata_props[0].value)
    assert told["inputs"]["camera"] == "uint8 [batch, (3, 36, 36)]"
    extra = {"sb3_pmpo.json": ""}
    with pytest.warns(DeprecationWarning, match="torch.jit.load"):
        th.jit.load(to_torchscript(model, tmp_path / "p.pt"), _extra_files=extra)
    assert json.loads(extra["sb3_pmpo.json"])["inputs"] == told["inputs"]


def test_the_model_goes_on_learning_as_before(tmp_path: Path) -> None:
    model = make("Gaussian")
    to_onnx(model, tmp_path / "p.onnx")
    assert all(parameter.requires_grad for parameter in model.actor.parameters())
