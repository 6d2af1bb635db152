"""Labels from values, returns and functions, where the right ones are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_pmpo.offline import (
    DatasetError,
    LabelledDataset,
    Rows,
    ValueFunction,
    gae,
    label_by,
    label_by_advantage,
    label_by_return,
    monte_carlo,
    td,
)
from sb3_pmpo.offline.values import Episodes, Targets

GAMMA = 0.9


def naive_returns(
    rewards: np.ndarray, ends: np.ndarray, terminal: np.ndarray, after: np.ndarray, lam: float
) -> np.ndarray:
    """The recursion as it is written: ``G = r + gamma * ((1 - lam) V' + lam G')``."""
    returns = np.zeros(len(rewards))
    for row in reversed(range(len(rewards))):
        if terminal[row]:
            beyond = 0.0
        elif ends[row]:
            beyond = after[row]
        else:
            beyond = (1 - lam) * after[row] + lam * returns[row + 1]
        returns[row] = rewards[row] + GAMMA * beyond
    return returns


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_lambda_returns(lam: float) -> None:
    rng = np.random.default_rng(0)
    ends = np.zeros(20, bool)
    ends[[0, 6, 12, 19]] = True  # of which the first and the third are cut, the others terminal
    terminal = ends & np.isin(np.arange(20), [6, 19])
    rewards, after = rng.normal(size=20), rng.normal(size=20)
    found = Episodes(rewards, ends, terminal, GAMMA).lambda_returns(after, lam)
    np.testing.assert_allclose(found, naive_returns(rewards, ends, terminal, after, lam), rtol=1e-5)


def walks(n: int = 60, length: int = 10, seed: int = 0) -> tuple[LabelledDataset, np.ndarray]:
    """Reward is the action's product with the state's sign; what is good is known."""
    rng = np.random.default_rng(seed)
    seen = rng.uniform(-1, 1, (n * length, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (n * length, 1)).astype(np.float32)
    good = actions[:, 0] * np.sign(seen[:, 0])
    data = LabelledDataset(
        seen,
        actions,
        rewards=good,
        next_observations=rng.uniform(-1, 1, seen.shape).astype(np.float32),
        episode_ids=np.repeat(np.arange(n), length),
        dones=np.zeros(n * length),
    )
    return data, good


@pytest.mark.parametrize("targets", [td(), gae(0.5)])
def test_advantages_find_what_is_good(targets: Targets) -> None:
    data, good = walks()
    fit: dict[str, Any] = {"gradient_steps": 150, "batch_size": 64, "widths": (16,), "rounds": 4}
    _, report = label_by_advantage(data, gamma=GAMMA, targets=targets, truth=good, **fit)
    assert report.rates.unlabelled == pytest.approx(0.0)
    assert report.accept_precision is not None
    assert report.accept_precision > 0.85
    assert report.reject_precision is not None
    assert report.reject_precision > 0.85
    assert "good" in str(report)
    assert data.n_accepted == 0  # the one that was given has its own labels
    only = np.arange(len(data)) < 100
    part, report = label_by_advantage(data, 0.5, GAMMA, targets=targets, only=only, **fit)
    assert 0 < part.n_accepted + part.n_rejected < 100
    assert not part.labels[100:].any()
    assert report.accept_precision is None
    assert "unlabelled" in str(report)


def test_values_of_a_chain() -> None:
    """Three states in a row with a reward at the end: V is known."""
    seen = np.tile(np.eye(3, dtype=np.float32), (50, 1))
    data = LabelledDataset(
        seen,
        np.zeros(150, int),
        rewards=np.tile([0.0, 0.0, 1.0], 50),
        next_observations=np.roll(seen, -1, 0),
        dones=np.tile([0, 0, 1], 50),
        episode_ids=np.repeat(np.arange(50), 3),
    )
    for targets in (monte_carlo(), td(), gae(0.9)):
        values = ValueFunction(
            data, GAMMA, targets, gradient_steps=300, batch_size=32, widths=(16,), rounds=10
        )
        found = values.values(data.observations)[:3]
        np.testing.assert_allclose(found, [GAMMA**2, GAMMA, 1.0], atol=0.03)


def test_labels_by_return() -> None:
    data, _ = walks(8, 5)
    returns = data.episode_returns()
    labelled, report = label_by_return(data, 0.25)
    assert report.rates == pytest.approx((0.25, 0.75, 0.0))
    best = np.argsort(returns)[-2:]
    assert set(np.flatnonzero(labelled.labels == 1) // 5) == set(best)
    labelled, report = label_by_return(data, 0.25, 0.25)
    assert report.rates == pytest.approx((0.25, 0.25, 0.5))


def test_labels_by_a_function() -> None:
    data, good = walks()

    def rule(rows: Rows) -> np.ndarray:
        return np.sign(rows.actions[:, 0] * np.sign(rows.observations[:, 0]))

    _, report = label_by(data, rule, truth=good)
    assert (report.accept_precision, report.reject_precision) == (1.0, 1.0)
    with pytest.raises(DatasetError, match="a label for each of 600 rows"):
        label_by(data, lambda rows: np.zeros(3))
    with pytest.raises(DatasetError, match="labels must be 1"):
        label_by(data, lambda rows: np.full(len(rows.labels), 3))


def test_what_is_refused() -> None:
    data, _ = walks(4)
    with pytest.raises(ValueError, match="margin must be finite and >= 0, got -1"):
        label_by_advantage(data, -1)
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\], got 2"):
        label_by_advantage(data, gamma=2)
    with pytest.raises(ValueError, match="lam must be"):
        gae(1.5)
    with pytest.raises(ValueError, match="top must be"):
        label_by_return(data, 1.0)
    with pytest.raises(ValueError, match="bottom must be"):
        label_by_return(data, 0.5, 0.6)
    with pytest.raises(DatasetError, match="40 booleans"):
        label_by_return(data, only=np.ones(3, bool))
    bare = LabelledDataset(np.zeros((4, 1)), np.zeros((4, 1)))
    with pytest.raises(DatasetError, match="no rewards"):
        label_by_advantage(bare)
    with pytest.raises(DatasetError, match="one episode"):
        label_by_return(LabelledDataset(np.zeros((4, 1)), np.zeros((4, 1)), rewards=np.ones(4)))
    with pytest.raises(DatasetError, match="where its episodes end"):
        label_by_advantage(LabelledDataset(np.zeros((4, 1)), np.zeros((4, 1)), rewards=np.ones(4)))


def test_all_but_the_best_are_rejected() -> None:
    data = LabelledDataset(
        np.zeros((5, 1)), np.zeros((5, 1)), rewards=np.arange(5.0), episode_ids=np.arange(5)
    )
    assert label_by_return(data, 0.5).dataset.labels.tolist() == [-1, -1, -1, 1, 1]
    only = [True, False, True, True, True]
    assert label_by_return(data, 0.5, only=only).dataset.labels.tolist() == [-1, 0, -1, 1, 1]


def test_values_of_one_whole_episode_of_choices_that_start_at_five() -> None:
    data = LabelledDataset(
        np.array([5, 6, 7, 6]), np.zeros((4, 1)), rewards=np.ones(4), dones=np.eye(4)[3],
        observation_space=spaces.Discrete(3, start=5),
    )  # fmt: skip
    labelled = label_by_advantage(data, gamma=1.0, targets=monte_carlo(), gradient_steps=5)
    assert len(labelled.dataset) == 4


def episodes_with(returns: list[float]) -> LabelledDataset:
    n = len(returns)
    return LabelledDataset(
        np.zeros((n, 1), np.float32), np.zeros((n, 1), np.float32), rewards=np.array(returns),
        episode_ids=np.arange(n), action_space=spaces.Box(-1, 1, (1,)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("returns", "top", "bottom", "labels"),
    [
        ([0, 1, 2, 3, 4], 0.2, 0.8, [-1, -1, -1, -1, 1]),
        ([0, 1, 2, 3, 4], 0.8, 0.2, [-1, 1, 1, 1, 1]),
        ([0, 0, 0, 0, 1], 0.4, None, [-1, -1, -1, -1, 1]),  # the second of the best two ties
        ([1, 1, 1, 0], 0.25, None, [1, 1, 1, -1]),  # the best tie: all of them are the best
        ([0, 1, 1, 1, 2], 0.4, 0.4, [-1, 0, 0, 0, 1]),
    ],
)
def test_equal_returns_get_equal_labels(
    returns: list[float], top: float, bottom: float | None, labels: list[int]
) -> None:
    found = label_by_return(episodes_with(returns), top, bottom)
    assert found.dataset.labels.tolist() == labels


def test_returns_that_are_all_equal_are_refused() -> None:
    with pytest.raises(DatasetError, match="all 4 episodes have the return 0"):
        label_by_return(episodes_with([0, 0, 0, 0]))


def test_a_truth_of_booleans_says_what_is_good() -> None:
    data, good = walks()
    by_sign = label_by_return(data, truth=np.where(good > 0, 1, -1)).report
    assert label_by_return(data, truth=good > 0).report == by_sign
    assert by_sign.reject_precision is not None
    assert 0.0 < by_sign.reject_precision < 1.0


def test_rows_without_weight_do_not_teach_the_value() -> None:
    """Half of the rows return 1 and count; those that return -1 do not."""
    returns = np.tile([1.0, -1.0], 100)
    data = LabelledDataset(
        np.zeros((200, 1), np.float32), np.zeros((200, 1), np.float32), rewards=returns,
        dones=np.ones(200), episode_ids=np.arange(200), weights=(returns > 0).astype(np.float32),
        action_space=spaces.Box(-1, 1, (1,)),
    )  # fmt: skip
    values = ValueFunction(data, GAMMA, gae(), gradient_steps=300, rounds=3, device="auto")
    assert values.values(data.observations)[0] == pytest.approx(1.0, abs=0.05)


def test_small_pictures_have_a_value() -> None:
    seen = np.zeros((20, 1, 16, 16), np.uint8)
    data = LabelledDataset(
        seen, np.zeros((20, 1), np.float32), rewards=np.ones(20), episode_ids=np.arange(20) // 5,
        observation_space=spaces.Box(0, 255, (1, 16, 16), np.uint8),
        action_space=spaces.Box(-1, 1, (1,)),
    )  # fmt: skip
    assert len(label_by_advantage(data, gradient_steps=5, rounds=1).dataset) == 20


@pytest.mark.parametrize(("reward", "said"), [(0.0, "got all 0, so that no row"), (1e38, "got 1e")])
def test_rewards_that_say_nothing_are_refused(reward: float, said: str) -> None:
    data = LabelledDataset(
        np.random.default_rng(0).normal(size=(32, 2)), np.zeros((32, 1)), np.zeros(32),
        rewards=np.full(32, reward), episode_ids=np.arange(32) // 8,
        action_space=spaces.Box(-1, 1, (1,)),
    )  # fmt: skip
    with pytest.raises(DatasetError, match=f"rewards must be .*{said}"):
        label_by_advantage(data, gradient_steps=5)
