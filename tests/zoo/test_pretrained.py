"""Policies that ship: files without a pickle, and the commands that take them by name."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch as th
from runs import run
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pmpo import DPO, MPO, PMPO, pretrained
from sb3_pmpo.pretrained import PretrainedError, scored
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.runs.sweep import Run, execute
from sb3_pmpo.tools.zoo.shipped import begin_from, unpack

PENDULUM = "Pendulum-v1"


def trained(cls: Any = PMPO, env_id: str = PENDULUM, **kwargs: Any) -> Any:
    """Make a policy with weights and statistics of its own; it is quick, and good for nothing."""
    model = cls("MlpPolicy", env_id, seed=3, buffer_size=10, **kwargs)
    with th.no_grad():
        for parameter in model.actor.head.parameters():
            parameter.add_(0.5 * th.randn_like(parameter))
    seen = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    model.policy.update_statistics(seen, np.ones(40))
    model.policy.reference_actor.load_state_dict(model.policy.actor.state_dict())
    return model


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "swing.safetensors"
    pretrained.save(trained(policy_kwargs={"net_arch": [16]}), path, {"env": PENDULUM, "seed": 3})
    return path


def observations(n: int = 100) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 3)).astype(np.float32)


@pytest.mark.parametrize("cls", [PMPO, MPO, DPO])
def test_a_saved_policy_acts_the_same(cls: Any, tmp_path: Path) -> None:
    model = trained(cls, policy_kwargs={"net_arch": [16], "n_bins": 5})
    pretrained.save(model, tmp_path / "a.safetensors", {"env": PENDULUM})
    loaded = pretrained.load(tmp_path / "a.safetensors")
    assert type(loaded) is cls
    expected, _ = model.predict(observations(), deterministic=True)
    np.testing.assert_array_equal(loaded.predict(observations(), deterministic=True)[0], expected)
    for part in (loaded.policy.actor, loaded.policy.reference_actor):
        assert part.state_dict().keys() == model.policy.actor.state_dict().keys()
    assert loaded.policy.statistics_count == 40


def test_half_precision_halves_the_file_and_keeps_the_statistics(tmp_path: Path) -> None:
    model = trained()
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    pretrained.save(model, whole, {"env": PENDULUM})
    pretrained.save(model, half, {"env": PENDULUM}, half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    kept = safetensors.torch.load_file(half)
    assert {x.dtype for name, x in kept.items() if "moments" in name} == {th.float32}
    expected, _ = model.predict(observations(), deterministic=True)
    found, _ = pretrained.load(half).predict(observations(), deterministic=True)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_the_header_says_what_one_asks(tmp_path: Path) -> None:
    score = scored([1.0, 2.0, 6.0], seed=5)
    told = {"env": PENDULUM, "score": score._asdict(), "steps": 50, "command": "sb3-pmpo train"}
    path = tmp_path / "a.safetensors"
    pretrained.save(trained(), path, told)
    assert pretrained.read(path).score == score
    assert pretrained.about(path)["command"] == "sb3-pmpo train"
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])  # all else is numbers
    assert header["__metadata__"].keys() == {"sb3_pmpo"}


def test_the_interval_is_that_of_a_bootstrap() -> None:
    values = np.random.default_rng(0).normal(size=50)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", random_state=1)
    ours = scored(values, seed=0)
    assert (ours.low, ours.high) == pytest.approx(theirs.confidence_interval, abs=0.02)
    assert scored([4.0], seed=0)[:3] == (4.0, 4.0, 4.0)


def test_what_cannot_be_loaded_is_said(policy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(policy.read_bytes()[:500])
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": th.zeros(1)}, foreign)
    for name, message in [
        ("cartpole-swimgup", "did you mean 'cartpole-swingup'"),
        (tmp_path / "no.safetensors", "there is no file"),
        (broken, "damaged"),
        (foreign, r"must be a policy that sb3_pmpo.pretrained.save wrote"),
    ]:
        with pytest.raises(PretrainedError, match=message):
            pretrained.load(name)
    with pytest.raises(PretrainedError, match="observation_space"):
        pretrained.load_into(PMPO("MlpPolicy", "CartPole-v1", buffer_size=10), policy)
    with pytest.raises(PretrainedError, match=r"policy_kwargs.*16"):
        pretrained.load_into(PMPO("MlpPolicy", PENDULUM, buffer_size=10), policy)


def rewritten(path: Path, folder: Path, tensors: Any = (), **header: Any) -> Path:
    """Write a file whose header and tensors differ as a stranger's may."""
    with safetensors.safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["sb3_pmpo"]) | header
    text = json.dumps({key: value for key, value in told.items() if value != "left out"})
    made = folder / "made.safetensors"
    found = safetensors.torch.load_file(path) | dict(tensors)
    safetensors.torch.save_file(found, made, {"sb3_pmpo": text})
    return made


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def box(shape: Any, entries: Any, dtype: str = "<f4") -> Any:
    bounds = {":array:": [dtype, shape, entries]}
    return {":space:": ["Box", {"low": bounds, "high": bounds, "dtype": {":dtype:": dtype}}, None]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"algorithm": "../elsewhere"}, "algorithm must be one of PMPO, MPO, DPO"),
        ({"algorithm": ["PMPO"]}, "algorithm must be one of"),
        ({"algorithm": "left out"}, "must have 'algorithm'"),
        ({"policy": "left out"}, "must have 'policy'"),
        ({"policy_kwargs": "left out"}, "must have 'policy_kwargs'"),
        ({"observation_space": "left out"}, "must have 'observation_space'"),
        ({"env": "left out"}, "must have 'env'"),
        ({"env": "../../elsewhere"}, "env must be the name of an environment"),
        ({"env": ".."}, "env must be the name of an environment"),
        ({"env_kwargs": [1]}, "env_kwargs must be a dictionary"),
        ({"env_kwargs": {"x": float("nan")}}, "env_kwargs must be finite"),
        ({"env_wrapper": 3}, "env_wrapper must be a list"),
        ({"score": {"mean": 1.0, "worst": 2.0}}, "score must be a dictionary of mean, low"),
        ({"score": 3.0}, "score must be"),
        ({"curve": [[1, "x"]]}, "curve must be a list of pairs"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"observation_space": box([10**7, 10**6], [0.0])}, "at most 1048576 numbers"),
        ({"observation_space": box([3], [0.0, 1.0])}, "without its 3 entries"),
        ({"observation_space": box([-3], [0.0])}, "array of shape"),
        ({"observation_space": box([3], ["x"])}, "no numbers"),
        ({"observation_space": box([3], [0.0], "|O8")}, "array of '|O8'"),
        ({"observation_space": {":space:": ["Text", {}, None]}}, "cannot be read"),
        ({"observation_space": {":space:": 3}}, "cannot be read"),
        ({"observation_space": {":column:": "x"}}, "which no policy has"),
        ({"action_space": {":space:": ["Discrete", {"n": 10**13, "start": 0}, None]}}, "weights"),
        ({"policy_kwargs": {"net_arch": [8000] * 99}}, "weights"),
        ({"policy_kwargs": {"net_arch": [4000], "n_critics": 8000}}, "weights"),
        ({"policy_kwargs": {"net_arch": [10**9]}}, "at most 8192"),
        ({"policy_kwargs": {"net_arch": "x"}}, "cannot be read"),
        ({"policy_kwargs": {"activation_fn": {":name:": "os:system"}}}, "neither sb3_pmpo's nor"),
        ({"extra": deep(60)}, "at most 40 levels"),
        ({"extra": deep(900)}, "at most 40 levels"),
        ({"extra": "x" * 2_000_000}, "at most 1000000 characters"),
    ],
)
def test_a_strangers_header_is_refused_by_name(
    header: dict[str, Any], message: str, policy: Path, tmp_path: Path
) -> None:
    path = rewritten(policy, tmp_path, **header)
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(path)
    logs = tmp_path / "logs"
    with pytest.raises(PretrainedError):
        unpack(path, logs)
    assert not logs.exists()


