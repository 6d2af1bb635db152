"""RayVecEnv against SB3's SubprocVecEnv, and what happens when its workers die."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from toys import Toy, parameters, small
from worker_toys import WorkerToy, box_toy, dict_toy, monitored_toy, tuple_toy

from sb3_pmpo import PMPO
from sb3_pmpo.storage import environment_state
from sb3_pmpo.storage.environment_state import register_environment

ray = pytest.importorskip("ray")

from sb3_pmpo.tools.ray_vec_env import RayVecEnv, WorkerDiedError, connect  # noqa: E402  # it needs Ray


@pytest.fixture(scope="module", autouse=True)
def _one_node() -> Iterator[None]:
    ray.init(
        address="local",  # not one that another test process has just started
        num_cpus=2,
        object_store_memory=10**8,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},  # for worker_toys
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pair(_one_node: None) -> Iterator[RayVecEnv]:
    """Two workers that three tests share, for each takes seconds to start."""
    env = make_vec_env(box_toy, n_envs=2, seed=0, vec_env_cls=RayVecEnv)
    yield env
    env.close()


@pytest.fixture(scope="module")
def mended(_one_node: None) -> Iterator[RayVecEnv]:
    """Two workers that are replaced when they die."""
    env = RayVecEnv([box_toy] * 2, restart=True)
    yield env
    env.close()


def _kill(env: VecEnv, index: int) -> None:
    os.kill(env.env_method("pid", indices=index)[0], signal.SIGKILL)


def _still(env: VecEnv) -> np.ndarray:
    return np.zeros((env.num_envs, 1), np.float32)


def _same(one: Any, other: Any) -> None:
    """Compare nested values, arrays in them bit for bit and with their type."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for each, its_like in zip(one, other, strict=True):
            _same(each, its_like)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("make", [dict_toy, tuple_toy])  # a Box below, with the methods
def test_it_steps_as_subproc_vec_env_does(make: Callable[[], gym.Env]) -> None:
    def episodes(env: VecEnv) -> list[Any]:
        env.seed(7)
        env.set_options([{"level": 1}, {}])
        seen = [env.reset(), list(env.reset_infos)]
        generator = np.random.default_rng(0)
        for _ in range(10):  # episodes of four steps: one truncated, one terminated
            actions = generator.uniform(-1, 1, (2, 1)).astype(np.float32)
            observations, rewards, dones, infos = env.step(actions)
            seen += [observations, rewards, dones, list(infos), list(env.reset_infos)]
        seen += [env.reset(), list(env.reset_infos)]  # seeds and options were for once
        env.close()
        return seen

    seen = episodes(RayVecEnv([make] * 2))
    assert seen[1] == [{"seed": 7, "options": {"level": 1}}, {"seed": 8, "options": None}]
    ends = [infos[0] for infos in seen[5:-2:5] if "terminal_observation" in infos[0]]
    assert sorted(info["TimeLimit.truncated"] for info in ends) == [False, True]
    _same(seen, episodes(SubprocVecEnv([make] * 2)))


def test_a_checkpoint_has_the_state_of_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_state, "_ADAPTERS", {})
    register_environment(Toy)
    env = RayVecEnv([monitored_toy] * 2)
    try:
        model = small(env).learn(24)
        model.save_checkpoint(tmp_path)
        model.learn(24, reset_num_timesteps=False)
        loaded = PMPO.load_checkpoint(tmp_path, env, device="cpu")
        loaded.learn(24, reset_num_timesteps=False)
    finally:
        env.close()
    _same(model.replay_buffer.observations, loaded.replay_buffer.observations)
    for name, value in parameters(model.policy).items():
        assert th.equal(value, loaded.policy.state_dict()[name]), name


def test_methods_and_attributes_reach_the_environments(pair: RayVecEnv) -> None:
    def answers(env: VecEnv) -> list[Any]:
        env.seed(0)
        env.reset()
        env.set_attr("level", 5, indices=[1])
        env.step(_still(env))
        return [
            env.env_method("add", 1, other=2),
            env.env_method("add", 1, other=2, indices=1),
            env.get_attr("level"),
            env.get_attr("level", indices=[1]),
            env.has_attr("level"),
            env.has_attr("nothing"),
            env.env_is_wrapped(Monitor),
            env.env_is_wrapped(Toy),
            list(env.get_images()),
            env.render(),
            env.render_mode,
            env.num_envs,
        ]

    _same(answers(pair), answers(make_vec_env(box_toy, n_envs=2, seed=0)))
    assert len({os.getpid(), *pair.env_method("pid")}) == 3  # each in a process of its own
    assert pair.env_method("observed")[0].flags.writeable


def test_an_error_in_an_environment_arrives_with_its_traceback(pair: RayVecEnv) -> None:
    pair.reset()
    with pytest.raises(ArithmeticError, match="an action of 3") as raised:
        pair.step(np.array([[0.0], [3.0]], np.float32))
    assert 'raise ArithmeticError(f"an action of' in str(raised.value)  # the line of the worker
    assert "worker 1 of 2" in raised.value.__notes__[0]
    with pytest.raises(AttributeError, match="nothing"):
        pair.get_attr("nothing")


def test_an_environment_that_cannot_be_made_says_why() -> None:
    def broken() -> gym.Env:
        raise FileNotFoundError("the model of the robot")

    with pytest.raises(FileNotFoundError, match="the model of the robot"):
        RayVecEnv([broken])
    with pytest.raises(ValueError, match="at least one"):
        RayVecEnv([])


