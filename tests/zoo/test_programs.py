"""The Zoo's programs with our algorithms: settings, folders, resuming, stopping."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import rl_zoo3
import rl_zoo3.train
import torch as th
import yaml
from dm_control import suite
from forked import program
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import unwrap_vec_normalize

import sb3_pmpo.tools.zoo
from sb3_pmpo import (
    DPO,
    MPO,
    PMPO,
    best_worst,
    boltzmann,
    ipo_loss,
    quantile,
    state_value,
    threshold,
    top_k,
)
from sb3_pmpo.core.preference import mean_over_samples
from sb3_pmpo.embeddings import EmbeddingCritic
from sb3_pmpo.envs import wrap
from sb3_pmpo.replay import PrioritizedReplayBuffer
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.settings import (
    KeyValues,
    as_dict,
    config_path,
    load_config,
    merge,
    suite_ids,
    to_arguments,
    to_yaml,
)
from sb3_pmpo.tools.zoo.agents import find_agent, make_parser
from sb3_pmpo.tools.zoo.launch import run_train
from sb3_pmpo.tools.zoo.manager import Manager

SUITE = {f"dm_control/{domain}-{task}-v0" for domain, task in suite.ALL_TASKS if domain != "lqr"}
TINY = ["-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16", "buffer_size:2000"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sb3_pmpo.tools.zoo.register()


def train(*arguments: str, env: str = "Pendulum-v1") -> int:
    return main(["train", "--env", env, "--seed", "1", "--eval-freq", "-1", *TINY, *arguments])


def settings(text: str) -> Path:
    Path("settings.yml").write_text(text)
    return Path("settings.yml")


# ---------------------------------------------------------------------- settings


def test_settings_cover_every_task_of_the_suite() -> None:
    entries = yaml.safe_load(config_path().read_text())
    assert suite_ids() == SUITE
    assert all(env_id in gym.registry for env_id in entries.keys() - {"default"})
    assert len(entries) == len(SUITE) + 1 + 15  # Gymnasium's of MuJoCo and Box2D
    assert load_config("Nothing-v0") == entries["default"]
    assert load_config("dm_control/dog-run-v0")["n_timesteps"] == 500_000


#: One of each family; all their tasks have the same arguments.
FAMILIES = [f"dm_control/{task}-v0" for task in ("reacher-easy", "finger-spin", "acrobot-swingup")]


@pytest.mark.parametrize("entry", [*FAMILIES, "default"])
@pytest.mark.parametrize("algorithm", ["pmpo", "mpo", "dpo"])
def test_every_family_trains_through_the_zoos_manager(algorithm: str, entry: str) -> None:
    env = "Pendulum-v1" if entry == "default" else entry
    short = ["-n", "12", "--eval-freq", "-1", "-params", "policy_kwargs:dict(net_arch=[8])"]
    short += ["learning_starts:8", "batch_size:4"]
    status = main(["train", "--algo", algorithm, "--env", env, *short])
    assert status == 0
    (saved,) = Path("logs", algorithm).glob("*_1/*.zip")
    model = sb3_pmpo.tools.zoo.ALGORITHMS[algorithm].load(saved)
    assert model.num_timesteps == 12
    assert model._n_updates > 0  # type: ignore[attr-defined]  # they are off-policy


def test_both_learning_rates_may_fall_to_zero() -> None:
    given = ["-params", "actor_learning_rate:lin_3e-4", "learning_rate:lin_1e-3"]
    assert main(["train", "--env", "Pendulum-v1", "-n", "10", "--eval-freq", "-1", *given]) == 0
    model = PMPO.load("logs/pmpo/Pendulum-v1_1/Pendulum-v1.zip")
    for rate, start in ((model.actor_lr_schedule, 3e-4), (model.lr_schedule, 1e-3)):
        assert rate is not None
        assert [rate(1.0), rate(0.5)] == pytest.approx([start, start / 2])
    with pytest.raises(ValueError, match="actor_learning_rate must be a number or lin_"):
        to_arguments({"actor_learning_rate": "cosine"})


def test_yaml_becomes_arguments() -> None:
    config: dict[str, Any] = {"labeller": "top_k(2)", "beta": [1.0, 20.0], "loss": "ipo_loss"}
    arguments = to_arguments(config)
    assert arguments == {"labeller": top_k(2), "beta": (1.0, 20.0), "loss": ipo_loss}
    assert config["labeller"] == "top_k(2)"  # the user's dictionary is as it was


@pytest.mark.parametrize(
    ("text", "labeller"),
    [
        ("top_k(2, normalise=mean_over_samples)", top_k(2, normalise=mean_over_samples)),
        ("threshold(quantile(0.75))", threshold(quantile(0.75))),
        ("threshold(state_value)", threshold(state_value)),
        ("threshold(-1.5)", threshold(-1.5)),
        ("boltzmann(temperature=1.0)", boltzmann(1.0)),
    ],
)
def test_a_labeller_is_read(text: str, labeller: Any) -> None:
    assert to_arguments({"labeller": text}) == {"labeller": labeller}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labeller", "top_q(2)", "'top_q' is not known here, did you mean top_k?"),
        ("labeller", "top_k", "called with arguments"),
        ("labeller", "top_k(0)", "k must be a whole number >= 1, got 0"),
        ("labeller", "top_k(", "was never closed"),
        ("labeller", "top_k(1 + 1)", "'1 [+] 1' is no name and no literal"),
        ("labeller", "quantile(0.5)", "known: advantage, best_worst"),
        ("labeller", "__import__('os').getcwd()", "is not known here"),
        ("loss", "ipo_los", "did you mean ipo_loss?"),
        ("exploration_noise", "pink_noise(1)", "is not known here"),
        ("policy_kwargs", "dict(a=nn.functional.relu)", "classes of nn"),
    ],
)
def test_anything_else_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_arguments({name: text})


def test_the_zoos_own_settings_are_read() -> None:
    """Their texts, which the Zoo evaluates, mean to us what they mean to it."""
    read = 0
    for path in (Path(rl_zoo3.__file__).parent / "hyperparams").glob("*.yml"):
        for entry in yaml.safe_load(path.read_text()).values():
            texts = {key: each for key, each in entry.items() if key.endswith("_kwargs")}
            names = {"nn": th.nn, "th": th, "RMSpropTFLike": RMSpropTFLike}
            for key, text in texts.items():
                if isinstance(text, str):
                    assert as_dict(key, text) == eval(text, names)
                    read += 1
    assert read > 100


def test_the_command_line_needs_no_second_quotes() -> None:
    manager = _manager("-params", "labeller:top_k(2)", "exploration_noise:None", "alpha:0.25")
    hyperparams, _ = manager.read_hyperparameters()
    assert hyperparams.items() >= {"labeller": "top_k(2)", "alpha": 0.25}.items()
    assert hyperparams["exploration_noise"] is None


@pytest.mark.parametrize("given", ["labeller:top_q(2)", "n_steps:__import__('os')"])
def test_the_command_line_evaluates_nothing(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--env", "Pendulum-v1", "-params", given])
    assert "is not known here" in capsys.readouterr().err


def test_a_setting_of_the_users_own_reaches_the_model() -> None:
    conf = settings(
        "Pendulum-v1:\n"
        "  n_timesteps: 30\n"
        "  policy: MlpPolicy\n"
        "  learning_rate: lin_1e-3\n"
        "  labeller: best_worst()\n"
        "  n_envs: 2\n"
        "  normalize: true\n"
        "  env_kwargs: {g: 5.0}\n"
        "  policy_kwargs: 'dict(net_arch=[8], n_bins=5)'\n"
    )
    manager = _manager("-conf", str(conf), "-params", "batch_size:4")
    results = manager.setup_experiment()
    assert results is not None
    model = results[0]
    assert model.labeller == best_worst()
    assert model.policy_kwargs == {"net_arch": [8], "n_bins": 5}
    assert model.batch_size == 4
    assert model.n_envs == 2
    assert model.get_vec_normalize_env() is not None
    assert model.env.get_attr("g") == [5.0, 5.0]
    assert manager.create_envs(1, eval_env=True).get_attr("g") == [5.0]
    assert callable(model.learning_rate)
    model.env.close()


def _manager(*arguments: str, algo: str = "pmpo") -> Manager:
    """Let the Zoo's own program make the manager, and stop it there."""
    made: list[Manager] = []

    class Stop(Exception):  # noqa: N818  # it is no error
        pass

    def make(*args: Any, **kwargs: Any) -> Manager:
        made.append(Manager(*args, **kwargs))
        raise Stop

    with pytest.raises(Stop):
        run_train("train", ["--algo", algo, "--env", "Pendulum-v1", *arguments], make)
    return made[0]


