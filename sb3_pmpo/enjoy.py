"""Run a trained policy: print its returns, show it in a window, or record a video."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pmpo.envs import make_env
from sb3_pmpo.pmpo import PMPO


def run_episodes(model: BaseAlgorithm, env: gym.Env, seeds: Iterable[int]) -> list[float]:
    """Run the policy's deterministic action for one episode a seed; return the returns."""
    returns = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def enjoy(run: Path, episodes: int, seed: int, render_mode: str | None) -> list[float]:
    """Run the best policy of a training run.

    :param run: the folder that ``train`` made.
    :param episodes: how many.
    :param seed: of the first episode; the others count on from it.
    :param render_mode: None, ``"human"`` for a window, ``"rgb_array"`` to record a video.
    :return: the episodes' returns.
    """
    about = json.loads((run / "run.json").read_text())
    env = make_env(about["env"], about["env_wrapper"], render_mode=render_mode)
    if render_mode == "rgb_array":
        env = gym.wrappers.RecordVideo(env, str(run / "video"), episode_trigger=lambda _: True)
    best, last = run / "best_model.zip", run / "model.zip"
    model = PMPO.load(best if best.exists() else last, device="cpu")
    returns = run_episodes(model, env, range(seed, seed + episodes))
    env.close()
    for number, value in enumerate(returns, 1):
        print(f"episode {number}: return {value:.1f}")
    if render_mode == "rgb_array":
        print(f"videos in {run / 'video'}")
    return returns
