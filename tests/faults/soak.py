"""A long run with checkpoints, whose memory must not grow.

``python -m tests.faults.soak --steps 200000`` from the root of the repository.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from sb3_pmpo import PMPO
from sb3_pmpo.online.checkpoints import SaveCheckpoints

#: Mebibytes by which the memory may grow.
ALLOWED = 5.0


class Memory(BaseCallback):
    """Note the resident memory now and then."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.found = every, [(0, resident())]

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self.found.append((self.num_timesteps, resident()))
        return True


def resident() -> float:
    """Return the resident memory of this process in mebibytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def soak(steps: int, folder: Path, checkpoints: int = 40) -> list[tuple[int, float]]:
    """Train and save that many checkpoints; return steps and mebibytes.

    The buffer is full after a tenth of the steps; what it needs is not growth.
    """
    arguments: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 32}
    arguments |= {"train_freq": 8, "gradient_steps": 1, "buffer_size": max(steps // 10, 100)}
    model = PMPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **arguments)
    memory = Memory(max(steps // 20, 1))
    model.learn(
        steps, callback=CallbackList([memory, SaveCheckpoints(folder, steps // checkpoints)])
    )
    return memory.found


def growth(found: list[tuple[int, float]]) -> float:
    """Return how much the memory grew from a fifth of the run, when all is warm, to its end."""
    end = found[-1][0]
    return max(size for _, size in found[-3:]) - next(s for n, s in found if n >= end / 5)


def main() -> int:
    """Run the command line; the status is 1 if the memory grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    steps, started = parser.parse_args().steps, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(steps, Path(folder))
    for step, size in found:
        print(f"{step:8} steps: {size:7.1f} MiB")
    grown = growth(found)
    print(f"grown by {grown:.1f} MiB in {time.monotonic() - started:.0f} s, allowed {ALLOWED}")
    return int(grown > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
