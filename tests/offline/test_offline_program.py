"""``sb3-pmpo offline``: folders as train's, labels from everywhere, errors for the user."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from toys import assert_equal, parameters

from sb3_pmpo import PMPO
from sb3_pmpo.feedback import FeedbackBuffer
from sb3_pmpo.offline import DatasetError, LabelledDataset
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.offline import read_data
from sb3_pmpo.tools.zoo.agents import find_agent, make_parser
from sb3_pmpo.tools.zoo.card import Scores, make_card

TINY = ["--hyperparams", "policy_kwargs:dict(net_arch=[8])", "batch_size:16"]


def pendulum(folder: Path) -> Path:
    """Two short episodes of random actions."""
    env, rng = gym.make("Pendulum-v1"), np.random.default_rng(0)
    rows: dict[str, list[Any]] = {name: [] for name in ("seen", "done", "reward", "after", "id")}
    for number in range(2):
        seen, _ = env.reset(seed=number)
        for _ in range(30):
            action = rng.uniform(-2, 2, 1).astype(np.float32)
            after, reward, *_ = env.step(action)
            for name, value in zip(rows, (seen, action, reward, after, number), strict=True):
                rows[name].append(value)
            seen = after
    arrays = {name: np.array(values) for name, values in rows.items()}
    return LabelledDataset(
        arrays["seen"],
        arrays["done"],
        np.sign(arrays["done"][:, 0]),
        rewards=arrays["reward"],
        next_observations=arrays["after"],
        episode_ids=arrays["id"],
        dones=np.zeros(60),
        observation_space=env.observation_space,
        action_space=env.action_space,
    ).save(folder)


def test_a_run_and_one_from_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pendulum(tmp_path / "data")
    these = ["offline", "--env", "Pendulum-v1", "--dataset", "data", *TINY]
    these += ["--gradient-steps", "20", "--eval-freq", "10", "--eval-episodes", "1"]
    assert main(these) == 0
    folder = tmp_path / "logs" / "pmpo" / "Pendulum-v1_1"
    names = {path.name for path in folder.iterdir()}
    assert {"best_model.zip", "evaluations.npz", "Pendulum-v1.zip", "Pendulum-v1"} <= names
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [10, 20]
    assert main([*these, "--model", str(folder / "Pendulum-v1.zip"), "--labels", "return:0.5"]) == 0
    assert (tmp_path / "logs" / "pmpo" / "Pendulum-v1_2" / "Pendulum-v1.zip").exists()


def test_steps_between_evaluations_are_gradient_steps_with_any_number_of_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pendulum(tmp_path / "data")
    (tmp_path / "settings.yml").write_text(
        "Pendulum-v1:\n  n_timesteps: 100\n  policy: MlpPolicy\n  n_envs: 4\n"
    )
    these = ["offline", "--env", "Pendulum-v1", "--dataset", "data", *TINY, "n_envs:2"]
    these += ["--gradient-steps", "20", "--eval-freq", "10", "--eval-episodes", "1"]
    these += ["--save-freq", "10", "--conf-file", "settings.yml"]
    assert main(these) == 0
    folder = tmp_path / "logs" / "pmpo" / "Pendulum-v1_1"
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [10, 20]
    assert PMPO.load(folder / "Pendulum-v1.zip", device="cpu").num_timesteps == 20


def test_a_run_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pendulum(tmp_path / "data")

    def run(logs: str, steps: int, *more: str) -> dict[str, Any]:
        these = ["offline", "--env", "Pendulum-v1", "--dataset", "data", *TINY, "-f", logs, *more]
        these += ["--gradient-steps", str(steps), "--save-freq", "10", "--eval-freq", "100"]
        assert main(these) == 0
        saved = Path(logs, "pmpo", "Pendulum-v1_1", "Pendulum-v1.zip")
        model = PMPO.load(saved, device="cpu")
        assert model.num_timesteps == steps
        return parameters(model.policy)

    once = run("once", 40)
    run("twice", 20)
    folder = str(Path("twice", "pmpo", "Pendulum-v1_1"))
    assert_equal(once, run("twice", 40, "-i", folder))
    assert len(list(Path("twice", "pmpo").iterdir())) == 1
    capsys.readouterr()
    run("twice", 40, "-i", folder)
    assert "has done its steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("twice", 40, "-i", "data")
    assert "it holds no checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("twice", 40, "-i", f"{folder}/Pendulum-v1.zip")
    assert "--model begins with a .zip file" in capsys.readouterr().err


def test_gradient_steps_and_decisions_are_two_kinds_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pendulum(tmp_path / "data")
    more = ["--env", "Pendulum-v1", "--eval-freq", "10", "--eval-episodes", "1", *TINY]
    data = ["offline", "--dataset", "data", "--gradient-steps", "20", "--save-freq", "10", *more]
    online = ["train", "-n", "210", "-tb", "tb", *more, "learning_starts:200"]
    runs = [f"logs/pmpo/Pendulum-v1_{number}" for number in (1, 2, 3)]
    assert main(["offline", "-tb", "tb", *data[1:]]) == 0
    assert main([*online, "-i", f"{runs[0]}/Pendulum-v1.zip"]) == 0
    told = capsys.readouterr().out
    assert "Finished after 20 gradient steps" in told
    assert "Finished after 210 decisions" in told
    assert "The model learned offline: decisions are counted from 0" in told
    went_on = PMPO.load(f"{runs[1]}/Pendulum-v1.zip", device="cpu")
    assert (went_on.num_timesteps, went_on.buffer_size, went_on.learning_starts) == (210, 10**6, 0)
    assert main([*data, "--model", f"{runs[1]}/Pendulum-v1.zip"]) == 0

    # Two lines, none of which holds the steps of the other kind.
    for source in ([], ["--source", "tensorboard"]):
        assert main(["plot", "-o", "both.svg", *source]) == 0
        drawn = pd.read_csv("both.csv")
        drawn["name"] = drawn.algorithm.str.lower()
        ends = {name: [min(part.steps), max(part.steps)] for name, part in drawn.groupby("name")}
        assert ends == {"pmpo": [10, 210], "pmpo offline": [10, 20]}
    assert "environment steps (offline: gradient steps)" in Path("both.svg").read_text()

    capsys.readouterr()
    for command, folder, remedy in (
        ("train", runs[0], f"{runs[0]}/Pendulum-v1.zip"),
        ("offline", runs[1], f"{runs[1]}/Pendulum-v1.zip"),
    ):
        with pytest.raises(SystemExit) as error:
            main([command, *more, *(["--dataset", "data"] * (command == "offline")), "-i", folder])
        said = str(error.value) + capsys.readouterr().err
        assert "made this run, and goes on with it" in said
        assert remedy in said

    (tmp_path / "logs").rename(tmp_path / "kept")
    args = make_parser("push", "").parse_args(
        ["--env", "Pendulum-v1", "-f", "kept", "--exp-id", "1"]
    )
    card = make_card(find_agent(args), Scores(0.0, 0.0, 1, True, 0), "me/x", steps=20, video=False)
    assert "after 20 gradient steps on data" in card
    (again,) = re.findall(r"^sb3-pmpo (offline .*)$", card, flags=re.MULTILINE)
    assert main(shlex.split(again)) == 0
    first, second = (
        PMPO.load(f"{logs}/pmpo/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
        for logs in ("kept", "logs")
    )
    assert_equal(parameters(first.policy), parameters(second.policy))


def test_where_labels_come_from(tmp_path: Path) -> None:
    data = str(pendulum(tmp_path / "data"))

    def labels(dataset: str | None, spec: str | None) -> np.ndarray:
        return read_data(dataset, spec, gamma=0.9, seed=0).labels

    assert labels(data, None).any()
    np.save(tmp_path / "ones.npy", np.ones(60))
    assert labels(data, str(tmp_path / "ones.npy")).all()
    assert (labels(data, "return:0.5") == 1).sum() == 30
    loaded = LabelledDataset.load(data)
    buffer = FeedbackBuffer(loaded.observation_space, loaded.action_space)
    buffer.add(np.zeros(3), np.ones(1), -1)
    buffer.save(tmp_path / "feedback.npz")
    assert labels(None, str(tmp_path / "feedback.npz")).tolist() == [-1]
    assert len(labels(data, str(tmp_path / "feedback.npz"))) == 61
    arrays = {"observations": np.zeros((4, 3)), "actions": np.zeros((4, 1)), "labels": np.ones(4)}
    np.savez(tmp_path / "d4rl.npz", **arrays)
    assert labels(str(tmp_path / "d4rl.npz"), None).all()
    for dataset, spec, message in (
        (None, None, "give --dataset"),
        (None, "advantage", "give --dataset"),
        (data, "best", "neither a folder"),
        (data, "advantage:x", "behind 'advantage:' there must be a number, got 'x'"),
        ("nowhere/x-v0", None, "no such folder"),
        (str(tmp_path / "ones.npy"), None, "a file of another kind than .npz"),
    ):
        with pytest.raises(DatasetError, match=message):
            labels(dataset, spec)


@pytest.mark.parametrize(
    "more",
    [["--dataset", "nowhere"], ["--gradient-steps", "0"], [], ["--model", "nowhere.zip"]],
)
def test_errors_are_for_the_user(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["offline", "--env", "Pendulum-v1", *more])
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        (np.zeros(60), (), "all labels are 0"),
        (-np.ones(60), ("--beta", "0.5"), "beta=0.5 is not above"),
        (np.ones(60), ("--alpha", "2"), "alpha must be a number"),
    ],
)
def test_what_cannot_be_learned_is_one_sentence_and_leaves_no_run(
    labels: np.ndarray, more: tuple[str, ...], said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    pendulum(tmp_path / "data")
    np.save("labels.npy", labels)
    these = ["offline", "--env", "Pendulum-v1", "--dataset", "data", "--labels", "labels.npy"]
    with pytest.raises(SystemExit, match=f"^sb3-pmpo offline: error: {said}"):
        main([*these, "--gradient-steps", "5", *TINY, *more])
    assert not Path("logs").exists()


@pytest.mark.parametrize("name", ["data.npz", "labels.npy"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"])
def test_a_torn_file_is_named(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pendulum(tmp_path / "data")
    Path(name).write_bytes(content)
    of_data = name == "data.npz"
    dataset, labels = (name, None) if of_data else ("data", name)
    with pytest.raises(DatasetError, match=f"{name} cannot be read, or is torn"):
        read_data(dataset, labels, gamma=0.9, seed=0)


@pytest.mark.parametrize(
    ("dtype", "more", "n"),
    [
        (np.int64, (), 16),
        (np.int64, ("--env-kwargs", "map_name:'8x8'"), 64),
        (np.int64, ("--env-kwargs", "nonsense:1"), 14),  # inferred
        (np.int64, ("--n-envs", "2"), 16),
    ],
)
def test_arrays_are_of_the_environments_observations(
    dtype: type, more: tuple[str, ...], n: int, tmp_path: Path
) -> None:
    path = tmp_path / "log.npz"
    arrays = {"observations": np.arange(12, dtype=dtype), "actions": np.zeros(12, int)}
    arrays |= {"next_observations": np.arange(2, 14), "infos": np.array([{}] * 12)}
    np.savez(path, **arrays)
    data = read_data(str(path), None, gamma=0.9, seed=0, env="FrozenLake-v1", more=more)
    assert data.observation_space == gym.spaces.Discrete(n)
    arrays["observations"] = arrays["next_observations"] = np.arange(12) + 40  # of another map
    np.savez(path, **arrays)
    data = read_data(str(path), None, gamma=0.9, seed=0, env="FrozenLake-v1", more=more)
    assert data.observation_space == gym.spaces.Discrete(64 if n == 64 else 52)
    np.savez(path, infos=np.array([{}] * 12))
    with pytest.raises(DatasetError, match=r"must have 'observations' and 'actions', got .'infos'"):
        read_data(str(path), None, gamma=0.9, seed=0, env="FrozenLake-v1")


def test_arrays_are_of_the_environments_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pendulum's torque goes to 2, and no row may go as far."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    np.savez(
        "log.npz",
        observations=generator.uniform(-1, 1, (60, 3)).astype(np.float32),
        actions=generator.uniform(-1.9, 1.9, (60, 1)).astype(np.float32),
        rewards=np.ones(60, np.float32),
        terminals=np.arange(60) % 20 == 19,
        labels=np.tile([1, -1, 0], 20),
    )
    given = ["offline", "--env", "Pendulum-v1", "--dataset", "log.npz", *TINY]
    assert main([*given, "--gradient-steps", "10", "--eval-freq", "100"]) == 0
    assert PMPO.load("logs/pmpo/Pendulum-v1_1/Pendulum-v1.zip", device="cpu").num_timesteps == 10
    with pytest.raises(SystemExit):
        main([*given, "--algo", "mpo"])
    assert "--algo: invalid choice: 'mpo'" in capsys.readouterr().err
