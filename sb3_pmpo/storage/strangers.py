"""What settings in a stranger's file may choose by name: environments, wrappers, modules.

A name that is imported and called is code. So a file may name what is listed here and is called
with plain data; all else needs the user's word, ``--trust`` or :func:`.pickles.trusting`. Files
that this user wrote are signed, as pickles are.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_pmpo._moved import new_name
from sb3_pmpo.storage import names, pickles
from sb3_pmpo.storage.pickles import UntrustedFileError

#: Wrappers and callbacks that take plain data, and neither run nor write what their arguments say.
_LISTED = {
    "gymnasium.wrappers": (
        "AddRenderObservation AtariPreprocessing ClipAction ClipReward DelayObservation "
        "DiscretizeAction DiscretizeObservation FilterObservation FlattenObservation "
        "FrameStackObservation GrayscaleObservation MaxAndSkipObservation NormalizeObservation "
        "NormalizeReward OrderEnforcing PassiveEnvChecker RecordEpisodeStatistics RepeatAction "
        "RescaleAction RescaleObservation ReshapeObservation ResizeObservation StickyAction "
        "TimeAwareObservation TimeLimit"
    ),
    "rl_zoo3.callbacks": "RawStatisticsCallback",
    "rl_zoo3.utils": "flatten_dict_observations",
    "rl_zoo3.wrappers": (
        "ActionNoiseWrapper ActionSmoothingWrapper DelayedRewardWrapper FrameSkip HistoryWrapper "
        "HistoryWrapperObsDict MaskVelocityWrapper TruncatedOnSuccessWrapper "
        "YAMLCompatResizeObservation"
    ),
    "sb3_contrib.common.wrappers": "TimeFeatureWrapper",
    "sb3_pmpo.envs": "ActionRepeat ControlSuite control_suite",
    "stable_baselines3.common.atari_wrappers": (
        "AtariWrapper ClipRewardEnv EpisodicLifeEnv FireResetEnv MaxAndSkipEnv NoopResetEnv "
        "StickyActionEnv WarpFrame"
    ),
    "stable_baselines3.common.callbacks": (
        "ProgressBarCallback StopTrainingOnMaxEpisodes StopTrainingOnRewardThreshold"
    ),
    "stable_baselines3.common.vec_env": (
        "VecCheckNan VecExtractDictObs VecFrameStack VecNormalize VecTransposeImage"
    ),
}
_KNOWN = frozenset(f"{module}:{name}" for module, text in _LISTED.items() for name in text.split())

#: Modules that do no more, when they are imported, than register environments.
_PACKAGES = frozenset(
    ["ale_py", "gymnasium", "gymnasium.envs", "gymnasium_robotics", "sb3_pmpo", "sb3_pmpo.envs"]
)

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)

#: Settings that name what is imported and called.
_CALLED = ("env_wrapper", "vec_env_wrapper", "callback")

#: Of what each of them makes.
_KINDS: dict[str, type] = {
    "env_wrapper": gym.Wrapper,
    "vec_env_wrapper": VecEnvWrapper,
    "callback": BaseCallback,
    "policy": BasePolicy,
}


def _remedy(name: str) -> str:
    return (
        f"naming {name} runs its code; if you trust who made it, pass --trust on the command line "
        "(sb3_pmpo.storage.pickles.trusting() in Python)"
    )


# ---------------------------------------------------------------------- checks of one value


def check_env_id(env_id: Any, where: str) -> None:
    """Check that an environment's id imports nothing.

    :param env_id: as the file has it.
    :param where: the file, for the message.
    :raises UntrustedFileError: for ``module:Env-v0``, without the user's word.
    :raises ValueError: for what is no id.
    """
    if isinstance(env_id, str) and pickles.is_trusting():
        return
    if isinstance(env_id, str) and ":" in env_id:
        raise UntrustedFileError(
            f"{where} names the environment {env_id!r}, whose module gymnasium would import; "
            + _remedy(env_id.partition(":")[0])
        )
    if not isinstance(env_id, str) or not _ID.fullmatch(env_id) or env_id.startswith("GymV2"):
        raise ValueError(
            f"{where}: env must be the id of an environment, such as Pendulum-v1, got {env_id!r}: "
            "repair the file"
        )


def check_called(entries: Any, where: str) -> None:
    """Check that wrappers or callbacks are listed, and take plain data.

    :param entries: a name, a dictionary of a name and its arguments, or a list of such.
    :param where: the file and the setting, for the message.
    :raises UntrustedFileError: for any other, without the user's word.
    :raises ValueError: for what is none of these.
    """
    if entries is None or pickles.is_trusting():
        return
    for entry in entries if isinstance(entries, (list, tuple)) else [entries]:
        if isinstance(entry, str):
            entry = {entry: {}}
        if not isinstance(entry, Mapping) or not all(_is_arguments(x) for x in entry.values()):
            raise ValueError(
                f"{where} must be a list of names or of {{name: {{argument: value}}}} with "
                f"numbers, texts and lists as values, got {entry!r}: repair the file"
            )
        for name in entry:
            if not _is_listed(name):
                raise UntrustedFileError(
                    f"{where} names {name}, which is not known to be harmless; "
                    + _remedy(str(name))
                    + ". Or register it, see sb3_pmpo.storage.names.register"
                )


def check_kinds(settings: Mapping[str, Any], where: str) -> None:
    """Check what a file names that the user names: classes of the right kind, of any module.

    Their modules are imported. A function's arguments may be a program: ``pydoc.pipepager`` hands
    one to a shell. What they are called with is data, because YAML holds no other.

    :param settings: of one environment, or of a sweep.
    :param where: the file, for the message.
    :raises UntrustedFileError: for anything else, without the user's word.
    """
    for key, name in _names(settings):
        if pickles.is_trusting() or _is_listed(name):
            continue
        module, _, called = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module or "builtins"), called)
        except (ImportError, AttributeError):
            continue  # who makes it says so
        kind = _KINDS[key]
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise UntrustedFileError(
                f"{where}: {key} names {name}, which is no subclass of {kind.__name__}; "
                + _remedy(name)
                + ". Or register it, see sb3_pmpo.storage.names.register"
            )


def _names(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what settings name to be called, each with the key where it is named."""
    for key in _KINDS:
        entries = settings.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            for name in entry if isinstance(entry, Mapping) else [entry]:
                is_alias = key == "policy" and "." not in str(name)  # MlpPolicy
                if isinstance(name, str) and not is_alias:
                    yield key, name


