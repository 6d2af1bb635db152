"""Folders of data sets: links, threads, copies, pickles."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_pmpo import PMPO
from sb3_pmpo.feedback import FeedbackBuffer
from sb3_pmpo.offline import DatasetError, LabelledDataset
from sb3_pmpo.offline.spaces import space_from_json, space_to_json


def data_of(n: int, scale: float = 1.0) -> LabelledDataset:
    seen = scale * np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    return LabelledDataset(seen, np.zeros((n, 1)), np.resize([1, -1], n))


def rows_of(data: LabelledDataset) -> Any:
    return data.rows(np.arange(len(data))).observations


def test_a_link_goes_on_naming_what_is_saved_over_it(tmp_path: Path) -> None:
    data_of(4).save(tmp_path / "disk" / "data")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "data")
    assert data_of(6).save(link) == link
    assert link.is_symlink()
    for place in (link, tmp_path / "disk" / "data"):
        assert len(LabelledDataset.load(place)) == 6
    (tmp_path / "disk" / "data").rename(tmp_path / "disk" / ".old-1-data")  # kill -9 in a save
    assert len(LabelledDataset.load(link)) == 6
    assert {path.name for path in tmp_path.rglob("*") if path.is_dir()} == {"disk", "data", "link"}


def test_the_working_directory_may_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_of(4).save(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    data_of(6).save(".")
    assert len(LabelledDataset.load(".")) == 6
    assert Path.cwd() == tmp_path / "data"
    assert os.listdir(tmp_path) == ["data"]


def test_threads_save_to_one_place(tmp_path: Path) -> None:
    def save(n: int) -> None:
        for _ in range(8):
            data_of(n).save(tmp_path / "data")
            buffer = FeedbackBuffer(spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)))
            buffer.add_segment(np.zeros((n, 1)), np.zeros((n, 1)), 1)
            buffer.save(tmp_path / "feedback.npz")
            assert len(LabelledDataset.load(tmp_path / "data")) in {4, 5, 6}

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(save, [4, 5, 6]))
    assert {path.name for path in tmp_path.iterdir()} == {"data", "feedback.npz"}
    assert len(FeedbackBuffer.load(tmp_path / "feedback.npz")) in {4, 5, 6}


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("copy", [deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_a_loaded_data_set_is_copied_and_pickled(
    copy: Any, in_memory: bool, tmp_path: Path
) -> None:
    data_of(300).save(tmp_path / "data")
    loaded = LabelledDataset.load(tmp_path / "data", in_memory=in_memory)
    again = copy(loaded)
    np.testing.assert_array_equal(rows_of(again), rows_of(loaded))
    assert again.labels.tolist() == loaded.labels.tolist()
    assert len(pickle.dumps(loaded.observations)) < 1000 or in_memory


def test_a_pickle_of_a_view_finds_its_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "seen.npy", np.arange(40.0).reshape(20, 2))
    mapped = np.load(tmp_path / "seen.npy", mmap_mode="r")
    for view in (mapped[5:15], mapped[::2], mapped[:, :1]):
        data = LabelledDataset(view, np.zeros((len(view), 1)))
        np.testing.assert_array_equal(rows_of(pickle.loads(pickle.dumps(data))), view)


def test_a_pickle_knows_its_file(tmp_path: Path) -> None:
    data_of(4).save(tmp_path / "data")
    loaded = LabelledDataset.load(tmp_path / "data")
    pickled = pickle.dumps(loaded)
    data_of(4, scale=2.0).save(tmp_path / "data")
    with pytest.raises(DatasetError, match="holds other numbers than when"):
        pickle.loads(pickled)
    assert rows_of(deepcopy(loaded)).max() == 7  # what it maps is there yet
    data_of(3).save(tmp_path / "data")
    with pytest.raises(DatasetError, match=r"000\.npy, which a pickled data set was mapped from"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([3, 4], np.int32),
        spaces.Dict(a=spaces.MultiDiscrete([3, 4], np.int8), b=spaces.Discrete(3)),
    ],
)
def test_whole_numbers_keep_their_type(space: spaces.Space, tmp_path: Path) -> None:
    assert space_from_json(space_to_json(space)) == space
    buffer = FeedbackBuffer(space, spaces.Box(-1, 1, (1,)))
    buffer.add(space.sample(), np.zeros(1), 1)
    buffer.save(tmp_path / "feedback")
    buffer.merge(FeedbackBuffer.load(tmp_path / "feedback"))
    assert len(buffer) == 2


def test_choices_below_zero_are_named() -> None:
    with pytest.raises(DatasetError, match="must be >= 0, got at most -1 in dimension 1: number"):
        LabelledDataset(np.zeros((3, 1)), np.array([[0, -1]] * 3))


def test_shares_that_round_below_nothing_are_nothing() -> None:
    labels = np.resize([1, -1, -1, 1, 1, -1, -1], 49)
    for n in range(1, 50):
        data = LabelledDataset(np.zeros((n, 1)), np.zeros((n, 1)), labels[:n])
        assert "-0.0%" not in str(data.label_rates())


def test_labels_that_weigh_nothing_are_named() -> None:
    data = data_of(4).with_labels([1, 0, 0, 0], [0.0, 1, 1, 1])
    model = PMPO.from_spaces("MlpPolicy", data.observation_space, data.action_space, device="cpu")
    with pytest.raises(DatasetError, match="all rows that have one weigh 0"):
        model.learn_offline(data, 1)
