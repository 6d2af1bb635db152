"""A run that is saved, loaded elsewhere and continued is bit for bit the run in one go."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from toys import Guess, Toy, assert_equal, parameters, small, toys

from sb3_pmpo import DPO, MPO, PMPO
from sb3_pmpo.online import checkpoints
from sb3_pmpo.online.checkpoints import SaveCheckpoints
from sb3_pmpo.online.exploration import pink_noise
from sb3_pmpo.replay import PrioritizedHerReplayBuffer, PrioritizedReplayBuffer
from sb3_pmpo.storage import environment_state
from sb3_pmpo.storage.checkpoints import MANIFEST, find_checkpoint, read_checkpoint, tidy
from sb3_pmpo.storage.environment_state import register_environment


@pytest.fixture(autouse=True)
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_state, "_ADAPTERS", {})
    monkeypatch.setattr(checkpoints, "_said", set())
    for kind in (Toy, Guess):
        register_environment(kind)


def bits() -> gym.Env:
    return BitFlippingEnv(n_bits=4, continuous=True, max_steps=7)


def guess() -> gym.Env:
    return Guess(gym.spaces.MultiDiscrete([3, 2]))


def drawn(env: Any) -> None:
    """Use the generators that a checkpoint must put back."""
    np.random.rand(3)
    th.rand(3)


def all_of(model: Any) -> dict[str, th.Tensor]:
    """Collect what must be equal: networks, optimisers, replay buffer, statistics."""
    found = parameters(model.policy)
    for name in ("actor", "critic"):
        states = getattr(model, name).optimizer.state_dict()["state"]
        for i, state in states.items():
            found |= {f"{name}{i}{key}": th.as_tensor(value) for key, value in state.items()}
    buffer = model.replay_buffer
    columns = {"rewards": buffer.rewards, "dones": buffer.dones, "actions": buffer.actions}
    if isinstance(buffer.observations, dict):
        columns |= buffer.observations
    else:
        columns["observations"] = buffer.observations
    found |= {name: th.as_tensor(column) for name, column in columns.items()}
    if model.duals is not None:
        found |= {f"duals.{name}": value for name, value in parameters(model.duals).items()}
    normaliser = model.get_vec_normalize_env()
    if normaliser is not None:
        found["vec_mean"] = th.as_tensor(normaliser.obs_rms.mean)
        found["vec_returns"] = th.as_tensor(normaliser.returns)
    return found


SEQUENCE = {"policy": "MultiInputPolicy"}
HER = SEQUENCE | {"replay_buffer_class": HerReplayBuffer}
RUNS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "two updates": (Toy, {"gradient_steps": 2, "policy_delay": 2}),
    "four": (lambda: toys(4, length=7), {"exploration_noise": pink_noise, "n_steps": 3}),
    "normalised": (
        lambda: VecNormalize(VecMonitor(VecFrameStack(toys(2), 2))),
        {"algorithm": MPO, "optimize_memory_usage": True}
        | {"replay_buffer_kwargs": {"handle_timeout_termination": False}},
    ),
    "discrete": (guess, {"algorithm": DPO, "exploration_noise": None, "train_freq": 4}),
    "bins": (lambda: gym.make("Pendulum-v1"), {"policy_kwargs": {"net_arch": [8], "n_bins": 3}}),
    "prioritised": (
        lambda: DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2),
        {"replay_buffer_class": PrioritizedReplayBuffer, "buffer_size": 60, "train_freq": 1},
    ),
    "hindsight": (bits, HER | {"n_steps": 2}),
    "hindsight, prioritised": (
        lambda: DummyVecEnv([bits] * 4),
        HER | {"replay_buffer_class": PrioritizedHerReplayBuffer},
    ),
    "noise": (
        lambda: Toy(length=1000),
        {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_run_in_one_go(name: str, tmp_path: Path) -> None:
    make, arguments = RUNS[name]
    algorithm = arguments.get("algorithm", PMPO)
    arguments = {"learning_starts": 30, "policy_kwargs": {"net_arch": [8]}} | arguments
    once = small(make(), **arguments)
    if "prioritised" in name:  # its weights depend on the progress of learn()
        once.learn(44).learn(44, reset_num_timesteps=False)
    else:
        once.learn(88)
    first = small(make(), **arguments).learn(44)
    first.save_checkpoint(tmp_path)
    drawn(first.env)
    second = algorithm.load_checkpoint(tmp_path, make(), device="cpu")
    assert second.num_timesteps == 44
    second.learn(44, reset_num_timesteps=False)
    assert_equal(all_of(once), all_of(second))
    assert [info["r"] for info in once.ep_info_buffer] == [
        info["r"] for info in second.ep_info_buffer
    ]


class SaveAt(BaseCallback):
    def __init__(self, step: int, folder: Path) -> None:
        super().__init__()
        self.step, self.folder = step, folder

    def _on_rollout_start(self) -> None:
        if self.num_timesteps == self.step:
            self.model.save_checkpoint(self.folder)

    def _on_step(self) -> bool:
        return True


def test_saved_while_learning_schedules_go_on(tmp_path: Path) -> None:
    arguments = {
        "learning_rate": LinearSchedule(1e-2, 1e-4, 1.0),
        "replay_buffer_class": PrioritizedReplayBuffer,
    }
    once = small(Toy(), **arguments).learn(80, callback=SaveAt(40, tmp_path))
    resumed = PMPO.load_checkpoint(tmp_path, Toy(), device="cpu")
    resumed.learn(40, reset_num_timesteps=False)
    assert resumed.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert_equal(all_of(once), all_of(resumed))


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    program = (
        "import sys, warnings, torch as th; warnings.simplefilter('error'); "
        "th.set_num_threads(1); "
        "from toys import Toy, small, toys; from sb3_pmpo import PMPO; "
        "from sb3_pmpo.storage.environment_state import register_environment; "
        "register_environment(Toy); "
        "model = PMPO.load_checkpoint(sys.argv[1], toys(2), device='cpu'); "
        "model.learn(40, reset_num_timesteps=False); model.save_checkpoint(sys.argv[1])"
    )
    once = small(toys(2)).learn(80)
    small(toys(2)).learn(40).save_checkpoint(tmp_path)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path}, timeout=120)
    last = PMPO.load_checkpoint(tmp_path, toys(2), device="cpu")
    assert last.num_timesteps == 80
    assert_equal(all_of(once), all_of(last))


class Drawing(Toy):
    """Draws from the generators of its process."""

    def step(self, action: np.ndarray) -> Any:
        observation, reward, *rest = super().step(action)
        noise = random.random() + np.random.random() + th.rand(()).item()
        return observation, reward + noise, *rest


def monitored() -> gym.Env:
    return Monitor(Drawing())


def test_environments_in_other_processes_go_on(tmp_path: Path) -> None:
    workers = SubprocVecEnv([monitored] * 2, start_method="fork")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = small(workers).learn(24)
            model.save_checkpoint(tmp_path)
            expected = all_of(model.learn(24, reset_num_timesteps=False))
            loaded = PMPO.load_checkpoint(tmp_path, workers, device="cpu")
        found = all_of(loaded.learn(24, reset_num_timesteps=False))
        assert_equal(expected, found)
    finally:
        workers.close()
    bare = SubprocVecEnv([Toy] * 2, start_method="fork")
    try:
        model = small(bare).learn(24)
        with pytest.warns(UserWarning, match="wrap it in SB3's Monitor"):
            model.save_checkpoint(tmp_path)
    finally:
        bare.close()


# ------------------------------------------------------------------ environments


class Hidden(Toy):
    """Its state is where nobody can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.simulator = iter(range(10**9))


