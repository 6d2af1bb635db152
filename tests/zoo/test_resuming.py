"""``train -i FOLDER``, what is the latest run, and files that are whole or not there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import torch as th
import worker_toys  # noqa: F401  # registers Toy-v0, and how its state is told
import yaml
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import Toy, assert_equal, parameters

import sb3_pmpo.tools.zoo
from sb3_pmpo import PMPO
from sb3_pmpo.storage.statistics import load_statistics
from sb3_pmpo.tools.checkpoints import find, lock
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.curves import load_episodes
from sb3_pmpo.tools.zoo.found import find_model
from sb3_pmpo.tools.zoo.journal import Journal
from sb3_pmpo.tools.zoo.study import open_storage

ENV = "Toy-v0"
TINY = ["policy_kwargs:dict(net_arch=[8])", "batch_size:8", "learning_starts:10"]
TINY += ["buffer_size:500"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sb3_pmpo.tools.zoo.register()


def train(*arguments: str, params: tuple[str, ...] = ()) -> Path:
    """Train, evaluating and saving; return the folder of the first run."""
    given = ["train", "--env", ENV, "--seed", "1", "--eval-freq", "15", "--eval-episodes", "1"]
    given += ["--verbose", "0", "--save-freq", "20", "-params", *TINY, *params]
    algorithm = arguments[arguments.index("--algo") + 1] if "--algo" in arguments else "pmpo"
    assert main([*given, *arguments]) == 0
    return Path("logs", algorithm, f"{ENV}_1")


def results(folder: Path) -> dict[str, th.Tensor]:
    with np.load(folder / "evaluations.npz") as saved:
        found = {name: th.tensor(saved[name]) for name in saved.files}
    episodes = load_episodes(folder)
    assert episodes.t.is_monotonic_increasing
    found |= {name: th.tensor(episodes[name].to_list()) for name in ("r", "l")}
    return found | parameters(PMPO.load(folder / f"{ENV}.zip", device="cpu").policy)


class Stop(Exception):  # noqa: N818  # it is no error
    pass


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what lets the toy fail for good after some steps; nothing is saved then."""

    def at(steps: int) -> Any:
        context = pytest.MonkeyPatch.context()
        patch = context.__enter__()
        step, taken = Toy.step, []

        def fail(env: Toy, action: np.ndarray) -> Any:
            taken.append(1)
            if len(taken) > steps:
                raise Stop
            return step(env, action)

        patch.setattr(Toy, "step", fail)
        patch.setattr("sb3_pmpo.tools.zoo.manager.Manager._save_all", lambda *_: None)
        return context

    return at


def test_a_run_goes_on_in_its_folder_bit_for_bit(
    dies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    params = ("normalize:True", "n_envs:2", "noise_type:'ornstein-uhlenbeck'", "noise_std:0.2")
    folder = train("-n", "60", params=params)
    expected = results(folder)
    Path("logs").rename("elsewhere")
    context = dies(45 + 20)  # evaluations are steps, too
    with pytest.raises(Stop):
        train("-n", "60", params=params)
    context.__exit__(None, None, None)
    assert not (folder / f"{ENV}.zip").exists()
    found = find(folder)
    assert found is not None
    assert 20 <= found.step < 60
    (folder / ".writing-1-evaluations.npz").write_bytes(b"interrupted")
    with (folder / "0.monitor.csv").open("a") as file:
        file.write("9.0,10,")  # of an episode after the checkpoint, torn
    assert main(["train", "-i", str(folder)]) == 0
    assert f"Going on from decision {found.step}" in capsys.readouterr().out
    assert_equal(expected, results(folder))
    assert not list(folder.rglob(".writing*"))
    assert find(folder).step == 60
    assert not Path("logs/pmpo", f"{ENV}_2").exists()
    assert main(["train", "-i", str(folder)]) == 0
    assert "has done its 60 decisions; -n says how many more" in capsys.readouterr().out
    assert main(["train", "-i", str(folder), "-n", "10", "-params", "gamma:0.5"]) == 0
    model = PMPO.load(folder / f"{ENV}.zip")
    assert (model.num_timesteps, model.gamma) == (70, 0.5)
    settings = yaml.safe_load((folder / ENV / "config.yml").read_text().split("\n", 1)[1])
    assert ["gamma", 0.5] in settings[0]


def test_a_checkpoint_of_a_script_begins_a_new_run() -> None:
    given: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 10}
    PMPO("MlpPolicy", gym.make(ENV), buffer_size=500, **given).learn(30).save_checkpoint("mine")
    assert main(["train", "--env", ENV, "-i", "mine", "-n", "20", "--eval-freq", "-1"]) == 0
    assert PMPO.load(f"logs/pmpo/{ENV}_1/{ENV}.zip").num_timesteps == 50
    assert find(Path("mine").parent) is None
    with pytest.raises(SystemExit, match="holds no checkpoint"):
        main(["train", "--env", ENV, "-i", "logs"])


