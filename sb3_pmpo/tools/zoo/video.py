"""Videos of trained agents, as fast as what they show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_pmpo.tools.zoo.agents import AgentError, acts_deterministically, find_agent, make_parser

#: What Gymnasium assumes of an environment that does not say.
DEFAULT_FPS = 30.0


class Video(NamedTuple):
    """A video that was made."""

    path: Path
    n_frames: int
    fps: float

    def __str__(self) -> str:
        seconds = self.n_frames / self.fps
        return f"{self.path}: {self.n_frames} decisions, {seconds:.1f} s at {self.fps:g} fps"


def record(arguments: Sequence[str]) -> int:
    """Record an mp4 of a trained agent; the arguments are those of ``rl_zoo3.record_video``."""
    parser = make_parser("record", "Record an mp4 of a trained agent, at the speed of its world.")
    parser.add_argument(
        "-n", "--n-timesteps", type=int, default=1000, help="decisions, a frame each (default 1000)"
    )
    parser.add_argument("--n-envs", type=int, default=1, help="environments, in one picture")
    parser.add_argument(
        "-o", "--output-folder", type=Path, help="default: the folder videos/ of the run"
    )
    args = parser.parse_args(arguments)
    try:
        agent = find_agent(args)
        env = agent.make_env(n_envs=args.n_envs, seed=args.seed, render=True)
        check_rendering(env)
    except AgentError as error:
        parser.error(str(error))
    print(f"Loading {agent.model_path}")
    model = agent.load(env, seed=args.seed, device=args.device)
    folder = args.output_folder or agent.folder / "videos"
    video = film(
        model,
        env,
        folder / f"{agent.label}-step-0-to-step-{args.n_timesteps}.mp4",
        n_frames=args.n_timesteps,
        seed=args.seed,
        deterministic=acts_deterministically(args),
    )
    env.close()
    print(f"Saved {video}")
    return 0


def film(
    model: BaseAlgorithm,
    env: VecEnv,
    path: Path,
    *,
    n_frames: int,
    seed: int,
    deterministic: bool,
) -> Video:
    """Let a model act and write what is seen before each decision; Ctrl-C ends it early.

    The frames go to the encoder one by one: a long video takes no more memory than a short one.

    :param env: with ``render_mode="rgb_array"``; it is left open. Several environments are
        shown in one picture.
    :param path: of the mp4; its folder is made.
    :param n_frames: decisions, >= 1.
    :param seed: of the first episode.
    :param deterministic: whether to act without noise.
    """
    if n_frames < 1:
        raise ValueError(f"a video needs at least one frame, got n_frames = {n_frames}")
    path.parent.mkdir(parents=True, exist_ok=True)
    fps = frames_per_second(env)
    env.seed(seed)
    observations = env.reset()
    height, width, _ = _frame(env).shape
    state, starts, written = None, np.ones(env.num_envs, dtype=bool), 0
    with FFMPEG_VideoWriter(str(path), (width, height), fps) as writer:
        try:
            while written < n_frames:
                writer.write_frame(_frame(env))
                written += 1
                actions, state = model.predict(observations, state, starts, deterministic)  # type: ignore[arg-type]  # as SB3 annotates it, without Dict observations
                observations, _, starts, _ = env.step(actions)
        except KeyboardInterrupt:
            print("Stopped.")
    return Video(path, written, fps)


def frames_per_second(env: VecEnv) -> float:
    """Return how many decisions the environment takes a second, for it renders one frame each."""
    return float(env.get_attr("metadata")[0].get("render_fps") or DEFAULT_FPS)


def check_rendering(env: VecEnv, otherwise: str = "") -> None:
    """Render one frame, to fail at once where it cannot be done.

    :param env: with ``render_mode="rgb_array"``.
    :param otherwise: what else to do about it, for the message.
    :raises AgentError: naming the remedy.
    """
    env.reset()
    try:
        _frame(env)
    except gym.error.DependencyNotInstalled as error:  # it names what to install
        raise AgentError(f"cannot render the environment: {error}{otherwise}") from error
    except Exception as error:  # each renderer has its own
        backend = os.environ.get("MUJOCO_GL", "not set")
        raise AgentError(
            f"cannot render the environment: {error} MuJoCo needs OpenGL, and MUJOCO_GL is "
            f"{backend}: set MUJOCO_GL=egl (or osmesa, without a graphics card){otherwise}"
        ) from error


def _frame(env: VecEnv) -> np.ndarray:
    """Render ``[height, width, 3]``, of even size, without which players refuse an mp4."""
    frame = env.render()
    if frame is None:
        raise AgentError("the environment has no render_mode 'rgb_array'")
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
