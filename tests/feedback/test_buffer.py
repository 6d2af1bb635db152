"""Feedback: what is added, by whom, from several threads, saved, loaded, merged."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from toys import DictToy, Toy

from sb3_pmpo.feedback import FeedbackBuffer, FeedbackWrapper, fading
from sb3_pmpo.offline import DatasetError

SEEN, DONE = spaces.Box(-1, 1, (2,)), spaces.Box(-2, 2, (1,))


def make() -> FeedbackBuffer:
    return FeedbackBuffer(SEEN, DONE)


def everything(buffer: FeedbackBuffer) -> Any:
    return buffer.rows(np.arange(len(buffer)))


def test_answers_and_segments() -> None:
    buffer = make()
    buffer.add([0.1, 0.2], [1.5], 1, source="ann")
    buffer.add_segment(np.full((4, 2), 0.3), np.ones((4, 1)), -1, delay=2, source="bob")
    buffer.add_segment(np.full((3, 2), 0.4), np.ones((3, 1)), -1, "last", weight=2.0, source="bob")
    buffer.add_segment(np.full((2, 2), 0.5), np.ones((2, 1)), 0, fading(0.5))
    rows = everything(buffer)
    assert rows.labels.tolist() == [1, -1, -1, -1, -1, -1, 0, 0]
    weights = [1, 0.5, 0.5, 0, 0, 2, 1 / 3, 2 / 3]
    np.testing.assert_allclose(rows.weights, weights, rtol=1e-6)
    assert buffer.shares() == {"ann": 1 / 8, "bob": 5 / 8, "": 2 / 8}
    assert (buffer.n_accepted, buffer.n_rejected, len(buffer)) == (1, 5, 8)
    assert buffer.to_dataset().n_rejected == 5
    assert "8 rows: 1 accepted" in repr(buffer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.add([0.0, np.nan], [0.0], 1), "must be finite"),
        (lambda b: b.add([0.0], [0.0], 1), r"rows of shape \(2,\)"),
        (lambda b: b.add([0.0, 0.0], [3.0], 1), "in the box"),
        (lambda b: b.add([0.0, 0.0], [0.0], 2), "labels must be 1"),
        (lambda b: b.add([0.0, 0.0], [0.0], 1, -1.0), "weights must be >= 0"),
        (lambda b: b.add([0.0, 0.0], [0.0], 1, np.nan), "weights must be finite"),
        (lambda b: b.add([0.0, 0.0], [0.0], 1, "much"), "weight must be one number >= 0, got 'm"),
        (lambda b: b.add([0.0, 0.0], [0.0], 1, None), "weight must be one number >= 0, got None"),
        (
            lambda b: b.add_segment(np.zeros((2, 2)), np.zeros((2, 1)), 1, weight="2"),
            "weight must be one number >= 0, got '2'",
        ),
        (
            lambda b: b.add_segment(np.zeros((2, 2)), np.zeros((2, 1)), 1, weight=[1.0, 2.0]),
            "weight must be one number",
        ),
        (lambda b: b.add([0.0, 0.0], [0.0], 1, source=3), "source must be a name"),
        (lambda b: b.add([0.0, 0.0], [0.0], [1, -1]), "label must be one of 1, -1 and 0"),
        (lambda b: b.add([0.0, 0.0], [0.0], None), "label must be one of 1, -1 and 0, got None"),
        (lambda b: b.add_segment(np.zeros((2, 2)), np.zeros((2, 1)), 1, delay=2), "leaves nothing"),
        (lambda b: b.add_segment(np.zeros((2, 2)), np.zeros((2, 1)), 1, delay=-1), "delay must be"),
        (lambda b: b.add_segment(np.zeros((2, 2)), np.zeros((2, 1)), 1, delay=0.5), "whole number"),
        (lambda b: b.add_segment(np.zeros((2, 2)), np.zeros((3, 1)), 1), "observations has 2"),
        (
            lambda b: b.add_segment(np.zeros((4, 2)), np.zeros((3, 1)), 1),
            "one after the last action",
        ),
        (lambda b: b.add_segment([[0.0], [0.0, 0.0]], np.zeros((2, 1)), 1), "different shapes"),
        (lambda b: b.add_segment(np.zeros((2, 2)), np.zeros((2, 1)), 1, "first"), "'uniform'"),
        (lambda b: b.add_segment(np.zeros((2, 2)), np.zeros((2, 1)), 1, None), "'uniform'"),
    ],
)
def test_what_is_refused_adds_nothing(call: Any, message: str) -> None:
    buffer = make()
    with pytest.raises(ValueError, match=message):
        call(buffer)
    assert len(buffer) == 0


def test_credit_of_a_function_is_checked() -> None:
    with pytest.raises(ValueError, match="2 finite weights"):
        make().add_segment(np.zeros((2, 2)), np.zeros((2, 1)), 1, lambda k: np.ones(3))
    with pytest.raises(ValueError, match="rate must be"):
        fading(0.0)


def test_threads_lose_nothing() -> None:
    buffer = make()
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            columns, names = buffer.snapshot()
            # Whole rows: observation and action of one row were written together.
            np.testing.assert_array_equal(columns["observations"][:, 0], columns["actions"][:, 0])
            assert not len(columns["sources"]) or columns["sources"].max() < len(names)
            seen.append(len(columns["labels"]))

    def write(number: int) -> None:
        for step in range(60):
            buffer.add([step / 100, 0.0], [step / 100], 1, source=f"thread {number}")

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert len(buffer) == 240
    assert seen == sorted(seen)
    assert set(buffer.shares().values()) == {0.25}


def test_saved_loaded_merged(tmp_path: Path) -> None:
    env = DictToy(Toy())
    buffer = FeedbackBuffer(env.observation_space, env.action_space)
    for step in range(100):  # more than the first capacity
        buffer.add(env.reset(seed=step)[0], env.action_space.sample(), 1 - 2 * (step % 2))
    buffer.save(tmp_path / "answers")
    again = FeedbackBuffer.load(tmp_path / "answers")
    assert again.observation_space == buffer.observation_space
    one, other = everything(buffer), everything(again)
    for key, values in one.observations.items():
        np.testing.assert_array_equal(values, other.observations[key])
    np.testing.assert_array_equal(one.actions, other.actions)
    again.add(env.reset()[0], env.action_space.sample(), 1, source="new")
    buffer.merge(again)
    assert len(buffer) == 201
    assert buffer.shares()["new"] == pytest.approx(1 / 201)
    with pytest.raises(DatasetError, match="one observation_space"):
        buffer.merge(make())


def test_an_empty_buffer_is_saved_too(tmp_path: Path) -> None:
    make().save(tmp_path / "none.npz")
    assert len(FeedbackBuffer.load(tmp_path / "none.npz")) == 0


def test_hostile_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(DatasetError, match="no file of feedback"):
        FeedbackBuffer.load(path)
    np.savez(path, header=np.array([{}], object), allow_pickle=True)
    with pytest.raises(DatasetError, match="no file of feedback"):
        FeedbackBuffer.load(path)
    buffer = make()
    buffer.add([0.0, 0.0], [0.0], 1)
    buffer.save(path)
    with np.load(path) as file:
        columns = dict(file)
    np.savez(path, **columns | {"sources": np.array([3])})
    with pytest.raises(DatasetError, match="names a source"):
        FeedbackBuffer.load(path)
    for wrong in ([], [0.0], [[0]], 0):
        np.savez(path, **columns | {"sources": np.array(wrong)})
        with pytest.raises(DatasetError, match="sources must be one whole number a row, 1, got"):
            FeedbackBuffer.load(path)
    np.savez(path, **columns | {"labels": np.array(1)})
    with pytest.raises(DatasetError):
        FeedbackBuffer.load(path)
    np.savez(path, **columns | {"labels": np.array([7])})
    with pytest.raises(DatasetError, match="labels must be 1"):
        FeedbackBuffer.load(path)
    header = json.loads(str(columns["header"]))
    header["action_space"]["type"] = "Text"
    np.savez(path, **columns | {"header": np.array(json.dumps(header))})
    with pytest.raises(DatasetError, match="'Text'"):
        FeedbackBuffer.load(path)


def test_a_program_labels_what_was_seen() -> None:
    env = Toy()
    buffer = FeedbackBuffer(env.observation_space, env.action_space)
    asked: list[np.ndarray] = []

    def rule(observation: np.ndarray, action: np.ndarray, info: dict[str, Any]) -> int:
        asked.append(observation)
        return int(np.sign(action[0])) if abs(action[0]) > 0.5 else 0

    wrapped = FeedbackWrapper(env, rule, buffer, source="rule")
    first, _ = wrapped.reset(seed=0)
    first = first.copy()
    for action in (0.9, 0.1, -0.9):
        wrapped.step(np.array([action], np.float32))
    np.testing.assert_array_equal(asked[0], first)
    assert everything(buffer).labels.tolist() == [1, 0, -1]
    assert buffer.shares() == {"rule": 1.0}
    with pytest.raises(ValueError, match=r"annotator must be called .* got 3"):
        FeedbackWrapper(env, 3, buffer)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="feedback must be a FeedbackBuffer, got 3"):
        FeedbackWrapper(env, rule, 3)  # type: ignore[arg-type]  # on purpose
    wrapped.annotator = lambda *_: 2
    with pytest.raises(ValueError, match="must return 1, 0 or -1, got 2"):
        wrapped.step(np.zeros(1, np.float32))


@pytest.mark.parametrize("seen", [7, None, np.zeros(2), {"a": np.zeros(1)}])
def test_an_observation_that_is_no_dictionary_is_named(seen: Any) -> None:
    buffer = FeedbackBuffer(spaces.Dict(a=SEEN, b=SEEN), DONE)
    for call in (lambda: buffer.add(seen, [0.0], 1), lambda: buffer.add_segment(seen, [[0.0]], 1)):
        with pytest.raises(DatasetError, match=r"must be a dictionary|lacks 'b'|must have the k"):
            call()
    assert len(buffer) == 0


class Shrinks(gym.Wrapper):
    """Changes the action where it lies."""

    def step(self, action: Any) -> Any:
        action *= 0.1
        return self.env.step(action)


def test_what_the_environment_makes_of_an_action_is_not_what_was_done() -> None:
    env, asked = Toy(), []
    buffer = FeedbackBuffer(env.observation_space, env.action_space)
    wrapped = FeedbackWrapper(Shrinks(env), lambda _, action, __: asked.append(action) or 1, buffer)
    wrapped.reset(seed=0)
    wrapped.step(np.array([0.5], np.float32))
    assert asked == [0.5]
    assert everything(buffer).actions.tolist() == [[0.5]]


@pytest.mark.parametrize("value", [300, 0.7])
def test_bytes_hold_what_is_given_or_refuse_it(value: float) -> None:
    buffer = FeedbackBuffer(spaces.Box(0, 255, (2,), np.uint8), DONE)
    with pytest.raises(DatasetError, match="must be whole numbers in Box"):
        buffer.add([value, 0], [0.0], 1)
    assert len(buffer) == 0
    buffer.add([7.0, 0], [0.0], 1)
    assert everything(buffer).observations.tolist() == [[7, 0]]


def test_processes_are_told_not_to_share_one() -> None:
    with pytest.raises(TypeError, match="shared by threads, not by processes"):
        pickle.dumps(make())