def test_programs_that_start_at_once_take_two_folders() -> None:
    one, other = _manager("-n", "5"), _manager("-n", "5")
    assert one.save_path == other.save_path  # neither has seen the other
    for manager in (one, other):
        manager.setup_experiment()
        manager._leave()
    assert [path.name for path in sorted(Path("logs/pmpo").iterdir())] == [
        "Pendulum-v1_1",
        "Pendulum-v1_2",
    ]
    assert Path(other.params_path, "args.yml").exists()


@pytest.mark.parametrize("length", ["0", "-5", "1e4"])
def test_a_length_that_is_none_is_refused(length: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _manager("-n", length)
    assert (
        f"-n/--n-timesteps: must be a whole number >= 1, or -1 for the setting's, got {length}"
        in (capsys.readouterr().err)
    )


def test_trial_zero_is_a_trial() -> None:
    study = optuna.create_study(storage="sqlite:///study.db", study_name="s")
    study.add_trial(
        optuna.trial.create_trial(
            params={"one_minus_gamma": 0.5, "batch_size_pow": 3, "learning_rate": 1e-3}
            | {"train_freq": 1, "tau": 0.01, "net_arch": "small"},
            distributions={
                "one_minus_gamma": optuna.distributions.FloatDistribution(0.0, 1.0),
                "batch_size_pow": optuna.distributions.IntDistribution(1, 9),
                "learning_rate": optuna.distributions.FloatDistribution(0.0, 1.0),
                "train_freq": optuna.distributions.IntDistribution(1, 9),
                "tau": optuna.distributions.FloatDistribution(0.0, 1.0),
                "net_arch": optuna.distributions.CategoricalDistribution(["small", "big"]),
            },
            value=1.0,
        )
    )
    stored = ["--storage", "sqlite:///study.db", "--study-name", "s"]
    conf = settings(
        "Pendulum-v1: {n_timesteps: 5, policy: MlpPolicy, policy_kwargs: 'dict(n_critics=1)'}"
    )
    manager = _manager(*stored, "--trial-id", "0", "-conf", str(conf), algo="sac")
    hyperparams, saved = manager.read_hyperparameters()
    for given in (hyperparams, saved):
        assert given["gamma"] == 0.5
        assert as_dict("policy_kwargs", given["policy_kwargs"]) == {
            "n_critics": 1,
            "net_arch": [64, 64],
        }
    with pytest.raises(ValueError, match="--trial-id 7: the study 's' has no such trial"):
        _manager(*stored, "--trial-id", "7", "-conf", str(conf), algo="sac").read_hyperparameters()
    with pytest.raises(ValueError, match=r"there is no study 'other' in sqlite:///study\.db"):
        _manager(*stored[:3], "other", "-conf", str(conf), algo="sac").read_hyperparameters()
    with pytest.raises(ValueError, match="needs --storage and --study-name"):
        _manager("--trial-id", "0").read_hyperparameters()


def test_a_trial_is_saved_as_text_that_trains_again(capsys: pytest.CaptureFixture[str]) -> None:
    study = optuna.create_study(storage="sqlite:///study.db", study_name="s")
    study.enqueue_trial({"labels": "half"})
    trial = study.ask()
    drawn = HYPERPARAMS_SAMPLER["pmpo"](trial, 1, 1, {})
    manager = _manager("--storage", "sqlite:///study.db", "--study-name", "s", "--trial-id", "0")
    hyperparams, saved = manager.read_hyperparameters()
    assert yaml.safe_load(yaml.safe_dump(dict(saved)))["labeller"].startswith("top_k(")
    assert to_arguments(hyperparams).items() >= drawn.items()
    assert "'labeller': 'top_k(" in capsys.readouterr().out  # and the user sees it


def test_policy_kwargs_are_merged_from_strings_and_dictionaries() -> None:
    merged = merge(
        {"policy_kwargs": "dict(net_arch=[8], n_bins=3)", "tau": 1},
        {"policy_kwargs": {"n_bins": 5}, "gamma": 0.9},
    )
    assert merged == {"policy_kwargs": {"net_arch": [8], "n_bins": 5}, "tau": 1, "gamma": 0.9}


def test_a_class_in_policy_kwargs_goes_by_its_name() -> None:
    for written in (
        "dict(critic_class=EmbeddingCritic, activation_fn=nn.ELU)",
        {"critic_class": "EmbeddingCritic", "activation_fn": "nn.ELU"},
    ):
        assert to_arguments({"policy_kwargs": written}) == {
            "policy_kwargs": {"critic_class": EmbeddingCritic, "activation_fn": th.nn.ELU}
        }
    assert as_dict("env_kwargs", {"mode": "dict"}) == {"mode": "dict"}


def test_what_yaml_cannot_hold_is_written_as_text() -> None:
    kwargs = {
        "net_arch": (8, 8),
        "activation_fn": th.nn.ELU,
        "optimizer_class": th.optim.AdamW,
        "critic_class": EmbeddingCritic,
    }
    text = to_yaml({"tau": 0.1, "policy_kwargs": kwargs}, "Pendulum-v1")
    entry = yaml.safe_load(text)["Pendulum-v1"]
    assert entry["tau"] == 0.1
    assert as_dict("policy_kwargs", entry["policy_kwargs"]) == kwargs | {"net_arch": [8, 8]}
    plain = {"policy_kwargs": {"net_arch": [8]}}
    assert yaml.safe_load(to_yaml(plain, "x")) == {"x": plain}


# ---------------------------------------------------------------------- registration


def test_register_is_all_that_the_zoos_own_train_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import rl_zoo3.train; import sb3_pmpo.tools.zoo; "
         "sb3_pmpo.tools.zoo.register(); sb3_pmpo.tools.zoo.register(); rl_zoo3.train.train()",
         "--algo", "mpo", "--env", "dm_control/cartpole-swingup-v0", "-n", "20", "--eval-freq",
         "-1"],
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert MPO.load(next(Path("logs/mpo").glob("*/*.zip"))).num_timesteps == 20


