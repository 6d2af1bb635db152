"""The command line as a user runs it: files, an interrupted run, watching, the built wheel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pytest
from sb3_pmpo.training import Progress, SaveModel, TrainingPlan

from sb3_pmpo import PMPO
from sb3_pmpo.cli import main
from sb3_pmpo.configs import load_config
from sb3_pmpo.envs import make_env

ROOT = Path(__file__).parent.parent


def test_train_makes_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "dm_control/cartpole-swingup-v0", "--steps", "2400", "--seed", "3"]
    arguments += ["--evaluations", "2", "--eval-episodes", "1", "--no-progress-bar"]
    status = main(["train", *arguments, "--output", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    printed = capsys.readouterr().out
    assert status == 0
    for name in ("model.zip", "best_model.zip", "learning_curve.png", "evaluations.npz"):
        assert (folder / name).stat().st_size > 0
        assert name in printed or name == "evaluations.npz"
    assert list((folder / "tensorboard").rglob("events.*"))
    assert "2400 environment steps" in printed
    # An action repeat of 2: 1200 decisions, evaluated after 600 and 1200 of them.
    assert PMPO.load(folder / "model.zip").num_timesteps == 1200
    assert list(np.load(folder / "evaluations.npz")["timesteps"]) == [600, 1200]
    # Watching starts from the folder alone.
    assert main(["enjoy", str(folder), "--episodes", "2"]) == 0
    assert capsys.readouterr().out.count("return") == 2


def test_sigterm_leaves_a_usable_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sb3_pmpo", "train", "--env", "Pendulum-v1"]
    process = subprocess.Popen(
        [*command, "--steps", "1000000", "--output", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # "Training PMPO on ..."
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped after" in rest
    model = PMPO.load(next(tmp_path.iterdir()) / "model.zip")
    assert model.num_timesteps > 0
    assert np.isfinite(model.predict(model.observation_space.sample())[0]).all()


def test_an_unfinished_save_does_not_touch_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PMPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, buffer_size=10)
    saver = SaveModel(tmp_path / "model.zip")
    saver.init_callback(model)
    saver.save()
    before = (tmp_path / "model.zip").read_bytes()

    def broken(path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(model, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        saver.save()
    assert (tmp_path / "model.zip").read_bytes() == before


def test_bar_shows_environment_steps_and_running_return(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = TrainingPlan.for_env("Pendulum-v1", steps=450, seed=0, output=tmp_path)
    model = PMPO(
        plan.policy, plan.make_envs(), policy_kwargs={"net_arch": [8]}, learning_starts=440
    )
    model.learn(plan.steps, Progress(plan))
    drawn = capsys.readouterr().err
    assert "450/450" in drawn
    assert "return -" in drawn


def test_configurations_fall_back_to_the_namespace_and_the_default() -> None:
    suite = load_config("pmpo", "dm_control/walker-walk-v0")
    other = load_config("pmpo", "Pendulum-v1")
    assert suite["env_wrapper"] == [{"sb3_pmpo.envs.control_suite": {"action_repeat": 2}}]
    assert "env_wrapper" not in other
    env = make_env("dm_control/walker-walk-v0", suite["env_wrapper"])
    env.reset(seed=0)
    decisions, over = 0, False
    while not over:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        decisions, over = decisions + 1, terminated or truncated
    assert decisions == 500
    assert observation.dtype == np.float32
    assert truncated
    assert not terminated


def test_the_built_wheel_trains_in_a_fresh_environment(tmp_path: Path) -> None:
    def call(*command: str | Path, **options: object) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=400,
            **options,  # type: ignore[call-overload]  # cwd and env only
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("sb3_pmpo-*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(call(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    # The dependencies come from the environment of the tests; the package from the wheel alone.
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = call(python, "-c", "import sb3_pmpo; print(sb3_pmpo.__file__)", cwd=tmp_path, env=clean)
    assert Path(where.strip()).is_relative_to(site)
    assert (site / "sb3_pmpo" / "py.typed").exists()
    assert (site / "sb3_pmpo" / "zoo_configs" / "pmpo.yml").exists()
    sb3_pmpo = tmp_path / "env" / "bin" / "sb3-pmpo"
    out = call(sb3_pmpo, "train", "--env", "Pendulum-v1", "--steps", "200", cwd=tmp_path, env=clean)
    assert "Finished after 200 environment steps" in out
    run = json.loads(next((tmp_path / "runs").iterdir()).joinpath("run.json").read_text())
    assert run["env"] == "Pendulum-v1"
