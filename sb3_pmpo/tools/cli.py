"""The command line: ``sb3-pmpo <command> ...``, or ``python -m sb3_pmpo <command> ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.resources import files

from sb3_pmpo import __version__

#: What each command runs, imported when it is asked for, and what the help says of it.
COMMANDS = {
    "train": ("sb3_pmpo.tools.zoo.programs:train", "train an agent (rl_zoo3.train)"),
    "enjoy": ("sb3_pmpo.tools.zoo.programs:enjoy", "watch a trained agent (rl_zoo3.enjoy)"),
    "tune": ("sb3_pmpo.tools.zoo.tune:tune", "search hyperparameters (rl_zoo3.train -optimize)"),
    "evaluate": (
        "sb3_pmpo.tools.zoo.evaluate:evaluate",
        "score agents side by side, with bootstrap intervals",
    ),
    "record": ("sb3_pmpo.tools.zoo.video:record", "record an mp4 of a trained agent"),
    "plot": ("sb3_pmpo.tools.plots:plot", "draw learning curves from logs or TensorBoard"),
    "sweep": ("sb3_pmpo.tools.runs.program:main", "train algorithms x tasks x seeds, resumable"),
    "label": ("sb3_pmpo.tools.label:main", "ask a person which clips of a policy are good"),
    "offline": ("sb3_pmpo.tools.offline:main", "learn from labelled data, without acting"),
    "lm": ("sb3_pmpo.lm.program:main", "align a language model with a program or with labels"),
    "export": ("sb3_pmpo.tools.zoo.exporting:export", "write a policy as ONNX and TorchScript"),
    "push": ("sb3_pmpo.tools.zoo.hub:push", "publish a trained agent on the Hugging Face Hub"),
}

#: The extra that a command needs, where it is not ``train``.
EXTRAS = {"export": "train,export", "label": "label", "lm": "lm", "offline": "train,offline"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="sb3-pmpo",
        description="PMPO, MPO and DPO for Stable-Baselines3, over the RL Zoo's programs.",
        epilog="sb3-pmpo <command> --help lists a command's own arguments. Every command takes "
        "--trust: load the pickles in models that somebody else made, and import what settings of "
        "theirs name; both can run any code.",
    )
    parser.add_argument("--version", action="version", version=f"sb3_pmpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = parser.parse_args(given[:1]).command
    if {"-h", "--help"} & set(given[1:]):
        print(stored_help(command), end="")
        raise SystemExit(0)
    module, _, function = COMMANDS[command][0].partition(":")
    try:
        run = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(command, "train")
        parser.error(f"{command} needs {error.name!r}: pip install 'sb3_pmpo[{extra}]'")
    trust = "--trust" in given
    with trusted(trust):
        try:
            return int(run([each for each in given[1:] if each != "--trust"]))
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise SystemExit(f"sb3-pmpo {command}: error: {error}: choose another path") from error


def stored_help(command: str) -> str:
    """Return a command's help, as :mod:`sb3_pmpo.tools.helps` has written it down.

    The parsers need what their commands need: torch and the RL Zoo take seconds to import.
    """
    return files("sb3_pmpo.tools").joinpath(f"help/{command}.txt").read_text()


def trusted(trust: bool) -> AbstractContextManager[None]:
    """Load the pickles in others' files too, if asked to."""
    if not trust:
        return nullcontext()
    from sb3_pmpo.storage.pickles import trusting  # imports torch

    return trusting()
