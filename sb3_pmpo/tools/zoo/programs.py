"""The Zoo's own programs, with this package's algorithms, settings and environments in place.

Each takes the Zoo's arguments, with defaults of ours (:data:`sb3_pmpo.tools.zoo.launch.ARGUMENTS`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import rl_zoo3
import rl_zoo3.enjoy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pmpo.storage.pickles import UntrustedFileError
from sb3_pmpo.tools.loading import Loader
from sb3_pmpo.tools.zoo.launch import prepared, run_train
from sb3_pmpo.tools.zoo.manager import Manager
from sb3_pmpo.tools.zoo.resuming import CannotResumeError, filled_in
from sb3_pmpo.tools.zoo.shipped import begin_from, unpacked
from sb3_pmpo.tools.zoo.tune import tune


def train(arguments: Sequence[str]) -> int:
    """Run ``rl_zoo3.train``; see :class:`Manager`. Its ``-optimize`` is ``sb3-pmpo tune``.

    ``-i FOLDER`` goes on from the checkpoint in it, with what its run was called with.
    """
    if {"-optimize", "--optimize-hyperparameters"} & set(arguments):
        return tune(arguments)
    rest, learn = begin_from(arguments)
    try:
        run_train("train", filled_in(rest), partial(Manager, learn=learn))
    except CannotResumeError as error:
        raise SystemExit(f"sb3-pmpo train: error: {error}") from error
    return 0


def enjoy(arguments: Sequence[str]) -> int:
    """Run ``rl_zoo3.enjoy`` without allocating the replay buffer that the training had.

    :raises SystemExit: if there is no screen to show it on, which some viewers answer by an abort.
    """
    shows = not any(given in ("-h", "--help", "--no-render") for given in arguments)
    has_screen = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    with unpacked("enjoy", arguments) as chosen:
        if shows and not has_screen:
            raise SystemExit(
                "sb3-pmpo enjoy: error: there is no screen (DISPLAY is not set): pass --no-render "
                "for the scores alone, or make a video with sb3-pmpo record"
            )
        _keep_monitors(chosen)
        _enjoy(chosen)
    return 0


def _keep_monitors(arguments: Sequence[str]) -> None:
    """Refuse a folder of ``--reward-log`` whose files of episodes Monitor would write over."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=True)
    parser.add_argument("--reward-log", default="")
    folder = parser.parse_known_args(arguments)[0].reward_log
    there = sorted(Path(folder).glob("*monitor.csv")) if folder else []
    if there:
        raise SystemExit(
            f"sb3-pmpo enjoy: error: --reward-log {folder} holds {there[0].name}, which would be "
            "written over: name a folder that is new"
        )


def _enjoy(arguments: Sequence[str]) -> None:
    printed: list[str] = []
    show = partial(_print, printed)
    with prepared(rl_zoo3.enjoy, "enjoy", arguments, print=show), _loaders():
        try:
            rl_zoo3.enjoy.enjoy()
        except UntrustedFileError:
            raise
        except (AssertionError, ValueError) as error:  # its answers where there is no such model
            raise SystemExit(f"sb3-pmpo enjoy: error: {error}") from error
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--verbose", default="1")
    is_quiet = parser.parse_known_args(arguments)[0].verbose == "0"
    told = ("Episode Reward", "Atari Episode", "Mean")
    if not (is_quiet or any(line.startswith(told) for line in printed)):
        print("No episode has ended: -n says how many decisions to take (default: 1000).")


def _print(printed: list[str], *words: Any) -> None:
    """Print what the Zoo does, and keep it; its lengths of episodes are in decisions."""
    printed.append(" ".join(map(str, words)))
    if printed[-1].startswith(("Episode Length", "Mean episode length")):
        words = (*words, "decisions")
    print(*words)


@contextmanager
def _loaders() -> Iterator[None]:
    """Load models that run nothing, off-policy ones with a replay buffer of one transition.

    The Zoo does the latter for the algorithms on a list of its own, which has no room for others.
    """
    theirs, small = dict(rl_zoo3.ALGOS), {"buffer_size": 1, "optimize_memory_usage": False}
    loaders = {
        name: Loader(cls, small if issubclass(cls, OffPolicyAlgorithm) else {})
        for name, cls in theirs.items()
    }
    rl_zoo3.ALGOS.update(loaders)  # type: ignore[arg-type]  # all that the programs use is load
    try:
        yield
    finally:
        rl_zoo3.ALGOS.update(theirs)
