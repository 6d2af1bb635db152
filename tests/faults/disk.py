"""Disks that are full or read-only, and files that are torn."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3 import SAC

from sb3_pmpo import PMPO
from sb3_pmpo.files import WRITING
from sb3_pmpo.tools.checkpoints import find
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.zoo.agents import find_agent, make_parser

from .envs import FAULT

ENV = "FaultyToy-v0"
TINY = ["policy_kwargs:dict(net_arch=[8])", "batch_size:8", "learning_starts:10"]


class NoDiskError(Exception):
    """This process may mount nothing."""


@contextmanager
def disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a disk of a size in memory.

    :raises NoDiskError: where that is not allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoDiskError(str(error)) from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def free(folder: Path) -> int:
    """Return the bytes that are free."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


def train(folder: Path, *arguments: str, algorithm: str = "pmpo") -> Path:
    """Train in a folder, and return that of the run; it fails as training fails."""
    given = ["train", "--algo", algorithm, "--env", ENV, "-f", str(folder), "-n", "60"]
    given += ["--seed", "1", "--verbose", "0", *arguments]
    with contextlib.redirect_stdout(None):
        main([*given, "-params", *TINY, "buffer_size:20000"])
    return folder / algorithm / f"{ENV}_1"


def fill_while_training(folder: Path, algorithm: str) -> str:
    """Fill a disk before the second checkpoint; the model is saved, and the first error shown."""
    room, run = 350_000, folder / algorithm / f"{ENV}_1"
    os.environ[FAULT] = f"{room} 30 {folder}/mark"
    saving = ["--save-freq", "20", "--eval-freq", "-1"]
    saving += ["--save-replay-buffer"] if algorithm == "sac" else []
    error = _error_of(lambda: train(folder, *saving, algorithm=algorithm))
    assert error.errno == 28, error
    notes = getattr(error, "__notes__", [])
    model = (PMPO if algorithm == "pmpo" else SAC).load(run / f"{ENV}.zip")
    assert model.num_timesteps >= 40
    found = find(run)
    assert found is not None, "the checkpoint before is gone"
    missing = [name for name in found.files.values() if not (found.folder / name).exists()]
    assert not missing, missing
    assert not list(run.rglob(f"{WRITING}*")), "unfinished files hold the space"
    (folder / "ballast").unlink()
    there = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    state = os.statvfs(folder)
    held = state.f_blocks * state.f_frsize - free(folder) - there
    assert held < 100_000, f"{held} bytes are held by no file"
    with contextlib.redirect_stdout(None):
        main(["train", "-i", str(run), "-n", "20"])
    return f"{algorithm}: model saved, space given back, resumed from {found.step}; {notes}"


def read_only(folder: Path) -> str:
    """Use a run on a disk that became read-only."""
    os.environ[FAULT] = f"none 99999 {folder}/mark"
    run = train(folder, "--save-freq", "20", "--eval-freq", "30")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    assert PMPO.load(run / f"{ENV}.zip").num_timesteps == 60
    use(run)
    goes_on = ["train", "-i", str(run), "-n", "20"]
    said = [str(_error_of(lambda: main(goes_on))), str(_error_of(lambda: train(folder)))]
    assert all(str(folder) in each for each in said), said
    return f"a run is read; to write says {said[0]}"


def _error_of(attempt: Callable[[], Any]) -> OSError:
    try:
        with contextlib.redirect_stdout(None):
            attempt()
    except OSError as error:
        return error
    raise AssertionError("it was written")


# ---------------------------------------------------------------------- torn files


def use(run: Path) -> None:
    """Find a run's agent, and load it in its environment."""
    parser = make_parser("enjoy", "")
    logs = str(run.parents[1])
    agent = find_agent(parser.parse_args(["--env", ENV, "-f", logs, "--exp-id", "1"]))
    env = agent.make_env(n_envs=1, seed=0, render=False)
    try:
        agent.load(env, seed=0, device="cpu").predict(env.reset())
    finally:
        env.close()


def draw(run: Path) -> None:
    """Draw a run's curves."""
    main(["plot", "-f", str(run.parents[1]), "-o", str(run.parents[2] / "x.png")])


def go_on(run: Path) -> None:
    """Resume it."""
    main(["train", "-i", str(run), "-n", "5"])


USES: dict[str, Callable[[Path], Any]] = {"enjoy": use, "plot": draw, "-i": go_on}


def tear(folder: Path, files: list[str] | None = None) -> str:
    """Tear each file of a run, and use the run: nothing fails without naming it.

    :param files: parts of names of those to tear, in their middle; None for all, in three places.
    """
    os.environ[FAULT] = f"none 99999 {folder}/mark"
    whole = train(folder / "whole", "--save-freq", "20", "--eval-freq", "20",
                  "--eval-episodes", "1", "-params", "normalize:True")  # fmt: skip
    torn = refused = warned = 0
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        if files is not None and not any(part in path.name for part in files):
            continue
        size = path.stat().st_size
        for keep in {0, size // 2, max(size - 1, 0)} if files is None else {size // 2}:
            shutil.rmtree(folder / "logs", ignore_errors=True)
            shutil.copytree(folder / "whole", folder / "logs")
            run = folder / "logs" / whole.relative_to(folder / "whole")
            os.truncate(run / path.relative_to(whole), keep)
            for name, function in USES.items():
                said = _said_of(function, run)
                torn, refused = torn + 1, refused + said.failed
                warned += bool(said.text) and not said.failed
                if said.failed:
                    its_name = path.name.rpartition("-")[2]  # of what a checkpoint holds, too
                    assert its_name in said.text, f"{name} of {path.name}[:{keep}]: {said.text}"
    return f"{torn} uses of torn files: {refused} refused by name, {warned} warned"


class _Said:
    def __init__(self) -> None:
        self.text, self.failed = "", False


def _said_of(function: Callable[[Path], Any], run: Path) -> _Said:
    said = _Said()
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(io.StringIO()),  # not None, which SB3's logger refuses
        contextlib.redirect_stderr(open(os.devnull, "w")) as errors,  # closed below
    ):
        warnings.simplefilter("always", UserWarning)
        try:
            function(run)
        except (ValueError, OSError, EOFError) as error:
            said.text, said.failed = f"{error} {getattr(error, '__notes__', '')}", True
        except SystemExit as error:
            said.failed = bool(error.code)
            said.text = str(error.code)
        errors.close()
    said.text += " ".join(str(each.message) for each in caught)
    return said
