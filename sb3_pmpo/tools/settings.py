"""The configurations that ship with the package, in the RL Zoo's format."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sb3_pmpo.core import labels as preference
from sb3_pmpo.core import losses
from sb3_pmpo.online import exploration

#: What a setting has beside the arguments of the algorithm.
SETTINGS = ("env_wrapper", "n_timesteps", "policy")


def config_path(algorithm: str) -> Path:
    """Return the file of an algorithm's settings.

    :param algorithm: ``"pmpo"``, ``"mpo"`` or ``"dpo"``.
    """
    return Path(str(files("sb3_pmpo.zoo_configs").joinpath(f"{algorithm}.yml")))


def load_config(algorithm: str, env_id: str) -> dict[str, Any]:
    """Read the entry of an environment, else ``default``.

    :param algorithm: ``"pmpo"``, ``"mpo"`` or ``"dpo"``.
    :param env_id: a Gymnasium id.
    :return: ``n_timesteps`` (decisions), ``policy``, ``env_wrapper`` and the algorithm's arguments.
    """
    entries = yaml.safe_load(config_path(algorithm).read_text())
    return dict(entries.get(env_id, entries["default"]))


def suite_ids() -> set[str]:
    """Return the ids of the Control Suite's tasks that have settings."""
    entries = yaml.safe_load(config_path("pmpo").read_text())
    return {name for name in entries if name.startswith("dm_control/")}


def load_borrowed(env_id: str) -> dict[str, Any]:
    """Read what algorithms of other packages take from ours: wrappers, length and policy.

    :param env_id: a Gymnasium id.
    :return: those of ``SETTINGS`` that PMPO's entry has.
    """
    entry = load_config("pmpo", env_id)
    return {key: entry[key] for key in SETTINGS if key in entry}


#: Arguments that are objects of this package; a configuration writes the Python expression.
_OBJECTS = ("labeller", "loss", "exploration_noise")


def to_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Turn what YAML cannot hold into what the constructors take; a new dictionary.

    Strings of ``labeller``, ``loss`` and ``exploration_noise`` are evaluated with the names of this
    package (``"top_k(2)"``, ``"ipo_loss"``), as the Zoo does with ``policy_kwargs``, and lists
    become the pairs that ``beta`` and ``train_freq`` are.

    :param config: an algorithm's arguments as a configuration has them.
    :raises ValueError: if such a string is no expression of those names.
    """
    arguments = dict(config)
    for name in _OBJECTS:
        if isinstance(arguments.get(name), str):
            arguments[name] = _evaluate(name, arguments[name])
    for name in ("beta", "train_freq"):
        if isinstance(arguments.get(name), list):
            arguments[name] = tuple(arguments[name])
    return arguments


def _evaluate(name: str, expression: str) -> Any:
    names: dict[str, Any] = {"__builtins__": {}}
    for module in (preference, losses, exploration):
        names |= {key: value for key, value in vars(module).items() if not key.startswith("_")}
    try:
        return eval(expression, names)
    except Exception as error:
        raise ValueError(
            f"{name}: {expression!r} is no expression of sb3_pmpo's names ({error}): write "
            "'top_k(2)' for a labeller, 'ipo_loss' for a loss, 'pink_noise' for exploration_noise"
        ) from error
