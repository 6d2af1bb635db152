"""Settings of the algorithms: the file that ships, how two are merged, what their strings mean.

A string is read by its syntax tree, as public names with literal arguments. None is evaluated.
"""

from __future__ import annotations

import argparse
import ast
import difflib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch as th
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn

from sb3_pmpo import DPO, MPO, PMPO
from sb3_pmpo.core import labels, losses, samples
from sb3_pmpo.online import exploration

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
    return _entries().keys() - {"default"}


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


class Vocabulary(NamedTuple):
    """The names that a string may hold.

    :param example: for the messages.
    :param makers: called with arguments, literal or of these names.
    :param values: taken as they are.
    :param outermost: which makers the string as a whole may be a call of; empty for anything.
    """

    example: str
    makers: Mapping[str, Any]
    values: Mapping[str, Any]
    outermost: Sequence[str] = ()


def _of(module: ModuleType, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


def _classes(module: ModuleType, *prefixes: str) -> dict[str, type]:
    found = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    prefixes = (*prefixes, module.__name__)
    return {f"{prefix}.{name}": value for prefix in prefixes for name, value in found.items()}


_LABELLERS = _of(labels, "advantage", "best_worst", "boltzmann", "threshold", "top_k")
_BASELINES = _of(labels, "mean_score", "state_value")
_NORMALISATIONS = _of(samples, "mean_over_samples", "mean_per_set")
_NOISES = _of(exploration, "pink_noise", "pink_or_white_noise")
_BUFFERS = {cls.__name__: cls for cls in (HerReplayBuffer, NStepReplayBuffer)}

#: Arguments that are objects, which a configuration names.
OBJECTS = {
    "labeller": Vocabulary(
        "top_k(2)",
        _LABELLERS | _of(labels, "quantile"),
        _BASELINES | _NORMALISATIONS,
        [*_LABELLERS],
    ),
    "loss": Vocabulary("ipo_loss", {}, _of(losses, "dpo_loss", "ipo_loss")),
    "exploration_noise": Vocabulary("pink_noise", {}, _NOISES),
    "replay_buffer_class": Vocabulary("HerReplayBuffer", {}, _BUFFERS),
}
#: Dictionaries of arguments, in which the Zoo's configurations name classes of torch.
_KWARGS = Vocabulary(
    "dict(net_arch=[64, 64], activation_fn=nn.ReLU)",
    {"dict": dict},
    _classes(nn, "nn", "th.nn") | _classes(th.optim, "th.optim") | {"RMSpropTFLike": RMSpropTFLike},
)


def parse(name: str, text: str, vocabulary: Vocabulary) -> Any:
    """Read a string of names and literals.

    :param name: of the setting, for the message.
    :raises ValueError: if there is anything else in it, naming what is known.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if vocabulary.outermost:
            outermost = ast.unparse(node.func) if isinstance(node, ast.Call) else None
            _check_known(outermost or text, vocabulary.outermost)
            if outermost is None:
                raise ValueError(f"{text} is called with arguments, {text}(...)")
        return _read(node, vocabulary)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: {text!r} cannot be read: {getattr(error, 'msg', error)}; write names of "
            f"sb3_pmpo with literal arguments, such as {vocabulary.example!r}"
        ) from error


def _read(node: ast.expr, names: Vocabulary) -> Any:
    match node:
        case ast.Name() | ast.Attribute():
            name = ast.unparse(node)
            _check_known(name, [*names.values])
            return names.values[name]
        case ast.Call():
            name = ast.unparse(node.func)
            _check_known(name, [*names.makers])
            if any(isinstance(each, ast.Starred) for each in node.args):
                raise ValueError("* unpacks what is no literal")
            arguments = [_read(each, names) for each in node.args]
            keywords = {str(each.arg): _read(each.value, names) for each in node.keywords}
            return names.makers[name](*arguments, **keywords)
        case ast.List() | ast.Tuple():
            entries = [_read(each, names) for each in node.elts]
            return tuple(entries) if isinstance(node, ast.Tuple) else entries
        case ast.Dict():
            keys = [ast.literal_eval(key) for key in node.keys if key is not None]
            return dict(zip(keys, [_read(each, names) for each in node.values], strict=True))
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)!r} is no name and no literal") from error


def _check_known(name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1, cutoff=0.6)
    hint = f", did you mean {close[0]}?" if close else ""
    listed = ", ".join(known) if len(known) < 20 else "dict, and classes of nn and th.optim"
    raise ValueError(f"{name!r} is not known here{hint} (known: {listed or 'no call'})")


def as_dict(name: str, kwargs: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Read arguments that a configuration may write as text, ``"dict(n_bins=11)"``.

    :raises ValueError: if it is no dictionary of literals and of torch's classes.
    """
    if isinstance(kwargs, str):
        kwargs = parse(name, kwargs, _KWARGS)
    if not isinstance(kwargs, Mapping | None):
        raise ValueError(f"{name} must be a dictionary of arguments, got {kwargs!r}")
    return dict(kwargs or {})


def to_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what YAML cannot hold into what the constructors take; a new dictionary.

    Strings of :data:`OBJECTS` become the objects that they name, those of ``*_kwargs`` and
    ``normalize`` dictionaries, and lists the pairs that ``beta`` and ``train_freq`` are.

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
    return arguments


class KeyValues(argparse.Action):
    """Read ``key:value`` pairs of a command line, in place of the Zoo's action, which evaluates.

    A value is a literal, ``dict(...)`` or a word; of ``labeller`` and the like what they may name.
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
            setattr(namespace, self.dest, {key: _read_value(key, text) for key, _, text in pairs})
        except ValueError as error:
            parser.error(f"argument {option_string}: {error}")


def _read_value(key: str, text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if key in OBJECTS and isinstance(value, str):
        parse(key, value, OBJECTS[key])  # to say now what is wrong; the files keep the text
    elif value is text and not text.replace(".", "").replace("-", "").isidentifier():
        return parse(key, text, _KWARGS)
    return value


# ---------------------------------------------------------------------- writing


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
