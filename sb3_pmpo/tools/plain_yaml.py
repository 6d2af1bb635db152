"""What the Zoo reads of a run's folder, as data: no file of a stranger's makes an object."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import yaml
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pmpo.storage.statistics import load_statistics
from sb3_pmpo.tools.settings import as_dict


class PlainLoader(yaml.SafeLoader):
    """Reads YAML's own kinds, and the tuples and ordered dictionaries that the Zoo writes."""


def _ordered(loader: PlainLoader, node: yaml.Node) -> dict[Any, Any]:
    [pairs] = loader.construct_sequence(node, deep=True)
    return dict(pairs)


def _tuple(loader: PlainLoader, node: yaml.Node) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_PYTHON = "tag:yaml.org,2002:python/"
PlainLoader.add_constructor(f"{_PYTHON}object/apply:collections.OrderedDict", _ordered)
PlainLoader.add_constructor(f"{_PYTHON}tuple", _tuple)


def read(path: Path) -> dict[str, Any]:
    """Read a YAML file of the Zoo's.

    :raises ValueError: if it is torn, empty, or would make an object.
    """
    try:
        content = yaml.load(path.read_text(), PlainLoader)
    except (yaml.YAMLError, TypeError, ValueError) as error:  # of pairs that are torn
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{path} is not read, as it is not plain YAML: {problem}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is empty or torn: train writes key: value pairs there")
    return content


class PlainStatistics:
    """What the Zoo calls VecNormalize: makes one, or loads one from data."""

    load = staticmethod(load_statistics)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make SB3's."""
        return VecNormalize(*args, **kwargs)


def read_plainly(*modules: ModuleType) -> None:
    """Let modules of the Zoo read YAML by :class:`PlainLoader`, and evaluate nothing.

    They name ``yaml.UnsafeLoader``, ``eval`` and ``VecNormalize.load`` when they read, so these
    names are given to them.
    """
    plain = SimpleNamespace(**vars(yaml) | {"UnsafeLoader": PlainLoader})
    for module in modules:
        vars(module)["eval"] = _read_text
        for name, ours in (("yaml", plain), ("VecNormalize", PlainStatistics)):
            if name in vars(module):
                vars(module)[name] = ours


def _read_text(text: str) -> dict[str, Any]:
    return as_dict("an argument of the configuration", text)
