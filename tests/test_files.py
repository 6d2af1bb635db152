"""What is saved: plain data, pickles of the user's own, files of earlier versions and of SB3."""

from __future__ import annotations

import gc
import io
import itertools
import json
import math
import stat
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import (
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.save_util import load_from_zip_file, save_to_pkl
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from toys import DictToy, Toy, small, toys

from sb3_pmpo import DPO, MPO, PMPO, boltzmann, ipo_loss, quantile, threshold, top_k
from sb3_pmpo.embeddings import EmbeddingCritic
from sb3_pmpo.files import whole
from sb3_pmpo.policies import MlpPolicy
from sb3_pmpo.replay import (
    PrioritizedDictReplayBuffer,
    PrioritizedHerReplayBuffer,
    PrioritizedReplayBuffer,
)
from sb3_pmpo.storage import containers, names, pickles
from sb3_pmpo.storage.containers import Container
from sb3_pmpo.storage.pickles import UntrustedFileError
from sb3_pmpo.storage.plain import NotPlainError, decode, encode
from sb3_pmpo.storage.statistics import load_statistics, save_statistics


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings" / "key"
    monkeypatch.setenv(pickles.KEY_VARIABLE, str(path))
    return path


def another_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(pickles.KEY_VARIABLE, str(tmp_path / "another" / "key"))


class OwnExtractor(FlattenExtractor):
    """A user's own."""


class OwnBuffer(ReplayBuffer):
    """A user's own."""


# ------------------------------------------------------------------ plain values

SPACES = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
    spaces.Box(0, 255, (3, 8, 8), np.uint8),
    spaces.Discrete(5, start=2),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary((2, 2)),
    spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Box(0, 1, (2,))}),
    spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(3))),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_keep_their_bounds_and_their_generators(space: spaces.Space) -> None:
    space.seed(3)
    space.sample()
    told = decode(json.loads(json.dumps(encode(space))))
    assert told == space
    assert str(told) == str(space)
    assert str(told.sample()) == str(space.sample())


VALUES: list[Any] = [
    (1, [2.5, None], {"a": (True,)}),
    {1: "a", (2, "b"): 3},
    {":name:": 1},
    float("-inf"),
    np.array([0.0, -0.0, 1e-300]),
    np.array([-0.0, -0.0], np.float32),
    np.array([[1, 2]], np.uint8),
    np.array([b"ab", b"c"]),
    np.zeros((2, 0)),
    np.float32(0.1),
    th.device("cpu"),
    np.dtype("f4"),
    {3, 1},
    b"bytes",
    np.float32,
    th.nn.Tanh,
    MlpPolicy,
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_come_back_as_they_were(value: Any) -> None:
    told = decode(json.loads(json.dumps(encode(value))))
    assert type(told) is type(value)
    if isinstance(value, np.ndarray):
        assert (told.dtype, told.shape) == (value.dtype, value.shape)
        assert told.tobytes() == value.tobytes()
    else:
        assert told == value


@pytest.mark.parametrize("generator", [np.random.default_rng(1), np.random.RandomState(1)])
def test_generators_go_on(generator: Any) -> None:
    generator.normal(size=3)
    told = decode(json.loads(json.dumps(encode(generator))))
    np.testing.assert_array_equal(told.normal(size=5), generator.normal(size=5))


@pytest.mark.parametrize(
    "value",
    [lambda: 1, OwnExtractor, object(), 1j, np.array([object()]), Toy()],
    ids=["function", "class", "object", "complex", "array of objects", "environment"],
)
def test_what_is_not_plain_says_so(value: Any) -> None:
    with pytest.raises(NotPlainError):
        encode(value)


# ------------------------------------------------------------------ models


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (PMPO, {"labeller": top_k(1), "beta": (1.0, 3.0)}),
        (PMPO, {"labeller": threshold(quantile(0.7)), "exploration_noise": None}),
        (PMPO, {"labeller": boltzmann(1.0), "learning_rate": LinearSchedule(1e-3, 1e-4, 1.0)}),
        (MPO, {"policy_kwargs": {"activation_fn": th.nn.Tanh, "optimizer_class": th.optim.SGD}}),
        (DPO, {"loss": ipo_loss, "action_noise": NormalActionNoise(np.zeros(1), np.ones(1))}),
        (PMPO, {"replay_buffer_class": PrioritizedReplayBuffer, "train_freq": (1, "episode")}),
        (PMPO, {"policy_kwargs": {"critic_class": EmbeddingCritic}}),
    ],
)
def test_arguments_of_ours_and_of_sb3_need_no_pickle(
    algorithm: Any, arguments: dict[str, Any], tmp_path: Path, key: Path
) -> None:
    model = small(Toy(), algorithm=algorithm, **arguments)
    model.save(tmp_path / "model")
    assert not key.exists()
    loaded = algorithm.load(tmp_path / "model", env=Toy())
    for name in set(arguments) - {"action_noise", "learning_rate", "train_freq"}:
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.lr_schedule(0.5) == model.lr_schedule(0.5)
    assert loaded.train_freq == model.train_freq
    assert type(loaded.action_noise) is type(model.action_noise)


