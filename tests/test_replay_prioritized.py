"""Prioritised replay against the closed form: P(i) = p_i^alpha / sum, w_i = (N P(i))^-beta / max.

Axes: T entries, E environments, B transitions.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import SAC

from sb3_pmpo.replay import (
    PrioritizedDictReplayBuffer,
    PrioritizedHerReplayBuffer,
    PrioritizedReplayBuffer,
    Replay,
)
from sb3_pmpo.replay.sum_tree import SumTree
from tests.test_replay_cuts import Diary
from tests.toys import DictToy, Toy, small, toys
from tests.transitions import KINDS, Log, make_buffer

SETTINGS = settings(max_examples=12, deadline=None, derandomize=True)
SMALL_DICT = {"net_arch": [16], "features_extractor_kwargs": {"cnn_output_dim": 8}}


@SETTINGS
@given(size=st.integers(1, 600), seed=st.integers(0, 2**31 - 1))
def test_the_tree_equals_running_sums(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree, values = SumTree(size), np.zeros(size)
    for _ in range(4):
        indices = rng.integers(0, size, 20)
        new = rng.integers(0, 3, 20) * 2.0 ** rng.integers(-3, 9)  # exact in floats
        tree.set(indices, new)
        values[indices] = new
        np.testing.assert_array_equal(tree.values, values)
        assert tree.total == values.sum()
        if tree.total > 0:
            masses = rng.random(50) * tree.total
            found = tree.find(masses)
            np.testing.assert_array_equal(found, np.searchsorted(values.cumsum(), masses, "right"))


def test_rounding_never_finds_what_weighs_nothing() -> None:
    tree = SumTree(5000)
    indices = np.arange(0, 5000, 7)
    tree.set(indices, np.random.default_rng(0).random(len(indices)) ** 9 + 1e-12)
    edges = np.append(np.nextafter(tree.values.cumsum(), 0), tree.total * (1 + 1e-12))
    found = tree.find(np.concatenate([edges, tree.values.cumsum()]))
    assert (tree.values[found] > 0).all()


def errors_of(indices: np.ndarray) -> np.ndarray:
    """A TD error of its own for each transition, of either sign."""
    return np.where(indices % 2, -1.0, 1.0) * (1.0 + indices % 11)


def prioritised(kind: str, **kwargs: Any) -> tuple[Any, np.ndarray]:
    """A full buffer in which each transition was replayed; and which of them can be."""
    log = Log(kind, 40, 2, seed=4)
    log.cuts[-1] = True
    buffer = log.fill(make_buffer(kind, 25, 2, prioritized=True, **kwargs))
    indices = np.flatnonzero(buffer.priorities)
    buffer.update_priorities(indices, errors_of(indices))
    return buffer, indices


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_and_weights_are_those_of_the_closed_form(kind: str, n_steps: int) -> None:
    alpha, beta, epsilon = 0.7, 0.5, 0.1
    buffer, indices = prioritised(kind, alpha=alpha, beta=beta, epsilon=epsilon)
    p = (np.abs(errors_of(indices)) + epsilon) ** alpha
    expected = p / p.sum()
    np.random.seed(0)
    replay, counts, rounds = Replay(buffer, n_steps, 0.9), np.zeros(50), 100
    for i in range(rounds):
        remaining = 1 - i / rounds
        batch = replay.sample(200, progress_remaining=remaining)
        assert batch.indices is not None
        assert batch.weights is not None
        np.add.at(counts, batch.indices, 1)
        probability = expected[np.searchsorted(indices, batch.indices)]
        weights = (len(indices) * probability) ** -(beta + (1 - beta) * (1 - remaining))
        np.testing.assert_allclose(batch.weights, weights / weights.max(), rtol=1e-5)
    assert counts.sum() == counts[indices].sum()
    number = rounds * 200
    # Within five standard deviations of independent draws; draws by parts vary less.
    error = np.abs(counts[indices] / number - expected)
    assert (error < 5 * np.sqrt(expected * (1 - expected) / number)).all()
    chi_square = (number * (counts[indices] / number - expected) ** 2 / expected).sum()
    assert chi_square < len(indices) + 4 * np.sqrt(2 * len(indices))


@pytest.mark.parametrize("kind", KINDS)
def test_indices_name_the_transitions_that_were_sampled(kind: str) -> None:
    buffer, _ = prioritised(kind)
    for batch in (Replay(buffer, n, 0.9).sample(100) for n in (1, 3)):
        rows, envs = np.divmod(batch.indices, 2)
        np.testing.assert_array_equal(batch.actions, buffer.actions[rows, envs])


def test_alpha_of_nothing_is_uniform_and_the_order_says_nothing() -> None:
    buffer, _ = prioritised("box", alpha=0.0)
    np.random.seed(0)
    batch = Replay(buffer, 1, 0.9).sample(2000)
    assert batch.weights is not None
    assert (batch.weights == 1).all()
    counts = np.bincount(batch.indices, minlength=50)
    assert abs(counts - 40).max() <= 2  # one from each part
    assert abs(np.corrcoef(np.arange(2000), batch.indices)[0, 1]) < 0.1


def test_what_is_new_comes_with_the_greatest_priority() -> None:
    log = Log("box", 9, 2, seed=0)
    buffer = make_buffer("box", 25, 2, prioritized=True, alpha=0.5, epsilon=1e-3)
    log.fill(buffer)
    assert set(buffer.priorities[:9].flat) == {1.0}
    replay = Replay(buffer, 1, 0.9)
    indices = np.array([3, 4, 3])
    replay.update_priorities(indices, th.tensor([5.0, -24.0, 8.0]))
    assert buffer.priorities.flat[3] == pytest.approx(8.001**0.5)  # the last one counts
    assert buffer.priorities.flat[4] == pytest.approx(24.001**0.5)
    later = Log("box", 11, 2, seed=0)
    later.fill(buffer, start=9)
    assert buffer.priorities[9:11] == pytest.approx(24.001**0.5)
    assert (buffer.priorities[11:] == 0).all()
    replay.update_priorities(np.array([49]), np.array([3.0]))  # nothing is there
    assert buffer.priorities.flat[49] == 0
    replay.update_priorities(None, th.ones(3))
    buffer.reset()
    assert not buffer.priorities.any()


@SETTINGS
@given(
    size=st.integers(2, 12),
    steps=st.integers(1, 40),
    n_envs=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
)
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_what_can_be_replayed_has_a_priority(
    kind: str, size: int, steps: int, n_envs: int, seed: int
) -> None:
    buffer = make_buffer(kind, size, n_envs, prioritized=True)
    Log(kind, steps, n_envs, seed).fill(buffer)
    there = np.arange(size) < buffer.size()
    if kind == "efficient" and buffer.full:
        there[buffer.pos] = False
    wanted = buffer.ep_length > 0 if kind == "her" else np.tile(there, (n_envs, 1)).T
    np.testing.assert_array_equal(buffer.priorities > 0, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_buffer_samples_the_same(kind: str) -> None:
    buffer, _ = prioritised(kind)
    loaded = pickle.loads(pickle.dumps(buffer))
    if kind == "her":
        loaded.set_env(buffer.env)
    batches = []
    for each in (buffer, loaded):
        np.random.seed(0)
        batches.append(Replay(each, 3, 0.9).sample(50))
    np.testing.assert_array_equal(batches[0].indices, batches[1].indices)
    assert th.equal(batches[0].weights, batches[1].weights)
    assert th.equal(batches[0].rewards, batches[1].rewards)
    np.testing.assert_array_equal(buffer.priorities, loaded.priorities)


@pytest.mark.parametrize(
    ("kind", "n_steps"), [("box", 1), ("efficient", 3), ("dict", 3), ("her", 1), ("her", 3)]
)
def test_the_algorithm_takes_it(kind: str, n_steps: int, tmp_path: Path) -> None:
    cls: type = PrioritizedReplayBuffer
    arguments: dict[str, Any] = {"replay_buffer_kwargs": {"alpha": 0.5, "beta": 0.3}}
    env, policy = toys(2), "MlpPolicy"
    if kind == "dict":
        env, policy = DictToy(Toy()), "MultiInputPolicy"
        arguments["policy_kwargs"] = SMALL_DICT
    if kind == "her":
        env, policy, cls = Diary(goals=True), "MultiInputPolicy", PrioritizedHerReplayBuffer
        arguments["learning_starts"] = 31
    if kind == "efficient":
        arguments["optimize_memory_usage"] = True
        arguments["replay_buffer_kwargs"]["handle_timeout_termination"] = False
    model = small(env, policy, replay_buffer_class=cls, n_steps=n_steps, **arguments)
    model.learn(60)
    stored = model.replay_buffer
    assert isinstance(stored, PrioritizedDictReplayBuffer if kind == "dict" else cls)
    assert (stored.alpha, stored.beta) == (0.5, 0.3)
    learned = stored.priorities[stored.priorities > 0]
    assert len(np.unique(learned)) > 5  # the updates' errors came back
    batch = Replay(stored, n_steps, 0.9).sample(8)
    assert batch.weights is not None
    Replay(stored, n_steps, 0.9).update_priorities(batch.indices, th.arange(8.0))
    model.save_replay_buffer(tmp_path / "buffer")
    before = stored.priorities.copy()
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is not stored
    known = before > 0
    np.testing.assert_array_equal(model.replay_buffer.priorities[known], before[known])
    assert model.learn(40, reset_num_timesteps=False)._n_updates > 0


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", 1.5), ("alpha", "x"), ("beta", -0.1), ("epsilon", 0.0)]
)
def test_arguments_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} of prioritised replay .* got {value!r}"):
        make_buffer("box", 5, 1, prioritized=True, **{name: value})


def test_what_it_cannot_do_it_refuses() -> None:
    buffer = make_buffer("box", 5, 1, prioritized=True)
    with pytest.raises(RuntimeError, match="nothing to replay yet"):
        Replay(buffer, 1, 0.9).sample(4)
    with pytest.raises(ValueError, match="TD errors must be finite, got nan"):
        buffer.update_priorities(np.array([0, 1]), np.array([1.0, np.nan]))
    model = SAC(
        "MlpPolicy", Toy(), replay_buffer_class=PrioritizedReplayBuffer, learning_starts=2,
        buffer_size=100, policy_kwargs={"net_arch": [8]}, device="cpu",
    )  # fmt: skip
    with pytest.raises(TypeError, match="works with sb3_pmpo's algorithms only"):
        model.learn(9)
