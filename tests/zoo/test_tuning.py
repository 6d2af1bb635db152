"""Tuning: what is searched, bad trials, several seeds, several workers, one of them killed."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch as th
import yaml
from forked import Forked, program
from gymnasium import spaces
from optuna.trial import TrialState
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3 import SAC
from toys import Guess, Toy

import sb3_pmpo.tools.zoo
from sb3_pmpo import PMPO, advantage, top_k
from sb3_pmpo.core.losses import instability
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.settings import to_arguments
from sb3_pmpo.tools.zoo import tune as tune_command
from sb3_pmpo.tools.zoo.report import compare, report
from sb3_pmpo.tools.zoo.spaces import as_setting, default_params
from sb3_pmpo.tools.zoo.study import MAX_RETRIES, Watch, open_storage, run_trials, study_name
from sb3_pmpo.tools.zoo.tuning import lower_bound

SHORT = ["--env", "Pendulum-v1", "-n", "30", "--n-evaluations", "1", "--eval-episodes", "1"]
SHORT += ["--n-startup-trials", "1", "--seed", "1", "--pruner", "none"]
QUICK = [*SHORT, "--no-optim-plots"]  # they take longer than the trials
ONE_ENTRY = "Pendulum-v1: {n_timesteps: 30, policy: MlpPolicy, learning_starts: 26"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sb3_pmpo.tools.zoo.register()
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def tune(*arguments: str) -> int:
    return main(["tune", *QUICK, *arguments])


def settings(more: str = "") -> list[str]:
    Path("settings.yml").write_text(f"{ONE_ENTRY}{more}}}\n")
    return ["--conf-file", "settings.yml"]


def load(storage: str = "logs/s.log", name: str = "s") -> optuna.Study:
    return optuna.load_study(storage=open_storage(storage), study_name=name)


# ---------------------------------------------------------------------- what is searched


@pytest.mark.parametrize("n_actions", [1, 0])
@pytest.mark.parametrize("algorithm", ["pmpo", "mpo", "dpo"])
def test_every_draw_trains_and_the_converter_agrees(algorithm: str, n_actions: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=n_actions))
    for _ in range(4):
        trial = study.ask()
        arguments = HYPERPARAMS_SAMPLER[algorithm](trial, n_actions, 1, {})
        assert HYPERPARAMS_CONVERTER[algorithm](trial.params) == arguments
        # What is pasted into YAML means the same.
        setting = yaml.safe_load(yaml.safe_dump(as_setting(trial.params)))
        assert to_arguments(setting) == arguments
        if algorithm == "pmpo":
            beta, alpha = arguments["beta"], arguments["alpha"]
            balanced = arguments["labeller"] == advantage()
            assert min(beta[1:] if balanced else beta) >= 2 * (1 - alpha)
            assert instability(alpha, beta[0], fixed_variance=balanced) is None
            assert instability(alpha, beta[1]) is None
        model = sb3_pmpo.tools.zoo.ALGORITHMS[algorithm](
            "MlpPolicy", Toy() if n_actions else Guess(spaces.Discrete(3)), device="cpu",
            **arguments | {"learning_starts": 10, "batch_size": 8, "buffer_size": 100},
        )  # fmt: skip
        model.learn(12)
        assert model._n_updates > 0  # type: ignore[attr-defined]
        assert model.policy_kwargs["net_arch"] in ([128, 128], [256, 256], [512, 512])


def test_pmpos_feedback_becomes_labels_and_safe_weights() -> None:
    params = {
        "learning_rate": 1e-3, "one_minus_gamma": 0.01, "batch_size_pow": 6, "tau": 0.01,
        "reference_tau": 0.01, "n_steps": 3, "gradient_steps": 3, "net_arch": "small",
        "n_samples_pow": 4, "labels": "quarter", "feedback": "reject", "beta_margin": 0.5,
        "beta_std_margin": 8.0,
    }  # fmt: skip
    arguments = HYPERPARAMS_CONVERTER["pmpo"](params)
    assert arguments["labeller"] == top_k(4)
    assert (arguments["alpha"], arguments["beta"]) == (0.0, (4.5, 12.0))  # a quarter is rejected
    assert arguments["gamma"] == pytest.approx(0.99)
    assert (arguments["batch_size"], arguments["n_samples"]) == (64, 16)
    assert (arguments["gradient_steps"], arguments["policy_delay"]) == (3, 3)
    by_weight = HYPERPARAMS_CONVERTER["pmpo"](params | {"labels": "advantage"})
    assert by_weight["labeller"] == advantage()
    assert by_weight["beta"] == (1.5, 10.0)


@pytest.mark.parametrize("n_actions", [2, 0])
@pytest.mark.parametrize("algorithm", ["pmpo", "mpo", "dpo"])
def test_the_search_holds_the_setting_that_ships(algorithm: str, n_actions: int) -> None:
    cls = sb3_pmpo.tools.zoo.ALGORITHMS[algorithm]
    params = default_params(algorithm, n_actions, {})
    assert params is not None
    study = optuna.create_study()
    study.enqueue_trial(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a value outside of its range
        trial = study.ask()
        arguments = HYPERPARAMS_SAMPLER[algorithm](trial, n_actions, 1, {})
    assert trial.params.keys() == params.keys()  # none is left to chance
    env = Toy() if n_actions else Guess(spaces.Discrete(3))
    ours = cls("MlpPolicy", env, buffer_size=10, **arguments)  # type: ignore[call-arg]
    shipped = cls("MlpPolicy", env, buffer_size=10)  # type: ignore[call-arg]
    for name in SEARCHED:
        assert getattr(ours, name) == pytest.approx(getattr(shipped, name)), name
    assert ours.policy.net_arch == shipped.policy.net_arch
    if algorithm == "mpo":
        assert vars(ours.objective)["epsilon_kl"] == pytest.approx(
            vars(shipped.objective)["epsilon_kl"]
        )
    elif algorithm == "pmpo":
        for name in ("alpha", "beta_mean", "labeller"):
            assert getattr(ours.objective, name) == getattr(shipped.objective, name)
        assert not n_actions or ours.objective.beta_std == shipped.objective.beta_std
    setting = default_params(algorithm, n_actions, {"tau": 0.01, "gamma": 0.98})
    assert setting is not None
    assert (setting["tau"], setting["one_minus_gamma"]) == (0.01, pytest.approx(0.02))
    # What the search cannot say is not called the setting that ships.
    assert default_params(algorithm, n_actions, {"policy_kwargs": {"net_arch": [400, 300]}}) is None
    other = default_params(algorithm, n_actions, {"labeller": "top_k(2)"})
    assert (other is None) == (algorithm == "pmpo")


SEARCHED = (
    "learning_rate", "gamma", "tau", "n_steps", "pessimism", "gradient_steps", "policy_delay",
    "n_samples", "reference_tau", "train_freq",
)  # fmt: skip


def test_the_best_is_compared_with_the_setting_that_ships() -> None:
    def told(*trials: tuple[float, list[float], bool], returns: Any = ([], [], [])) -> str:
        study = optuna.create_study(direction="maximize")
        for (value, values, is_default), episodes in zip(trials, returns, strict=False):
            attributes: dict[str, Any] = {"values": values, "returns": episodes}
            attributes |= {"default": True} if is_default else {}
            study.add_trial(optuna.trial.create_trial(value=value, user_attrs=attributes))
        return compare(study)

    apart = told((10.0, [9.0, 11.0, 10.0], True), (20.0, [18.0, 22.0, 20.0], False))
    assert apart.startswith("+10 from the setting that ships (trial 0), 95% bootstrap interval [")
    low, high = (float(x) for x in apart.split("[")[1].split("]")[0].split(","))
    assert 7.0 < low < 10.0 < high < 13.0
    assert "of one episode each" in told((1.0, [1.0], True), (2.0, [2.0], False))
    alone = told((1.0, [1.0], True), (2.0, [2.0], False), returns=[[0.0, 2.0], [1.0, 3.0]])
    assert "interval [-1, 3] over the last episodes of one seed each" in alone
    assert "The best trial is the setting that ships" in told(
        (3.0, [3.0], True), (2.0, [2.0], False)
    )
    assert "nothing to compare with" in told((3.0, [3.0], False))


def test_hindsight_replay_is_searched_with_the_settings_own_arguments() -> None:
    trial = optuna.create_study().ask()
    more = {"using_her_replay_buffer": True, "her_kwargs": {"copy_info_dict": True}}
    arguments = HYPERPARAMS_SAMPLER["pmpo"](trial, 2, 1, more)
    assert arguments["replay_buffer_kwargs"].keys() == {
        "copy_info_dict", "n_sampled_goal", "goal_selection_strategy",
    }  # fmt: skip


# ---------------------------------------------------------------------- a study


def test_it_ends_with_an_entry_that_trains(capsys: pytest.CaptureFixture[str]) -> None:
    conf = settings(", policy_kwargs: 'dict(n_critics=3)', n_steps: 2")
    stored = ["--storage", "logs/s.log", "--study-name", "s"]
    assert main(["tune", *SHORT, *conf, "--n-trials", "3", *stored]) == 0
    printed = capsys.readouterr().out
    assert "3 trials: 3 complete, 0 pruned, 0 bad" in printed
    assert "optuna-dashboard logs/s.log" in printed
    for name in ("s_best.yml", "s_trials.csv", "s_history.png", "s_importances.png"):
        assert Path("logs/pmpo", name).stat().st_size > 0
    text = Path("logs/pmpo/s_best.yml").read_text()
    assert text in printed
    assert "found with 30 decisions (30 environment steps) a trial, 1 seed." in text
    assert "setting that ships" in text
    first = load().trials[0]
    assert first.user_attrs["default"] is True
    assert first.params["n_samples"] == 6
    assert first.params["n_steps"] == 2  # as the configuration has it
    (entry,) = yaml.safe_load(text).values()
    best = load().best_trial
    assert entry["policy_kwargs"]["n_critics"] == 3
    assert entry["learning_rate"] == best.params["learning_rate"]
    assert entry["n_timesteps"] == 30
    train = ["train", "--env", "Pendulum-v1", "--conf-file", "logs/pmpo/s_best.yml"]
    assert main([*train, "--eval-freq", "-1", "-n", "30"]) == 0
    model = PMPO.load("logs/pmpo/Pendulum-v1_1/Pendulum-v1.zip")
    assert model.policy_kwargs == entry["policy_kwargs"]
    assert model.n_samples == entry["n_samples"]


def test_the_zoos_own_algorithms_are_tuned_too(capsys: pytest.CaptureFixture[str]) -> None:
    conf = settings(", policy_kwargs: 'dict(activation_fn=nn.ELU)'")
    # As the Zoo's program is asked for it.
    arguments = ["-optimize", "--n-trials", "1", "--study-name", "s"]
    assert main(["train", "--algo", "sac", *QUICK, *conf, *arguments]) == 0
    assert "The best trial as a setting" in capsys.readouterr().out
    (entry,) = yaml.safe_load(Path("logs/sac/s_best.yml").read_text()).values()
    assert "activation_fn=nn.ELU" in entry["policy_kwargs"]
    assert not list(Path("logs").rglob("*.png"))
    train = ["train", "--algo", "sac", "--env", "Pendulum-v1", "--eval-freq", "-1", "-n", "5"]
    assert main([*train, "--conf-file", "logs/sac/s_best.yml"]) == 0
    model = SAC.load("logs/sac/Pendulum-v1_1/Pendulum-v1.zip")
    assert model.policy_kwargs["activation_fn"] is th.nn.ELU
    assert model.batch_size == entry["batch_size"]


@pytest.mark.parametrize(
    ("given", "workers", "storage", "name"),
    [
        ([], 1, None, None),
        ([], 2, "logs/tune.log", "pmpo"),
        (["--storage=x.log", "--env", "dm_control/a-b-v0"], 1, "x.log", "pmpo-dm_control-a-b-v0"),
        (["--storage=x.log", "--study-name=y"], 2, "x.log", "y"),
        (["--stor", "x.log", "--study", "y"], 2, "x.log", "y"),
    ],
)
def test_a_users_storage_and_name_have_the_last_word(
    given: list[str], workers: int, storage: str | None, name: str | None
) -> None:
    parser = argparse.ArgumentParser()  # of the Zoo's arguments
    parser.add_argument("--storage")
    parser.add_argument("--study-name")
    parser.add_argument("--env")
    parsed = parser.parse_args([*tune_command._study(given, workers), *given])
    assert (parsed.storage, parsed.study_name) == (storage, name)


def test_trials_are_several_seeds_if_asked() -> None:
    stored = ["--storage=logs/s.log", "--study-name=s", "--optimization-log-path", "opt"]
    arguments = ["--trial-seeds", "3", "--objective", "lcb", "--n-evaluations", "2"]
    assert tune(*settings(), *stored, "--n-trials", "1", *arguments) == 0
    (trial,) = load().trials
    values = trial.user_attrs["values"]
    assert len(set(values)) == 3
    assert trial.value == pytest.approx(np.mean(values) - np.std(values, ddof=1) / np.sqrt(3))
    # Two evaluations of each seed; the last of each ends the mean of those so far.
    assert list(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
    assert trial.intermediate_values[4] == pytest.approx(np.mean(values[:2]))
    assert lower_bound([3.0]) == 3.0
    for seed, value in enumerate(values):
        with np.load(f"opt/trial_0/seed_{seed}/evaluations.npz") as saved:
            assert saved["results"][-1].mean() == pytest.approx(value)


def test_a_trial_is_reproducible_from_the_seed() -> None:
    values = []
    for name in ("a", "b"):
        tune(*settings(), "--n-trials", "2", "--study-name", name)
        with Path(f"logs/pmpo/{name}_trials.csv").open(newline="") as file:
            values.append(list(csv.DictReader(file)))
    # All but the times: a trial that lasts longer than a heartbeat has that of the last one, too.
    times = ("datetime_start", "datetime_complete", "duration", "user_attrs_beat")
    one, other = (
        [{key: cell for key, cell in row.items() if key not in times} for row in rows]
        for rows in values
    )
    assert one == other
    assert {"value", "params_learning_rate"} <= one[0].keys()


# ---------------------------------------------------------------------- bad trials


class Breaks:
    """A sampler whose second and later draws are refused, or wrong in another way."""

    def __init__(self, sampler: Any, bad: dict[str, Any], first: int) -> None:
        self.sampler, self.bad, self.left = sampler, bad, first

    def __call__(self, *args: Any) -> dict[str, Any]:
        self.left -= 1
        return self.sampler(*args) | ({} if self.left >= 0 else self.bad)


def broken(monkeypatch: pytest.MonkeyPatch, bad: dict[str, Any], first: int) -> None:
    sampler = Breaks(HYPERPARAMS_SAMPLER["pmpo"], bad, first)
    monkeypatch.setattr(
        sb3_pmpo.tools.zoo.spaces.Sampler, "__call__", lambda self, *args: sampler(*args)
    )
    monkeypatch.setattr(sampler, "sampler", ORIGINAL)


ORIGINAL = sb3_pmpo.tools.zoo.spaces.Sampler.__call__.__get__(
    sb3_pmpo.tools.zoo.spaces.Sampler("pmpo")
)


def test_bad_trials_are_pruned_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(monkeypatch, {"tau": 7.0}, first=1)
    assert tune(*settings(), "--n-trials", "3", "--storage", "logs/s.log", "--study-name", "s") == 0
    printed = capsys.readouterr().out
    assert "3 trials: 1 complete, 0 pruned, 2 bad" in printed
    assert "2 x ValueError: tau must be" in printed
    assert [trial.state.name for trial in load().trials] == ["COMPLETE", "PRUNED", "PRUNED"]


def test_a_study_that_is_stored_nowhere_has_a_name_and_keeps_what_is_there() -> None:
    study = optuna.create_study(study_name=study_name("pmpo", "dm_control/a-b-v0"))
    study.add_trial(optuna.trial.create_trial(value=1.0))
    told: dict[str, Any] = {"budget": "5 decisions", "with_plots": False}
    for storage in (None, None, "s.log", "s.log", None):
        report(study, "a", lambda params: params, Path("found"), storage, **told)
    assert sorted(path.name for path in Path("found").glob("*.yml")) == [
        "pmpo-dm_control-a-b-v0_2_best.yml",
        "pmpo-dm_control-a-b-v0_3_best.yml",
        "pmpo-dm_control-a-b-v0_best.yml",
    ]


def test_if_all_are_bad_the_command_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, {"tau": 7.0}, first=0)
    with pytest.raises(SystemExit, match="no trial completed; the last error was ValueError: tau"):
        tune(*settings(), "--n-trials", "2")


def test_an_error_of_ours_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, {"no_such_argument": 1}, first=0)
    with pytest.raises(TypeError, match="no_such_argument"):
        tune(*settings(), "--n-trials", "2", "--storage", "logs/s.log", "--study-name", "s")
    first, waiting = load().trials
    assert first.state is TrialState.FAIL
    assert waiting.state is TrialState.WAITING  # its parameters are not lost


def test_a_policy_that_diverges_is_a_bad_trial_and_mujoco_never_sees_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate that no constructor takes makes the parameters NaN at once.
    monkeypatch.setattr("sb3_pmpo.online.argument_checks._HIGHEST_RATE", 1e31)
    broken(monkeypatch, {"learning_rate": 1e30}, first=0)
    env = ["--env", "dm_control/cartpole-swingup-v0", "-n", "60"]
    with pytest.raises(SystemExit, match="no trial completed; the last error was ValueError: the"):
        tune("--n-trials", "1", *env, "-params", "learning_starts:20")
    assert "is not finite" in capsys.readouterr().out


# ---------------------------------------------------------------------- workers


def worker(log: str, storage: str, *arguments: str) -> Forked:
    command = ["tune", *SHORT, *settings(), "--study-name", "s", "--storage", storage]
    return program(Path(log), *command, "--beat", "0.3", "--grace", "4", *arguments)


def kill_one_of_two(storage: str) -> optuna.Study:
    """Let a worker die in the middle of its trial while another goes on; return the study."""
    victim = worker("victim.log", storage, "-n", "100000", "--max-total-trials", "3")
    while True:
        assert victim.poll() is None, victim.printed()
        with contextlib.suppress(Exception):  # the study may not be there yet
            running = load(storage).get_trials(states=(TrialState.RUNNING,))
            if running and running[0].params and running[0].user_attrs.get("beat"):
                break
        time.sleep(0.2)
    survivor = worker("survivor.log", storage, "--max-total-trials", "3")
    os.killpg(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert survivor.wait(timeout=120) == 0, survivor.printed()
    assert "Trial 0 lost its worker" in survivor.printed()
    return load(storage)


def check_none_lost_or_counted_twice(study: optuna.Study) -> None:
    first, *others = study.trials
    assert first.state is TrialState.FAIL
    assert [trial.state for trial in others] == [TrialState.COMPLETE] * 3
    (retry,) = (trial for trial in others if trial.user_attrs.get("retried_from") == 0)
    assert retry.params == first.params


def test_a_killed_worker_loses_no_trial_in_a_journal_file() -> None:
    check_none_lost_or_counted_twice(kill_one_of_two("logs/s.log"))


@pytest.fixture
def postgresql() -> Iterator[str]:
    """A PostgreSQL server of the test's own; its URL."""
    found = shutil.which("initdb") or next(
        iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None
    )
    if found is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql")
    programs = Path(found).parent
    # The server refuses to run as root.
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]

    def call(*command: str | Path) -> None:
        subprocess.run(
            [str(part) for part in command], check=True, capture_output=True, cwd=folder,
            timeout=60, **({"user": user.pw_uid, "group": user.pw_gid} if os.getuid() == 0 else {}),
        )  # fmt: skip

    data = folder / "data"
    call(programs / "initdb", "-D", data, "-U", "tuner", "--auth=trust")
    options = f"-p {port} -k {folder} -c listen_addresses=localhost"
    call(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start")
    yield f"postgresql+psycopg2://tuner@localhost:{port}/postgres"
    call(programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder)


def test_a_killed_worker_loses_no_trial_in_postgresql(postgresql: str) -> None:
    check_none_lost_or_counted_twice(kill_one_of_two(postgresql))


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_workers_that_start_at_once_make_one_database(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Each finds no table, and all but one find that another has just made it."""
    url = "sqlite:///s.db" if kind == "sqlite" else request.getfixturevalue("postgresql")
    start = time.time() + 0.5

    def work() -> None:
        time.sleep(start - time.time())
        optuna.create_study(storage=open_storage(url), study_name="s", load_if_exists=True).ask()

    workers = [Forked(work, Path(f"{index}.log")) for index in range(4)]
    for process in workers:
        assert process.wait(timeout=60) == 0, process.printed()
    assert [trial.number for trial in load(url).trials] == [0, 1, 2, 3]


def test_workers_share_a_study_and_stop_at_its_total(capfd: pytest.CaptureFixture[str]) -> None:
    assert tune(*settings(), "--workers", "2", "--max-total-trials", "4", "--grace", "60") == 0
    study = load("logs/tune.log", "pmpo-Pendulum-v1")
    counted = [trial for trial in study.trials if trial.state is not TrialState.FAIL]
    assert [trial.state for trial in counted] == [TrialState.COMPLETE] * 4
    assert len({trial.params["learning_rate"] for trial in counted}) == 4  # no draw twice
    assert capfd.readouterr().out.count("The best trial as a setting") == 1


def test_ctrl_c_keeps_the_trial_for_another() -> None:
    process = worker("printed.log", "logs/s.log", "-n", "100000")
    while True:
        with contextlib.suppress(Exception):
            if load().trials[0].user_attrs.get("beat"):
                break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 1, process.printed()  # no trial completed
    assert [trial.state.name for trial in load().trials] == ["FAIL", "WAITING"]


def test_stopped_workers_keep_their_trials_and_the_report_comes() -> None:
    process = worker("printed.log", "logs/s.log", "--workers", "2", "--n-trials", "1000")
    while not _has_complete_trials("logs/s.log"):
        assert process.poll() is None, process.printed()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 130, process.printed()
    assert process.printed().count("The best trial as a setting") == 1
    assert not load().get_trials(states=(TrialState.RUNNING,))


def _has_complete_trials(storage: str) -> bool:
    with contextlib.suppress(Exception):  # the study may not be there yet
        return bool(load(storage).get_trials(states=(TrialState.COMPLETE,)))
    return False


def test_a_database_that_is_gone_for_a_moment_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    trial = study.ask()
    set_user_attr = study._storage.set_trial_user_attr
    calls = []

    def fail_at_first(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise optuna.exceptions.StorageInternalError("the server restarts")
        set_user_attr(*args)

    monkeypatch.setattr(study._storage, "set_trial_user_attr", fail_at_first)
    with Watch(study, interval=0.01, grace=60.0).beating(trial):
        while len(calls) < 3:
            time.sleep(0.01)
    assert study.trials[0].user_attrs["beat"] >= 2


def test_a_trial_that_kills_its_workers_is_given_up() -> None:
    study = optuna.create_study()
    watch = Watch(study, interval=1.0, grace=0.0)
    study.enqueue_trial({"x": 0.25})
    for _ in range(MAX_RETRIES + 1):
        study.ask().suggest_float("x", 0, 1)  # asked for, and never told
        watch.retry_dead()
        time.sleep(0.01)
        watch.retry_dead()
    assert [trial.params["x"] for trial in study.trials] == [0.25] * (MAX_RETRIES + 1)
    assert {trial.state for trial in study.trials} == {TrialState.FAIL}


def test_one_trial_too_many_is_given_back() -> None:
    study = optuna.create_study()
    run_trials(study, lambda trial: 1.0, Watch(study, 1.0, 60.0), 0, max_total_trials=2)
    run_trials(study, lambda trial: 1.0, Watch(study, 1.0, 60.0), 0, max_total_trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


def test_a_study_is_of_one_algorithm_and_environment() -> None:
    stored = ["--storage", "logs/s.log", "--study-name", "s", "--n-trials", "1"]
    assert tune(*settings(), *stored) == 0
    with pytest.raises(SystemExit, match="the study 's' is of pmpo on Pendulum-v1: choose another"):
        main(["tune", "--algo", "mpo", *QUICK, *settings(), *stored])
    assert "found with 30 decisions" in Path("logs/pmpo/s_best.yml").read_text()
    assert tune(*settings(), *stored, "-n", "20", "--n-trials", "0") == 0
    text = Path("logs/pmpo/s_best.yml").read_text()
    assert "found with 30 decisions" in text  # which is what the best trial had