def test_sb3_reads_the_file(tmp_path: Path) -> None:
    model = small(Toy(), learning_rate=lambda progress: progress)
    model.save(tmp_path / "model")
    data, parameters, _ = load_from_zip_file(tmp_path / "model")
    assert data is not None
    assert data["gamma"] == 0.99
    assert data["learning_rate"](0.25) == 0.25
    assert parameters.keys() == {"policy", "actor.optimizer", "critic.optimizer"}
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "system_info.txt" in archive.namelist()


def own_things(tmp_path: Path) -> Path:
    """Save a model with a schedule and an extractor that only a pickle can hold."""
    offset = 0.25
    kwargs = {"net_arch": [8], "features_extractor_class": OwnExtractor}
    small(Toy(), learning_rate=lambda p: p + offset, policy_kwargs=kwargs).save(tmp_path / "model")
    return tmp_path / "model.zip"


def test_ones_own_pickles_load_as_ever(tmp_path: Path, key: Path) -> None:
    path = own_things(tmp_path)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PMPO.load(path)
    assert loaded.lr_schedule(0.5) == 0.75
    assert type(loaded.actor.features_extractor) is OwnExtractor
    before = key.read_bytes()
    own_things(tmp_path)
    assert key.read_bytes() == before


def test_pickles_of_another_user_need_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_things(tmp_path)
    another_user(monkeypatch, tmp_path)
    with pytest.raises(UntrustedFileError, match=r"learning_rate|policy_kwargs"):
        PMPO.load(path)
    assert PMPO.load(path, trust=True).lr_schedule(0.5) == 0.75


