"""Labelled data sets: validation, spaces, files, formats."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from sb3_pmpo.files import writer
from sb3_pmpo.offline import DatasetError, LabelledDataset, from_minari, to_minari

RNG = np.random.default_rng(0)


def columns(n: int = 12, **changes: Any) -> dict[str, Any]:
    """A data set of two episodes."""
    given: dict[str, Any] = {
        "observations": RNG.normal(size=(n, 3)).astype(np.float32),
        "actions": RNG.uniform(-1, 1, (n, 2)).astype(np.float32),
        "labels": np.resize([1, -1, 0], n),
        "rewards": np.arange(n, dtype=np.float32),
        "next_observations": RNG.normal(size=(n, 3)).astype(np.float32),
        "episode_ids": np.repeat([0, 1], n // 2),
        "dones": np.eye(n)[n // 2 - 1],
    }
    return given | changes


def with_value(name: str, index: int, value: float) -> dict[str, Any]:
    given = columns()
    given[name] = np.array(given[name], np.float64)
    given[name][index] = value
    return given


HOSTILE = [
    (columns() | {"observations": np.zeros((11, 3))}, r"observations has 11"),
    (columns() | {"labels": np.ones(11)}, r"labels has 11"),
    (
        with_value("observations", 5, np.nan),
        r"observations must be finite in float32; 1 of 12 .* index 5",
    ),
    (
        with_value("actions", 7, np.inf),
        r"actions must be finite in float32; 1 of 12 rows .* index 7",
    ),
    (
        with_value("rewards", 3, np.nan),
        r"rewards must be finite in float32; 1 of 12 rows .* index 3",
    ),
    (with_value("labels", 4, 0.5), r"labels must be 1 .*index 4: 0.5"),
    (with_value("labels", 4, np.nan), r"labels must be finite.*index 4"),
    (columns() | {"labels": np.ones(12, bool)}, r"got booleans"),
    (columns() | {"labels": ["good"] * 12}, r"labels must be numbers"),
    (columns() | {"observations": [[0.0]] * 11 + [[0.0, 1.0]]}, r"have different shapes"),
    (columns() | {"labels": np.ones((12, 2))}, r"one number a row, got rows of \(2,\)"),
    (columns() | {"episode_ids": np.resize([0, 0, 1], 12)}, r"come back, the first being 0"),
    (columns() | {"dones": np.eye(12)[2]}, r"inside episodes.*index 2"),
    (columns() | {"dones": np.full(12, 2.0)}, r"dones must be 0 or 1; 12 of 12"),
    (columns() | {"weights": -np.ones(12)}, r"weights must be >= 0; 12 of 12 .* index 0"),
    (columns() | {"weights": np.zeros(12)}, r"weights must not all be 0"),
    ({"observations": np.zeros((0, 3)), "actions": np.zeros((0, 2)), "labels": []}, r"empty"),
    (columns() | {"action_space": spaces.Box(-0.1, 0.1, (2,))}, r"actions must be in the box"),
    (columns() | {"action_space": spaces.Box(-1, 1, (3,))}, r"rows of shape \(3,\)"),
    (columns() | {"action_space": spaces.Discrete(3)}, r"rows of shape \(\)"),
    (columns() | {"actions": np.arange(12), "action_space": spaces.Discrete(4)}, r"8 of 12 rows"),
    (columns() | {"observations": {"a": np.zeros((12, 1))}}, r"if and only if|keys"),
    (columns() | {"observations": {"a": {"b": np.zeros(12)}}}, r"one level"),
    (columns() | {"observations": np.array([[1], [1, 2]] * 6, object)}, r"Python objects"),
    (columns() | {"actions": np.full((12, 2), 3.0)}, r"3.0 in every row"),
    (columns() | {"observations": np.zeros((12, 3), complex)}, r"cannot be inferred"),
    (
        columns(observations=np.full((12, 3), 0.5), next_observations=None)
        | {"observation_space": spaces.Box(0, 255, (3,), np.uint8)},
        r"must be whole numbers in Box.*12 of 12.*not divided by 255",
    ),
    (
        columns(observations=np.full((12, 3), -1), next_observations=None)
        | {"observation_space": spaces.Box(0, 255, (3,), np.uint8)},
        r"must be whole numbers in Box",
    ),
]


@pytest.mark.parametrize(("given", "message"), HOSTILE, ids=[m for _, m in HOSTILE])
def test_hostile_data_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        LabelledDataset(**given)


def test_what_is_in_it() -> None:
    data = LabelledDataset(**columns())
    assert len(data) == 12
    assert data.n_episodes == 2
    assert (data.n_accepted, data.n_rejected) == (4, 4)
    assert data.label_rates() == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert data.episodes() == [slice(0, 6), slice(6, 12)]
    np.testing.assert_array_equal(data.episode_returns(), [15.0, 51.0])
    rows = data.rows(np.array([7, 0]))
    np.testing.assert_array_equal(rows.labels, [-1, 1])
    np.testing.assert_array_equal(rows.weights, [1, 1])
    assert "12 rows, 2 episodes; 33.3% accepted" in repr(data)
    other = data.with_labels(np.zeros(12))
    assert other.n_accepted == 0
    assert data.n_accepted == 4
    with pytest.raises(DatasetError, match="no weights"):
        data.required("weights")


@pytest.mark.parametrize(
    ("actions", "space"),
    [
        (np.full((4, 2), 0.3, np.float32), spaces.Box(-1, 1, (2,))),
        (np.array([[-2.0], [3.0], [0.0], [0.0]]), spaces.Box(-2.0, 3.0, (1,), np.float64)),
        (np.array([0, 2, 1, 1]), spaces.Discrete(3)),
        (np.array([[0, 2], [1, 0], [0, 0], [0, 0]]), spaces.MultiDiscrete([2, 3])),
    ],
)
def test_action_spaces_are_inferred(actions: np.ndarray, space: spaces.Space) -> None:
    data = LabelledDataset(np.zeros((4, 1), np.float32), actions, np.ones(4))
    assert data.action_space == space


def test_observation_spaces_are_inferred() -> None:
    seen = {
        "image": np.zeros((4, 36, 36, 3), np.uint8),
        "code": np.array([0, 1, 2, 0]),
        "vector": np.zeros((4, 3), np.float32),
    }
    data = LabelledDataset(seen, np.zeros((4, 1)), np.ones(4))
    assert data.observation_space == spaces.Dict(
        image=spaces.Box(0, 255, (36, 36, 3), np.uint8),
        code=spaces.Discrete(3),
        vector=spaces.Box(-np.inf, np.inf, (3,)),
    )
    assert data.rows(np.array([1]))[0]["image"].shape == (1, 36, 36, 3)


SPACES = spaces.Dict(
    image=spaces.Box(0, 255, (1, 4, 4), np.uint8),
    vector=spaces.Box(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
    code=spaces.Discrete(3),
    bits=spaces.MultiBinary(2),
    several=spaces.MultiDiscrete([2, 3]),
)


def from_space(space: spaces.Dict, n: int) -> dict[str, np.ndarray]:
    samples = [space.sample() for _ in range(n)]
    return {key: np.array([sample[key] for sample in samples]) for key in space.spaces}


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_gives_the_same_back(tmp_path: Path, in_memory: bool) -> None:
    given = columns() | {"observations": from_space(SPACES, 12), "next_observations": None}
    data = LabelledDataset(**given, observation_space=SPACES)
    data.save(tmp_path / "data")
    data.save(tmp_path / "data")  # in its own place
    again = LabelledDataset.load(tmp_path / "data", in_memory=in_memory)
    assert isinstance(again.actions.array, np.memmap) is not in_memory
    assert (again.observation_space, again.action_space) == (SPACES, data.action_space)
    one, other = data.rows(np.arange(12)), again.rows(np.arange(12))
    for key, value in one.observations.items():
        np.testing.assert_array_equal(value, other.observations[key])
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(again.required("rewards"), given["rewards"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_hostile_folders_are_refused(tmp_path: Path) -> None:
    folder = LabelledDataset(**columns()).save(tmp_path / "data")
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        LabelledDataset.load(tmp_path)
    with pytest.raises(FileExistsError, match="no data set"):
        LabelledDataset(**columns()).save(tmp_path)
    header = json.loads((folder / "dataset.json").read_text())

    def write(**changes: Any) -> None:
        (folder / "dataset.json").write_text(json.dumps(header | changes))

    write(columns=header["columns"] | {"actions": "../actions.npy"})
    with pytest.raises(DatasetError, match="must lie in"):
        LabelledDataset.load(folder)
    write(rows=11)
    with pytest.raises(DatasetError, match="must have 11 rows, got 12"):
        LabelledDataset.load(folder)
    write(version=2)
    with pytest.raises(DatasetError, match="version 2"):
        LabelledDataset.load(folder)
    write(columns={"actions": "000.npy"})
    with pytest.raises(DatasetError, match="must name observations"):
        LabelledDataset.load(folder)
    write()
    np.save(folder / "001.npy", np.array([{}] * 12, object), allow_pickle=True)
    with pytest.raises(DatasetError, match="cannot be read"):
        LabelledDataset.load(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="not JSON"):
        LabelledDataset.load(folder)


@pytest.mark.parametrize("full", [False, True])
def test_replay_buffers(full: bool) -> None:
    space = spaces.Box(-1, 1, (1,)), spaces.Box(np.float32([0, -2]), np.float32([4, 2]))
    buffer = ReplayBuffer(8, *space, device="cpu", n_envs=2, handle_timeout_termination=True)
    for step in range(6 if full else 3):
        now = np.array([[step / 8], [-step / 8]], np.float32)
        done = np.array([step == 1, False])
        infos = [{"TimeLimit.truncated": True}, {}]
        after = now + np.array([[1 / 8], [-1 / 8]], np.float32)
        buffer.add(now, after, np.zeros((2, 2)), np.array([step, -step]), done, infos)
    data = LabelledDataset.from_replay_buffer(buffer)
    first = [2, 3, 4, 5] if full else [0, 1, 2]
    expected = np.concatenate((first, np.negative(first)))
    np.testing.assert_array_equal(data.required("rewards"), expected)
    np.testing.assert_array_equal(data.rows(np.array([0])).actions, [[2.0, 0.0]])
    assert not data.required("dones").any()  # a time limit is no end
    assert data.n_episodes == (2 if full else 3)
    assert data.action_space == space[1]


def test_an_episode_that_was_cut_in_a_buffer_ends_there() -> None:
    """SB3's buffer does not know that ``learn`` was called again."""
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=60, learning_starts=100)
    for _ in range(2):
        model.learn(25)
    data = LabelledDataset.from_replay_buffer(model.replay_buffer)
    assert [(rows.start, rows.stop) for rows in data.episodes()] == [(0, 25), (25, 50)]


