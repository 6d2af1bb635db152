"""Videos of trained agents, as fast as what they show."""

from __future__ import annotations

import argparse
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_pmpo.command_line import count
from sb3_pmpo.tools.outputs import OutputError, check_output
from sb3_pmpo.tools.zoo.agents import (
    EDGE,
    AgentError,
    acts_deterministically,
    find_agent,
    make_parser,
)
from sb3_pmpo.tools.zoo.shipped import unpacked

#: Frames a second of a video, and what Gymnasium assumes of an environment that does not say.
FPS = 30
DEFAULT_RATE = 30.0
#: ffmpeg's filter that fits frames of any size into a square.
_FITTED = (
    "scale={edge}:{edge}:force_original_aspect_ratio=decrease:force_divisible_by=2,"
    "pad={edge}:{edge}:(ow-iw)/2:(oh-ih)/2:white"
)
#: In the metadata of each video.
MARK = "sb3-pmpo record"


class Video(NamedTuple):
    """A video that was made."""

    path: Path
    n_decisions: int
    n_frames: int

    def __str__(self) -> str:
        seconds = self.n_frames / FPS
        return f"{self.path}: {self.n_decisions} decisions, {seconds:.1f} s at {FPS} fps"


def record(arguments: Sequence[str]) -> int:
    """Record an mp4 of a trained agent; the arguments are those of ``rl_zoo3.record_video``."""
    with unpacked("record", arguments, "-o", "videos") as chosen:
        return _record(chosen)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "record",
        "Record an mp4 of a trained agent: 480x480, 30 frames a second, at the speed of its world.",
        pretrained=True,
    )
    parser.add_argument(
        "-n",
        "--n-timesteps",
        type=count,
        default=1000,
        help="decisions of the agent (default: 1000)",
    )
    parser.add_argument(
        "--n-envs",
        type=count,
        default=1,
        help="environments, in one picture (default: 1), each as large as it draws itself",
    )
    parser.add_argument(
        "-o", "--output-folder", type=Path, help="default: the folder videos/ of the run; with "
        "--pretrained, videos/ here"
    )  # fmt: skip
    return parser


def _record(arguments: Sequence[str]) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        agent = find_agent(args)
        folder = args.output_folder or agent.folder / "videos"
        path = folder / f"{agent.label}-step-0-to-step-{args.n_timesteps}.mp4"
        check_output(path, MARK)
        env = agent.make_env(n_envs=args.n_envs, seed=args.seed, render=True)
        check_rendering(env)
    except (AgentError, OutputError) as error:
        parser.error(str(error))
    print(f"Loading {agent.model_path}")
    model = agent.load(env, seed=args.seed, device=args.device)
    video = film(
        model,
        env,
        path,
        n_decisions=args.n_timesteps,
        seed=args.seed,
        deterministic=acts_deterministically(args),
        edge=None if agent.has_own_size or args.n_envs > 1 else EDGE,
    )
    env.close()
    print(f"Saved {video}")
    return 0


def film(
    model: BaseAlgorithm,
    env: VecEnv,
    path: Path,
    *,
    n_decisions: int,
    seed: int,
    deterministic: bool,
    edge: int | None,
) -> Video:
    """Let a model act and write an mp4 of what is seen; Ctrl-C ends it early.

    The frames go to the encoder one by one: a long video takes no more memory than a short one.

    :param env: with ``render_mode="rgb_array"``; it is left open. Several environments are
        shown in one picture.
    :param path: of the mp4; its folder is made.
    :param n_decisions: of the agent, >= 1.
    :param seed: of the first episode.
    :param deterministic: whether to act without noise.
    :param edge: of the video in pixels, in which the frames are fitted with white around them;
        None for the frames' own size.
    """
    if n_decisions < 1:
        raise ValueError(f"a video needs at least one decision, got n_decisions = {n_decisions}")
    path.parent.mkdir(parents=True, exist_ok=True)
    env.seed(seed)
    env.reset()
    height, width, _ = _frame(env).shape
    written, decisions = 0, 0
    options = ["-metadata", f"comment={MARK}"]
    if edge is not None:
        options += ["-vf", _FITTED.format(edge=edge)]
    seen = frames(model, env, n_decisions=n_decisions, seed=seed, deterministic=deterministic)
    with FFMPEG_VideoWriter(str(path), (width, height), FPS, ffmpeg_params=options) as writer:
        try:
            with closing(seen):
                for decision, frame in seen:
                    writer.write_frame(frame)
                    written, decisions = written + 1, decision + 1
        except KeyboardInterrupt:
            print("Stopped.")
    return Video(path, decisions, written)


def frames(
    model: BaseAlgorithm,
    env: VecEnv,
    *,
    n_decisions: int,
    seed: int,
    deterministic: bool,
    fps: int = FPS,
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Let a model act; yield the number of the decision and what is seen before it.

    The frames are as many a second of the world's time as asked for: a decision is shown in
    several frames, or in none, where the agent decides less often, or more often.

    :param fps: frames a second.
    :return: the frames ``[height, width, 3]``; see :func:`film` for the rest.
    """
    each = fps / decisions_per_second(env)
    env.seed(seed)
    observations = env.reset()
    state, starts, shown = None, np.ones(env.num_envs, dtype=bool), 0
    for decision in range(n_decisions):
        due = int((decision + 1) * each + 1e-6) - shown
        frame = _frame(env) if due else None
        for _ in range(due):
            yield decision, frame  # type: ignore[misc]  # there is one if one is due
        shown += due
        actions, state = model.predict(observations, state, starts, deterministic)  # type: ignore[arg-type]  # as SB3 annotates it, without Dict observations
        observations, _, starts, _ = env.step(actions)


def decisions_per_second(env: VecEnv) -> float:
    """Return how many decisions the environment takes a second of its own time."""
    return float(env.get_attr("metadata")[0].get("render_fps") or DEFAULT_RATE)


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
