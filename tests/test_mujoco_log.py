"""What MuJoCo and GLFW have to say does not land in the user's folder, nor on the screen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gymnasium, mujoco
import numpy as np
from sb3_pmpo import PMPO

mujoco.set_mju_user_warning(None)  # as where dm_control is not installed
env = gymnasium.make("InvertedPendulum-v5")
PMPO("MlpPolicy", env, buffer_size=10)
env.reset()
env.unwrapped.data.qvel[:] = np.nan
mujoco.mj_step(env.unwrapped.model, env.unwrapped.data)
import sb3_pmpo.envs
"""


def test_no_log_file_and_no_warning_about_a_screen(tmp_path: Path) -> None:
    screenless = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL")}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=screenless, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Nan, Inf or huge value" in done.stderr
    assert "GLFW" not in done.stderr
    assert not list(tmp_path.iterdir())
