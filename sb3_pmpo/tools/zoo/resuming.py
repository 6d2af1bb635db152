"""``train -i FOLDER``: the checkpoint that is meant, and what its run was called with."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_pmpo.online.off_policy import OffPolicyMPO
from sb3_pmpo.storage.checkpoints import Checkpoint, find_checkpoint
from sb3_pmpo.storage.strangers import are_own, check_env_id, check_modules, is_plain
from sb3_pmpo.tools.checkpoints import UNIT
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.settings import as_words

#: Arguments of a run that hold for it when it goes on: with a value, a list, or without one.
_VALUES = ("algo", "env", "seed", "eval_freq", "eval_episodes", "n_eval_envs", "save_freq",
           "vec_env", "log_interval", "device", "num_threads", "verbose")  # fmt: skip
_TEXTS = ("tensorboard_log",)
_MAPPINGS = ("env_kwargs", "eval_env_kwargs")
_FLAGS = ("save_replay_buffer",)
#: In ``args.yml``: what ``sb3-pmpo offline`` was called with. The run's steps are gradient steps.
OFFLINE = "offline"


class CannotResumeError(ValueError):
    """There is nothing to go on from; the message is for the one who asked."""


class NotBegunError(ValueError):
    """Learning refused its arguments before the first step."""


class NothingLeftError(ValueError):
    """The run is finished; the message says so."""


def find_unit(folder: Path) -> Checkpoint:
    """Return the newest whole checkpoint of a folder: a run's, or a checkpoint's own.

    :raises CannotResumeError: if there is none.
    """
    for place in (folder / UNIT, folder):
        try:
            found = find_checkpoint(place)
        except ValueError as error:
            raise CannotResumeError(str(error)) from error
        if found is not None:
            names = (*found.files.values(), *found.pieces)
            missing = [name for name in names if not (place / name).is_file()]
            if missing:
                raise CannotResumeError(f"{place} is damaged: {missing[0]} is not there")
            return found
    models = sorted(path.name for path in folder.glob("*.zip"))
    instead = (
        f"; -i {folder / models[0]}, with --algo and --env, goes on from that model alone"
        if models
        else ""
    )
    raise CannotResumeError(
        f"-i {folder}: it holds no checkpoint (train writes them with --save-freq){instead}"
    )


def unit_of(model: str) -> Checkpoint | None:
    """Return the checkpoint that a model's file is part of; None for a file of its own."""
    path = Path(model).absolute()
    try:
        found = find_checkpoint(path.parent)
    except ValueError:
        return None
    return found if found is not None and found.files["model"] == path.name else None


def run_of(checkpoint: Checkpoint, env_name: str) -> Path | None:
    """Return the folder of the run that a checkpoint is of, if ``train`` wrote it."""
    folder = checkpoint.folder.parent
    is_run = checkpoint.folder.name == UNIT and (folder / env_name / "config.yml").is_file()
    return folder if is_run else None


def _saved_arguments(run: Path) -> Path | None:
    """Find what a run was called with; None where no run is."""
    return next(iter(sorted(run.glob("*/args.yml"))), None)


def learned_offline(folder: Path) -> bool:
    """Say whether ``sb3-pmpo offline`` made a run; no, where its settings cannot be read."""
    saved = _saved_arguments(folder)
    if saved is None:
        return False
    try:
        return bool(read(saved).get(OFFLINE))
    except (OSError, ValueError, AttributeError):
        return False


def check_kind(run: Path, *, offline: bool) -> None:
    """Check that the command that goes on with a run is the one that made it.

    :param run: its folder.
    :param offline: whether ``sb3-pmpo offline`` is to go on.
    :raises CannotResumeError: if not: one of them counts gradient steps, the other decisions.
    """
    is_offline = learned_offline(run)
    if is_offline == offline or _saved_arguments(run) is None:
        return
    models = (path for path in sorted(run.glob("*.zip")) if path.name != "best_model.zip")
    model = next(models, run / "MODEL.zip")
    if is_offline:
        raise CannotResumeError(
            f"-i {run}: sb3-pmpo offline made this run, and goes on with it: give that command its "
            f"arguments again, and -i {run}. To learn from rewards with its policy: -i {model}"
        )
    raise CannotResumeError(
        f"-i {run}: sb3-pmpo train made this run, and goes on with it. To learn from data with its "
        f"policy: --model {model}"
    )