def test_a_run_that_cannot_go_on_is_as_it_was() -> None:
    folder = train("-n", "40")
    assert main(["train", "-i", str(folder), "-n", "5", "--eval-freq", "2"]) == 0  # a newer best

    def content() -> dict[str, bytes]:
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in paths}

    before = content()
    with pytest.raises(SystemExit, match="gamma"):
        main(["train", "-i", str(folder), "-n", "20", "-params", "gamma:2.0"])
    assert content() == before


def test_algorithms_of_sb3_resume_too() -> None:
    folder = train("--algo", "sac", "-n", "30", params=("normalize:True",))
    assert main(["train", "-i", str(folder), "-n", "20"]) == 0
    model = SAC.load(folder / f"{ENV}.zip")
    assert model.num_timesteps == 50
    assert model._n_updates > 30
    with np.load(folder / "evaluations.npz") as saved:
        assert saved["timesteps"].tolist() == [15, 30, 45]
    # The Zoo's and SB3's own tools read these.
    statistics = VecNormalize.load(str(folder / ENV / "vecnormalize.pkl"), DummyVecEnv([Toy]))
    assert statistics.obs_rms.count > 45
    assert load_statistics(folder / ENV / "vecnormalize.pkl", DummyVecEnv([Toy])).training


def test_a_run_in_use_is_left_alone() -> None:
    folder = train("-n", "20")
    with lock(folder), pytest.raises(SystemExit, match="another process trains"):
        main(["train", "-i", str(folder), "-n", "20"])


# ---------------------------------------------------------------------- the latest run


def test_the_latest_run_is_one_with_a_whole_model(capsys: pytest.CaptureFixture[str]) -> None:
    first = train("-n", "20")
    runs = first.parent
    second, third, fourth, fifth = (runs / f"{ENV}_{number}" for number in (2, 3, 4, 5))
    second.mkdir()  # killed before its model was saved
    third.mkdir()
    (third / f"{ENV}.zip").write_bytes((first / f"{ENV}.zip").read_bytes()[:500])
    (fourth / ENV).mkdir(parents=True)
    (fourth / f"{ENV}.zip").write_bytes((first / f"{ENV}.zip").read_bytes())
    (fourth / ENV / "args.yml").touch()
    shutil.copytree(first, fifth)
    (fifth / ENV / "vecnormalize.pkl").write_bytes(pickle.dumps({"obs_rms": 1.0})[:-1])
    with pytest.warns(UserWarning, match="is left out") as caught:
        _, model, _ = find_model(0, "logs", "pmpo", ENV)
    assert model == str(first / f"{ENV}.zip")
    said = [str(each.message) for each in caught]
    assert [text.split(":")[0] for text in said] == [f"run {i} is left out" for i in (5, 4, 3, 2)]
    assert f"{ENV}_5/{ENV}/vecnormalize.pkl is empty or torn" in said[0]
    assert f"{ENV}_4/{ENV}/args.yml is empty or torn" in said[1]
    assert f"{ENV}_3/{ENV}.zip is empty or torn" in said[2]
    assert "No model found" in said[3]
    with pytest.warns(UserWarning, match="is left out"):
        assert main(["enjoy", "--env", ENV, "--no-render", "-n", "11"]) == 0
    assert f"Loading {first}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=f"{ENV}_3/{ENV}.zip is empty or torn"):
        find_model(3, "logs", "pmpo", ENV)


