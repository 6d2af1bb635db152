"""Publish a trained agent on the Hugging Face Hub, in the layout that the RL Zoo reads.

``rl_zoo3.push_to_hub`` does not run with the versions that this package is tested with.
"""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
import zipfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import HfApi
from huggingface_sb3 import ModelName, ModelRepoId
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_pmpo.command_line import count, counted
from sb3_pmpo.tools.outputs import OutputError
from sb3_pmpo.tools.zoo.agents import (
    EDGE,
    Agent,
    AgentError,
    acts_deterministically,
    find_agent,
    make_parser,
)
from sb3_pmpo.tools.zoo.card import SETTINGS_FILE, Scores, make_card, training_settings, versions
from sb3_pmpo.tools.zoo.found import is_archive
from sb3_pmpo.tools.zoo.video import check_rendering, film


def push(arguments: Sequence[str], api: HfApi | None = None) -> int:
    """Evaluate an agent, record it, describe it, and publish all of it.

    :param arguments: those of ``rl_zoo3.push_to_hub``, and ``--dry-run``.
    :param api: of the Hub; by default the public one, with the token that ``hf auth login`` saved.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        agent = find_agent(args)
        env = agent.make_env(n_envs=1, seed=args.seed, render=not args.no_render)
        if not args.no_render:
            check_rendering(env, ", or pass --no-render")
        folder = _new_folder(agent.folder / "hub")
    except (AgentError, OutputError) as error:
        parser.error(str(error))
    repo_id = ModelRepoId(args.organization, args.repo_name or ModelName(args.algo, args.env))
    print(f"Loading {agent.model_path}")
    model = agent.load(env, seed=args.seed, device=args.device)
    scores = evaluate(model, env, args, folder)
    if not args.no_render:
        video = film(
            model,
            env,
            folder / "replay.mp4",
            n_decisions=args.n_timesteps,
            seed=args.seed,
            deterministic=acts_deterministically(args),
            edge=None if agent.has_own_size else EDGE,
        )
        print(f"Saved {video}")
    env.close()
    copy_run(agent, folder)
    steps = model.num_timesteps
    card = make_card(agent, scores, repo_id, steps=steps, video=not args.no_render)
    (folder / "README.md").write_text(card)
    print(f"Wrote {folder}")
    if args.dry_run:
        print("Nothing was uploaded (--dry-run).")
        return 0
    api = api or HfApi()
    url = api.create_repo(repo_id, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=args.commit_message)
    print(f"Published at {url}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("push", "Publish a trained agent on the Hugging Face Hub.")
    add = parser.add_argument
    add("-orga", "--organization", required=True, help="user or organization on the Hub")
    add("-name", "--repo-name", help="name of the repository (default: <algo>-<env>)")
    add("-m", "--commit-message", default="Publish the agent", help="of the upload")
    add(
        "-n",
        "--n-timesteps",
        type=count,
        default=1000,
        help="decisions in the video (default 1000)",
    )
    add("--eval-episodes", type=count, default=10, help="episodes of the score (default: 10)")
    add("--no-render", action="store_true", help="make no video; needs no OpenGL")
    add("--dry-run", action="store_true", help="make the folder; upload nothing")
    return parser


#: What is in a folder of ours, beside the model, the curves and the video.
_WRITTEN = ("README.md", "args.yml", "config.yml", "env_kwargs.yml", "results.json",
            "vec_normalize.pkl", SETTINGS_FILE)  # fmt: skip


def _new_folder(path: Path) -> Path:
    if path.exists():  # of the last push: what is not made anew must not be published again
        card = path / "README.md"
        ours = card.is_file() and "sb3_pmpo" in card.read_text()
        for found in path.iterdir():
            if not ours or not (found.name in _WRITTEN or found.suffix in {".zip", ".mp4"}):
                raise OutputError(f"{path} holds {found.name}, which push did not write: move it")
        shutil.rmtree(path)
    path.mkdir()
    return path


def evaluate(model: BaseAlgorithm, env: VecEnv, args: argparse.Namespace, folder: Path) -> Scores:
    """Measure the score by the rewards of the environment's Monitor; write ``results.json``."""
    deterministic = acts_deterministically(args)
    env.seed(args.seed)
    found = evaluate_policy(
        model, env, args.eval_episodes, deterministic, return_episode_rewards=True
    )
    returns, lengths = (np.asarray(values, float).tolist() for values in found)
    scores = Scores(
        float(np.mean(returns)), float(np.std(returns)), len(returns), deterministic, args.seed
    )
    print(f"Return over {counted(len(returns), 'episode')}: {scores}")
    details = {
        **scores._asdict(),
        "episode_rewards": returns,
        "episode_lengths": lengths,
        "eval_datetime": datetime.now().isoformat(),
        "versions": versions(),
    }
    (folder / "results.json").write_text(json.dumps(details, indent=2) + "\n")
    return scores


def copy_run(agent: Agent, folder: Path) -> None:
    """Copy what the Zoo's ``load_from_hub`` reads: the model as it is, settings and curves."""
    shutil.copy(agent.model_path, folder / ModelName(agent.algorithm, agent.env_name).filename)
    for name in ("config.yml", "args.yml"):
        shutil.copy(agent.settings_folder / name, folder / name)
    (folder / "env_kwargs.yml").write_text(yaml.dump(agent.env_kwargs))
    settings = training_settings(agent)
    if settings is not None:
        (folder / SETTINGS_FILE).write_text(settings)
    statistics = agent.settings_folder / "vecnormalize.pkl"
    if statistics.is_file():
        shutil.copy(statistics, folder / "vec_normalize.pkl")
    with zipfile.ZipFile(folder / "train_eval_metrics.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (*agent.folder.glob("evaluations.npz"), *agent.folder.glob("*.csv")):
            if path.suffix == ".npz" and not is_archive(path):
                warnings.warn(f"{path} is empty or torn, and is left out", stacklevel=2)
                continue
            archive.write(path, path.name)
