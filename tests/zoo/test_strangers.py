"""What is done with a run's folder that somebody else made, and with what will not end."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from multiprocessing.connection import wait
from pathlib import Path

import gymnasium as gym
import pytest
import rl_zoo3
import yaml
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import nn

from sb3_pmpo import PMPO, pretrained
from sb3_pmpo.storage import strangers
from sb3_pmpo.storage.pickles import UntrustedFileError, trusting
from sb3_pmpo.tools import checkpoints
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.plots import plot
from sb3_pmpo.tools.saving import save_model
from sb3_pmpo.tools.zoo import register
from sb3_pmpo.tools.zoo.agents import AgentError, find_agent, make_parser
from sb3_pmpo.tools.zoo.found import saved_settings
from sb3_pmpo.tools.zoo.programs import train
from sb3_pmpo.tools.zoo.resuming import CannotResumeError, filled_in
from sb3_pmpo.tools.zoo.shipped import begin_from, unpack
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


# ---------------------------------------------------------------------- what settings name

STEP = "000000005-01234567"


@pytest.fixture
def resumable(folder: Path) -> Path:
    """Make the folder of a run with a manifest and its files; what they hold does not matter."""
    unit = folder / checkpoints.UNIT
    unit.mkdir()
    files = {"model": f"{STEP}-model.zip", "state": f"{STEP}-state.npz"}
    told = {"sb3_pmpo": "checkpoint", "step": 5, "files": files, "pieces": []}
    (unit / "checkpoint.json").write_text(json.dumps(told))
    for name in files.values():
        (unit / name).touch()
    return folder


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a module that leaves a mark where it is imported; return the mark."""
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w').close()\ndef run(env=None, **_): pass\n"
    (tmp_path / "evil_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return mark


@pytest.mark.filterwarnings("ignore:.*args.yml does not say")  # but what matters here
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gym_packages: [numpy, --conf-file, evil_module.py]", "got '--conf-file'"),
        ("gym_packages: [--conf-file=evil_module.py]", "got '--conf-file=evil_module.py'"),
        ("gym_packages: ['a b']", "got 'a b'"),
        ("gym_packages: 3", "must be a list of modules, such as .*, got 3"),
        ("gym_packages: evil_module", "got 'evil_module'"),
        ("gym_packages: [evil_module]", "import evil_module, .*--gym-packages, or pass --trust"),
        ("gym_packages: [sb3_pmpo.__main__]", "import sb3_pmpo.__main__"),
        ("env_kwargs: {--conf-file=evil_module.py: 1}", "got '--conf-file=evil_module.py'"),
        ("env_kwargs: 3", "env_kwargs must be a dictionary of arguments .*got 3"),
        ("eval_env_kwargs: [--conf-file, evil_module.py]", "eval_env_kwargs must be a dict"),
        ("device: --conf-file", "device must be a number, or a text .*got '--conf-file'"),
        ("tensorboard_log: -x", "tensorboard_log must be"),
        ("seed: [1]", r"seed must be a number.*got \[1\]"),
        ("env: 'evil_module:Env-v0'", "environment 'evil_module:Env-v0'.*--trust"),
    ],
)
def test_arguments_of_a_stranger_are_no_options(
    resumable: Path, evil: Path, line: str, said: str
) -> None:
    (resumable / ENV / "args.yml").write_text(line)
    (resumable / ENV / "config.yml").unlink()
    with pytest.raises(CannotResumeError, match=f"args.yml.*{said}"):
        filled_in(["-i", str(resumable)])
    if line.startswith("gym_packages"):
        with pytest.raises(AgentError, match=said):
            find_agent(arguments(resumable))
    assert not evil.exists()


@pytest.mark.filterwarnings("ignore:.*args.yml does not say")  # but what matters here
def test_a_module_is_imported_at_the_users_word(resumable: Path, evil: Path) -> None:
    path = resumable / ENV / "args.yml"
    path.write_text(
        f"{{env: {ENV}, gym_packages: [evil_module, sb3_pmpo.envs], env_kwargs: {{g: 9}}}}"
    )
    expected = [f"--env={ENV}", "--gym-packages", "evil_module", "sb3_pmpo.envs"]
    expected += ["--env-kwargs", "g:9"]
    given = ["-i", str(resumable), "--gym-packages", "evil_module"]
    assert filled_in(given)[:6] == expected  # named on the command line
    with trusting():
        assert filled_in(given[:2])[:6] == expected
    strangers.sign_settings(path.parent)  # of the user's own
    assert filled_in(given[:2])[:6] == expected
    find_agent(arguments(resumable))
    assert evil.exists()
    path.write_text(path.read_text().replace("9", "8"))  # and changed since
    with pytest.raises(CannotResumeError, match="import evil_module"):
        filled_in(given[:2])


