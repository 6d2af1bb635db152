"""Every command of the tutorial, in its order, with smaller budgets."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import imageio_ffmpeg
import pytest
from opengl import has_egl

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)\n```", TUTORIAL, flags=re.DOTALL)
#: Budgets of the tutorial and of the test.
SHORTER = {
    "-n 20000": "-n 120",
    "-n 10000": "-n 60",
    "-n 5000": "-n 40",
    "-n 1500": "-n 501",
    "-n 500": "-n 10",
    "--eval-freq 2000": "--eval-freq 60 --eval-episodes 1",
    "--eval-freq 2500": "--eval-freq 20 --eval-episodes 1",
    "--save-freq 10000": "--save-freq 60",
    "--n-evaluations 4": "--n-evaluations 1 --eval-episodes 1 --n-startup-trials 1",
    "--max-total-trials 20": "--max-total-trials 2",
    "--workers 2": "--workers 1",  # tests/zoo/test_tuning.py has two
    "--dry-run": "--dry-run --eval-episodes 1 -n 10",
}
PORT = "6017"


def shorter(command: str) -> str:
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    return command


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the installation needs of this repository, and the interpreter of the tests."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("sb3_pmpo", "zoo_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(sys._base_executable)  # type: ignore[attr-defined]  # of venv
    return folder


def environment(clone: Path) -> dict[str, str]:
    """The clone's environment on PATH, and not that of the tests, into which pip must not write.

    The dependencies come from the environment of the tests, so that pip finds them installed and
    the test needs no download of torch.
    """
    bins = [path for path in os.environ["PATH"].split(":") if not Path(path, "sb3-pmpo").exists()]
    return {
        **os.environ,
        "PATH": ":".join([str(clone / ".venv" / "bin"), str(clone / "bin"), *bins]),
        "PYTHONPATH": ":".join(path for path in sys.path if path.endswith("site-packages")),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_DEPS": "1",  # all are there, and to resolve them again takes long
    }


def call(command: str, clone: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=clone,
        env=environment(clone),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


#: Runs several commands in one process, which saves the imports of each.
PROGRAM = """
import json, sys
from sb3_pmpo.tools.cli import main
for arguments in json.load(sys.stdin):
    print("$", *arguments, flush=True)
    if main(arguments):
        sys.exit(f"failed: {arguments}")
"""


def call_together(commands: list[str], clone: Path, mujoco_gl: str) -> None:
    """Call ``sb3-pmpo`` with the arguments of each command, one after another."""
    python = clone / ".venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", PROGRAM],
        input=json.dumps([arguments_of(shorter(command), mujoco_gl) for command in commands]),
        cwd=clone,
        env=environment(clone) | {"MUJOCO_GL": mujoco_gl},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def arguments_of(command: str, mujoco_gl: str) -> list[str]:
    words = shlex.split(command)
    given = words[: words.index("sb3-pmpo")]
    assert given in ([], [f"MUJOCO_GL={mujoco_gl}"]), command
    return words[words.index("sb3-pmpo") + 1 :]


def test_the_ten_commands_run_one_after_another(clone: Path) -> None:
    assert len(COMMANDS) == 10
    install, train, tensorboard, *others = COMMANDS
    call(install, clone)
    assert (clone / ".venv" / "bin" / "pip").exists()  # else another pip has installed
    # A dependency that is in place already has its program elsewhere.
    link = clone / ".venv" / "bin" / "tensorboard"
    if not link.exists():
        link.symlink_to(Path(sys.executable).parent / "tensorboard")
    where = "import sb3_pmpo, pathlib; print(pathlib.Path(sb3_pmpo.__file__).parent.parent)"
    call(f'test "$(python -c "{where}")" = "{clone}" && .venv/bin/sb3-pmpo --version', clone)
    server = start_tensorboard(tensorboard, clone)
    try:
        without, rendering = [train, *others[:5]], others[5:]
        call_together(without, clone, "disabled")
        look_at_tensorboard(server)
    finally:
        server.terminate()
        server.wait()
    run = clone / "logs" / "pmpo" / "dm_control-cartpole-swingup-v0_1"
    assert (clone / "curve.png").stat().st_size > 10_000
    assert (run / "best_model.zip").exists()
    tuned = clone / "logs" / "pmpo"
    for name in ("cartpole_best.yml", "cartpole_history.png", "cartpole_importances.png"):
        assert (tuned / name).stat().st_size > 0, name
    if not has_egl():
        pytest.skip("no EGL on this machine: the video and the model card were left out")
    call_together(rendering, clone, "egl")
    (video,) = run.parent.glob("*/videos/*.mp4")
    (card,) = run.parent.glob("*/hub/README.md")
    assert "(replay.mp4)" in card.read_text()
    for path in (video, card.with_name("replay.mp4")):
        assert look_at_video(path) == (30.0, (480, 480), 0.2)  # ten decisions of 20 ms each


def look_at_video(path: Path) -> tuple[float, tuple[int, int], float]:
    reader = imageio_ffmpeg.read_frames(path)
    says = next(reader)
    reader.close()
    return says["fps"], says["size"], says["duration"]


def start_tensorboard(command: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*command.split(), "--port", PORT],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def look_at_tensorboard(server: subprocess.Popen) -> None:
    for _ in range(60):
        assert server.poll() is None
        try:
            with urllib.request.urlopen(f"http://localhost:{PORT}/data/runs") as answer:
                if "PMPO_1" in answer.read().decode():
                    return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError("TensorBoard did not show the run")