def go_on_with_clock(env: VecEnv, episodes: Path) -> None:
    """Let Monitor's clock go on, by which the episodes are in order.

    :param episodes: the first file of the run, which may not be there.
    :raises ValueError: if it is torn.
    """
    if not episodes.exists():
        return
    try:
        header = episodes.read_text().partition("\n")[0].removeprefix("#")
        started = json.loads(header)["t_start"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{episodes} is empty or torn: {error}") from error
    env.env_method("set_wrapper_attr", "t_start", started)


def begin_to_act(model: BaseAlgorithm) -> None:
    """Let a model that learned offline go on in an environment, whose decisions count from 0."""
    print("The model learned offline: decisions are counted from 0.")
    model.num_timesteps = 0
    keep_policy(model)


def keep_policy(model: BaseAlgorithm) -> None:
    """Let a policy that can do something already act from the start.

    Its critics are new: they first learn what the policy does, for as long as a new model would
    have acted at random.

    :param model: one of ours; others are left as they are.
    """
    if isinstance(model, OffPolicyMPO):
        model.policy_held_until = model.learning_starts
        model.learning_starts = 0


def origin(settings: Path) -> dict[str, Any]:
    """Return what a run began with, if it was another run's model or a pretrained policy.

    A run that goes on in its folder keeps it: its settings are written anew.

    :param settings: where the run's ``args.yml`` is.
    """
    path = settings / "args.yml"
    saved = read(path) if path.is_file() else {}
    names = ("trained_agent", "from_pretrained")
    return {name: str(saved[name]) for name in names if saved.get(name)}


def filled_in(arguments: Sequence[str]) -> list[str]:
    """Replace ``-i FOLDER`` by its checkpoint's model, after what its run was called with.

    :raises CannotResumeError: if there is no checkpoint in the folder, or if its arguments need the
        user's word.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-i", "--trained-agent", default="")
    parser.add_argument("--gym-packages", nargs="+", action="extend", default=[])
    asked = parser.parse_known_args(arguments)[0]
    agent = asked.trained_agent
    if agent and not Path(agent).exists():
        raise CannotResumeError(f"-i {agent}: there is no such file or folder")
    if not Path(agent).is_dir() or not agent:
        return list(arguments)
    found = find_unit(Path(agent))
    before: list[str] = []
    saved = _saved_arguments(found.folder.parent)
    if found.folder.name == UNIT and saved is not None:
        try:
            before = _as_given(saved, asked.gym_packages)
        except ValueError as error:
            raise CannotResumeError(f"-i {agent}: {error}") from error
    return [*before, *arguments, "--trained-agent", str(found.path("model"))]


def _as_given(path: Path, given: Sequence[str]) -> list[str]:
    """Return a run's arguments as a command line has them; none of them can be another option.

    :param path: of ``args.yml``.
    :param given: the modules that the user names.
    :raises ValueError: naming what is not as ``train`` writes it, or needs the user's word.
    """
    saved, is_own = read(path), are_own(path.parent)
    if saved.get("env") is not None and not is_own:
        check_env_id(saved["env"], str(path))
    found: list[str] = []
    for name in (*_VALUES, *_TEXTS):
        if saved.get(name) not in (None, ""):
            found.append(f"{_option(name)}={_checked(name, saved[name], path)}")
    missing = [name for name in (*_VALUES, *_TEXTS, *_MAPPINGS, *_FLAGS) if name not in saved]
    if missing:  # torn between two entries, it can still be read
        warnings.warn(
            f"{path} does not say {', '.join(missing)}: it is torn, or was written by hand; the "
            "defaults hold where the command line says nothing",
            stacklevel=2,
        )
    modules = check_modules(saved.get("gym_packages"), str(path), given=given, is_own=is_own)
    if modules:
        found += ["--gym-packages", *modules]
    for name in _MAPPINGS:
        if saved.get(name):
            found += [_option(name), *_pairs(name, saved[name], path)]
    return found + [_option(name) for name in _FLAGS if saved.get(name)]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _checked(name: str, value: Any, path: Path) -> Any:
    text = isinstance(value, str) and not value.startswith("-")
    if text or isinstance(value, (int, float)):
        return value
    raise ValueError(
        f"{path}: {name} must be a number, or a text that does not begin with -, got {value!r}: "
        "repair the file"
    )


def _pairs(name: str, values: Any, path: Path) -> list[str]:
    strange: Any = values
    if isinstance(values, Mapping):
        strange = next((key for key in values if not str(key).isidentifier()), None)
        if strange is None and is_plain(values):
            return as_words(values)
    raise ValueError(
        f"{path}: {name} must be a dictionary of arguments with numbers, texts and lists, got "
        f"{values if strange is None else strange!r}: repair the file"
    )