def test_a_dead_worker_is_reported(pair: RayVecEnv) -> None:
    pair.reset()
    _kill(pair, 1)
    with pytest.raises(WorkerDiedError, match=r"(?s)Worker 1 .*restart=True"):
        pair.step(_still(pair))
    with pytest.raises(WorkerDiedError, match="Worker 1"):
        pair.get_attr("level")
    pair.close()  # also with a dead worker
    pair.close()
    with pytest.raises(RuntimeError, match="closed"):
        pair.reset()


def test_a_dead_worker_is_replaced(mended: RayVecEnv) -> None:
    env = mended
    env.seed(3)
    env.reset()
    env.set_attr("level", 9)
    last = env.step(_still(env))[0]
    first = env.env_method("pid")
    # It dies in the step itself.
    with pytest.warns(RuntimeWarning, match=r"Worker 1 .* Replaced so far: 1"):
        observations, rewards, dones, infos = env.step(np.array([[0.0], [-3.0]], np.float32))
    assert env.n_restarts == 1
    assert dones.tolist() == [False, True]
    assert rewards[1] == 0.0
    assert infos[1]["TimeLimit.truncated"]
    assert infos[1]["worker_restarted"]
    assert "worker_restarted" not in infos[0]
    np.testing.assert_array_equal(infos[1]["terminal_observation"], last[1])
    now = env.env_method("pid")
    assert now[0] == first[0]
    assert now[1] != first[1]
    assert env.get_attr("level") == [9, 9]
    # Its seed is its own: neither the old one nor the other worker's.
    assert env.reset_infos[1] == {"seed": 3 + 1 + 2, "options": None}
    np.testing.assert_array_equal(
        observations[1], np.float32(env.env_method("observed", indices=1)[0])
    )
    assert not env.step(_still(env))[2].any()


def test_a_worker_that_dies_between_steps_is_replaced(mended: RayVecEnv) -> None:
    env, so_far = mended, mended.n_restarts
    env.set_attr("level", 0)
    env.seed(3)
    last = env.reset()
    _kill(env, 0)
    with pytest.warns(RuntimeWarning, match="Worker 0"):
        assert env.get_attr("level") == [0, 0]  # is answered by the new one
    _, _, dones, infos = env.step(_still(env))  # and the learner is told here
    assert dones.tolist() == [True, False]
    assert infos[0]["TimeLimit.truncated"]
    np.testing.assert_array_equal(infos[0]["terminal_observation"], last[0])
    _kill(env, 0)
    env.seed(3)
    with pytest.warns(RuntimeWarning, match=f"Replaced so far: {so_far + 2}"):
        again = env.reset()
    np.testing.assert_array_equal(again, last)  # with the seed asked for, and no step was lost
    assert not env.step(_still(env))[2].any()
    with pytest.warns(RuntimeWarning), pytest.raises(WorkerDiedError, match="Worker 0"):
        env.env_method("die", indices=0)  # the new one dies of it, too


class KillWorker(BaseCallback):
    """Kill the process of one environment at a step of the training."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 40:
            _kill(self.training_env, 1)
        return True


def test_pmpo_trains_on_it_and_a_death_is_a_truncation() -> None:
    env = make_vec_env(
        WorkerToy, n_envs=2, seed=0, vec_env_cls=RayVecEnv, vec_env_kwargs={"restart": True}
    )
    model = small(env)
    before = parameters(model.policy)
    with pytest.warns(RuntimeWarning, match="Worker 1"):
        model.learn(80, callback=KillWorker())
    assert env.n_restarts == 1
    after = parameters(model.policy)
    assert all(th.isfinite(value).all() for value in after.values())
    assert any((before[name] != after[name]).any() for name in before)
    buffer = model.replay_buffer
    # Row 20 is the lost step: it is bootstrapped from the last observation, not terminal.
    assert buffer.dones[20].tolist()[1] == 1
    assert buffer.timeouts[20].tolist()[1] == 1
    np.testing.assert_array_equal(buffer.next_observations[20, 1], buffer.observations[20, 1])
    env.close()


def test_the_zoo_trains_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = pytest.importorskip("rl_zoo3.exp_manager").ExperimentManager
    monkeypatch.setattr(manager, "default_vec_env_cls", RayVecEnv)
    config = {"CartPole-v1": {"n_envs": 2, "n_timesteps": 64, "policy": "MlpPolicy", "n_steps": 16}}
    experiment = manager(
        argparse.Namespace(),
        "ppo",
        "CartPole-v1",
        str(tmp_path),
        hyperparams={"batch_size": 32},
        config=_zoo_config(tmp_path, config),
        eval_freq=-1,
        device="cpu",
        log_interval=-1,
        verbose=0,
    )
    model, _ = experiment.setup_experiment()
    assert isinstance(model.get_env().unwrapped, RayVecEnv)
    experiment.learn(model)
    assert model.num_timesteps == 64
    model.get_env().close()


def _zoo_config(folder: Path, content: dict[str, Any]) -> str:
    import yaml

    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


NICENESS = "RAY_worker_niceness"  # as Ray spells it


@pytest.mark.parametrize(("given", "used"), [(None, "0"), ("5", "5")])
def test_workers_that_start_here_are_not_nice(
    given: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NICENESS, given or "")
    if given is None:
        monkeypatch.delenv(NICENESS)
    seen = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ[NICENESS]))
    connect()
    assert seen == [used]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sb3_pmpo.tools.ray_vec_env")
    with pytest.raises(ImportError, match=r"pip install 'sb3_pmpo\[ray\]'"):
        importlib.import_module("sb3_pmpo.tools.ray_vec_env")
