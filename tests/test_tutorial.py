"""Every command of the tutorial, in its order, with smaller budgets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)\n```", TUTORIAL, flags=re.DOTALL)
#: Budgets of the tutorial and of the test.
SHORTER = {
    "-n 20000": "-n 120",
    "-n 10000": "-n 60",
    "-n 5000": "-n 40",
    "-n 1500": "-n 501",
    "-n 500 ": "-n 10 ",
    "--eval-freq 2000": "--eval-freq 60 --eval-episodes 1",
    "--eval-freq 2500": "--eval-freq 20 --eval-episodes 1",
    "--save-freq 10000": "--save-freq 60",
    "--n-evaluations 4": "--n-evaluations 1 --eval-episodes 1 --n-startup-trials 1",
    "--max-total-trials 20": "--max-total-trials 3",
    "--dry-run": "--dry-run --eval-episodes 1 -n 10",
}
PORT = "6017"


def shorter(command: str) -> str:
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    return command


def environment() -> dict[str, str]:
    """The commands of this interpreter's environment come first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def has_egl() -> bool:
    program = "import mujoco; mujoco.GLContext(8, 8).make_current()"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "MUJOCO_GL": "egl"}, capture_output=True
    )
    return done.returncode == 0


def test_there_are_ten_commands_and_the_first_installs() -> None:
    assert len(COMMANDS) == 10
    install = COMMANDS[0]
    # What `make train` runs, on a fresh machine; CI's own installation goes the same way.
    makefile = (ROOT / "Makefile").read_text()
    assert "install --no-deps" in makefile
    assert "-c constraints.txt -e '.[train]'" in install


def test_the_other_nine_run_one_after_another(tmp_path: Path) -> None:
    egl = has_egl()
    for command in COMMANDS[1:]:
        if command.startswith("tensorboard"):
            look_at_tensorboard(command, tmp_path)
            continue
        if "MUJOCO_GL=egl" in command and not egl:
            continue
        done = subprocess.run(
            ["bash", "-c", shorter(command)],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    run = tmp_path / "logs" / "pmpo" / "dm_control-cartpole-swingup-v0_1"
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert (run / "best_model.zip").exists()
    if not egl:
        pytest.skip("no EGL on this machine: the video and the model card were left out")
    assert list(run.parent.rglob("*.mp4"))
    assert list(run.parent.rglob("hub/README.md"))


def look_at_tensorboard(command: str, folder: Path) -> None:
    server = subprocess.Popen(
        [*command.split(), "--port", PORT],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(120):
            time.sleep(0.5)
            assert server.poll() is None
            try:
                with urllib.request.urlopen(f"http://localhost:{PORT}/data/runs") as answer:
                    runs = answer.read().decode()
            except OSError:
                continue
            if "PMPO_1" in runs:
                return
        raise AssertionError("TensorBoard did not show the run")
    finally:
        server.terminate()
        server.wait()
