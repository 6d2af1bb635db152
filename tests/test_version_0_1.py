"""Files that version 0.1 saved: they load, predict what they did, and go on learning."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from toys import parameters, sample

from sb3_pmpo import PMPO, top_k
from sb3_pmpo.online.exploration import pink_noise

MODEL = Path(__file__).parent / "data" / "model_of_0.1.zip"
BUFFER = Path(__file__).parent / "data" / "buffer_of_0.1.pkl"
OBSERVATIONS = np.array([[0.1, 0.2, 0.3], [1.0, 0.0, -2.0]], np.float32)
ACTIONS = [[-0.024970531463623047], [-0.029773831367492676]]


def test_a_model_of_0_1_is_the_model_that_it_was() -> None:
    model = PMPO.load(MODEL, device="cpu")
    actions, _ = model.predict(OBSERVATIONS, deterministic=True)
    assert actions == pytest.approx(np.array(ACTIONS), abs=1e-6)
    assert model.labeller == top_k(2)
    assert model.exploration_noise is pink_noise
    assert (model.n_steps, model.num_timesteps, model._n_updates) == (3, 120, 80)


def test_a_model_and_a_buffer_of_0_1_go_on_learning() -> None:
    model = PMPO.load(MODEL, env=gym.make("Pendulum-v1"), device="cpu")
    model.load_replay_buffer(BUFFER)
    assert model.replay_buffer.size() == 120
    discounts = sample(model, 64).discounts
    assert discounts.min().item() == pytest.approx(0.99**3)
    before = parameters(model.policy)
    model.learn(20, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (140, 160)
    after = parameters(model.policy)
    assert all(value.isfinite().all() for value in after.values())
    assert any((after[name] != before[name]).any() for name in before if "actor" in name)