def _is_listed(name: Any) -> bool:
    if not isinstance(name, str) or not _MODULE.fullmatch(name):
        return False
    module, _, called = name.rpartition(".")
    full = f"{new_name(module) or module}:{called}"
    return full in _KNOWN or names.is_registered(full)


def _is_arguments(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and is_plain(value))


def is_plain(value: Any) -> bool:
    """Say whether a value is of numbers, texts, lists and dictionaries with texts as keys."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def check_modules(
    modules: Any, where: str, *, given: Iterable[str] = (), is_own: bool = False
) -> list[str]:
    """Return the modules that a file wants to be imported.

    :param modules: ``gym_packages`` as the file has it; None for none.
    :param where: the file, for the message.
    :param given: those that the user names, too.
    :param is_own: whether this user wrote the file.
    :raises UntrustedFileError: for another, without the user's word.
    :raises ValueError: for what is no name of a module.
    """
    found = [] if modules is None else modules
    strange = [found] if not isinstance(found, (list, tuple)) else [
        name for name in found if not isinstance(name, str) or not _MODULE.fullmatch(name)
    ]  # fmt: skip
    if strange:
        raise ValueError(
            f"{where}: gym_packages must be a list of modules, such as [ale_py], got "
            f"{strange[0]!r}: repair the file"
        )
    needed = {*found} - _PACKAGES - {*given}
    if needed and not is_own and not pickles.is_trusting():
        raise UntrustedFileError(
            f"{where} wants to import {', '.join(sorted(needed))}, which runs code; if you trust "
            "it, name it with --gym-packages, or pass --trust on the command line"
        )
    return list(found)


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Check that a run's settings name nothing to call but what is listed.

    :param settings: as ``config.yml`` has them.
    :param where: the file, for the message.
    :raises UntrustedFileError: for any other, without the user's word.
    """
    for key in _CALLED:
        check_called(settings.get(key), f"{where}: {key}")
    policy = settings.get("policy")
    if isinstance(policy, str) and "." in policy:
        check_called(policy, f"{where}: policy")


# ---------------------------------------------------------------------- what this user wrote

#: Beside the settings of a run: their digests.
SIGNATURE = "signed.json"
_SETTINGS = ("args.yml", "config.yml")
#: The settings of a sweep's run.
RUN_SETTINGS = "run.json"


def sign_settings(folder: Path, files: Iterable[str] = _SETTINGS) -> None:
    """Sign the settings of a run that this user has just begun.

    :param folder: where they are.
    :param files: their names, by default ``args.yml`` and ``config.yml``.
    """
    told = {name: pickles.sign((folder / name).read_bytes()) for name in files}
    (folder / SIGNATURE).write_text(json.dumps(told, indent=1) + "\n")


def are_own(folder: Path, files: Iterable[str] = _SETTINGS) -> bool:
    """Say whether this user wrote the settings of a run, and nobody has changed them since."""
    try:
        told = json.loads((folder / SIGNATURE).read_text())
        return all(
            pickles.is_signed((folder / name).read_bytes(), str(told[name])) for name in files
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