def test_register_leaves_a_users_own_manager_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rl_zoo3.train.ExperimentManager is Manager

    class Mine(Manager):
        pass

    monkeypatch.setattr(rl_zoo3.train, "ExperimentManager", Mine)
    sb3_pmpo.tools.zoo.register()
    assert rl_zoo3.train.ExperimentManager is Mine


def test_the_zoos_own_algorithms_train_on_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    env = "dm_control/cartpole-swingup-v0"
    assert train("--algo", "sac", "-n", "30", env=env) == 0
    assert "sac takes its own defaults for PMPO's learning_starts" in capsys.readouterr().out
    model = SAC.load("logs/sac/dm_control-cartpole-swingup-v0_1/dm_control-cartpole-swingup-v0.zip")
    assert model.learning_starts == 100  # SAC's default, and not PMPO's setting
    assert model.batch_size == 16  # of -params
    watch = ["enjoy", "--algo", "sac", "--env", env, "--no-render", "-n", "501"]
    assert main(watch) == 0
    assert "Mean episode length: 500.00" in capsys.readouterr().out  # an action repeat of 2


def test_what_is_given_goes_before_what_is_filled_in() -> None:
    assert _manager("--algo=sac").algo == _manager("--alg", "sac").algo == "sac"


def test_the_zoos_own_algorithms_stay() -> None:
    assert rl_zoo3.ALGOS["sac"] is SAC
    assert rl_zoo3.ALGOS["pmpo"] is PMPO
    assert rl_zoo3.ALGOS["dpo"] is DPO


