"""Trained agents in the Zoo's log folders: find one, make its environment, load it."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rl_zoo3.import_envs  # noqa: F401  # registers the Zoo's environments
import torch as th
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import ALGOS
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import create_test_env
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from sb3_pmpo.command_line import Parser
from sb3_pmpo.envs import check_registered
from sb3_pmpo.storage.pickles import UntrustedFileError
from sb3_pmpo.storage.statistics import load_statistics
from sb3_pmpo.storage.strangers import are_own, check_modules
from sb3_pmpo.tools.loading import load_model
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.settings import KeyValues, merge
from sb3_pmpo.tools.zoo import register
from sb3_pmpo.tools.zoo.found import NotSavedError, find_model, saved_settings
from sb3_pmpo.tools.zoo.shipped import HELP, PRETRAINED
from sb3_pmpo.tools.zoo.writing import statistics_of

#: Of a picture, in pixels, where nobody says another.
EDGE = 480


class AgentError(ValueError):
    """An agent that cannot be used as asked; the message is for the one who asked."""


@dataclass(frozen=True)
class Agent:
    """What the Zoo keeps of a training run.

    :param algorithm: what the Zoo calls it, ``"pmpo"``.
    :param env_name: of the environment; its ``gym_id`` is Gymnasium's.
    :param folder: of the run.
    :param model_path: the model that was asked for: the last, the best, or a checkpoint.
    :param label: which of these it is, for the name of a file.
    :param settings: the Zoo's hyperparameters.
    :param env_kwargs: what the environment is made with.
    :param arguments: what ``train`` was called with.
    :param modules: that were imported for the environment.
    """

    algorithm: str
    env_name: EnvironmentName
    folder: Path
    model_path: Path
    label: str
    settings: dict[str, Any]
    env_kwargs: dict[str, Any]
    arguments: dict[str, Any]
    modules: tuple[str, ...] = ()

    @property
    def settings_folder(self) -> Path:
        """Where the Zoo keeps ``config.yml``, ``args.yml`` and VecNormalize's statistics."""
        return self.folder / self.env_name

    @property
    def algorithm_class(self) -> type[BaseAlgorithm]:
        """The algorithm's class."""
        return ALGOS[self.algorithm]

    def make_env(self, *, n_envs: int, seed: int, render: bool) -> VecEnv:
        """Make the environment as it was in training, with frozen VecNormalize statistics."""
        if render:  # into an array: pygame needs no screen, and complains where there is none
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        env = create_test_env(
            self.env_name.gym_id,
            n_envs=n_envs,
            stats_path=str(self.settings_folder),
            seed=seed,
            should_render=False,  # which would open a window
            hyperparams=deepcopy(self.settings),
            env_kwargs=merge(self._rendered() if render else {}, self.env_kwargs),
            vec_env_cls=DummyVecEnv,
        )
        normaliser = unwrap_vec_normalize(env)
        own = statistics_of(self.model_path, self.settings_folder)
        if normaliser is not None and own.is_file():  # not those of the end of training
            found = load_statistics(own, normaliser.venv)
            normaliser.obs_rms, normaliser.ret_rms = found.obs_rms, found.ret_rms
        return env

    @property
    def has_own_size(self) -> bool:
        """Whether the environment's arguments say how large its pictures are."""
        given = {*self.env_kwargs, *(self.env_kwargs.get("render_kwargs") or {})}
        return bool({"height", "width"} & given)

    def _rendered(self) -> dict[str, Any]:
        """Return what a picture needs: the Control Suite's are 480x480, as MuJoCo's of Gymnasium.

        Its first camera goes along with what runs away; MuJoCo's own stays where it is.
        """
        mode: dict[str, Any] = {"render_mode": "rgb_array"}
        if self.env_name.gym_id.startswith("dm_control/"):
            mode["render_kwargs"] = {"height": EDGE, "width": EDGE, "camera_id": 0}
        return mode

    def load(self, env: VecEnv, *, seed: int, device: str) -> BaseAlgorithm:
        """Load the model, off-policy ones with a replay buffer of one transition."""
        custom = {"learning_rate": 0.0, "lr_schedule": _zero, "clip_range": _zero}
        options: dict[str, Any] = {"seed": seed}
        if issubclass(self.algorithm_class, OffPolicyAlgorithm):
            options |= {"buffer_size": 1, "optimize_memory_usage": False}
        return load_model(
            self.algorithm_class,
            self.model_path,
            env=env,
            device=device,
            custom_objects=custom,  # those that another version of Python may have pickled
            **options,
        )


def _zero(progress_remaining: float) -> float:
    return 0.0