def test_a_pickle_that_was_changed_needs_trust(tmp_path: Path) -> None:
    path = own_things(tmp_path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    told = json.loads(entries["data"])
    content = told["learning_rate"][":serialized:"]
    told["learning_rate"][":serialized:"] = content[:-8] + "AAAA" + content[-4:]
    with zipfile.ZipFile(path, "w") as new:
        for name, entry in (entries | {"data": json.dumps(told).encode()}).items():
            new.writestr(name, entry)
    with pytest.raises(UntrustedFileError, match="changed since"):
        PMPO.load(path)
    replaced = {"learning_rate": 1e-3}
    assert PMPO.load(path, custom_objects=replaced).learning_rate == 1e-3


def test_a_registered_class_needs_no_pickle(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_REGISTERED", {})
    names.register(OwnExtractor)
    small(Toy(), policy_kwargs={"net_arch": [8], "features_extractor_class": OwnExtractor}).save(
        tmp_path / "model"
    )
    assert not key.exists()
    assert type(PMPO.load(tmp_path / "model").actor.features_extractor) is OwnExtractor
    monkeypatch.setattr(names, "_REGISTERED", {})
    with pytest.raises(ValueError, match=r"OwnExtractor.*register"):
        PMPO.load(tmp_path / "model")


def test_without_a_place_for_the_key_saving_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(pickles.KEY_VARIABLE, str(tmp_path / "file" / "key"))
    with pytest.warns(UserWarning, match="cannot be kept at .*SB3_PMPO_KEY"):
        path = own_things(tmp_path)
    with pytest.raises(UntrustedFileError):
        PMPO.load(path)
    assert PMPO.load(path, trust=True).lr_schedule(0.5) == 0.75


def test_the_key_is_in_the_folder_of_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(pickles.KEY_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert pickles.key_path() == tmp_path / "sb3_pmpo" / "key"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert pickles.key_path() == tmp_path / "home" / ".config" / "sb3_pmpo" / "key"


# ------------------------------------------------------------------ buffers


def bits() -> gym.Env:
    return BitFlippingEnv(n_bits=3, continuous=True)


NO_COPIES = {
    "optimize_memory_usage": True,
    "replay_buffer_kwargs": {"handle_timeout_termination": False},
}
CASES: list[tuple[Any, str, dict[str, Any]]] = [
    (Toy, "MlpPolicy", {}),
    (Toy, "MlpPolicy", {"buffer_size": 40}),
    (lambda: toys(3), "MlpPolicy", NO_COPIES),
    (Toy, "MlpPolicy", {"replay_buffer_class": PrioritizedReplayBuffer}),
    (lambda: DictToy(Toy()), "MultiInputPolicy", {}),
    (
        lambda: DictToy(Toy()),
        "MultiInputPolicy",
        {"replay_buffer_class": PrioritizedDictReplayBuffer},
    ),
    (bits, "MultiInputPolicy", {"replay_buffer_class": HerReplayBuffer}),
    (
        bits,
        "MultiInputPolicy",
        {
            "replay_buffer_class": HerReplayBuffer,
            "replay_buffer_kwargs": {"copy_info_dict": True, "goal_selection_strategy": "final"},
        },
    ),
    (bits, "MultiInputPolicy", {"replay_buffer_class": PrioritizedHerReplayBuffer}),
    (Toy, "MlpPolicy", {"replay_buffer_class": OwnBuffer}),
]


def told(value: Any) -> Any:
    """Say what an object holds, to compare."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, told(value.tolist())
    if isinstance(value, dict):
        return {key: told(item) for key, item in value.items()}
    if type(value).__name__ == "SumTree":
        return told(vars(value))
    if isinstance(value, list):
        return [told(item) for item in value]
    return value


@pytest.mark.parametrize(("make", "policy", "arguments"), CASES)
def test_buffers_come_back_as_they_were(
    make: Any, policy: str, arguments: dict[str, Any], tmp_path: Path, key: Path
) -> None:
    model = small(
        make(), policy, policy_kwargs={"net_arch": [8]}, learning_starts=1000, **arguments
    )
    model.learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    own = arguments.get("replay_buffer_class") is OwnBuffer
    assert key.exists() is own
    before = model.replay_buffer
    model.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    after = model.replay_buffer
    assert after is not before
    assert type(after) is type(before)
    one, other = vars(before), vars(after)
    assert one.keys() == other.keys()
    for name in one.keys() - {"env"}:
        assert told(one[name]) == told(other[name]), name


def test_a_buffer_takes_the_space_of_what_it_holds(tmp_path: Path) -> None:
    model = small(Toy(), buffer_size=100_000).learn(50)
    model.save_replay_buffer(tmp_path / "buffer")
    assert (tmp_path / "buffer.pkl").stat().st_size < 20_000
    with np.load(tmp_path / "buffer.pkl") as file:  # it is an npz, too
        assert file["rewards"].shape == (51, 1)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32", ">i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_column_is_as_numpy_writes_it(dtype: str, order: Literal["C", "F"]) -> None:
    column = np.arange(105).reshape(5, 3, 7).astype(dtype, order)
    file = io.BytesIO()
    containers.write(file, Container("test", {}, {"column": column}, {}))
    file.seek(0)
    found = np.load(file)["column"]
    assert found.dtype == column.dtype
    np.testing.assert_array_equal(found, column)


def test_a_column_is_written_without_a_copy(tmp_path: Path) -> None:
    column = np.ones((2**20, 5), np.float32)  # 20 MiB
    tracemalloc.start()
    try:
        containers.write(tmp_path / "file", Container("test", {}, {"column": column}, {}))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**18


def test_pickled_buffers_of_sb3_need_no_trust(tmp_path: Path) -> None:
    for make, policy, arguments in CASES[:-1]:
        model = small(
            make(), policy, policy_kwargs={"net_arch": [8]}, learning_starts=99, **arguments
        )
        model.learn(20)
        save_to_pkl(tmp_path / "buffer.pkl", model.replay_buffer)
        before = model.replay_buffer.rewards.copy()
        model.load_replay_buffer(tmp_path / "buffer.pkl")
        np.testing.assert_array_equal(model.replay_buffer.rewards, before)


# ------------------------------------------------------------------ statistics


@pytest.mark.parametrize("by_sb3", [False, True])
@pytest.mark.parametrize("of_dict", [False, True])
def test_statistics_come_back_as_they_were(of_dict: bool, by_sb3: bool, tmp_path: Path) -> None:
    def environments() -> Any:
        return toys(2) if not of_dict else DummyVecEnv([lambda: DictToy(Toy())])

    keys = ["vector"] if of_dict else None
    env = VecNormalize(environments(), clip_obs=3.0, norm_reward=False, norm_obs_keys=keys)
    env.reset()
    for _ in range(5):
        env.step(np.array([env.action_space.sample()] * env.num_envs))
    path = tmp_path / "vecnormalize.pkl"
    env.save(str(path)) if by_sb3 else save_statistics(env, path)
    loaded = load_statistics(path, environments())
    assert (loaded.clip_obs, loaded.norm_reward, loaded.training) == (3.0, False, True)
    seen = env.get_original_obs()
    one, other = env.normalize_obs(seen), loaded.normalize_obs(seen)
    assert told(one) == told(other)
    loaded.reset()


# ------------------------------------------------------------------ noises


def test_noise_within_an_episode_comes_back(tmp_path: Path) -> None:
    base = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))
    noise = VectorizedActionNoise(base, 2)
    noise()
    other = decode(json.loads(json.dumps(encode(noise))))
    np.random.seed(0)
    expected = noise()
    np.random.seed(0)
    np.testing.assert_array_equal(other(), expected)
    assert decode(encode(FloatSchedule(0.5)))(1.0) == 0.5


class Interrupted(io.BytesIO):
    """A file during whose writing somebody presses Ctrl-C, once, after so many bytes."""

    def __init__(self, after: float) -> None:
        super().__init__()
        self.after, self.came = after, False

    def write(self, data: Any) -> int:
        if not self.came and self.tell() > self.after:
            self.came = True
            raise KeyboardInterrupt
        return super().write(data)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_ctrl_c_while_a_model_is_written_is_no_error_of_torchs(share: float) -> None:
    model, whole = small(Toy(), policy_kwargs={"net_arch": [64]}), io.BytesIO()
    model.save(whole)
    file = Interrupted(share * len(whole.getvalue()))
    with pytest.raises(KeyboardInterrupt):
        model.save(file)
    assert file.came


class PressedInZipfile:
    """Presses Ctrl-C at one line of the standard library's ``zipfile``.

    :param at: the number of the line, in the order in which they run.
    """

    def __init__(self, at: float) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != zipfile.__file__:
            return None
        self.lines += event == "line"
        if self.lines == self.at:
            self.lines += 1  # once
            raise KeyboardInterrupt
        return self

    def during(self, job: Callable[[], Any]) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            job()
        finally:
            sys.settrace(before)


def save_arrays(folder: Path) -> None:
    with whole(folder / "arrays") as writing, writing.open("wb") as file:
        np.savez(file, one=np.ones(3))


# A file that zipfile has opened, when Ctrl-C comes before the archive can be closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["buffer", "checkpoint", "arrays"])
def test_ctrl_c_is_no_error_of_zipfiles(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(zipfile.ZipFile, "__del__")  # Python raises nothing from there
    model, number = small(Toy()), itertools.count()
    job = {
        "buffer": lambda: model.save_replay_buffer(tmp_path / "buffer"),
        "checkpoint": lambda: model.save_checkpoint(tmp_path / f"{next(number)}"),
        "arrays": lambda: save_arrays(tmp_path),
    }[what]
    counting = PressedInZipfile(math.inf)
    counting.during(job)
    assert counting.lines > 100
    for line in range(1, counting.lines, max(1, counting.lines // 100)):
        pressed = PressedInZipfile(line)
        with pytest.raises(KeyboardInterrupt):
            pressed.during(job)
        assert pressed.lines > line
    gc.collect()
