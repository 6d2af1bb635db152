"""What is done with a run's folder that somebody else made, and with what will not end."""

from __future__ import annotations

import argparse
import time
from multiprocessing.connection import wait
from pathlib import Path

import gymnasium as gym
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import nn

from sb3_pmpo import PMPO
from sb3_pmpo.storage.pickles import UntrustedFileError
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.plots import plot
from sb3_pmpo.tools.zoo import register
from sb3_pmpo.tools.zoo.agents import AgentError, find_agent, make_parser
from sb3_pmpo.tools.zoo.programs import train
from sb3_pmpo.tools.zoo.stopping import close_in_time

ENV = "Pendulum-v1"


def bomb(mark: Path) -> str:
    """Write YAML that would make a file if it made objects."""
    path = f"!!python/object/apply:pathlib.Path ['{mark}']"
    return f"!!python/object/apply:pathlib.Path.touch\n- {path}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make the folder of a run with a model and plain settings."""
    run = tmp_path / "logs" / "pmpo" / f"{ENV}_1"
    (run / ENV).mkdir(parents=True)
    PMPO("MlpPolicy", ENV, policy_kwargs={"net_arch": [4]}).save(run / f"{ENV}.zip")
    (run / ENV / "args.yml").write_text(
        f"!!python/object/apply:collections.OrderedDict\n- - [env, {ENV}]\n  - [env_kwargs, null]\n"
    )
    (run / ENV / "config.yml").write_text("{policy: MlpPolicy}\n")
    return run


def arguments(folder: Path) -> argparse.Namespace:
    given = ["--env", ENV, "-f", str(folder.parents[1])]
    return make_parser("enjoy", "").parse_args(given)


def test_a_folder_of_the_zoos_is_read(folder: Path) -> None:
    assert find_agent(arguments(folder)).arguments == {"env": ENV, "env_kwargs": None}


@pytest.mark.parametrize("name", ["args.yml", "config.yml"])
def test_a_strangers_yaml_makes_nothing(folder: Path, name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (folder / ENV / name).write_text(bomb(mark))
    with pytest.raises(AgentError, match="cannot be read"):
        find_agent(arguments(folder))
    with (
        pytest.warns(UserWarning, match=f"{ENV}_1 is not drawn: .*not plain YAML"),
        pytest.raises(SystemExit),
    ):
        plot(["-f", str(folder.parents[1]), "-o", str(tmp_path / "x.png")])
    assert not mark.exists()


def test_text_in_a_strangers_settings_is_not_evaluated(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = 'normalize: "__import__(pathlib).Path({mark}).touch()"\n'
    (folder / ENV / "config.yml").write_text(text)
    with pytest.raises(AgentError, match="cannot be read"):
        find_agent(arguments(folder))
    assert not mark.exists()


@pytest.mark.parametrize("content", ["", "a: [", "- 1"])
def test_a_torn_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "args.yml").write_text(content)
    with pytest.raises(ValueError, match=r"args.yml is"):
        read(tmp_path / "args.yml")


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^sb3-pmpo train: error: gamma must be a number"):
        train(["--env", ENV, "-f", str(tmp_path), "-params", "gamma:7", "-n", "10"])
    assert not list(tmp_path.glob("pmpo/*"))


class Sleeper(gym.Wrapper):
    """An environment whose closing does not come back."""

    def close(self) -> None:
        time.sleep(600)


def sleeper() -> gym.Env:
    return Sleeper(gym.make(ENV))


def test_workers_that_hang_are_ended() -> None:
    register()
    env = SubprocVecEnv([sleeper, sleeper])
    started = time.monotonic()
    close_in_time(env, seconds=0.5)
    assert time.monotonic() - started < 60.0
    ended = {process.sentinel for process in env.processes}
    while ended:  # each of them becomes ready when its process has ended
        ready = wait(list(ended), timeout=60.0)
        assert ready
        ended -= {*ready}


class Own(nn.Tanh):
    """An activation that only a pickle holds."""


def test_trust_on_the_command_line_is_the_users_word(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SB3_PMPO_KEY", str(tmp_path / "theirs"))
    kwargs = {"net_arch": [4], "activation_fn": Own}
    model = PMPO("MlpPolicy", ENV, policy_kwargs=kwargs)
    model.save(folder / f"{ENV}.zip")
    monkeypatch.setenv("SB3_PMPO_KEY", str(tmp_path / "mine"))
    command = ["enjoy", "--env", ENV, "-f", str(folder.parents[1]), "--no-render", "-n", "201"]
    with pytest.raises(UntrustedFileError, match="policy_kwargs holds a pickle"):
        main(command)
    assert main([*command, "--trust"]) == 0
    assert "Mean reward" in capsys.readouterr().out