# ---------------------------------------------------------------------- training


def test_train_leaves_the_zoos_folders_and_enjoy_finds_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    env = "dm_control/cartpole-swingup-v0"
    assert train("-n", "60", "--eval-freq", "30", "--eval-episodes", "1", "-tb", "tb", env=env) == 0
    folder = Path("logs/pmpo/dm_control-cartpole-swingup-v0_1")
    for name in ("best_model.zip", "evaluations.npz", "0.monitor.csv", f"{folder.name[:-2]}.zip"):
        assert (folder / name).exists(), name
    assert list(Path("tb").rglob("events.*"))
    saved = yaml.safe_load((folder / folder.name[:-2] / "config.yml").read_text().split("\n", 1)[1])
    assert saved is not None
    printed = capsys.readouterr().out
    assert "Finished after 60 decisions." in printed
    assert main(["enjoy", "--env", env, "--no-render", "-n", "501"]) == 0
    assert "1 Episodes" in capsys.readouterr().out
    assert rl_zoo3.ALGOS["pmpo"] is PMPO  # enjoy's loader is gone


def test_resuming_continues_the_counters_and_does_not_warm_up_again() -> None:
    small = [*TINY, "learning_starts:150"]
    assert train("-n", "200", "--save-replay-buffer", *small) == 0
    first = Path("logs/pmpo/Pendulum-v1_1/Pendulum-v1.zip")
    before = PMPO.load(first)
    assert train("-n", "100", "-i", str(first), *small) == 0
    after = PMPO.load("logs/pmpo/Pendulum-v1_2/Pendulum-v1.zip")
    assert (before.num_timesteps, after.num_timesteps) == (200, 300)
    # Warming up again would have been 150 steps without an update.
    updates = after._n_updates - before._n_updates
    assert updates == after.gradient_steps * 100