SHIPPED = sorted((Path(__file__).parents[2] / "zoo_configs").rglob("*.yml"))
ZOOS = sorted(Path(rl_zoo3.__file__).parent.glob("hyperparams/*.yml"))
SHELL = {"pydoc.pipepager": {"cmd": "touch mark"}}


@pytest.mark.parametrize("key", ["env_wrapper", "vec_env_wrapper", "callback", "policy"])
@pytest.mark.parametrize("value", ["evil_module.run", "gymnasium.wrappers.common.gym.make"])
def test_settings_of_a_stranger_call_nothing(
    folder: Path, evil: Path, key: str, value: str
) -> None:
    settings = folder / ENV
    (settings / "config.yml").write_text(json.dumps({"policy": "MlpPolicy", key: value}))
    with pytest.raises(AgentError, match=rf"config.yml: {key} names {value}.*--trust"):
        find_agent(arguments(folder))
    with pytest.raises(UntrustedFileError, match=f"{key} names {value}"):
        main(["enjoy", "--env", ENV, "-f", str(folder.parents[1]), "--no-render"])
    assert not evil.exists()
    with trusting():
        assert saved_settings(str(settings))[0][key] == value
    strangers.sign_settings(settings)
    assert saved_settings(str(settings))[0][key] == value


@pytest.mark.parametrize("key", ["env_wrapper", "vec_env_wrapper", "callback", "policy"])
def test_a_file_that_the_user_names_calls_no_functions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    value = "pydoc.pipepager" if key == "policy" else SHELL
    settings = {"n_timesteps": 30, "policy": "MlpPolicy", key: value}
    conf, spec = Path("conf.yml"), Path("spec.yml")
    conf.write_text(json.dumps({ENV: settings}))
    what = {"algorithms": ["pmpo"], "tasks": [ENV], "seeds": [0]}
    spec.write_text(json.dumps(what | {"hyperparams": {key: value}}))
    said = rf"{key} names pydoc.pipepager, which is no subclass of .*--trust"
    with pytest.raises(SystemExit, match=f"conf.yml: {said}"):
        main(["train", "--env", ENV, "--conf-file", str(conf)])
    with pytest.raises(SystemExit):
        main(["sweep", str(spec)])
    assert f"{key} names pydoc.pipepager, which is no subclass" in capsys.readouterr().err
    assert not Path("mark").exists()
    with trusting():
        strangers.check_kinds(settings, "conf.yml")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("env_wrapper", "gymnasium.wrappers.RecordVideo"),
        ("vec_env_wrapper", "stable_baselines3.common.vec_env.VecVideoRecorder"),
        ("callback", "stable_baselines3.common.callbacks.CheckpointCallback"),
        ("policy", "sb3_pmpo.policies.PMPOPolicy"),
        ("policy", "MlpPolicy"),
        ("env_wrapper", "sb3_pmpo.envs.control_suite"),  # a function that is listed
    ],
)
def test_a_file_that_the_user_names_may_name_classes(key: str, name: str) -> None:
    strangers.check_kinds({key: name}, "conf.yml")


def test_a_file_that_the_user_names_may_give_any_data() -> None:
    scores = {"scores": {0: 1.0, 1: None}, "since": datetime.date(2026, 1, 1)}
    named = [{"gymnasium.wrappers.TransformReward": scores}, {"not_installed.Wrapper": scores}]
    strangers.check_kinds({"env_wrapper": named, "callback": None}, "conf.yml")


def test_settings_in_python_call_what_they_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings_in_python.py").write_text(
        "import gymnasium as gym\n"
        "def wrapped(env): return gym.wrappers.TimeLimit(env, 5)\n"
        "wrappers = [gym.wrappers.FlattenObservation, 'settings_in_python.wrapped']\n"
        f"hyperparams = {{'{ENV}': dict(policy='MlpPolicy', env_wrapper=wrappers)}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--env", ENV, "--conf-file", "settings_in_python", "-n", "10"]) == 0
    with pytest.raises(SystemExit, match="n_timesteps is missing; write it there, or give -n"):
        main(["train", "--env", ENV, "--conf-file", "settings_in_python"])


@pytest.mark.parametrize("path", [*SHIPPED, *ZOOS], ids=lambda path: path.stem)
def test_settings_that_ship_name_classes(path: Path) -> None:
    for settings in yaml.safe_load(path.read_text()).values():
        strangers.check_kinds(settings, str(path))


def test_settings_of_a_stranger_go_on_with_known_wrappers(folder: Path) -> None:
    wrappers = [{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 3}}]
    (folder / ENV / "config.yml").write_text(json.dumps({"env_wrapper": wrappers}))
    assert find_agent(arguments(folder)).settings["env_wrapper"] == wrappers


