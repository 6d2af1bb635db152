"""The command line: ``sb3-pmpo train`` and ``sb3-pmpo enjoy``, or ``python -m sb3_pmpo ...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch as th

from sb3_pmpo.enjoy import enjoy
from sb3_pmpo.training import TrainingPlan, train


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {value}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sb3-pmpo", description="PMPO for Stable-Baselines3: train and watch policies."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    learn = commands.add_parser("train", help="train PMPO on an environment")
    learn.add_argument(
        "--env",
        default="dm_control/cartpole-swingup-v0",
        help="a Gymnasium id, such as dm_control/walker-walk-v0 or Pendulum-v1",
    )
    learn.add_argument(
        "--steps",
        type=_positive,
        help="environment steps, each repeat of an action counted (default: the configuration's)",
    )
    learn.add_argument("--seed", type=int, default=0)
    learn.add_argument(
        "--output", type=Path, default=Path("runs"), help="where the run's folder is made"
    )
    learn.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    learn.add_argument(
        "--threads",
        type=_positive,
        default=1,
        help="of torch; more help little at these sizes, and stall on a busy machine",
    )
    learn.add_argument("--evaluations", type=_positive, default=10, help="how often to evaluate")
    learn.add_argument(
        "--eval-episodes", type=_positive, default=5, help="episodes of each evaluation"
    )
    learn.add_argument("--no-progress-bar", action="store_true")

    watch = commands.add_parser("enjoy", help="run a trained policy: its returns, or a video")
    watch.add_argument("run", type=Path, help="the folder of a run")
    watch.add_argument("--episodes", type=_positive, default=3)
    watch.add_argument("--seed", type=int, default=1000)
    watch.add_argument(
        "--render", action="store_true", help="in a window (unset MUJOCO_GL, or set it to glfw)"
    )
    watch.add_argument(
        "--video", action="store_true", help="to a file in the run's folder (MUJOCO_GL=egl)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "enjoy":
        render_mode = "human" if options.render else "rgb_array" if options.video else None
        enjoy(options.run, options.episodes, options.seed, render_mode)
        return 0
    th.set_num_threads(options.threads)
    plan = TrainingPlan.for_env(
        options.env,
        steps=options.steps,
        seed=options.seed,
        output=options.output,
        device=options.device,
        evaluations=options.evaluations,
        eval_episodes=options.eval_episodes,
        progress_bar=not options.no_progress_bar,
    )
    return train(plan)