def test_replay_buffers_of_dictionaries() -> None:
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)))
    buffer = DictReplayBuffer(5, space, spaces.Discrete(3), device="cpu")
    with pytest.raises(DatasetError, match="empty"):
        LabelledDataset.from_replay_buffer(buffer)
    now = {"a": np.zeros((1, 2))}
    buffer.add(now, now, np.array([2]), np.zeros(1), np.ones(1), [{}])
    data = LabelledDataset.from_replay_buffer(buffer, [1])
    assert data.rows(np.array([0])).actions.tolist() == [2]
    assert data.n_accepted == 1


def test_d4rl_like() -> None:
    arrays = {key: value for key, value in columns().items() if key not in ("episode_ids", "dones")}
    arrays |= {"terminals": np.eye(12)[5], "timeouts": np.eye(12)[2]}

    class Mine(LabelledDataset):
        pass

    data = Mine.from_d4rl_like(arrays, action_space=spaces.Box(-2, 2, (2,)))
    assert type(data) is Mine
    assert data.episodes() == [slice(0, 3), slice(3, 6), slice(6, 12)]
    assert data.n_accepted == 4
    with pytest.raises(DatasetError, match="'observations' and 'actions'"):
        LabelledDataset.from_d4rl_like({"actions": np.zeros(3)})


