"""The built wheel: what it contains, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_built_wheel_trains_in_a_fresh_environment(tmp_path: Path) -> None:
    def call(*command: str | Path, **options: object) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=400,
            **options,  # type: ignore[call-overload]  # cwd and env only
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # With the setuptools that is here; the tutorial's installation fetches one.
    build = ("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path)
    call(sys.executable, "-m", "pip", *build, ROOT)
    (wheel,) = tmp_path.glob("sb3_pmpo-*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(call(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    # The dependencies come from the environment of the tests; the package from the wheel alone.
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = call(python, "-c", "import sb3_pmpo; print(sb3_pmpo.__file__)", cwd=tmp_path, env=clean)
    assert Path(where.strip()).is_relative_to(site)
    assert (site / "sb3_pmpo" / "py.typed").exists()
    assert (site / "sb3_pmpo" / "zoo_configs" / "control_suite.yml").exists()
    train = [tmp_path / "env" / "bin" / "sb3-pmpo", "train", "--env", "dm_control/walker-walk-v0"]
    out = call(*train, "-n", "200", "--eval-freq", "-1", cwd=tmp_path, env=clean)
    assert f"Loading hyperparameters from: {site}" in out
    assert "Finished after 200 decisions" in out
