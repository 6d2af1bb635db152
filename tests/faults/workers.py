"""Workers that die or hang, and NaN from any of several environments."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from toys import Toy, parameters, small

from sb3_pmpo import PMPO
from sb3_pmpo.tools.cli import main

from . import processes
from .envs import FAULT

ENV = "FaultyToy-v0"

#: Seconds in which an interrupted run must have ended, whatever its workers do.
LIMIT = 60.0


class Forked(SubprocVecEnv):
    """Workers that need not import anything; the first of them has the fault.

    Of a later one the earlier ones hold the pipe open, as fork has it, and nobody would hear of its
    death. SB3's own way of starting workers (forkserver, spawn) hands no pipe on.
    """

    def __init__(self, env_fns: list[Any], start_method: str | None = None) -> None:
        super().__init__([env_fns[0], *map(_without_fault, env_fns[1:])], "fork")


def _without_fault(env_fn: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        os.environ[FAULT] = "nothing 1000000000 -"
        return env_fn()

    return make


def lose_a_worker(folder: Path, what: str) -> str:
    """Train in workers of which one dies or hangs; a run that hangs is stopped by SIGTERM.

    :param what: ``"die"`` or ``"hang"``.
    """
    log, mark = folder / "log", folder / "mark"

    def job() -> int:
        from rl_zoo3 import exp_manager

        os.setsid()
        vars(exp_manager)["SubprocVecEnv"] = Forked
        os.environ[FAULT] = f"{what} 20 {mark}"
        if what == "hang":
            threading.Thread(target=_interrupt_after, args=(mark,), daemon=True).start()
        given = ["train", "--env", ENV, "-f", str(folder), "-n", "400", "--vec-env", "subproc"]
        given += ["--eval-freq", "-1", "-params", "n_envs:2", "learning_starts:10"]
        return main([*given, "policy_kwargs:dict(net_arch=[8])", "batch_size:8"])

    started = time.monotonic()
    status = processes.run(job, log)
    seconds = time.monotonic() - started
    assert seconds < LIMIT, f"{seconds} s"
    assert status == (130 if what == "hang" else 1), log.read_text()[-2000:]
    model = PMPO.load(folder / "pmpo" / f"{ENV}_1" / f"{ENV}.zip")
    assert model.num_timesteps > 20
    assert not _workers(log), "a worker is left"
    return f"{what}: status {status}, model of step {model.num_timesteps}, no orphan"


def _interrupt_after(mark: Path) -> None:
    while not mark.exists():
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)


def _workers(log: Path) -> list[str]:
    """Return the processes that still write to a log."""
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "fd" / "1") == str(log.resolve()):
                left.append(entry.name)
        except OSError:  # it has ended, or is not ours
            continue
    return left


def nan_from_one(number: int, what: str, step: int, *, normalize: bool) -> str:
    """Let one of three environments give a NaN: it is refused, and nothing has taken it in.

    :param number: of the environment.
    :param what: see :class:`toys.Toy`.
    :param step: after how many of its steps.
    :param normalize: whether VecNormalize is around them.
    """
    faults = [("nothing", 0, 0.0)] * 3
    faults[number] = (what, step, float("nan"))
    env: Any = DummyVecEnv([lambda fault=fault: Toy(fault=fault) for fault in faults])
    env = VecNormalize(env) if normalize else env
    model = small(env, policy_kwargs={"net_arch": [8]}, learning_starts=12)
    with pytest.raises(ValueError, match=f"environment {number}") as refused:
        model.learn(150)
    for name, value in parameters(model.policy).items():
        assert th.isfinite(value.float()).all(), name
    buffer = model.replay_buffer
    assert np.isfinite(buffer.observations[: buffer.pos]).all()
    assert np.isfinite(buffer.next_observations[: buffer.pos]).all()
    assert np.isfinite(buffer.rewards[: buffer.pos]).all()
    if normalize:
        for statistics in (env.obs_rms, env.ret_rms):
            assert np.isfinite(statistics.mean).all()
            assert np.isfinite(statistics.var).all()
    return str(refused.value)
