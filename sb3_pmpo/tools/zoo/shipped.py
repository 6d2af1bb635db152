"""Pretrained policies in the Zoo's programs: ``--pretrained NAME`` stands for a run's folder."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_sb3 import EnvironmentName
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pmpo import pretrained
from sb3_pmpo.online.off_policy import OffPolicyMPO
from sb3_pmpo.pretrained import PretrainedError
from sb3_pmpo.storage.pickles import UntrustedFileError
from sb3_pmpo.tools.settings import load_config
from sb3_pmpo.tools.zoo.resuming import keep_policy

PRETRAINED = "--pretrained"
HELP = "a policy that ships with the package (sb3_pmpo.pretrained.names()), or a *.safetensors file"


def unpack(name: str | Path, logs: Path) -> list[str]:
    """Write a pretrained policy as the folder of a run that ``train`` left.

    :param name: of the policy, or its file.
    :param logs: where to put the folder.
    :return: the arguments that choose it: ``--algo``, ``--env``, ``-f`` and ``--exp-id``.
    :raises UntrustedFileError: for a file that names what would run code.
    """
    told = pretrained.about(name)
    pretrained.check_harmless(name, told)
    env, algorithm = EnvironmentName(told["env"]), told["algorithm"].lower()
    folder = logs / algorithm / f"{env}_1"
    settings = folder / env
    model = pretrained.load(name, "cpu")  # what it refuses leaves no folder
    settings.mkdir(parents=True)
    model.save(folder / f"{env}.zip")
    kept = {"policy": told["policy"], "env_wrapper": told["env_wrapper"]}
    arguments = {"env": told["env"], "env_kwargs": told["env_kwargs"], "seed": told.get("seed", -1)}
    (settings / "config.yml").write_text(yaml.safe_dump(kept))
    (settings / "args.yml").write_text(yaml.safe_dump(arguments))
    return ["--algo", algorithm, "--env", told["env"], "-f", str(logs), "--exp-id", "1"]


@contextmanager
def unpacked(command: str, arguments: Sequence[str], *more: str) -> Iterator[list[str]]:
    """Put a run's folder in the place of ``--pretrained NAME``, for as long as the body runs.

    :param command: for the message.
    :param arguments: of the command line.
    :param more: arguments that go before them if there is a ``--pretrained``.
    :return: the arguments that the Zoo understands.
    """
    name, rest = _taken(PRETRAINED, arguments)
    if name is None:
        yield rest
        return
    for option in ("--algo", "--env", "-f"):
        if _given(option, rest):
            raise SystemExit(
                f"sb3-pmpo {command}: error: {PRETRAINED} {name} says {option} itself: leave that "
                "out, or leave out --pretrained for an agent that you trained"
            )
    with tempfile.TemporaryDirectory() as folder:
        try:
            chosen = unpack(name, Path(folder))
        except (PretrainedError, UntrustedFileError) as error:
            raise SystemExit(f"sb3-pmpo {command}: error: {PRETRAINED}: {error}") from error
        yield [*more, *rest, *chosen]


def _taken(option: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="name")
    found, rest = parser.parse_known_args([_whole(each, option) for each in arguments])
    return found.name, rest


def _given(option: str, arguments: Sequence[str]) -> bool:
    """Say whether an option is among arguments, as ``--env X`` or ``--env=X``."""
    return any(each.partition("=")[0] == option for each in arguments)


def _whole(argument: str, option: str) -> str:
    """Write out an abbreviation of the option, which the Zoo's parser would take: --from-pre."""
    given, equals, value = argument.partition("=")
    if option.startswith(given) and given.startswith(option[:6]):
        return f"{option}{equals}{value}"
    return argument


# ---------------------------------------------------------------------- training goes on from one


def begin_from(
    arguments: Sequence[str],
) -> tuple[list[str], Callable[..., Any] | None]:
    """Read ``--from-pretrained NAME`` of ``train``'s arguments.

    :return: the arguments, with algorithm and environment of the policy where none are given; and
        what learns in the place of the model's ``learn``, None without such a policy.
    """
    name, rest = _taken("--from-pretrained", arguments)
    if name is None:
        return [*arguments], None
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-i", "--trained-agent", dest="agent")
    if parser.parse_known_args(rest)[0].agent:
        raise SystemExit(
            "sb3-pmpo train: error: --from-pretrained begins with a policy and -i goes on from a "
            "model: give one of them"
        )
    try:
        told = pretrained.about(name)
        pretrained.check_harmless(name, told)
    except (PretrainedError, UntrustedFileError) as error:
        raise SystemExit(f"sb3-pmpo train: error: --from-pretrained: {error}") from error
    first = ["--algo", told["algorithm"].lower(), "--env", told["env"]]

    def learn(model: BaseAlgorithm, total_timesteps: int, callback: Any = None, **more: Any) -> Any:
        if not isinstance(model, OffPolicyMPO):
            raise SystemExit("sb3-pmpo train: error: --from-pretrained needs pmpo, mpo or dpo")
        try:
            pretrained.load_into(model, name)
        except PretrainedError as error:
            raise SystemExit(f"sb3-pmpo train: error: --from-pretrained: {error}") from error
        keep_policy(model)
        return model.learn(total_timesteps, callback=callback, **more)

    print(f"Begins with the policy {name}, and with new critics.", file=sys.stderr)
    here = load_config(told["env"]).get("env_wrapper")
    if (told["env_wrapper"] or None) != (here or None):
        print(
            f"Warning: it was trained with env_wrapper {told['env_wrapper']}, and the settings of "
            f"{told['env']} have {here}: give --hyperparams env_wrapper:... for the former",
            file=sys.stderr,
        )
    return [*first, *arguments], learn
