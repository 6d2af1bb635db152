"""Watching a trained agent: enjoy, and record's videos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import mujoco
import numpy as np
import pytest
from opengl import run_with_egl
from runs import WALKER, register_goals, register_painted, run, run_walker

from sb3_pmpo import PMPO
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.zoo.agents import find_agent, make_parser

#: imageio leaves the pipes of its reader to the collector.
reads_video = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def watch(folder: Path, env_id: str, *more: str, algorithm: str = "pmpo", n: int = 12) -> None:
    logs = folder.parent.parent
    arguments = ["--algo", algorithm, "--env", env_id, "-f", str(logs), "--no-render"]
    assert main(["enjoy", *arguments, "-n", str(n), *more]) == 0


def read_video(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Return what the file says of itself, and its frames ``[N, H, W, 3]``."""
    reader = imageio_ffmpeg.read_frames(path)
    says = next(reader)
    width, height = says["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    return says, np.stack(frames)


# ---------------------------------------------------------------------- enjoy


@pytest.fixture(scope="module")
def goal_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Her on a goal environment, with checkpoints, a best model and a large replay buffer."""
    more = ("--eval-freq", "10", "--eval-episodes", "1", "--save-freq", "10")
    settings = {
        "policy": "MultiInputPolicy",
        "replay_buffer_class": "HerReplayBuffer",
        "replay_buffer_kwargs": {"n_sampled_goal": 2},
        "buffer_size": 2_000_000,
    }
    return run(tmp_path_factory.mktemp("goals"), register_goals(), "pmpo", *more, **settings)


@pytest.mark.parametrize(
    ("chosen", "loaded"),
    [
        ([], "Bits-v0.zip"),
        (["--load-best"], "best_model.zip"),
        (["--load-checkpoint", "20"], "rl_model_20_steps.zip"),
        (["--load-last-checkpoint"], "rl_model_30_steps.zip"),
        (["--exp-id", "1", "--stochastic"], "Bits-v0.zip"),
    ],
)
def test_enjoy_loads_what_is_asked_for_with_a_buffer_of_one(
    goal_run: Path,
    chosen: list[str],
    loaded: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = []
    load = PMPO.load

    def remember(*args: Any, **kwargs: Any) -> PMPO:
        models.append(load(*args, **kwargs))
        return models[-1]

    monkeypatch.setattr(PMPO, "load", remember)
    watch(goal_run, "Bits-v0", *chosen)
    printed = capsys.readouterr().out
    assert f"Loading {goal_run / loaded}" in printed
    assert "Success rate" in printed  # of HER's environments
    assert [model.replay_buffer.buffer_size for model in models] == [1]


@pytest.mark.parametrize(
    ("env_id", "algorithm", "settings"),
    [
        ("Pendulum-v1", "pmpo", {"normalize": True}),
        ("Pendulum-v1", "dpo", {"policy_kwargs": {"net_arch": [8], "n_bins": 5}}),
        ("CartPole-v1", "mpo", {}),
        ("CartPole-v1", "dpo", {}),
        ("Pendulum-v1", "sac", {}),
    ],
    ids=["VecNormalize", "discretised", "Discrete-mpo", "Discrete-dpo", "the Zoo's own"],
)
def test_enjoy_runs_every_kind_of_agent(
    env_id: str,
    algorithm: str,
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run(tmp_path, env_id, algorithm, **settings)
    watch(folder, env_id, algorithm=algorithm, n=501)
    printed = capsys.readouterr().out
    assert "Mean reward" in printed
    assert ("Loading running average" in printed) == ("normalize" in settings)


def test_enjoy_without_a_screen_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(SystemExit, match=r"no screen.*--no-render.*record"):
        main(["enjoy", "--env", "Pendulum-v1"])


# ---------------------------------------------------------------------- record


@pytest.fixture(scope="module")
def walker_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_walker(tmp_path_factory.mktemp("walker"))


@reads_video
def test_a_video_is_as_fast_as_the_world_it_shows(walker_run: Path) -> None:
    logs = str(walker_run.parent.parent)
    arguments = ["--env", WALKER, "-f", logs, "-n", "40", "--n-envs", "2"]
    printed = run_with_egl("record", *arguments)
    (path,) = (walker_run / "videos").glob("*.mp4")
    assert f"Saved {path}: 40 decisions, 2.0 s at 30 fps" in printed
    says, frames = read_video(path)
    # A control step takes 25 ms, a decision two of them: 20 a second are shown in 30 frames.
    assert says["fps"] == 30
    assert says["duration"] == pytest.approx(2.0)
    assert says["pix_fmt"].startswith("yuv420p")  # which browsers play
    assert frames.shape == (60, 48 * 2, 64, 3)
    assert frames.mean() > 20  # not black
    changes = np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert (changes[:30] > 0).sum() >= 20  # the walker falls
    path.unlink()


def test_the_camera_goes_along(walker_run: Path) -> None:
    """MuJoCo's own camera stays at the start, and shows the floor once the walker has left."""
    logs = str(walker_run.parent.parent)
    args = make_parser("record", "").parse_args(["--env", WALKER, "-f", logs])
    env = find_agent(args).make_env(n_envs=1, seed=0, render=True)
    # The run's own size, and the camera that it says nothing of.
    given = {"height": 48, "width": 64, "camera_id": 0}
    assert env.get_attr("render_kwargs") == [given]
    camera = env.get_attr("physics")[0].model.cam_mode[0]
    assert camera == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
    env.close()


@reads_video
@pytest.mark.parametrize(
    ("env_id", "size", "margin"),
    [
        ("Pendulum-v1", (480, 480), 0),
        ("CartPole-v1", (480, 480), 80),  # drawn in 600x400
    ],
)
def test_gymnasium_s_tasks_are_fitted_into_the_same_square(
    env_id: str,
    size: tuple[int, int],
    margin: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = run(tmp_path, env_id, normalize=True)
    video = tmp_path / "videos"
    arguments = ["--env", env_id, "-f", str(tmp_path), "-o", str(video)]
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    assert main(["record", *arguments, "-n", "15", "--exp-id", folder.name[-1]]) == 0
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"  # else it complains where there is no screen
    says, frames = read_video(video / f"final-model-pmpo-{env_id}-step-0-to-step-15.mp4")
    assert says["fps"] == 30
    assert says["size"] == size
    assert says["duration"] == pytest.approx(15 / decisions_a_second(env_id))
    assert np.abs(np.diff(frames.astype(int), axis=0)).max() > 100
    assert frames[:, : max(margin - 2, 1)].mean() > 250  # white above it


def decisions_a_second(env_id: str) -> float:
    return float(gym.make(env_id).metadata["render_fps"])


@reads_video
def test_a_run_s_own_size_is_kept(tmp_path: Path) -> None:
    """Without OpenGL: an environment of one's own that takes a height and a width."""
    run(tmp_path, register_painted(), "pmpo", "--env-kwargs", "height:64", "width:32")
    arguments = ["--env", "Painted-v0", "-f", str(tmp_path), "-n", "5", "-o", str(tmp_path)]
    assert main(["record", *arguments]) == 0
    (path,) = tmp_path.glob("*.mp4")
    assert read_video(path)[0]["size"] == (32, 64)


def test_without_opengl_record_refuses_before_it_loads(
    walker_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("No OpenGL rendering backend is available.")

    # What MUJOCO_GL=disabled does, which dm_control reads once, when it is imported.
    monkeypatch.setattr("dm_control.mujoco.Physics.render", refuse)
    monkeypatch.setattr(PMPO, "load", None)
    with pytest.raises(SystemExit):
        main(["record", "--env", WALKER, "-f", str(walker_run.parent.parent)])
    error = capsys.readouterr().err
    assert "No OpenGL rendering backend" in error
    assert "MUJOCO_GL=egl" in error
    assert not list(walker_run.rglob("*.mp4"))


def test_a_missing_agent_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["record", "--env", WALKER, "-f", str(tmp_path)])
    error = capsys.readouterr().err
    assert "folder was not found" in error
    assert f"-f names the folder that train wrote, now '{tmp_path}'" in error


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (["--load-best"], "train writes the best model with --eval-freq"),
        (["--load-checkpoint", "7"], "its checkpoints: none: train writes them with --save-freq"),
        (["--load-last-checkpoint"], "its checkpoints: none"),
    ],
)
def test_a_model_that_was_never_saved_is_named(
    walker_run: Path, chosen: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["record", "--env", WALKER, "-f", str(walker_run.parent.parent), *chosen])
    error = capsys.readouterr().err
    assert said in error
    assert "-f names" not in error
