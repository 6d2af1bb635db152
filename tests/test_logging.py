"""What is logged under ``train/``, and when."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.logger import KVWriter, Logger
from toys import Toy, small

from sb3_pmpo import top_k


class Recorder(KVWriter):
    def __init__(self) -> None:
        self.dumps: list[dict[str, Any]] = []

    def write(self, key_values: Any, key_excluded: Any, step: int = 0) -> None:
        self.dumps.append(dict(key_values))

    def close(self) -> None:
        """Nothing is open."""


DOCUMENTED = {
    "actor_loss",
    "accept_log_prob_mean",
    "accept_log_prob_std",
    "reject_log_prob_mean",
    "reject_log_prob_std",
    "kl_mean",
    "kl_std",
    "edge_barrier",
    "accept_fraction",
    "q_gap",
    "tie_fraction",
    "action_saturation",
    "std_min",
    "std_mean",
    "std_max",
    "reference_age",
    "critic_loss",
    "auxiliary_loss",
    "q_value",
    "return_scale",
    "actor_grad_norm",
    "critic_grad_norm",
    "learning_rate",
    "actor_learning_rate",
    "n_updates",
}


def logged(**kwargs: Any) -> list[dict[str, Any]]:
    model = small(Toy(), **kwargs)
    recorder = Recorder()
    model.set_logger(Logger(None, [recorder]))
    model.learn(100, log_interval=1)
    return [
        {key.removeprefix("train/"): dump[key] for key in dump if key.startswith("train/")}
        for dump in recorder.dumps
        if "train/actor_loss" in dump
    ]


def test_documented_metrics_are_logged() -> None:
    dumps = logged(n_samples=8, labeller=top_k(2), policy_delay=1, decoupled=True)
    assert len(dumps) == 8  # of the 10 episodes two were before the first update
    for dump in dumps:
        assert dump.keys() == DOCUMENTED
        assert all(np.isfinite(value) for value in dump.values())
        assert dump["accept_fraction"] == pytest.approx(2 / 8)
        assert dump["std_min"] <= dump["std_mean"] <= dump["std_max"]
        assert dump["q_gap"] > 0
        assert dump["kl_mean"] >= 0
        assert dump["critic_grad_norm"] > 0
        assert 0 < dump["action_saturation"] < 1
    # The first dump is at step 30, after the 9 updates of steps 21 to 29.
    assert [dump["n_updates"] for dump in dumps] == [9 + 10 * i for i in range(8)]


def test_the_joint_objective_logs_its_one_component() -> None:
    last = logged(decoupled=False, beta=2.0, policy_delay=1)[-1]
    joint = {name for name in last if name.endswith("_joint")}
    assert joint == {"accept_log_prob_joint", "reject_log_prob_joint", "kl_joint"}
    assert not {"kl_mean", "kl_std"} & last.keys()


def test_reference_age_is_the_updates_since_the_last_copy() -> None:
    dumps = logged(reference_tau=1.0, reference_update_interval=4, policy_delay=1)
    ages = np.arange(1, 80) % 4
    ends = [dump["n_updates"] for dump in dumps]
    expected = [ages[a:b].mean() for a, b in pairwise([0, *ends])]
    assert [dump["reference_age"] for dump in dumps] == pytest.approx(expected)


def test_a_callback_that_writes_the_log_has_the_metrics_too() -> None:
    model = small(Toy(), policy_delay=1, learning_rate=0.0, reference_tau=0.01)
    recorder = Recorder()
    model.set_logger(Logger(None, [recorder]))

    def write_every_20(model_locals: dict[str, Any], _: Any) -> bool:
        if model_locals["self"].num_timesteps % 20 == 0:
            model_locals["self"].logger.dump(model_locals["self"].num_timesteps)
        return True

    model.learn(100, log_interval=None, callback=write_every_20)
    with_losses = [dump for dump in recorder.dumps if "train/actor_loss" in dump]
    assert len(with_losses) == 4  # of 5 one was before the first update
    assert {key.removeprefix("train/") for key in with_losses[0]} >= DOCUMENTED
    # A mean is of the updates since the last writing, by whomever.
    own = [reference_age_since(dump["train/n_updates"], 20) for dump in with_losses[1:]]
    assert [dump["train/reference_age"] for dump in with_losses[1:]] == pytest.approx(own)


def reference_age_since(n_updates: int, number: int) -> float:
    """Return the mean of the last ``number`` updates' ages, of a reference with tau 0.01."""
    age, ages = 0.0, []
    for _ in range(n_updates):
        age = (age + 1.0) * 0.99
        ages.append(age)
    return float(np.mean(ages[-number:]))