@pytest.mark.parametrize("name", sorted(strangers._KNOWN))
def test_a_listed_name_is_there(name: str) -> None:
    module, _, called = name.partition(":")
    assert callable(getattr(pytest.importorskip(module), called))


@pytest.mark.filterwarnings("ignore:.*args.yml does not say")  # but what matters here
def test_a_run_of_a_stranger_goes_on_with_nothing_called(
    resumable: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (resumable / ENV / "args.yml").write_text(f"env: {ENV}")
    (resumable / ENV / "config.yml").write_text(json.dumps({"env_wrapper": SHELL}))
    with pytest.raises(SystemExit, match=r"config.yml: env_wrapper names pydoc.pipepager.*--trust"):
        main(["train", "-i", str(resumable)])
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"env_wrapper": [SHELL]}, "env_wrapper names pydoc.pipepager.*--trust"),
        ({"env_wrapper": [{"sb3_pmpo.envs.make_env": {}}]}, "names sb3_pmpo.envs.make_env"),
        ({"env": "evil_module:Env-v0"}, "names the environment 'evil_module:Env-v0'.*--trust"),
    ],
)
def test_a_policy_of_a_stranger_calls_nothing(
    told: dict, said: str, tmp_path: Path, evil: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "policy.safetensors"
    shipped = pretrained.read(pretrained.names()[0])
    shipped._replace(about=shipped.about | told).write(path)
    for use in (pretrained.make_env, lambda path: unpack(path, tmp_path / "logs")):
        with pytest.raises(ValueError, match=said):
            use(path)
    with pytest.raises((ValueError, SystemExit), match=said):
        begin_from(["--from-pretrained", str(path)])
    assert not evil.exists()
    with trusting():
        pretrained.check_harmless(path, pretrained.about(path))


# ---------------------------------------------------------------------- algorithms of SB3


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_models_of_sb3_that_a_stranger_made_do_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SB3_PMPO_KEY", str(tmp_path / "mine"))
    mark = tmp_path / "mark"
    model = SAC("MlpPolicy", ENV, policy_kwargs={"net_arch": [4]}, buffer_size=1)
    own = folder.parents[1] / "sac" / f"{ENV}_1"
    (own / ENV).mkdir(parents=True)
    for name in ("config.yml", "args.yml"):
        (own / ENV / name).write_bytes((folder / ENV / name).read_bytes())
    unit = own / checkpoints.UNIT
    file = own / f"{ENV}.zip"
    model.save(file)  # a stranger's that is harmless
    given = make_parser("enjoy", "").parse_args(
        ["--algo", "sac", "--env", ENV, "-f", str(own.parents[1])]
    )
    agent = find_agent(given)
    env = agent.make_env(n_envs=1, seed=0, render=False)
    assert agent.load(env, seed=0, device="cpu").policy_class is model.policy_class
    model.bomb = Bomb(mark)
    model.save(file)
    enjoy = ["enjoy", "--algo", "sac", "--env", ENV, "-f", str(own.parents[1]), "--no-render"]
    again = ["train", "--algo", "sac", "--env", ENV, "-i", str(file), "-n", "1", "-f"]
    for command in (enjoy, [*again, str(tmp_path / "new")]):
        with pytest.raises((UntrustedFileError, SystemExit), match=r"bomb.*trust=True"):
            main(command)
    with pytest.raises(UntrustedFileError, match="bomb holds a pickle"):
        agent.load(env, seed=0, device="cpu")
    checkpoints.save(model, unit, {})
    monkeypatch.setenv("SB3_PMPO_KEY", str(tmp_path / "another"))
    found = checkpoints.find(own)
    assert found is not None
    with pytest.raises(UntrustedFileError, match="bomb holds a pickle"):
        checkpoints.load(SAC, found, env, 0)
    del model.bomb
    assert not mark.exists()
    save_model(model, file)
    assert agent.load(env, seed=0, device="cpu").policy_class is model.policy_class
    monkeypatch.setenv("SB3_PMPO_KEY", str(tmp_path / "mine"))
    checkpoints.load(SAC, found, env, 0)  # of the user's own, it runs
    assert mark.exists()


# ---------------------------------------------------------------------- folders


def test_only_checkpoints_are_deleted(tmp_path: Path) -> None:
    for name in ("checkpoint_mine", "checkpoint_5", "checkpoint_9"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint_mine", "checkpoint_9"):
        (tmp_path / name / "progress.json").write_text("{}")
    (tmp_path / "checkpoint_7").symlink_to(tmp_path / "checkpoint_9")
    checkpoints.forget(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint_5", "checkpoint_7", "checkpoint_mine"
    }  # fmt: skip