def test_an_evaluation_that_would_never_end_says_so() -> None:
    """SB3 counts the episodes that Monitor sees, and the Zoo's wrappers lie around Monitor."""
    limit = "{gymnasium.wrappers.TimeLimit: {max_episode_steps: 10}}"
    conf = settings(f"Pendulum-v1: {{n_timesteps: 60, policy: MlpPolicy, env_wrapper: [{limit}]}}")
    arguments = ["train", "--env", "Pendulum-v1", "-conf", str(conf), "--eval-freq", "40"]
    with pytest.raises(ValueError, match=r"Monitor saw none of them.*max_episode_steps: N"):
        main(arguments)
    assert PMPO.load("logs/pmpo/Pendulum-v1_1/Pendulum-v1.zip").num_timesteps == 40


class Breaks(SAC):
    """An algorithm whose training fails after some steps."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        raise RuntimeError("out of memory, say")


def test_an_error_leaves_the_model_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rl_zoo3.ALGOS, "sac", Breaks)
    conf = settings("Pendulum-v1: {n_timesteps: 500, policy: MlpPolicy, learning_starts: 20}")
    with pytest.raises(RuntimeError, match="out of memory"):
        main(["train", "--algo", "sac", "--env", "Pendulum-v1", "-conf", str(conf), "-P"])
    assert SAC.load("logs/sac/Pendulum-v1_1/Pendulum-v1.zip").num_timesteps == 21


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_usable_model(stop: signal.Signals) -> None:
    given = ["--env", "Pendulum-v1", "-n", "1000000", "--save-freq", "100"]
    process = program(Path("printed.log"), "train", *given)
    while not list(Path("logs").rglob("rl_model_*.zip")):  # then it trains
        assert process.poll() is None, process.printed()
        time.sleep(0.05)
    process.send_signal(stop)
    assert process.wait(timeout=60) == 130, process.printed()
    assert "Stopped after" in process.printed()
    model = PMPO.load("logs/pmpo/Pendulum-v1_1/Pendulum-v1.zip")
    assert model.num_timesteps > 0
    env = make_vec_env("Pendulum-v1")
    assert np.isfinite(model.predict(env.reset())[0]).all()


@pytest.mark.parametrize("during", ["create_envs", "_save_all"])
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_of_training_loses_nothing(
    during: str, stop: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = getattr(Manager, during)

    def stopped(manager: Manager, *given: Any, **named: Any) -> Any:
        os.kill(os.getpid(), stop)
        return asked(manager, *given, **named)

    monkeypatch.setattr(Manager, during, stopped)
    with pytest.raises(SystemExit) as status:
        main(["train", "--env", "Pendulum-v1", "-n", "20", "--eval-freq", "-1"])
    assert status.value.code == 130
    model = Path("logs/pmpo/Pendulum-v1_1/Pendulum-v1.zip")
    if during == "create_envs":
        assert not model.parent.exists()
    else:
        assert PMPO.load(model, device="cpu").num_timesteps == 20


def test_an_error_is_shown_though_a_signal_came_while_the_model_was_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(rl_zoo3.ALGOS, "sac", Breaks)
    save = Manager._save_all

    def stopped(manager: Manager, model: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(manager, model)

    monkeypatch.setattr(Manager, "_save_all", stopped)
    conf = settings("Pendulum-v1: {n_timesteps: 500, policy: MlpPolicy, learning_starts: 20}")
    with pytest.raises(RuntimeError, match="out of memory"):
        main(["train", "--algo", "sac", "--env", "Pendulum-v1", "-conf", str(conf), "-P"])
    assert SAC.load("logs/sac/Pendulum-v1_1/Pendulum-v1.zip").num_timesteps == 21


def test_sigterm_within_an_exec_leaves_the_exit_status(tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(
        "import contextlib, os, signal, sys, time\n"
        "from sb3_pmpo.tools.zoo.stopping import sigterm_interrupts\n"
        "with contextlib.suppress(KeyboardInterrupt), sigterm_interrupts():\n"
        "    exec('os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)')\n"
        "sys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path).returncode == 3


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "enjoy" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["trian"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--trained-agent" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^sb3-pmpo train: error: .*maybe meant dm_control"):
        train(env="dm_control/walker-wolk-v0")
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert "required: --env" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^sb3-pmpo enjoy: error: The logs.* was not found"):
        main(["enjoy", "--env", "Pendulum-v1", "--no-render"])


# ---------------------------------------------------------------------- what a run leaves


def test_a_run_that_fails_before_its_first_step_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the robot is not there")

    monkeypatch.setattr(PMPO, "collect_rollouts", refuse)
    with pytest.raises(RuntimeError, match="the robot is not there"):
        train("-n", "20")
    assert not list(Path("logs").rglob("*.zip"))
    assert not Path("logs").exists()


def test_worker_processes_and_tensorboard_go_together() -> None:
    assert train("-n", "6", "--vec-env", "subproc", "-tb", "tb") == 0
    (said,) = Path("tb").rglob("*.json")
    assert '"action_repeat": 1' in said.read_text()


@pytest.mark.filterwarnings("ignore:Training resumes")  # without its buffer
def test_the_statistics_are_those_of_the_model_that_is_loaded() -> None:
    """Best and checkpoint have their own; a run from a model says that it has some."""
    given = ["--eval-freq", "25", "--eval-episodes", "1", "--save-freq", "25", "-n", "60"]
    assert train(*given, *TINY, "normalize:True", "learning_starts:10") == 0
    folder = Path("logs/pmpo/Pendulum-v1_1")
    chosen = ["--env", "Pendulum-v1", "--exp-id", "1"]

    def count(*more: str) -> float:
        agent = find_agent(make_parser("enjoy", "").parse_args([*chosen, *more]))
        env = agent.make_env(n_envs=1, seed=0, render=False)
        normaliser = unwrap_vec_normalize(env)
        assert normaliser is not None
        env.close()
        return round(normaliser.obs_rms.count)  # type: ignore[union-attr]

    at_end, best, checkpoint = count(), count("--load-best"), count("--load-checkpoint", "25")
    assert best in (26, 51)  # an evaluation, at whose time the statistics had seen so much
    assert at_end > 60
    assert checkpoint == 26
    assert train("-i", str(folder / "Pendulum-v1.zip"), "-n", "12") == 0
    told = read(Path("logs/pmpo/Pendulum-v1_2/Pendulum-v1/config.yml"))
    assert dict(told)["normalize"]["norm_obs"] is True


def test_hints_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-n", "5", "-f", "my logs") == 0
    hint = capsys.readouterr().out.split("Its returns:    sb3-pmpo ")[1].splitlines()[0]
    assert hint == "enjoy --algo pmpo --env Pendulum-v1 -f 'my logs' --exp-id 1 --no-render"


def test_wrappers_in_the_zoos_notations() -> None:
    env = gym.make("Pendulum-v1")
    assert wrap(env, None) is env  # type: ignore[arg-type]
    timed = wrap(env, "gymnasium.wrappers.TimeAwareObservation")  # type: ignore[arg-type]
    assert timed.observation_space.shape == (4,)


@pytest.mark.parametrize("given", ["gamma", "gamma=0.9", ":0.9"])
def test_what_is_no_pair_is_told_what_a_pair_is(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train("-n", "5", "-params", given)
    assert "must be key:value pairs, such as gamma:0.98" in capsys.readouterr().err


def test_a_path_is_a_word() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--env-kwargs", nargs="+", action=KeyValues)
    words = ["xml_file:./my/ant.xml", "ctrl_cost_weight:0.5", "schedule:lin_3e-4"]
    assert parser.parse_args(["--env-kwargs", *words]).env_kwargs == {
        "xml_file": "./my/ant.xml", "ctrl_cost_weight": 0.5, "schedule": "lin_3e-4",
    }  # fmt: skip


def test_an_option_that_is_given_again_adds_to_what_it_had() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-params", "--hyperparams", nargs="+", action=KeyValues)
    words = ["-params", "gamma:0.9", "tau:0.1", "policy_kwargs:dict(net_arch=[8], n_critics=3)"]
    words += ["--hyperparams", "tau:0.2", "policy_kwargs:dict(net_arch=[4])"]
    assert parser.parse_args(words).hyperparams == {
        "gamma": 0.9, "tau": 0.2, "policy_kwargs": {"net_arch": [4], "n_critics": 3},
    }  # fmt: skip
    assert parser.parse_args([]).hyperparams is None


def test_normalised_stacks_are_refused_before_a_folder_is_made() -> None:
    with pytest.raises(SystemExit, match="normalize with frame_stack: 3 is refused"):
        train("-n", "5", *TINY, "normalize:True", "frame_stack:3")
    assert not Path("logs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--eval-episodes", "0"], "--eval-episodes: must be a whole number >= 1, got 0"),
        (["--n-eval-envs", "0"], "--n-eval-envs: must be a whole number >= 1, got 0"),
        (["-i", "nosuch"], "-i nosuch: there is no such file or folder"),
        (["-conf", "nosuch.yml"], "error: nosuch.yml: there is no such file"),
        (["--env", "zzzqq"], "zzzqq not found in gym registry; --gym-packages MODULE imports"),
    ],
)
def test_a_wrong_count_or_name_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train("-n", "20", *arguments)
    assert said in f"{stop.value} {capsys.readouterr().err}"
    assert not Path("logs").exists()


def test_the_buffer_of_this_package_is_chosen_by_name() -> None:
    assert train("-n", "30", "-params", "replay_buffer_class:PrioritizedReplayBuffer") == 0
    model = PMPO.load("logs/pmpo/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
    assert model.replay_buffer_class is PrioritizedReplayBuffer


def test_enjoy_writes_over_no_run(tmp_path: Path) -> None:
    (tmp_path / "0.monitor.csv").write_text("mine")
    watch = ["enjoy", "--env", "Pendulum-v1", "--no-render", "--reward-log", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"--reward-log .* holds 0.monitor.csv"):
        main(watch)
    assert (tmp_path / "0.monitor.csv").read_text() == "mine"