def make_parser(
    command: str,
    description: str,
    *,
    pretrained: bool = False,
    noisy: bool = False,
    acts: bool = True,
) -> argparse.ArgumentParser:
    """Make a parser of the arguments by which all the Zoo's programs choose an agent.

    :param pretrained: whether the command takes ``--pretrained``, see
        :func:`sb3_pmpo.tools.zoo.shipped.unpacked`.
    :param noisy: whether the command acts with noise where nobody says otherwise.
    :param acts: whether it acts at all.
    """
    without, with_noise = (" (default, Atari aside)", "") if not noisy else ("", " (default)")
    register()
    parser = Parser(prog=f"sb3-pmpo {command}", description=description)
    add: Callable[..., Any] = parser.add_argument
    if pretrained:
        add(PRETRAINED, metavar="NAME", help=f"in the place of --algo, --env and -f: {HELP}")
    add("--algo", default="pmpo", choices=list(ALGOS), help="algorithm (default: pmpo)")
    add("--env", type=EnvironmentName, required=True, help="environment id")
    add("-f", "--folder", default="logs", help="folder that train wrote (default: logs)")
    add("--exp-id", type=int, default=0, help="number of the run (0: the latest, -1: no number)")
    add("--load-best", action="store_true", help="load the best model instead of the last")
    add("--load-checkpoint", type=int, metavar="STEPS", help="load this checkpoint")
    add("--load-last-checkpoint", action="store_true", help="load the last checkpoint")
    if acts:
        add("--deterministic", action="store_true", help=f"act without noise{without}")
        add("--stochastic", action="store_true", help=f"sample the actions{with_noise}")
    add("--seed", type=int, default=0, help="random seed (default: 0)")
    add("--device", default="auto", help="PyTorch device (default: auto)")
    add("--num-threads", type=int, default=1, help="threads of PyTorch (default: 1)")
    add("--env-kwargs", nargs="+", action=KeyValues, help="arguments of the environment, key:value")
    add("--gym-packages", nargs="+", default=[], help="modules that register environments")
    return parser


def find_agent(args: argparse.Namespace) -> Agent:
    """Find the agent that the arguments of :func:`make_parser` ask for.

    Modules that training was given as ``--gym-packages`` are imported, and the seed is set.

    :raises AgentError: if there is none.
    """
    set_random_seed(args.seed)
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    try:
        label, model_path, folder = find_model(
            args.exp_id,
            args.folder,
            args.algo,
            args.env,
            args.load_best,
            args.load_checkpoint,
            args.load_last_checkpoint,
        )
    except NotSavedError as error:
        raise AgentError(str(error)) from error
    except (AssertionError, ValueError) as error:
        raise AgentError(
            f"{error}; -f names the folder that train wrote, now {args.folder!r}"
        ) from error
    settings, arguments, modules = _read_settings(Path(folder) / args.env, args.gym_packages)
    imported = tuple(dict.fromkeys((*modules, *args.gym_packages)))
    _import_environments(imported, args.env.gym_id)
    # As enjoy has it: what train was called with replaces the configuration's.
    saved = arguments.get("env_kwargs")
    env_kwargs = settings.pop("env_kwargs", {}) if saved is None else saved
    return Agent(
        algorithm=args.algo,
        env_name=args.env,
        folder=Path(folder),
        model_path=Path(model_path),
        label=label,
        settings=settings,
        env_kwargs=dict(env_kwargs or {}) | (args.env_kwargs or {}),
        arguments=arguments,
        modules=imported,
    )


def _read_settings(
    folder: Path, gym_packages: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any], Sequence[str]]:
    """Read the settings of a run, what ``train`` was called with, and the modules that it names."""
    path = folder / "args.yml"
    try:
        settings, _ = saved_settings(str(folder), test_mode=True)
        arguments: dict[str, Any] = read(path) if path.is_file() else {}
        modules = check_modules(
            arguments.get("gym_packages"), str(path), given=gym_packages, is_own=are_own(folder)
        )
    except UntrustedFileError as error:
        raise AgentError(str(error)) from error
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise AgentError(f"the settings in {folder.parent} cannot be read: {error}") from error
    return settings, arguments, modules


def _import_environments(modules: Sequence[str], env_id: str) -> None:
    """Import what registers environments, and see that a task of the Control Suite is there."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise AgentError(f"--gym-packages {module}: {error}") from error
    if env_id.startswith("dm_control/"):
        try:
            check_registered(env_id)
        except ValueError as error:
            raise AgentError(str(error)) from error


def acts_deterministically(args: argparse.Namespace) -> bool:
    """Say whether to act without noise: yes, unless asked otherwise or on Atari and MiniGrid."""
    games = ExperimentManager.is_atari(args.env.gym_id) or ExperimentManager.is_minigrid(
        args.env.gym_id
    )
    return not (args.stochastic or (games and not args.deterministic))