def test_a_header_too_deep_for_the_parser_is_refused(policy: Path, tmp_path: Path) -> None:
    tensors, path = safetensors.torch.load_file(policy), tmp_path / "deep.safetensors"
    for text in ('{"extra":' + "[" * 100_000, "[" * 100_000 + "]" * 100_000, "{", "3"):
        safetensors.torch.save_file(tensors, path, {"sb3_pmpo": text})
        with pytest.raises(PretrainedError, match="cannot be read"):
            pretrained.read(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("actor.head.linear.bias", th.nan, "must be finite"),
        ("actor.normaliser.moments.0.mean", th.inf, "must be finite"),
        ("actor.normaliser.moments.0.var", -1.0, "var must be >= 0"),
        ("returns.var", -1.0, "returns.var must be >= 0"),
        ("returns.mean", th.nan, "returns.mean must be finite"),
    ],
)
def test_numbers_that_no_training_leaves_are_refused(
    name: str, value: float, message: str, policy: Path, tmp_path: Path
) -> None:
    found = safetensors.torch.load_file(policy)
    path = rewritten(policy, tmp_path, {name: th.full_like(found[name], value)})
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(path)
    with pytest.raises(PretrainedError, match=message):
        pretrained.load_into(PMPO("MlpPolicy", PENDULUM, buffer_size=10), path)


