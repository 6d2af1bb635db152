"""VecNormalize's statistics without a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pmpo.files import whole_file
from sb3_pmpo.storage import containers, pickles
from sb3_pmpo.storage.pickles import Pickled

_KIND = "VecNormalize"


def save_statistics(env: VecNormalize, path: str | Path) -> None:
    """Save a VecNormalize, statistics and settings, in one atomic step.

    :param env: of SB3's class; one of a class of the user's becomes a signed pickle.
    :param path: of the file.
    """
    with whole_file(path, "pkl") as file:
        if type(env) is VecNormalize:
            state = env.__getstate__() | {"reset_infos": [{}] * env.num_envs}
            containers.write(file, containers.pack(_KIND, state))
        else:
            containers.write_pickle(file, _KIND, env)


def load_statistics(path: str | Path, venv: VecEnv, *, trust: bool = False) -> VecNormalize:
    """Load what :func:`save_statistics` or SB3's ``VecNormalize.save`` saved.

    :param path: of the file.
    :param venv: the environments to wrap.
    :param trust: load any pickle.
    :raises UntrustedFileError: for a pickle that is neither this user's nor harmless.
    """
    with Path(path).open("rb") as file:
        found = containers.read(file, _KIND, str(path))
    env: Any
    if isinstance(found, Pickled):
        env = pickles.load(found, str(path), trust=trust)
        if not isinstance(env, VecNormalize):
            raise ValueError(f"{path} must hold a VecNormalize, but it holds {type(env)}")
    else:
        env = VecNormalize.__new__(VecNormalize)
        env.__setstate__(containers.unpack(found, str(path), trust=trust))
    env.set_venv(venv)
    return env
