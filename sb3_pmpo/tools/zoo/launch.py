"""Run a program of the Zoo's with what is ours in place: arguments, experiment manager."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from types import ModuleType
from typing import Any
from unittest.mock import patch

import rl_zoo3.train

from sb3_pmpo.tools.settings import KeyValues
from sb3_pmpo.tools.zoo import register
from sb3_pmpo.tools.zoo.manager import Manager

LOGS = ("--folder", "logs")  # where `train` puts what the others look for
ALGO = ("--algo", "pmpo")
#: More threads help little at these sizes, and stall on a busy machine.
THREADS = ("--num-threads", "1")


def run_train(command: str, arguments: Sequence[str], manager: Callable[..., Manager]) -> None:
    """Run ``rl_zoo3.train`` with an experiment manager of ours in its manager's place."""
    given = prepared(rl_zoo3.train, command, arguments, ALGO, THREADS, ExperimentManager=manager)
    with given:
        rl_zoo3.train.train()


@contextmanager
def prepared(
    program: ModuleType,
    command: str,
    arguments: Sequence[str],
    *defaults: tuple[str, str],
    **names: Any,
) -> Iterator[None]:
    """Let a program of the Zoo find our algorithms, and its arguments where it looks for them.

    Values behind ``key:`` are read instead of evaluated.

    :param names: put into the program's module.
    """
    register()
    # The defaults first, so that what is given has the last word however it is written: -f x,
    # --fold=x.
    argv = [f"sb3-pmpo {command}", *chain(*defaults), *arguments]
    with patch.object(sys, "argv", argv), patch.multiple(program, StoreDict=KeyValues, **names):
        yield
