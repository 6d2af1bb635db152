"""An environment whose worker dies or hangs once, or that fills the disk, when it is told to."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from toys import Toy

from sb3_pmpo.storage.environment_state import register_environment

#: What happens, after how many steps, and a file that is made when it does: ``"die 25 FILE"``.
FAULT = "SB3_PMPO_FAULT"


class FaultyToy(Toy):
    """Toy that does what the environment variable says, once, in the first that comes to it."""

    def step(self, action: np.ndarray) -> Any:
        what, after, mark = os.environ[FAULT].split(maxsplit=2)
        if len(self.actions) >= int(after):
            try:
                Path(mark).touch(exist_ok=False)
            except FileExistsError:
                return super().step(action)
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif what == "hang":
                time.sleep(600)
            else:
                fill(Path(mark).parent, int(what))
        return super().step(action)


def fill(folder: Path, left: int) -> None:
    """Fill a small disk but for some bytes."""
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    (folder / "ballast").write_bytes(b"x" * max(free - left, 0))


register_environment(FaultyToy)
gym.register("FaultyToy-v0", FaultyToy, disable_env_checker=True)
