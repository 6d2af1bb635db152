"""``sb3-pmpo evaluate``: the mean return of agents side by side, with bootstrap intervals."""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_pmpo.command_line import Parser, count
from sb3_pmpo.files import whole
from sb3_pmpo.pretrained import PretrainedError, Score, names, scored
from sb3_pmpo.pretrained.files import ENOUGH, SUFFIX, interval
from sb3_pmpo.storage.pickles import UntrustedFileError
from sb3_pmpo.storage.strangers import RUN_SETTINGS, are_own, check_called, check_env_id
from sb3_pmpo.tools.outputs import OutputError, check_output
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.settings import KeyValues
from sb3_pmpo.tools.zoo import register
from sb3_pmpo.tools.zoo.agents import (
    Agent,
    AgentError,
    acts_deterministically,
    find_agent,
    make_parser,
)
from sb3_pmpo.tools.zoo.shipped import unpack

FIELDS = ("agent", "algorithm", "env", "episode", "seed", "return", "environment_steps")


class Episode(NamedTuple):
    """One episode: undiscounted return, as the environment gives it, and environment steps."""

    seed: int
    total: float
    steps: int


class Evaluated(NamedTuple):
    """An agent and its episodes."""

    name: str
    algorithm: str
    env: str
    episodes: list[Episode]

    @property
    def returns(self) -> np.ndarray:
        """The episodes' returns, ``[N]``."""
        return np.array([episode.total for episode in self.episodes])


def evaluate(arguments: Sequence[str]) -> int:
    """Evaluate agents on the same seeds; print a table and write the episodes."""
    register()
    parser = _parser()
    args = parser.parse_args(arguments)
    if not 0.0 < args.confidence < 1.0:
        parser.error(f"--confidence must be between 0 and 1, got {args.confidence}")
    if not args.agents and args.env is None:
        parser.error("name agents, or give --env (with --algo and -f) for the latest runs there")
    try:
        if args.output is not None:
            check_output(args.output, ",".join(FIELDS))
        with tempfile.TemporaryDirectory() as folder:
            agents = list(_choose(args, Path(folder)))  # so that a wrong name costs no evaluation
            found = [_evaluate(*chosen, args) for chosen in agents]
    except (AgentError, OutputError, PretrainedError, UntrustedFileError) as error:
        parser.error(str(error))
    _print(found, args.seed, args.confidence)
    if args.output is not None:
        _write(found, args.output)
        print(f"The episodes: {args.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="sb3-pmpo evaluate",
        description="Measure the mean return of agents, all on the same seeds: "
        "sb3-pmpo evaluate walker-walk logs/sac/dm_control-walker-walk-v0_1 -n 100 -o scores.csv",
    )
    add = parser.add_argument
    add("agents", nargs="*", metavar="AGENT", help="the folder of a run of train or sweep, the name"
        " of a pretrained policy, or its *.safetensors file")  # fmt: skip
    add("--algo", nargs="+", default=["pmpo"], help="without AGENT: algorithms (default: pmpo)")
    add("--env", help="without AGENT: environment id")
    add("-f", "--folder", default="logs", help="without AGENT: folder of train (default: logs)")
    add("--load-best", action="store_true", help="load the best models instead of the last")
    add("-n", "--episodes", type=count, default=100, help="of each agent (default: 100)")
    add("--seed", type=int, default=0, help="of the first episode; each has its own (default: 0)")
    add("--confidence", type=float, default=0.95, help="of the intervals (default: 0.95)")
    add("-o", "--output", type=Path, help="a CSV file with all episodes (default: none)")
    add("--deterministic", action="store_true", help="act without noise (default, Atari aside)")
    add("--stochastic", action="store_true", help="sample the actions")
    add("--device", default="auto", help="PyTorch device (default: auto)")
    add("--env-kwargs", nargs="+", action=KeyValues, help="arguments of the environment, key:value")
    add("--gym-packages", nargs="+", default=[], help="modules that register environments")
    return parser


# ---------------------------------------------------------------------- agents


def _choose(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Agent]]:
    if not args.agents:
        for algorithm in args.algo:
            chosen = ["--algo", algorithm, "--env", args.env, "-f", args.folder]
            agent = _find(chosen, args, best=args.load_best)
            yield str(agent.folder), agent
    for number, name in enumerate(args.agents):
        folder = Path(name)
        if name in names() or folder.suffix == SUFFIX:
            yield name, _find(unpack(name, scratch / str(number)), args)
        elif (folder / "run.json").is_file():
            yield name, _of_sweep(folder, args)
        elif folder.is_dir():
            yield name, _find(_of_train(folder), args, best=args.load_best)
        elif folder.is_file():
            raise AgentError(
                f"{name} is a file: name the folder that train wrote, for its last model, with "
                f"--load-best for the best (of files only *{SUFFIX} are agents)"
            )
        elif folder.parent != Path():
            raise AgentError(f"{name}: there is no such folder")
        else:
            unpack(name, scratch)  # says what there is


