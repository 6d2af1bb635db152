"""What others have recorded: fragments, scales, names, hidden values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import DictToy, Toy

from sb3_pmpo import PMPO
from sb3_pmpo.feedback import FeedbackBuffer
from sb3_pmpo.offline import (
    DatasetError,
    LabelledDataset,
    from_d4rl_like,
    from_replay_buffer,
    label_by,
    label_by_advantage,
    label_by_return,
    td,
)
from sb3_pmpo.tools.offline import read_data

RNG = np.random.default_rng(0)
BOX = spaces.Box(-9, 9, (1,)), spaces.Box(-2, 2, (1,))


def filled(steps: int, size: int = 20, lengths: int = 5, action: float = 0.5, **more: Any) -> Any:
    """A buffer of episodes of so many steps, in which the reward of a step is -1."""
    buffer = ReplayBuffer(size, *BOX, device="cpu", **more)
    for step in range(steps):
        seen = np.full((1, 1), step % lengths / 8)
        done = np.array([step % lengths == lengths - 1])
        taken, reward = np.full((1, 1), action), np.array([-1.0 - step / 100])
        buffer.add(seen, seen + 1 / 8, taken, reward, done, [{"TimeLimit.truncated": done[0]}])
    return buffer


def arrays(n: int = 12, **more: Any) -> dict[str, Any]:
    given = {"observations": RNG.normal(size=(n, 2)), "actions": RNG.uniform(-1, 1, (n, 1))}
    return given | {"rewards": -1.0 - np.arange(n) / 100} | more


ENDS = np.resize([0, 0, 0, 0, 1], 12)  # two episodes, and two rows of a third


@pytest.mark.parametrize(
    ("data", "fragments"),
    [
        (from_replay_buffer(filled(12)), [10]),
        (from_replay_buffer(filled(32)), [0, 18]),  # one without its head, one without its tail
        (from_d4rl_like(arrays(terminals=ENDS)), [10]),
        (from_d4rl_like(arrays(truncations=ENDS, terminations=np.zeros(12))), [10]),
        (
            from_d4rl_like(arrays(timeouts=ENDS, episode_ids=np.repeat([3, 4, 9], [5, 5, 2]))),
            [10],
        ),
    ],
)
def test_fragments_are_neither_the_best_nor_the_worst(
    data: LabelledDataset, fragments: list[int], tmp_path: Any
) -> None:
    data.save(tmp_path / "data")
    for one in (data, LabelledDataset.load(tmp_path / "data")):
        labelled, report = label_by_return(one, 0.5)
        for rows, whole in zip(data.episodes(), data.whole_episodes(), strict=True):
            assert (labelled.labels[rows] != 0).all() == whole == (rows.start not in fragments)
        assert f"unlabelled: {len(fragments)}" in str(report)
        assert report.fragments == len(fragments)


def test_whole_episodes_are_all_labelled() -> None:
    data = from_replay_buffer(filled(10))
    assert data.whole is None
    assert label_by_return(data, 0.5).report.fragments == 0
    with pytest.raises(DatasetError, match="1 of 2 episodes are whole"):
        label_by_return(from_replay_buffer(filled(7)))
    with pytest.raises(DatasetError, match="whole must be 0 or 1"):
        LabelledDataset(np.zeros((2, 1)), np.zeros((2, 1)), whole=[1, 2])


def test_where_no_end_is_set_nothing_tells_episodes_apart() -> None:
    data = from_d4rl_like(arrays(terminals=np.zeros(12), timeouts=np.zeros(12)))
    assert data.episode_ids is None
    with pytest.raises(DatasetError, match="episode"):
        label_by_advantage(data)


@pytest.mark.parametrize("names", [("terminations", "truncations"), ("dones", "timeouts")])
def test_other_names_of_ends(names: tuple[str, str]) -> None:
    over, ends = names
    at = np.eye(12)[3] + (ENDS if over == "dones" else 0)
    data = from_d4rl_like(arrays(infos=np.array([{}] * 12), **{over: at, ends: ENDS}))
    assert [rows.start for rows in data.episodes()] == [0, 4, 5, 10]
    assert np.flatnonzero(data.required("dones")).tolist() == [3]
    ids = np.repeat([5, 2], 6)
    assert from_d4rl_like(arrays(episode_ids=ids)).n_episodes == 2
    with pytest.raises(DatasetError, match=f"{over} has 3"):
        from_d4rl_like(arrays(**{over: np.zeros(3)}))


def test_actions_that_were_never_scaled_are_not_scaled_back() -> None:
    with pytest.raises(DatasetError, match=r"in \[-1, 1\].*; 3 of 3 rows .* index 0: \[1.5\]"):
        from_replay_buffer(filled(3, action=1.5))
    assert from_replay_buffer(filled(3, action=1.00001)).rows(np.arange(3)).actions.max() == 2.0


def test_a_buffer_that_knows_no_time_limits_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="handle_timeout_termination=False"):
        from_replay_buffer(filled(12, handle_timeout_termination=False))
    from_replay_buffer(filled(3, handle_timeout_termination=False))  # there is no end yet


def test_a_rollout_buffer_is_no_replay_buffer() -> None:
    with pytest.raises(TypeError, match=r"must be one of .* got RolloutBuffer: give"):
        from_replay_buffer(RolloutBuffer(8, *BOX, device="cpu"))


HIDDEN = np.ma.masked_equal(np.array([[0.0], [0.5], [0.9]]), 0.9)


@pytest.mark.parametrize(
    "call",
    [
        lambda: LabelledDataset(HIDDEN, np.zeros((3, 1))),
        lambda: LabelledDataset([HIDDEN, HIDDEN], np.zeros((2, 1))),
        lambda: LabelledDataset({"a": np.zeros((3, 1)), "b": HIDDEN}, np.zeros((3, 1))),
        lambda: LabelledDataset(np.zeros((3, 1)), HIDDEN),
        lambda: LabelledDataset(np.zeros((3, 1)), np.zeros((3, 1)), rewards=HIDDEN[:, 0]),
        lambda: from_d4rl_like(arrays(3, terminals=np.ma.masked_equal([0, 1, 1], 1))),
        lambda: label_by(
            LabelledDataset(np.zeros((3, 1)), np.zeros((3, 1))),
            lambda rows: np.ma.masked_equal([1, 1, -1], -1),
        ),
        lambda: FeedbackBuffer(*BOX).add(np.zeros(1), HIDDEN[2], 1),
        lambda: FeedbackBuffer(*BOX).add_segment(HIDDEN, np.zeros((3, 1)), 1),
    ],
)
def test_hidden_values_are_not_learned_from(call: Any) -> None:
    with pytest.raises(DatasetError, match="must have no masked values, got"):
        call()


def test_a_mask_that_hides_nothing_is_none() -> None:
    assert len(LabelledDataset(HIDDEN[:2], np.zeros((2, 1)))) == 2


@pytest.mark.parametrize("of_dicts", [False, True])
def test_a_new_vec_normalize_takes_its_statistics_from_the_data(of_dicts: bool) -> None:
    env = DummyVecEnv([lambda: DictToy(Toy()) if of_dicts else Toy()])
    normalize = VecNormalize(env, norm_obs_keys=["vector"] if of_dicts else None)
    seen: Any = 200 + 50 * RNG.normal(size=(100, 2))
    if of_dicts:
        pictures = np.zeros((100, 1, 36, 36), np.uint8)
        seen = {"vector": seen, "code": np.zeros(100, int), "image": pictures}
    data = LabelledDataset(
        seen,
        RNG.uniform(-1, 1, (100, 1)),
        np.resize([1, -1], 100),
        observation_space=env.observation_space,
        action_space=env.action_space,
    )
    policy = "MultiInputPolicy" if of_dicts else "MlpPolicy"
    model = PMPO(policy, normalize, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    for _ in range(2):
        model.learn_offline(data, 1)
        found = normalize.normalize_obs(data.rows(np.arange(100)).observations)
        values = found["vector"] if of_dicts else found
        assert abs(values.mean()) < 0.3
        assert 0.7 < values.std() < 1.3
    moments = normalize.obs_rms["vector"] if of_dicts else normalize.obs_rms
    assert moments.count == pytest.approx(100, abs=1)  # the second call left them


def test_statistics_that_are_missing_and_held_are_warned_about() -> None:
    env = VecNormalize(DummyVecEnv([Toy]), training=False)
    n, box = 20, env.observation_space
    data = LabelledDataset(
        np.full((n, *box.shape), 200.0),
        np.zeros((n, *env.action_space.shape)),
        np.resize([1, -1], n),
        action_space=env.action_space,
    )
    model = PMPO("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    with pytest.warns(UserWarning, match="training=False and no statistics"):
        model.learn_offline(data, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelledDataset.from_minari("D4RL/door/human-v2"), "from_minari.minari.load_data"),
        (lambda: LabelledDataset.from_minari(None), "must be a minari.MinariDataset, got None"),
        (lambda: LabelledDataset.from_d4rl_like(None), "must be a dictionary of arrays, got None"),
        (
            lambda: LabelledDataset(np.zeros((2, 1)), np.zeros((2, 1)), episode_ids=[0.2, 0.7]),
            "episode_ids must be whole",
        ),
        (lambda: label_by_advantage(rewarded(), targets=td), "got td: write td"),
        (lambda: label_by_advantage(rewarded(), targets="td"), "got 'td': write td"),
    ],
)
def test_first_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def rewarded() -> LabelledDataset:
    """Four rows with rewards."""
    return LabelledDataset(np.zeros((4, 1)), np.zeros((4, 1)), rewards=np.arange(4.0))


def test_an_inferred_space_gives_way_to_the_environments(tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1")
    actions = np.linspace(-1.9, 1.9, 20)[:, None]
    data = LabelledDataset(np.zeros((20, 3), np.float32), actions, np.ones(20))
    data.save(tmp_path / "data")
    again = LabelledDataset.load(tmp_path / "data")
    assert again.action_space == data.action_space != env.action_space
    assert again.inferred == {"action_space", "observation_space"}
    fitted = again.with_space("action_space", env.action_space)
    assert (fitted.action_space, fitted.inferred) == (env.action_space, {"observation_space"})
    with pytest.raises(DatasetError, match="actions must be in"):
        again.with_space("action_space", spaces.Box(-1, 1, (1,)))
    read = read_data(str(tmp_path / "data"), None, gamma=0.9, seed=0, env="Pendulum-v1")
    assert (read.observation_space, read.action_space) == (env.observation_space, env.action_space)
    # A space that was given stays: other actions may be meant.
    LabelledDataset(
        np.zeros((20, 3), np.float32), actions, np.ones(20), action_space=data.action_space
    ).save(tmp_path / "given")
    kept = read_data(str(tmp_path / "given"), None, gamma=0.9, seed=0, env="Pendulum-v1")
    assert kept.action_space == data.action_space
