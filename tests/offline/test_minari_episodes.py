"""Minari's episodes: what is asked of them, and whose labels and weights count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_pmpo.offline import DatasetError, LabelledDataset, from_minari, to_minari

STEPS = 3


def episode(**changes: Any) -> SimpleNamespace:
    given = {
        "observations": np.zeros((STEPS + 1, 2)),
        "actions": np.zeros((STEPS, 1)),
        "rewards": np.zeros(STEPS),
        "terminations": np.zeros(STEPS, bool),
        "infos": {},
    }
    return SimpleNamespace(**given | changes)


def recorded(*episodes: SimpleNamespace) -> SimpleNamespace:
    """What :func:`from_minari` reads of a Minari data set."""
    return SimpleNamespace(
        total_steps=sum(len(one.rewards) for one in episodes),
        observation_space=spaces.Box(-1, 1, (2,)),
        action_space=spaces.Box(-1, 1, (1,)),
        iterate_episodes=lambda: iter(episodes),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observations": np.zeros((STEPS, 2))},
            r"episode 1 needs T\+1 observations for its T steps, 4, got 3",
        ),
        ({"actions": np.zeros((2, 1))}, "episode 1 must have as many actions as rewards, 3, got 2"),
        (
            {"terminations": np.array([False, True, False])},
            "episode 1 must terminate at its last step only, 2, but does at step 1.*filter_episod",
        ),
    ],
)
def test_an_episode_that_cannot_be_read_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        from_minari(recorded(episode(), episode(**changes)))


def test_a_function_that_asks_for_what_is_not_there() -> None:
    found = recorded(episode(infos={"success": np.ones(STEPS)}), episode(infos={"mass": 1}))
    with pytest.raises(DatasetError, match=r"infos of episode 1 for 'success', they have .'mass'"):
        from_minari(found, label_key=lambda infos: infos["success"])
    data = from_minari(found, label_key=lambda infos: infos.get("success"))
    assert data.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_what_a_stranger_calls_a_weight_weighs_nothing() -> None:
    masses = recorded(episode(infos={"weight": np.full(STEPS + 1, 7.0)}), episode())
    assert from_minari(masses).weights is None
    named = from_minari(masses, weight_key="weight")
    assert named.weights is not None
    assert named.weights.tolist() == [7, 7, 7, 1, 1, 1]
    with pytest.raises(DatasetError, match=r"no episode's infos have 'mass', they have .'weight'"):
        from_minari(masses, weight_key="mass")
    assert from_minari(masses, weight_key=None).weights is None


def test_weights_may_be_booleans() -> None:
    chosen = recorded(episode(infos={"chosen": np.array([False, True, False, True])}))
    weights = from_minari(chosen, weight_key="chosen").weights
    assert weights is not None
    assert weights.tolist() == [1, 0, 1]
    for given in ({"kg": np.ones(STEPS)}, np.array(["heavy"] * STEPS)):
        with pytest.raises(DatasetError, match=r"'weight' .* how much each step counts, got"):
            from_minari(recorded(episode(infos={"weight": given})), weight_key="weight")


@pytest.mark.parametrize("name", ["mydata", "v0", "group/mydata", "my data-v0", 3])
def test_an_id_without_a_version_is_refused(name: Any) -> None:
    pytest.importorskip("minari")
    seen = np.zeros((2, 1))
    data = LabelledDataset(seen, np.zeros((2, 1)), next_observations=seen)
    with pytest.raises(DatasetError, match="dataset_id must be of the form 'name-v0'"):
        to_minari(data, name)


@pytest.mark.parametrize("key", ["arm/joint", "", "."])
def test_keys_that_minari_could_not_read_are_refused(
    key: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    seen = {key: np.zeros((2, 1)), "other": np.zeros((2, 1))}
    data = LabelledDataset(seen, np.zeros((2, 1)), next_observations=seen)
    with pytest.raises(DatasetError, match="must be a name without '/' for Minari"):
        to_minari(data, "never/made-v0")
    assert not list(tmp_path.iterdir())
