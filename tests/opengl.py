"""Rendering in tests, which themselves run with MUJOCO_GL=disabled: in a process with EGL."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest


@cache
def has_egl() -> bool:
    program = "import mujoco; mujoco.GLContext(8, 8).make_current()"
    done = subprocess.run([sys.executable, "-c", program], env=_environment(), capture_output=True)
    return done.returncode == 0


def run_with_egl(*arguments: str) -> str:
    """Run the command line where MuJoCo can render; return what it prints."""
    if not has_egl():
        pytest.skip("no EGL on this machine: nothing renders")
    done = subprocess.run(
        [sys.executable, "-m", "sb3_pmpo", *arguments],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "MUJOCO_GL": "egl"}
