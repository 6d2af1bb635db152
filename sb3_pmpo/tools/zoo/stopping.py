"""The end of a run: signals, environments that do not answer, and what to do next."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from huggingface_sb3 import EnvironmentName
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

#: The exit status of a run that Ctrl-C or SIGTERM stopped.
INTERRUPTED = 130

#: Seconds that environments have for closing.
PATIENCE = 10.0


def close_in_time(env: VecEnv, seconds: float = PATIENCE) -> None:
    """Close an environment; end the processes of one that does not answer, or died before."""

    def close() -> None:
        with suppress(EOFError, OSError):  # a worker that Ctrl-C reached as well
            env.close()

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(seconds)
    inner = env.unwrapped
    if isinstance(inner, SubprocVecEnv):
        for process in inner.processes:
            process.kill()  # no harm to one that has ended


class Terminated(KeyboardInterrupt):
    """SIGTERM came.

    A class of its own, because CPython ends ``python -m`` by SIGINT, whatever status it was to
    exit with, once a plain KeyboardInterrupt has left a string that was being exec'd (as imports
    and dataclasses do).
    """


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(signum: int, frame: Any) -> NoReturn:
        raise Terminated

    with _handled(interrupt, signal.SIGTERM):
        yield


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM wait until what is saved is saved.

    :return: the signals that came meanwhile.
    """
    came: list[int] = []
    with _handled(lambda signum, frame: came.append(signum), signal.SIGINT, signal.SIGTERM):
        yield came


@contextmanager
def _handled(handler: Callable[[int, Any], Any], *signals: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are not its business
        yield
        return
    heard = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]  # nohup
    previous = {each: signal.signal(each, handler) for each in heard}
    try:
        yield
    finally:
        for each, before in previous.items():
            signal.signal(each, before)


def say_what_next(folder: Path, algo: str, env_name: EnvironmentName) -> None:
    """Print the commands that look at a run.

    :param folder: of the run.
    :param algo: the Zoo's name.
    :param env_name: of the environment.
    """
    these = ["--algo", algo, "--env", env_name.gym_id, "-f", str(folder.parents[1])]
    number = folder.name.removeprefix(f"{env_name}_")
    which = ["--exp-id", number] if number.isdecimal() else []
    print(f"Its returns:    sb3-pmpo enjoy {shlex.join([*these, *which])} --no-render")
    print(f"Its video:      MUJOCO_GL=egl sb3-pmpo record {shlex.join([*these, *which])}")
    print(f"Its curve:      sb3-pmpo plot {shlex.join(these)}")