def test_a_policy_goes_only_where_it_acts_the_same(policy: Path) -> None:
    def into(env: Any = PENDULUM, **kwargs: Any) -> Any:
        model = PMPO("MlpPolicy", env, buffer_size=10, policy_kwargs={"net_arch": [16]} | kwargs)
        before = {name: x.clone() for name, x in model.policy.state_dict().items()}
        try:
            pretrained.load_into(model, policy)
        except PretrainedError:
            after = model.policy.state_dict()
            assert all(th.equal(x, after[name]) for name, x in before.items())
            raise
        return model

    expected, _ = pretrained.load(policy).predict(observations(), deterministic=True)
    found, _ = into(net_arch={"pi": [16], "qf": [8]}).predict(observations(), deterministic=True)
    np.testing.assert_array_equal(found, expected)
    for kwargs in (
        {"activation_fn": th.nn.Tanh}, {"std_init": 0.5}, {"std_max": 0.9}, {"std_min": 0.05},
        {"n_bins": 5}, {"normalize_observations": False},
    ):  # fmt: skip
        with pytest.raises(PretrainedError, match=next(iter(kwargs))):
            into(**kwargs)
    with pytest.raises(PretrainedError, match="VecNormalize"):
        into(VecNormalize(make_vec_env(PENDULUM)))


@pytest.mark.parametrize("name", pretrained.names())
def test_each_policy_that_ships_is_small_and_predicts(name: str) -> None:
    file = pretrained.read(name)
    assert pretrained.files.find(name).stat().st_size <= 150_000
    assert file.score is not None
    assert file.score.episodes == 100
    assert file.score.low <= file.score.mean <= file.score.high
    assert {"steps", "seed", "command", "versions", "curve"} <= file.about.keys()
    model = pretrained.load(name)
    action, _ = model.predict(model.observation_space.sample(), deterministic=True)
    assert model.action_space.contains(action)


# ---------------------------------------------------------------------- the commands