class Recorded(gym.Env):
    """Counts its steps; says of each whether it was even."""

    observation_space = spaces.Dict(count=spaces.Box(0, 100, (1,)), code=spaces.Discrete(2))
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {"label": 0, "count": 0}

    def _observe(self) -> dict[str, Any]:
        return {"count": np.array([self.count], np.float32), "code": self.count % 2}

    def step(self, action: Any) -> Any:
        self.count += 1
        label = 1 if self.count % 2 else -1
        return (
            self._observe(),
            self.count,
            self.count == 4,
            False,
            {"label": label, "count": self.count},
        )


class Judged(gym.Wrapper):
    """Says what it thinks of a step in words, in booleans, and in a dictionary."""

    def reset(self, **kwargs: Any) -> Any:
        seen, _ = self.env.reset(**kwargs)
        return seen, self._infos(0)

    def step(self, action: Any) -> Any:
        *rest, infos = self.env.step(action)
        return *rest, self._infos(infos["label"])

    def _infos(self, label: int) -> dict[str, Any]:
        word = {0: "start", 1: "good", -1: "bad"}[label]
        return {"success": label > 0, "judge": {"label": label, "word": word}}


ABOUT = {"author": "x", "author_email": "x@y.z", "code_permalink": "https://x"}


@pytest.mark.filterwarnings("ignore::UserWarning:minari")  # of missing descriptions
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # its own folders
@pytest.mark.parametrize("mapped", [True, False])
def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = minari.DataCollector(Recorded(), record_infos=True)
    for _ in range(3):
        env.reset()
        while not env.step(env.action_space.sample())[2]:
            pass
    made = env.create_dataset("recorded/first-v0", **ABOUT)
    data = LabelledDataset.from_minari(made, folder=tmp_path / "columns" if mapped else None)
    assert data.n_episodes == 3
    if mapped:  # another there would write into the columns of this one
        with pytest.raises(FileExistsError, match="name a folder that is new"):
            LabelledDataset.from_minari(made, folder=tmp_path / "columns")
        with pytest.raises(DatasetError):
            LabelledDataset.from_minari(made, label_key="count", folder=tmp_path / "half")
        assert not list((tmp_path / "half").iterdir())
    assert data.labels.tolist() == [1, -1, 1, -1] * 3
    assert data.required("rewards").tolist() == [1, 2, 3, 4] * 3
    assert data.required("dones").tolist() == [0, 0, 0, 1] * 3
    data = data.with_labels(data.labels, np.arange(1.0, 13.0))
    to_minari(data, "recorded/second-v0", **ABOUT)
    again = from_minari(minari.load_dataset("recorded/second-v0"))
    assert again.observation_space == data.observation_space
    one, other = data.rows(np.arange(12)), again.rows(np.arange(12))
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.weights, other.weights)
    for key, value in one.observations.items():
        np.testing.assert_array_equal(value, other.observations[key])
    del env
    gc.collect()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_pictures_pass_through_minari_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    seen = RNG.integers(0, 256, (9, 36, 36, 4), np.uint8)
    data = LabelledDataset(seen[:-1], np.zeros((8, 1)), np.ones(8), next_observations=seen[1:])
    again = from_minari(to_minari(data, "pictures/first-v0", **ABOUT))
    np.testing.assert_array_equal(again.rows(np.arange(8)).observations, seen[:-1])
    # Minari's own encoding knows no four channels; what it began is taken away again.
    with pytest.raises(OSError, match="JPEG"):
        to_minari(data, "pictures/second-v0", jpeg_encoding=True, **ABOUT)
    with pytest.raises(ValueError):  # noqa: PT011  # Minari's
        to_minari(data, "pictures/first-v0", **ABOUT)
    assert [*minari.list_local_datasets()] == ["pictures/first-v0"]
    gc.collect()  # now, where the warning of its folders is ignored


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_labels_are_made_of_minaris_infos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = minari.DataCollector(Judged(Recorded()), record_infos=True)
    env.reset()
    while not env.step(env.action_space.sample())[2]:
        pass
    made = env.create_dataset("judged/first-v0", **ABOUT)

    def of_words(infos: Any) -> np.ndarray:
        words = [
            word.decode() if isinstance(word, bytes) else word for word in infos["judge"]["word"]
        ]
        return np.array([{"good": 1, "bad": -1, "start": 0}[word] for word in words])

    expected = [1, -1, 1, -1]
    for key in (
        "judge/label",
        of_words,
        lambda infos: np.where(infos["success"], 1, -1),
        lambda infos: np.where(infos["success"], 1, -1)[1:],
    ):
        assert LabelledDataset.from_minari(made, label_key=key).labels.tolist() == expected
    for key, message in (
        ("success", "must be numbers, 1 .accepted.*got bool: say what they mean by a function"),
        ("judge", "a dictionary of .'label', 'word'.*label_key='judge/label'"),
        ("judge/word", "must be numbers, 1"),
        ("sucess", "no episode's infos have 'sucess', they have .'judge', 'success'"),
        (lambda infos: np.zeros(2), "must be 5 .the reset's entry and one a step., got 2"),
    ):
        with pytest.raises(DatasetError, match=message) as refused:
            LabelledDataset.from_minari(made, label_key=key)
        assert "0x" not in str(refused.value)
    del env
    gc.collect()