def test_torn_curves_are_left_out(tmp_path: Path) -> None:
    folder = train("-n", "50")
    whole = (folder / "evaluations.npz").read_bytes()
    (folder / "evaluations.npz").write_bytes(whole[: len(whole) // 2])
    with (
        pytest.warns(UserWarning, match=r"evaluations.npz is not drawn: it is empty or torn"),
        pytest.raises(SystemExit),
    ):
        main(["plot", "-o", "x.png"])
    monitor = folder / "0.monitor.csv"
    before = load_episodes(folder)
    monitor.write_text(monitor.read_text() + "3.5,1")
    with pytest.warns(UserWarning, match="its last line is unfinished, which are 5 characters"):
        after = load_episodes(folder)
    assert after.equals(before)
    monitor.write_text("")
    with pytest.warns(UserWarning, match=r"0.monitor.csv is not drawn: it is empty or torn"):
        assert load_episodes(folder).empty


# ---------------------------------------------------------------------- writing


def test_settings_and_results_are_replaced_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train("-n", "20", "--save-replay-buffer", params=("normalize:True",))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name in ("checkpoint.json", *watched):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    for watched in (["evaluations.npz"], ["config.yml"], ["vecnormalize.pkl"], ["best_model.zip"]):
        with pytest.raises(OSError, match="No space"):
            main(["train", "-i", str(folder), "-n", "20"])
        for path, content in before.items():
            if path.name in (*watched, "checkpoint.json", "args.yml"):
                assert path.read_bytes() == content, path


def test_a_model_is_saved_though_the_rest_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("logs/pmpo", f"{ENV}_1")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PMPO, "save_replay_buffer", full)
    with pytest.raises(OSError, match="No space") as raised:
        train("-n", "20", "--save-replay-buffer")
    assert raised.value.__notes__ == [f"{folder}/replay_buffer.pkl was not saved"]
    assert PMPO.load(folder / f"{ENV}.zip").num_timesteps == 20
    assert find(folder).step == 20


# ---------------------------------------------------------------------- journals


@pytest.mark.parametrize("rest", [b'{"op_code": 5, "wor', b"\0\0\0\n", b"x" * 9000])
def test_an_unfinished_line_of_a_journal_is_dropped(rest: bytes) -> None:
    storage = open_storage("study.log")
    study = optuna.create_study(storage=storage, study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    whole = Path("study.log").read_bytes()
    with Path("study.log").open("ab") as file:
        file.write(rest)  # of a worker that was killed
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)  # of one that was not
    for line in Path("study.log").read_bytes()[len(whole) :].splitlines():
        json.loads(line)
    with Path("study.log").open("ab") as file:
        file.write(rest)
    again = optuna.load_study(storage=open_storage("study.log"), study_name="s")
    assert len(again.trials) == 3


def test_a_new_or_torn_journal_opens() -> None:
    Journal("new.log").append_logs([{"a": 1}])
    assert Path("new.log").read_text() == '{"a":1}\n'
    Path("torn.log").write_text('{"a"')
    assert list(Journal("torn.log").read_logs(0)) == []


def test_a_run_that_goes_on_logs_where_it_did() -> None:
    """SB3 takes the latest folder of the algorithm, here that of a run that began in between."""
    folder = train("-n", "40", "-tb", "tb")
    train("-n", "40", "-tb", "tb", "--seed", "2")
    train("-n", "40", "-i", str(folder))
    last = {}
    for path in Path("tb", ENV).iterdir():
        events = EventAccumulator(str(path)).Reload()
        last[path.name] = max(each.step for each in events.Scalars("eval/mean_reward"))
    assert last == {"PMPO_1": 75, "PMPO_2": 30}


def test_arguments_that_are_torn_between_two_entries_are_named() -> None:
    folder = train("-n", "20")
    path = folder / ENV / "args.yml"
    path.write_text(path.read_text().partition("  - - save_freq")[0])
    with pytest.warns(
        UserWarning, match=r"args.yml does not say seed, save_freq, vec_env, verbose"
    ):
        assert main(["train", "-i", str(folder), "-n", "5"]) == 0
