"""Settings of the algorithms: the file that ships, how two are merged, what their strings mean.

No string is evaluated, see :mod:`sb3_pmpo.online.written`.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import torch as th
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_pmpo import DPO, MPO, PMPO
from sb3_pmpo.critics import QuantileCritic
from sb3_pmpo.embeddings import EmbeddingCritic
from sb3_pmpo.online.written import OBJECTS, Vocabulary, parse

#: What the Zoo's ``--algo`` calls ours.
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"pmpo": PMPO, "mpo": MPO, "dpo": DPO}

#: What a setting has beside the arguments of the algorithm.
SETTINGS = ("env_wrapper", "n_timesteps", "policy")

# ---------------------------------------------------------------------- the file that ships


def config_path() -> Path:
    """Return the file of settings, the same for all our algorithms."""
    return Path(str(files("sb3_pmpo.zoo_configs").joinpath("control_suite.yml")))


def _entries() -> dict[str, Any]:
    return yaml.safe_load(config_path().read_text())


def load_config(env_id: str) -> dict[str, Any]:
    """Read the entry of an environment, else ``default``.

    :param env_id: a Gymnasium id.
    :return: ``n_timesteps`` (decisions), ``policy``, ``env_wrapper`` and the algorithm's arguments.
    """
    entries = _entries()
    return dict(entries.get(env_id, entries["default"]))


def suite_ids() -> set[str]:
    """Return the ids of the Control Suite's tasks that have settings."""
    return {env_id for env_id in _entries() if env_id.startswith("dm_control/")}


def load_borrowed(env_id: str) -> dict[str, Any]:
    """Read what algorithms of other packages take from ours: wrappers, length and policy.

    :param env_id: a Gymnasium id.
    :return: those of ``SETTINGS`` that its entry has.
    """
    entry = load_config(env_id)
    return {key: entry[key] for key in SETTINGS if key in entry}


# ---------------------------------------------------------------------- merging


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Put settings one over another, the last word last; arguments in ``*_kwargs`` one by one.

    :param layers: as a configuration has them: their ``policy_kwargs`` and the like may be strings.
    :return: a new dictionary.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            if name.endswith("_kwargs") and merged.get(name) is not None and value is not None:
                value = as_dict(name, merged[name]) | as_dict(name, value)
            merged[name] = value
    return merged


# ---------------------------------------------------------------------- what strings mean


def complete_length(config: dict[str, Any], told: int, where: str) -> None:
    """Give a configuration without ``n_timesteps``, which the Zoo asks for, what the user told.

    :param told: steps; none where it is no more than 0.
    :param where: the configuration, for the message.
    :raises ValueError: where nobody says how long to train.
    """
    if "n_timesteps" not in config:
        if told <= 0:
            raise ValueError(f"{where}: n_timesteps is missing; write it there, or give -n")
        config["n_timesteps"] = told


def _classes(module: ModuleType, *prefixes: str) -> dict[str, type]:
    found = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    prefixes = (*prefixes, module.__name__)
    return {f"{prefix}.{name}": value for prefix in prefixes for name, value in found.items()}


#: Dictionaries of arguments, in which the Zoo's configurations name classes of torch.
_KWARGS = Vocabulary(
    "dict(net_arch=[64, 64], activation_fn=nn.ReLU)",
    {"dict": dict},
    _classes(nn, "nn", "th.nn")
    | _classes(th.optim, "th.optim")
    | {each.__name__: each for each in (EmbeddingCritic, QuantileCritic, RMSpropTFLike)},
)