def test_transitions_that_do_not_follow_each_other_are_no_episode_of_minari() -> None:
    pytest.importorskip("minari")
    seen = np.arange(6, dtype=np.float32)[:, None]
    data = LabelledDataset(
        seen, np.zeros((6, 1)), next_observations=seen + 100, action_space=spaces.Box(-1, 1, (1,))
    )
    with pytest.raises(DatasetError, match="next_observations of row 0 must be the observation"):
        data.to_minari("never/made-v0", **ABOUT)


def test_a_full_buffer_of_shared_memory_has_lost_its_oldest_observation() -> None:
    """Where the oldest was, the newest next observation stands."""
    seen = spaces.Box(-100, 100, (1,))
    buffer = ReplayBuffer(
        5, seen, spaces.Box(-1, 1, (1,)), "cpu", optimize_memory_usage=True,
        handle_timeout_termination=False,
    )  # fmt: skip
    for step in range(8):
        now, after = np.full((1, 1), float(step)), np.full((1, 1), step + 1.0)
        buffer.add(now, after, np.zeros((1, 1)), np.array([float(step)]), np.array([False]), [{}])
    data = LabelledDataset.from_replay_buffer(buffer)
    assert data.observations.array[:, 0].tolist() == [4, 5, 6, 7]
    assert data.required("rewards").tolist() == [4, 5, 6, 7]