def test_an_unknown_environment_says_so_once_and_begins_a_new_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(Hidden(), n_steps=3).learn(25)
    with pytest.warns(UserWarning, match=r"begins new episodes: Hidden\.simulator is a range_iter"):
        model.save_checkpoint(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_checkpoint(tmp_path)
        loaded = PMPO.load_checkpoint(tmp_path, Hidden(), device="cpu")
    assert loaded._last_obs is None
    assert loaded.replay_buffer.timeouts[24] == 1.0  # the 5th step of its episode
    assert model.replay_buffer.timeouts[24] == 0.0
    loaded.learn(5, reset_num_timesteps=False)
    assert loaded.num_timesteps == 30


def test_an_adapter_of_the_users_is_asked(tmp_path: Path) -> None:
    def tell(env: Any) -> dict[str, Any]:
        return {"at": env.simulator.__reduce__()[2], "x": env._x, "step": env.step_in_episode}

    def put_back(env: Any, state: dict[str, Any]) -> None:
        env.simulator = iter(range(10**9))
        env.simulator.__setstate__(state["at"])
        env._x, env.step_in_episode = state["x"], state["step"]

    register_environment(Hidden, tell, put_back)
    model = small(Hidden()).learn(25)
    next(model.env.envs[0].unwrapped.simulator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_checkpoint(tmp_path)
        loaded = PMPO.load_checkpoint(tmp_path, Hidden(), device="cpu")
    env = loaded.env.envs[0].unwrapped
    assert (next(env.simulator), env.step_in_episode) == (1, 5)


class Twice(BaseCallback):
    """Save in the middle of a step."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        if self.num_timesteps == 24:
            self.model.save_checkpoint(self.folder)
        return True


def test_in_the_middle_of_a_step_a_new_episode_begins(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="in the middle of a step"):
        small(Toy()).learn(30, callback=Twice(tmp_path))
    loaded = PMPO.load_checkpoint(tmp_path, Toy(), device="cpu")
    assert loaded._last_obs is None
    assert loaded.replay_buffer.size() == 23


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Acrobot-v1", "FrozenLake-v1", "Hopper-v5", "Ant-v5"]
)
def test_environments_of_gymnasium_go_on(env_id: str) -> None:
    pytest.importorskip("mujoco")
    goes_on(lambda: gym.make(env_id, max_episode_steps=13))


@pytest.mark.parametrize(
    "task", ["cartpole-swingup", "reacher-hard", "point_mass-hard", "hopper-hop"]
)
def test_environments_of_the_control_suite_go_on(task: str) -> None:
    pytest.importorskip("shimmy")
    from sb3_pmpo.envs import make_dmc_env

    goes_on(lambda: make_dmc_env(task, action_repeat=2))


def goes_on(make: Callable[[], gym.Env]) -> None:
    """Check that a new environment with the state of another does what that one does."""
    from sb3_pmpo.storage.containers import pack, unpack

    one, other = Monitor(make()), Monitor(make())
    one.reset(seed=3)
    other.reset(seed=4)
    one.action_space.seed(0)
    actions = [one.action_space.sample() for _ in range(40)]
    roll(one, actions[:18])
    roll(other, actions[20:27])
    state = unpack(pack("x", {"state": environment_state.get_state(one, {})}), "x")["state"]
    environment_state.set_state(other, state, {})
    assert roll(one, actions[18:]) == roll(other, actions[18:])


def roll(env: gym.Env, actions: list[Any]) -> list[Any]:
    seen: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen += [np.asarray(observation).tolist(), float(reward), terminated, truncated]
        if terminated or truncated:
            seen += [info["episode"]["l"], np.asarray(env.reset()[0]).tolist()]
    return seen


# ------------------------------------------------------------------ the unit


def test_only_new_rows_are_written(tmp_path: Path) -> None:
    model = small(Toy(), buffer_size=1000, learning_starts=9999)
    model.learn(100, callback=SaveCheckpoints(tmp_path, 50))
    first = read_checkpoint(tmp_path)
    assert (first.step, len(first.pieces)) == (100, 1)
    pieces = []
    for _ in range(4):
        model.learn(300, reset_num_timesteps=False)
        model.save_checkpoint(tmp_path)
        pieces.append(read_checkpoint(tmp_path).pieces)
    assert [len(each) for each in pieces] == [2, 3, 4, 4]
    assert pieces[1][0] == pieces[0][0]  # rows 0 to 255 were full
    assert pieces[2][1] == pieces[1][1] != pieces[0][1]
    assert pieces[3][2:] == pieces[2][2:]  # it has begun anew, with rows 0 to 300
    assert {*pieces[3][:2]}.isdisjoint(pieces[2])
    loaded = PMPO.load_checkpoint(tmp_path, Toy(), device="cpu")
    assert_equal(all_of(model), all_of(loaded))
    loaded.learn(20, reset_num_timesteps=False)
    loaded.save_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path).pieces[2:] == pieces[3][2:]  # as one who loads it knows
    loaded.replay_buffer.reset()  # not what it knows any more
    loaded.learn(20, reset_num_timesteps=False)
    loaded.save_checkpoint(tmp_path)
    assert len(read_checkpoint(tmp_path).pieces) == 1
    again = PMPO.load_checkpoint(tmp_path, Toy(), device="cpu")
    assert again.replay_buffer.size() == 20


def test_a_checkpoint_holds_the_rows_that_are_there(tmp_path: Path) -> None:
    model = small(Toy(), buffer_size=300, learning_starts=9999)
    model.learn(300).save_checkpoint(tmp_path)
    model.learn(420).save_checkpoint(tmp_path)  # counts its steps from 0 again
    assert_equal(all_of(model), all_of(PMPO.load_checkpoint(tmp_path, Toy(), device="cpu")))
    for _ in range(model.replay_buffer.buffer_size):  # by hand, and not one step of the model's
        model.replay_buffer.add(
            np.full((1, 2), 7.0), np.zeros((1, 2)), np.ones((1, 1)), np.ones(1), np.zeros(1), [{}]
        )
    model.save_checkpoint(tmp_path)
    loaded = PMPO.load_checkpoint(tmp_path, Toy(), device="cpu")
    assert loaded.replay_buffer.observations.min() == 7.0


@pytest.mark.parametrize("name", ["model", "state", "buffer", "a/b", ""])
def test_a_file_in_a_checkpoint_has_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    model = small(Toy()).learn(30)
    model.save_checkpoint(tmp_path)
    before = read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"got {name!r}")):
        model.save_checkpoint(tmp_path, files={name: tmp_path / MANIFEST})
    assert read_checkpoint(tmp_path) == before
    (tmp_path / "mine").write_text("mine")
    names = ["model.zip", "state.npz", "buffer.pkl", MANIFEST]
    model.save_checkpoint(tmp_path, files=dict.fromkeys(names, tmp_path / "mine"))
    assert {read_checkpoint(tmp_path).path(each).read_text() for each in names} == {"mine"}
    PMPO.load_checkpoint(tmp_path, Toy(), device="cpu")


def test_a_checkpoint_replaces_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "evaluations.npz").write_bytes(b"results")
    model = small(Toy()).learn(30)
    files = {"evaluations.npz": tmp_path / "evaluations.npz"}
    for _ in range(2):
        model.save_checkpoint(tmp_path, files=files)
    (tmp_path / "000000030-00000000-model.zip").write_bytes(b"of an interrupted one")
    tidy(tmp_path)
    found = read_checkpoint(tmp_path)
    assert found.path("evaluations.npz").read_bytes() == b"results"
    names = {MANIFEST, "mine.txt", "evaluations.npz", *found.files.values(), *found.pieces}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("write", range(4))  # of the model, the state, the rows, the names
def test_an_error_in_any_write_leaves_the_checkpoint_before(
    write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(Toy(), learning_starts=9999).learn(30)
    model.save_checkpoint(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model.learn(10, reset_num_timesteps=False)
    fsync, done = os.fsync, []

    def full(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > write:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            model.save_checkpoint(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    model.save_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path).step == 40


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        PMPO.load_checkpoint(tmp_path, Toy())
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        PMPO.load_checkpoint(tmp_path, Toy())
    (tmp_path / MANIFEST).write_text(json.dumps({"sb3_pmpo": "else"}))
    with pytest.raises(ValueError, match="not of a checkpoint"):
        PMPO.load_checkpoint(tmp_path, Toy())


def test_other_environments_are_refused(tmp_path: Path) -> None:
    small(VecNormalize(toys(2))).learn(30).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"2 environment\(s\), got 1"):
        PMPO.load_checkpoint(tmp_path, Toy(), device="cpu")
    with pytest.raises(ValueError, match="saved with VecNormalize"):
        PMPO.load_checkpoint(tmp_path, toys(2), device="cpu")


def test_changed_arguments_take_effect(tmp_path: Path) -> None:
    small(Toy()).learn(30).save_checkpoint(tmp_path)
    loaded = PMPO.load_checkpoint(tmp_path, Toy(), device="cpu", gamma=0.5, batch_size=4)
    assert (loaded.gamma, loaded.batch_size) == (0.5, 4)
    loaded.learn(5, reset_num_timesteps=False)


@pytest.mark.filterwarnings("ignore:.*begins new episodes")
def test_an_interrupt_after_the_rename_leaves_the_new_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest names its files from the rename on: none of them may go."""
    model = small(Toy())
    model.learn(40)
    model.save_checkpoint(tmp_path)
    model.learn(20, reset_num_timesteps=False)
    real = os.replace

    def replace_and_stop(source: Any, target: Any) -> None:
        real(source, target)
        if Path(target).name == MANIFEST:
            raise KeyboardInterrupt

    monkeypatch.setattr("sb3_pmpo.storage.checkpoints.os.replace", replace_and_stop)
    with pytest.raises(KeyboardInterrupt):
        model.save_checkpoint(tmp_path)
    monkeypatch.undo()
    assert PMPO.load_checkpoint(tmp_path, Toy()).num_timesteps == 60


def test_what_a_killed_process_was_writing_is_gone_after_the_next_checkpoint(
    tmp_path: Path,
) -> None:
    model = small(Toy()).learn(30)
    model.save_checkpoint(tmp_path)
    left = tmp_path / ".writing-6389-000000030-0123abcd-model.zip"
    left.write_bytes(b"half")
    model.save_checkpoint(tmp_path)
    assert not left.exists()
    assert PMPO.load_checkpoint(tmp_path, Toy()).num_timesteps == 30
