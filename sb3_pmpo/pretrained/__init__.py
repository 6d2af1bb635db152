"""Trained policies that ship with the package: ``load("walker-walk")``.

A file holds a policy's numbers and a JSON header, and nothing that runs (:mod:`.files`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_pmpo.pretrained.files import PretrainedFile, names, read, scored
from sb3_pmpo.pretrained.header import PretrainedError, Score

if TYPE_CHECKING:
    import gymnasium as gym

    from sb3_pmpo.online.off_policy import OffPolicyMPO

__all__ = [
    "PretrainedError",
    "PretrainedFile",
    "Score",
    "about",
    "load",
    "load_into",
    "make_env",
    "names",
    "read",
    "save",
    "scored",
]


def about(name: str | Path) -> dict[str, Any]:
    """Return the header of a policy: environment, score, curve, versions, seed, command.

    :param name: one of :func:`names`, or the path of a file.
    """
    return read(name).about


def load(name: str | Path, device: str = "auto") -> OffPolicyMPO:
    """Load a trained policy as a model that predicts.

    The file holds the policy alone. The critics are new, so ``learn`` would begin with them; see
    :func:`load_into`.

    :param name: one of :func:`names`, or the path of a file that :func:`save` wrote.
    :param device: where to run.
    :return: a PMPO, MPO or DPO, as the policy was trained.
    :raises PretrainedError: for an unknown name, and for a file that is none of these.
    """
    from sb3_pmpo.pretrained.models import build

    return build(read(name), device)


def load_into(model: OffPolicyMPO, name: str | Path) -> None:
    """Give a new model a trained policy to begin with: actor, reference, statistics.

    :param model: of the same spaces and the same ``net_arch``.
    :param name: as of :func:`load`.
    :raises PretrainedError: if the policy does not fit.
    """
    from sb3_pmpo.pretrained.models import fill

    fill(model, read(name))


def make_env(name: str | Path, **kwargs: Any) -> gym.Env:
    """Make the environment that a policy was trained in, with its wrappers.

    :param name: as of :func:`load`.
    :param kwargs: of ``gymnasium.make``, such as ``render_mode``.
    :raises sb3_pmpo.storage.pickles.UntrustedFileError: for a file that names what would run code.
    """
    from sb3_pmpo import envs

    told = read(name).about
    check_harmless(name, told)
    return envs.make_env(told["env"], told["env_wrapper"], **told["env_kwargs"] | kwargs)


def check_harmless(name: str | Path, told: dict[str, Any]) -> None:
    """Check that the environment in a header runs nothing of a stranger's.

    :param name: as of :func:`load`; what ships with the package is trusted.
    :param told: the header.
    :raises sb3_pmpo.storage.pickles.UntrustedFileError: for wrappers that are not known to be
        harmless, and for ids that import a module, without ``trusting()``.
    :raises PretrainedError: for a header that says no environment.
    """
    from sb3_pmpo.storage import strangers
    from sb3_pmpo.storage.pickles import UntrustedFileError

    try:
        if str(name) not in names():
            strangers.check_env_id(told["env"], str(name))
            strangers.check_called(told["env_wrapper"], f"{name}: env_wrapper")
    except KeyError as error:
        raise PretrainedError(f"the header of {name} has no {error}: save it again") from error
    except UntrustedFileError:
        raise
    except ValueError as error:
        raise PretrainedError(str(error)) from error


def save(
    model: OffPolicyMPO, path: str | Path, told: dict[str, Any], *, half: bool = False
) -> PretrainedFile:
    """Write the policy of a model alone, in one step.

    :param model: whose actor, reference and statistics to take.
    :param path: of the file, ``*.safetensors``.
    :param told: ``env``, and what else the header shall say: ``env_wrapper``, ``env_kwargs``,
        ``score``, ``curve``, ``steps``, ``seed``, ``command``, ``versions``.
    :param half: round the weights to float16, which halves the file; statistics stay float32.
    :raises PretrainedError: for a policy that only a pickle could hold.
    """
    from sb3_pmpo.pretrained.models import describe

    return describe(model, told, half=half).write(path)
