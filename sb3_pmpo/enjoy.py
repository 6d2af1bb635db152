"""Run a trained policy: print its returns, show it in a window, or record a video."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pmpo.envs import make_env
from sb3_pmpo.pmpo import PMPO


def enjoy(run: Path, episodes: int, seed: int, render_mode: str | None) -> list[float]:
    """Run the best policy of a training run, with its mean action.

    :param run: the folder that ``train`` made.
    :param episodes: how many.
    :param seed: of the environment.
    :param render_mode: None, ``"human"`` for a window, ``"rgb_array"`` to record a video.
    :return: the episodes' returns.
    """
    about = json.loads((run / "run.json").read_text())
    env = make_env(about["env"], about["env_wrapper"], render_mode=render_mode)
    if render_mode == "rgb_array":
        env = gym.wrappers.RecordVideo(env, str(run / "video"), episode_trigger=lambda _: True)
    env = Monitor(env)
    env.reset(seed=seed)
    path = run / "best_model.zip"
    model = PMPO.load(path if path.exists() else run / "model.zip", device="cpu")
    returns, _ = evaluate_policy(  # lists, as return_episode_rewards is set
        model, env, n_eval_episodes=episodes, return_episode_rewards=True, warn=False
    )
    env.close()
    assert isinstance(returns, list)
    for number, value in enumerate(returns, 1):
        print(f"episode {number}: return {value:.1f}")
    if render_mode == "rgb_array":
        print(f"videos in {run / 'video'}")
    return [float(value) for value in returns]