def as_dict(name: str, kwargs: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Read arguments that a configuration may write as text, ``"dict(n_bins=11)"``.

    In a dictionary, too, a text that names a class is that class: ``{"activation_fn": "nn.ReLU"}``.

    :raises ValueError: if it is no dictionary of literals and of the classes of torch and critics.
    """
    if isinstance(kwargs, str):
        kwargs = parse(name, kwargs, _KWARGS)
    if not isinstance(kwargs, Mapping | None):
        raise ValueError(f"{name} must be a dictionary of arguments, got {kwargs!r}")
    known = _KWARGS.values
    return {
        key: known.get(value, value) if isinstance(value, str) else value
        for key, value in (kwargs or {}).items()
    }


def to_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what YAML cannot hold into what the constructors take; a new dictionary.

    Strings of :data:`OBJECTS` become the objects that they name, those of ``*_kwargs`` and
    ``normalize`` dictionaries, lists the pairs that ``beta`` and ``train_freq`` are, and
    ``lin_3e-4`` a schedule.

    :param config: an algorithm's arguments as a configuration has them.
    :raises ValueError: if a string cannot be read.
    """
    arguments = dict(config)
    for name, value in config.items():
        if isinstance(value, str) and name in OBJECTS:
            arguments[name] = parse(name, value, OBJECTS[name])
        elif isinstance(value, str | dict) and (name.endswith("_kwargs") or name == "normalize"):
            arguments[name] = as_dict(name, value)  # a new one: SB3 adds to policy_kwargs
        elif isinstance(value, list) and name in ("beta", "train_freq"):
            arguments[name] = tuple(value)
        elif isinstance(value, str) and name.endswith("learning_rate"):
            arguments[name] = _as_rate(name, value)
    return arguments


LINEAR = "lin_"


def _as_rate(name: str, text: str) -> LinearSchedule:
    """Read the Zoo's ``lin_3e-4``: from that to 0 at the end of training."""
    try:
        start = float(text.removeprefix(LINEAR))
    except ValueError as error:
        raise ValueError(
            f"{name} must be a number or lin_<number>, which falls to 0, got {text!r}: "
            "lin_3e-4 is one"
        ) from error
    if not text.startswith(LINEAR):
        raise ValueError(f"{name}: YAML reads {text} as text: write {start:.1e}, with a point")
    return LinearSchedule(start, 0.0, 1.0)


class KeyValues(argparse.Action):
    """Read ``key:value`` pairs of a command line, in place of the Zoo's action, which evaluates.

    A value is a literal, ``dict(...)`` or a word; of ``labeller`` and the like what they may name.
    An option that is given again adds to what it had, and of one key the last value counts.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store a dictionary."""
        try:
            pairs = [value.partition(":") for value in values]
            bare = [key for key, colon, _ in pairs if not (key and colon)]
            if bare:
                raise ValueError(f"must be key:value pairs, such as gamma:0.98, got {bare[0]!r}")
            given = {key: _read_value(key, text) for key, _, text in pairs}
            setattr(namespace, self.dest, merge(getattr(namespace, self.dest) or {}, given))
        except ValueError as error:
            parser.error(f"argument {option_string}: {error}")


def _read_value(key: str, text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if key in OBJECTS and isinstance(value, str):
        parse(key, value, OBJECTS[key])  # to say now what is wrong; the files keep the text
    elif value is text and set(text) & set("()[]{}'\"=, "):  # no word, and no path
        return parse(key, text, _KWARGS)
    return value


# ---------------------------------------------------------------------- writing


def as_words(pairs: Mapping[str, Any]) -> list[str]:
    """Write the words of a command line that :class:`KeyValues` reads."""
    return [f"{key}:{value!r}" for key, value in pairs.items()]


def to_yaml(setting: Mapping[str, Any], env_id: str) -> str:
    """Write an entry of a Zoo configuration.

    :param setting: what YAML cannot hold, such as ``policy_kwargs`` with a class of torch's, is
        written as the text that :func:`to_arguments` reads.
    :param env_id: key of the entry.
    """
    entry = {key: _as_yaml(plain(value)) for key, value in setting.items()}
    return yaml.safe_dump({env_id: entry}, sort_keys=False)


def plain(value: Any) -> Any:
    """Take what only the Zoo's loader reads out of a setting: ordered dictionaries, tuples."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def _as_yaml(value: Any) -> Any:
    try:
        yaml.safe_dump(value)
    except yaml.representer.RepresenterError:
        return _as_text(value)
    return value


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={_as_text(entry)}' for key, entry in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_text, value))}]"
    if isinstance(value, type):
        names = (name for name, known in _KWARGS.values.items() if known is value)
        return next(names, f"{value.__module__}.{value.__qualname__}")
    return repr(value)
