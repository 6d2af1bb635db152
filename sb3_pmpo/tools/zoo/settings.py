"""Settings as a Zoo configuration holds them: merged, and written as YAML that trains again."""

from __future__ import annotations

from typing import Any

import torch as th
import yaml
from torch import nn

#: Settings that are dictionaries of arguments, which a configuration may write as Python.
_KWARGS = ("policy_kwargs", "replay_buffer_kwargs")


def merge_settings(settings: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Put one setting over another; dictionaries in it are merged instead of replaced.

    :param settings: as a Zoo configuration has them; its ``policy_kwargs`` and
        ``replay_buffer_kwargs`` may be strings.
    :param override: what goes first.
    :return: a new dictionary.
    """
    merged = settings | override
    for name in _KWARGS:
        if name in settings and name in override:
            merged[name] = as_dict(settings[name]) | as_dict(override[name])
    return merged


def as_dict(kwargs: str | dict[str, Any] | None) -> dict[str, Any]:
    """Evaluate arguments that a configuration wrote as Python, ``"dict(n_bins=11)"``."""
    if isinstance(kwargs, str):
        return dict(eval(kwargs, {"nn": nn, "th": th}))
    return dict(kwargs or {})


def to_yaml(setting: dict[str, Any], env_id: str) -> str:
    """Write an entry of a Zoo configuration.

    :param setting: what YAML cannot hold, such as ``policy_kwargs`` with a class of torch's, is
        written as Python, which the Zoo evaluates.
    :param env_id: key of the entry.
    """
    plain = {
        key: value if _fits_yaml(value) else _as_python(value)
        for key, value in ((key, _plain(value)) for key, value in setting.items())
    }
    return yaml.safe_dump({env_id: plain}, sort_keys=False)


def _plain(value: Any) -> Any:
    """Take what only the Zoo's loader reads out of a setting: ordered dictionaries, tuples."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _fits_yaml(value: Any) -> bool:
    try:
        yaml.safe_dump(value)
    except yaml.representer.RepresenterError:
        return False
    return True


def _as_python(value: Any) -> str:
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={_as_python(entry)}' for key, entry in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_python, value))}]"
    if isinstance(value, type):
        return _path_of(value)
    return repr(value)


def _path_of(cls: type) -> str:
    """Name a class of torch's as the Zoo's ``eval`` knows it: ``nn.ReLU``, ``th.optim.AdamW``."""
    for module, name in ((nn, "nn"), (th.optim, "th.optim")):
        if getattr(module, cls.__name__, None) is cls:
            return f"{name}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"