def test_a_space_that_starts_elsewhere_is_saved_with_its_start(tmp_path: Path) -> None:
    space = spaces.MultiDiscrete([3, 4], start=[1, 2])
    data = LabelledDataset(np.tile([3, 5], (4, 1)), np.zeros((4, 1)), observation_space=space)
    loaded = LabelledDataset.load(data.save(tmp_path / "data"))
    assert loaded.observation_space.start.tolist() == [1, 2]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_data_set_that_is_being_replaced_is_not_lost(
    stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = LabelledDataset(**columns(4)), LabelledDataset(**columns(6))
    one.save(tmp_path / "data")
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(source).name == f".{writer()}-data":
            raise stop
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(stop):
        other.save(tmp_path / "data")
    monkeypatch.undo()
    assert len(LabelledDataset.load(tmp_path / "data")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    (tmp_path / "data").rename(tmp_path / ".old-1-data")  # kill -9 between the two steps
    assert len(LabelledDataset.load(tmp_path / "data")) == 4
    (tmp_path / "data").rename(tmp_path / ".old-1-my-data")  # another one's
    other.save(tmp_path / "data")
    assert len(LabelledDataset.load(tmp_path / "my-data")) == 4
    (tmp_path / "my-data").rename(tmp_path / ".old-1-data")
    shutil.rmtree(tmp_path / "data")
    other.save(tmp_path / "data")
    assert len(LabelledDataset.load(tmp_path / "data")) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_file_of_the_users_in_the_folder_stays(tmp_path: Path) -> None:
    data = LabelledDataset(**columns())
    data.save(tmp_path / "data")
    data.save(tmp_path / "data")
    (tmp_path / "data" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes.txt, which save did not write"):
        data.save(tmp_path / "data")
    assert (tmp_path / "data" / "notes.txt").read_text() == "mine"