def _find(chosen: list[str], args: argparse.Namespace, *, best: bool = False) -> Agent:
    found = make_parser("evaluate", "").parse_args([*chosen, "--seed", str(args.seed)])
    found.load_best = best
    found.env_kwargs, found.gym_packages = args.env_kwargs, args.gym_packages
    return find_agent(found)


def _of_train(folder: Path) -> list[str]:
    saved = next(folder.glob("*/args.yml"), None)
    if saved is None:
        raise AgentError(
            f"{folder} is no run of train or sweep: it has no args.yml and no run.json"
        )
    try:
        env = str(read(saved)["env"])
    except (ValueError, KeyError) as error:
        raise AgentError(f"{saved} cannot be read: {error!r}") from error
    folder = folder.resolve()  # which "." has the names of, too
    number = folder.name.removeprefix(f"{EnvironmentName(env)}_")
    if not number.isdecimal() or folder.parent.name not in ALGOS:
        raise AgentError(
            f"{folder} must be called <algorithm>/{EnvironmentName(env)}_<number>, as train calls "
            "it (without -uuid): rename it"
        )
    chosen = ["--algo", folder.parent.name, "--env", env]
    return [*chosen, "-f", str(folder.parent.parent), "--exp-id", number]


def _of_sweep(folder: Path, args: argparse.Namespace) -> Agent:
    about = folder / RUN_SETTINGS
    try:
        told = json.loads(about.read_text())
        algorithm, env, wrapper = (told[key] for key in ("algorithm", "env", "env_wrapper"))
        if not are_own(folder, [RUN_SETTINGS]):
            check_env_id(env, str(about))
            check_called(wrapper, f"{about}: env_wrapper")
        module, _, env_id = env.rpartition(":")
        for name in [*args.gym_packages, *filter(None, [module])]:
            import_module(name)
    except UntrustedFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise AgentError(f"{about} cannot be used: {error}") from error
    path = folder / ("best_model.zip" if args.load_best else "model.zip")
    if not path.is_file():
        raise AgentError(f"{folder} has no {path.name} yet: its run is not finished")
    return Agent(
        algorithm=algorithm,
        env_name=EnvironmentName(env_id),
        folder=folder,
        model_path=path,
        label=folder.name,
        settings={"env_wrapper": wrapper, "normalize": False},
        env_kwargs=args.env_kwargs or {},
        arguments={},
    )


# ---------------------------------------------------------------------- episodes


def _evaluate(name: str, agent: Agent, args: argparse.Namespace) -> Evaluated:
    with closing(agent.make_env(n_envs=1, seed=args.seed, render=False)) as env:
        model = agent.load(env, seed=args.seed, device=args.device)
        args_of = argparse.Namespace(**vars(args) | {"env": agent.env_name})
        deterministic = acts_deterministically(args_of)
        seeds = range(args.seed, args.seed + args.episodes)
        episodes = list(run_episodes(model, env, seeds, deterministic=deterministic))
    return Evaluated(name, agent.algorithm, agent.env_name.gym_id, episodes)


def run_episodes(
    model: BaseAlgorithm, env: VecEnv, seeds: Sequence[int], *, deterministic: bool
) -> Iterator[Episode]:
    """Run an episode for each seed.

    :param model: the agent.
    :param env: one environment with a Monitor within, which sees the rewards as they are.
    :param seeds: of the episodes.
    :param deterministic: whether to act without noise.
    """
    for seed in seeds:
        env.seed(seed)
        observations: Any = env.reset()
        state, starts, told = None, np.ones(1, dtype=bool), None
        while told is None:
            actions, state = model.predict(observations, state, starts, deterministic)
            observations, _, starts, infos = env.step(actions)
            told = infos[0].get("episode")
        yield Episode(seed, float(told["r"]), int(told["l"]))


# ---------------------------------------------------------------------- what was found


def _print(found: Sequence[Evaluated], seed: int, confidence: float) -> None:
    percent = f"{confidence:.0%} interval"
    rows = [("agent", "environment", "episodes", "mean return", percent, "environment steps")]
    for each in found:
        score = scored(each.returns, seed, confidence)
        steps = np.mean([episode.steps for episode in each.episodes])
        rows.append((each.name, each.env, str(score.episodes), f"{score.mean:.1f}",
                     _interval(score), f"{steps:.0f}"))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    for one, other in combinations(found, 2):
        if one.env == other.env:
            apart = one.returns - other.returns
            low, high = interval(apart, confidence)
            print(f"{one.name} above {other.name}: {apart.mean():+.1f} [{low:+.1f}, {high:+.1f}]")
    narrow = any(1 < len(each.episodes) < ENOUGH for each in found)
    print(
        "The intervals are of the episodes (bootstrap"
        + (f", too narrow below {ENOUGH}" if narrow else "")
        + "): they say nothing of other training runs."
    )


def _interval(score: Score) -> str:
    if score.episodes == 1:
        return "none of one"
    return f"[{score.low:.1f}, {score.high:.1f}]"


def _write(found: Sequence[Evaluated], path: Path) -> None:
    with whole(path) as writing, writing.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(FIELDS)
        for each in found:
            about = (each.name, each.algorithm, each.env)
            table.writerows((*about, number, *e) for number, e in enumerate(each.episodes))
