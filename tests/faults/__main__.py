"""All faults: ``python -m tests.faults`` from the root of the repository, in under 20 minutes.

Kills at random moments and at writes, disks that are full or read-only, torn files, workers that
die or hang, NaN from any of several environments. ``tests/faults/test_faults.py`` is a short form.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch as th

sys.path.insert(0, str(Path(__file__).parents[1]))  # the toys

from sb3_pmpo.tools.zoo import register

from . import disk, kills, workers


def checks(folder: Path, n_kills: int) -> dict[str, Callable[[], str]]:
    """Return what to do, by name."""

    def on(size: int, name: str, what: Callable[[Path], str]) -> Callable[[], str]:
        def run() -> str:
            with disk.disk(folder / name, size) as place:
                return what(place)

        return run

    train, sweep = kills.Train(folder / "train", 200), kills.Sweep(folder / "sweep", 200)
    short = (kills.Train(folder / "train, writes", 60), kills.Sweep(folder / "sweep, writes", 60))
    tune, trials = kills.Tune(folder / "tune", 6), kills.Tune(folder / "tune, writes", 2)
    found: dict[str, Callable[[], str]] = {
        "kill -9 of train": lambda: kills.kill_at_random(train, n_kills),
        "kill -9 of a sweep": lambda: kills.kill_at_random(sweep, n_kills),
        "kill -9 of tune": lambda: kills.kill_at_random(tune, n_kills),
        "kill -9 at writes of train": lambda: kills.kill_at_writes(short[0], 2),
        "kill -9 at writes of a sweep": lambda: kills.kill_at_writes(short[1], 2),
        "kill -9 at writes of tune": lambda: kills.kill_at_writes(trials, 1, most=12),
        "torn files": lambda: disk.tear(folder / "torn"),
        "a worker dies": lambda: workers.lose_a_worker(_made(folder / "dead"), "die"),
        "a worker hangs": lambda: workers.lose_a_worker(_made(folder / "hanging"), "hang"),
        "NaN": _all_nans,
        "read-only": on(8, "read-only", disk.read_only),
    }
    for algorithm in ("pmpo", "sac"):
        what = f"disk full, {algorithm}"
        found[what] = on(8, what, lambda place, a=algorithm: disk.fill_while_training(place, a))  # type: ignore[misc]  # a is bound
    return found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _all_nans() -> str:
    kinds = ("observation", "terminal", "reward")
    cases = list(product(range(3), kinds, (5, 25), (False, True)))
    for number, what, step, normalize in cases:
        workers.nan_from_one(number, what, step, normalize=normalize)
    return f"{len(cases)} NaNs refused, by the environment's number"


def main() -> int:
    """Run the command line; the status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of train, sweep and tune each")
    parser.add_argument("--only", default="", help="part of the name of what to do")
    options = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "disabled")
    th.set_num_threads(1)
    register()
    failed, begun = 0, time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync costs nothing
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        for name, check in checks(Path(folder), options.kills).items():
            if options.only not in name:
                continue
            started = time.monotonic()
            try:
                said = check()
            except disk.NoDiskError as error:
                said = f"SKIPPED, as no disk can be mounted: {error}"
            except Exception:
                failed += 1
                said = f"FAILED\n{traceback.format_exc()}"
            print(f"{name} ({time.monotonic() - started:.0f} s): {said}", flush=True)
    print(f"{failed} failed, in {time.monotonic() - begun:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
