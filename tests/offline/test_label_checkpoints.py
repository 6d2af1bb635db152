"""Checkpoints of runs that learn from given labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from toys import Toy, assert_equal, parameters, small, toys

from sb3_pmpo import PMPO
from sb3_pmpo.feedback import FeedbackBuffer, FeedbackWrapper
from sb3_pmpo.offline import LabelledDataset
from sb3_pmpo.online.checkpoints import SaveCheckpoints
from sb3_pmpo.storage import environment_state
from sb3_pmpo.storage.checkpoints import read_checkpoint


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_state, "_ADAPTERS", environment_state.registered())
    environment_state.register_environment(Toy)


def rows(n: int = 200, *, choices: bool = False) -> LabelledDataset:
    """``choices`` has observations that no normaliser takes in."""
    rng = np.random.default_rng(0)
    seen = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    if choices:
        arms = rng.integers(0, 3, n)
        return LabelledDataset(arms, seen, np.where(seen[:, 0] > 0, 1, -1))
    actions = rng.uniform(-1, 1, (n, 1)).astype(np.float32)
    labels = np.where(np.abs(actions - seen[:, :1]) < 0.2, 1, -1)[:, 0]
    space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    return LabelledDataset(seen, actions, labels, action_space=space)


def new(data: LabelledDataset) -> PMPO:
    return PMPO.from_spaces(
        "MlpPolicy", data.observation_space, data.action_space, seed=0, device="cpu",
        policy_kwargs={"net_arch": [8]}, batch_size=16,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kl", "choices"), [("data", False), ("reference", False), ("reference", True)]
)
def test_offline_learning_goes_on_from_a_checkpoint(kl: str, choices: bool, tmp_path: Path) -> None:
    data = rows(choices=choices)
    given: dict[str, Any] = {"kl": kl, "reference_interval": 7}
    once = new(data).learn_offline(data, 30, clone_steps=5, **given)
    once.learn_offline(data, 30, reset_num_timesteps=False, **given)
    first = new(data).learn_offline(
        data, 30, clone_steps=5, callback=SaveCheckpoints(tmp_path, 15), **given
    )
    assert read_checkpoint(tmp_path).step == first.num_timesteps == 30
    resumed = PMPO.load_checkpoint(tmp_path, device="cpu")
    assert_equal(parameters(first.policy), parameters(resumed.policy))  # the reference, too
    np.random.rand(3)
    resumed.learn_offline(data, 30, reset_num_timesteps=False, **given)
    assert resumed.num_timesteps == 60
    assert_equal(parameters(once.policy), parameters(resumed.policy))
    with pytest.raises(ValueError, match="no environment"):
        resumed.learn(1)


def test_given_labels_are_in_the_checkpoint(tmp_path: Path) -> None:
    def run(steps: int, feedback: FeedbackBuffer, folder: Path, *, resumes: bool = False) -> PMPO:
        env = FeedbackWrapper(Toy(), lambda seen, action, info: 1 - 2 * (action[0] < 0), feedback)
        model = PMPO.load_checkpoint(folder, env, device="cpu") if resumes else small(env)
        callback = SaveCheckpoints(folder, 30)
        model.learn(steps, callback, reset_num_timesteps=not resumes, feedback=feedback)
        return model

    toy = Toy()
    spaces_of = (toy.observation_space, toy.action_space)
    once = run(60, FeedbackBuffer(*spaces_of), tmp_path / "once")
    feedback = FeedbackBuffer(*spaces_of)
    run(30, feedback, tmp_path / "run")
    kept = FeedbackBuffer.load(read_checkpoint(tmp_path / "run").path("feedback.npz"))
    assert len(kept) == len(feedback) == 30
    resumed = run(30, kept, tmp_path / "run", resumes=True)
    resumed.save_checkpoint(tmp_path / "run")
    kept = FeedbackBuffer.load(read_checkpoint(tmp_path / "run").path("feedback.npz"))
    assert len(kept) == 60
    assert_equal(parameters(once.policy), parameters(resumed.policy))
    other = FeedbackBuffer(*spaces_of)
    other.add(np.zeros(2), np.zeros(1), 1)
    resumed.learn_from_feedback(other, 2, callback=SaveCheckpoints(tmp_path / "other", 1))
    kept = FeedbackBuffer.load(read_checkpoint(tmp_path / "other").path("feedback.npz"))
    assert len(kept) == 1


def test_without_an_environment_a_checkpoint_predicts(tmp_path: Path) -> None:
    model = small(VecNormalize(toys(2))).learn(30)
    model.save_checkpoint(tmp_path)
    loaded = PMPO.load_checkpoint(tmp_path, device="cpu")
    seen = np.zeros((3, 2), np.float32)
    np.testing.assert_array_equal(
        loaded.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0]
    )
    loaded.set_env(VecNormalize(toys(2)))
    loaded.learn(30, reset_num_timesteps=False)