def test_enjoy_takes_a_policy(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enjoy = ["enjoy", "--pretrained", str(policy), "--no-render", "-n"]
    assert main([*enjoy, "200"]) == 0
    assert "Mean reward" in capsys.readouterr().out
    assert main([*enjoy, "199"]) == 0
    assert "No episode has ended: -n says how many" in capsys.readouterr().out
    for other in (["--env", "CartPole-v1"], ["--algo=mpo"], ["-f", "logs"]):
        with pytest.raises(SystemExit, match=f"says {other[0].partition('=')[0]} itself"):
            main([*enjoy, "200", *other])
    with pytest.raises(SystemExit, match="no pretrained policy is called 'nobody'"):
        main(["enjoy", "--pretrained", "nobody", "--no-render"])


def test_training_begins_with_a_policy(policy: Path, tmp_path: Path) -> None:
    small = ["--from-pretrained", str(policy), "-n", "40", "--eval-freq", "-1", "--seed", "0"]
    small += ["-params", "policy_kwargs:dict(net_arch=[16])", "batch_size:4"]
    held = ["learning_starts:50"]  # longer than the run: the policy is held
    for extra, folder in ((held, "held"), (["learning_starts:20"], "free")):
        assert main(["train", *small, *extra, "-f", str(tmp_path / folder)]) == 0
    given = pretrained.load(policy).policy.actor.head.state_dict()
    apart = {}
    for folder in ("held", "free"):
        (path,) = (tmp_path / folder).glob("pmpo/*/Pendulum-v1.zip")
        model = PMPO.load(path)
        assert model.n_updates == 40  # type: ignore[call-overload]  # a property
        assert model.policy_delay == 2
        assert model.policy_held_until == {"held": 50, "free": 20}[folder]
        now = model.policy.actor.head.state_dict()
        apart[folder] = max(float((now[key] - given[key]).abs().max()) for key in given)
    assert apart["held"] == 0.0
    assert apart["free"] > 2e-3


def test_agents_are_evaluated_side_by_side(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path / "logs", PENDULUM, policy_kwargs={"net_arch": [8]})
    table = tmp_path / "scores.csv"
    arguments = ["evaluate", str(policy), str(folder), "-n", "3", "--seed", "7", "-o", str(table)]
    capsys.readouterr()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["7", "8", "9"] * 2
    returns = [float(row["return"]) for row in rows[:3]]
    model, env = pretrained.load(policy), gym.make(PENDULUM)
    observation, _ = env.reset(seed=8)
    total, over = 0.0, False
    while not over:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, _, over, _ = env.step(action)
        total += float(reward)
    assert returns[1] == pytest.approx(total, rel=1e-5)
    score = scored(returns, seed=7)
    assert f"{score.mean:.1f}" in printed
    assert f"[{score.low:.1f}, {score.high:.1f}]" in printed
    assert f"{policy} above {folder}: " in printed
    # Again, which it may write over; then over a file of the user's, which it may not.
    assert main(arguments) == 0
    table.write_text("my notes")
    with pytest.raises(SystemExit):
        main(arguments)
    assert "this command did not write it" in capsys.readouterr().err
    assert table.read_text() == "my notes"


def test_a_sweeps_run_is_evaluated_and_a_strangers_calls_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pmpo" / "Pendulum-v1_seed0"
    small = {"learning_starts": 5, "buffer_size": 100, "policy_kwargs": {"net_arch": [8]}}
    wrapper = [{"sb3_pmpo.envs.ActionRepeat": {"n_repeats": 2}}]
    execute(
        Run(
            algorithm="pmpo", env=PENDULUM, seed=0, folder=folder, policy="MlpPolicy",
            env_wrapper=wrapper, n_timesteps=10, eval_freq=5, save_freq=5, eval_episodes=1,
            hyperparameters=small,
        )
    )  # fmt: skip
    arguments = ["evaluate", str(folder), "-n", "1"]
    # In a process of its own, where nothing else has told the Zoo of our algorithms.
    command = [sys.executable, "-m", "sb3_pmpo", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert PENDULUM in done.stdout
    with pytest.raises(SystemExit, match=f"a sweep's: sb3-pmpo evaluate {folder} measures one"):
        main(["enjoy", "--env", PENDULUM, "-f", str(tmp_path), "--no-render"])
    about = folder / "run.json"
    own = about.read_text()
    for text, message in (
        (own.replace("sb3_pmpo.envs.ActionRepeat", "builtins.print"), "not known to be harmless"),
        (own.replace(PENDULUM, "evil:Pendulum-v1"), "whose module gymnasium would import"),
        ("{", "cannot be used"),
    ):
        about.write_text(text)
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_the_best_model_of_a_folder_is_loaded(tmp_path: Path) -> None:
    more = ("--eval-freq", "10", "--eval-episodes", "1")
    folder = run(tmp_path / "here", PENDULUM, "pmpo", *more)
    (folder / "Pendulum-v1.zip").write_text("torn")  # which the best is not
    assert main(["evaluate", str(folder), "-n", "1", "--load-best"]) == 0


def test_a_policy_and_a_model_to_begin_with_are_one_too_many() -> None:
    with pytest.raises(SystemExit, match="give one of them"):
        main(["train", "--from-pretrained", "walker-walk", "-i", "model.zip"])


@pytest.mark.parametrize("given", [["--from-pre", "x"], ["--from-pretrained=x"]])
def test_an_abbreviation_is_the_option(given: list[str]) -> None:
    with pytest.raises(SystemExit, match="--from-pretrained: no pretrained policy is called 'x'"):
        begin_from(["-n", "5", *given])


def test_parts_of_the_package_need_no_import_of_their_own() -> None:
    program = "import sb3_pmpo; print(sb3_pmpo.pretrained.names(), sb3_pmpo.envs.make_env)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name agents, or give --env"),
        (["walker-walk", "nobody"], "no pretrained policy is called 'nobody'"),
        (["logs/pmpo/nope"], "logs/pmpo/nope: there is no such folder"),
        (["."], "is no run of train or sweep"),
        (["model.zip"], "model.zip is a file: name the folder that train wrote"),
        ([".", "-n", "0"], "-n/--episodes: must be a whole number >= 1, got 0"),
        ([".", "--confidence", "95"], "--confidence must be between 0 and 1, got 95.0"),
    ],
)
def test_what_cannot_be_evaluated_is_said(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.zip").touch()
    with pytest.raises(SystemExit):
        main(["evaluate", *arguments])
    assert message in capsys.readouterr().err


def test_a_policy_is_exported(policy: Path, tmp_path: Path) -> None:
    files = [tmp_path / "p.onnx", tmp_path / "p.pt"]
    arguments = ["export", "--pretrained", str(policy), "--observations", "20"]
    assert main([*arguments, "-o", *map(str, files)]) == 0
    assert all(file.stat().st_size > 1000 for file in files)
