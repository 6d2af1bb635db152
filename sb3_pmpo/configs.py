"""The configurations that ship with the package, in the RL Zoo's format."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml


def load_config(algorithm: str, env_id: str) -> dict[str, Any]:
    """Read the entry of an environment, else that of its namespace, else ``default``.

    :param algorithm: ``"pmpo"``.
    :param env_id: a Gymnasium id.
    :return: ``n_timesteps`` (decisions), ``policy``, ``env_wrapper`` and the algorithm's arguments.
    """
    text = files("sb3_pmpo.zoo_configs").joinpath(f"{algorithm}.yml").read_text()
    entries = yaml.safe_load(text)
    namespace = env_id.split("/")[0]
    for key in (env_id, namespace, "default"):
        if key in entries:
            return dict(entries[key])
    raise KeyError(f"{algorithm}.yml has neither an entry for {env_id!r} nor a default")
