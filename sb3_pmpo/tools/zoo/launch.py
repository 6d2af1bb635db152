"""Run a program of the Zoo's with what is ours in place: arguments, experiment manager."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import rl_zoo3.train

from sb3_pmpo.command_line import Parser, at_least, count, reason
from sb3_pmpo.online.env_checks import remedy_for
from sb3_pmpo.tools.settings import KeyValues
from sb3_pmpo.tools.zoo import register
from sb3_pmpo.tools.zoo.manager import Manager
from sb3_pmpo.tools.zoo.resuming import NotBegunError, NothingLeftError
from sb3_pmpo.tools.zoo.shipped import HELP, PRETRAINED
from sb3_pmpo.tools.zoo.stopping import INTERRUPTED, sigterm_interrupts

#: What is ours of the Zoo's arguments. More threads help little at these sizes, and stall on a busy
#: machine. The Zoo's steps are decisions of the agent.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "--algo": {"default": "pmpo"},
    "--env": {"default": None, "required": True},
    "--folder": {"default": "logs", "help": "folder that train wrote"},
    "--num-threads": {"default": 1},
    "--n-timesteps": {"type": at_least(besides="-1 for the setting's"), "help": "decisions of the "
        "agent: with an action repeat of 2, as the Control Suite's settings have it, two "
        "environment steps each (-1: the setting's)"},
    "--eval-episodes": {"type": count},
    "--n-eval-envs": {"type": count},
    "--eval-freq": {"help": "decisions between evaluations (negative: none)"},
    "--save-freq": {"help": "decisions between checkpoints (negative: none)"},
    "--track": {"help": "log to Weights & Biases too (pip install wandb)"},
}  # fmt: skip
#: What our commands take beside the Zoo's arguments; here for the help, and for args.yml.
MORE = {
    "train": {
        "--from-pretrained": "begin with the policy of this name, or of this *.safetensors file"
    },
    "enjoy": {PRETRAINED: f"in the place of --algo, --env and -f: {HELP}"},
}


#: What a command's argument is besides.
OF_COMMAND: dict[str, dict[str, dict[str, Any]]] = {
    "enjoy": {"--n-timesteps": {"type": count, "help": "decisions of the agent"}},
}

DESCRIPTIONS = {
    "train": "Train an agent, evaluate it meanwhile, save the last and the best model. For example:"
    " sb3-pmpo train --env dm_control/walker-walk-v0 -n 50000 --eval-freq 5000",
    "enjoy": "Let a trained agent act, in a window or with --no-render, and print its returns.",
}


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default that says something, once."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = "default" in (action.help or "").lower()
        if said or action.default in (None, False, "", []):
            return action.help
        return super()._get_help_string(action)


class ZooParser(Parser):
    """The Zoo's parser with our defaults, which its help shows.

    :param command: whose it is.
    """

    def __init__(self, command: str) -> None:
        self._of_command = OF_COMMAND.get(command, {})  # first: argparse adds --help itself
        super().__init__(formatter_class=Defaults, description=DESCRIPTIONS.get(command))
        for option, text in MORE.get(command, {}).items():
            self.add_argument(option, metavar="NAME", help=text)

    def add_argument(self, *flags: Any, **options: Any) -> argparse.Action:
        """Add one, with what is ours of it."""
        for flag in flags:
            options |= ARGUMENTS.get(flag, {}) | self._of_command.get(flag, {})
        return super().add_argument(*flags, **options)


def run_train(command: str, arguments: Sequence[str], manager: Callable[..., Manager]) -> None:
    """Run ``rl_zoo3.train`` with an experiment manager of ours in its manager's place.

    :raises SystemExit: with one sentence, for what cannot be trained as asked.
    """
    with prepared(rl_zoo3.train, command, arguments, ExperimentManager=manager):
        try:
            with sigterm_interrupts():
                rl_zoo3.train.train()
        except KeyboardInterrupt as stopped:  # before training began, or after all is saved
            raise SystemExit(INTERRUPTED) from stopped
        except NothingLeftError as done:
            print(done)
        except gym.error.DependencyNotInstalled as error:
            parser = argparse.ArgumentParser(add_help=False)
            parser.add_argument("--env")
            remedy = remedy_for(parser.parse_known_args(arguments)[0].env)
            raise SystemExit(f"sb3-pmpo {command}: error: {error}. Remedy: {remedy}") from error
        except (AssertionError, ValueError, TypeError, ImportError, FileNotFoundError) as error:
            if _is_of_training(error) and not isinstance(error, NotBegunError):
                raise
            said = reason(error).replace(", you maybe meant 'no close match found...'?", _UNKNOWN)
            raise SystemExit(f"sb3-pmpo {command}: error: {said}") from error


#: Said of an environment that resembles no other.
_UNKNOWN = "; --gym-packages MODULE imports the module that registers it"


def _is_of_training(error: Exception) -> bool:
    """Say whether it came from a run that had begun: then its traceback is what one needs."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    return bool(names & {"learn", "hyperparameters_optimization", "save_trained_model"})


@contextmanager
def prepared(
    program: ModuleType,
    command: str,
    arguments: Sequence[str],
    **names: Any,
) -> Iterator[None]:
    """Let a program of the Zoo find our algorithms, and its arguments where it looks for them.

    Values behind ``key:`` are read instead of evaluated.

    :param names: put into the program's module.
    """
    register()
    # Environments' processes are forked from one that has imported this, instead of importing it
    # each. Not what renders: MuJoCo opens a display when it is imported.
    multiprocessing.set_forkserver_preload(["stable_baselines3"])
    argv = [f"sb3-pmpo {command}", *arguments]
    ours: dict[str, Any] = {
        "StoreDict": KeyValues,
        "argparse": SimpleNamespace(ArgumentParser=partial(ZooParser, command)),
    }
    with patch.object(sys, "argv", argv), patch.multiple(program, **ours, **names):
        yield
