"""What an import brings along, each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import {module}
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
print(*sorted(name for name in sys.modules if name.startswith("sb3_pmpo")))
"""
HEAVY = {"gymnasium", "matplotlib", "pandas", "ray", "rl_zoo3", "shimmy", "stable_baselines3"}


def imported_by(module: str) -> tuple[set[str], set[str]]:
    """Return the packages that are there after an import, and the modules of ours."""
    program = PROGRAM.format(module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packages, ours = done.stdout.splitlines()
    return set(packages.split()), set(ours.split())


def test_the_package_imports_what_it_needs_and_no_more() -> None:
    packages, ours = imported_by("sb3_pmpo")
    assert not packages & (HEAVY | {"numpy", "torch"})
    assert ours == {"sb3_pmpo", "sb3_pmpo._moved"}


def test_core_brings_torch_alone() -> None:
    modules = "batch", "checks", "e_step", "labels", "losses", "samples", "td"
    packages, ours = imported_by(", ".join(f"sb3_pmpo.core.{module}" for module in modules))
    assert "torch" in packages
    assert not packages & HEAVY
    others = {name for name in ours if not name.startswith("sb3_pmpo.core")}
    assert others == {"sb3_pmpo", "sb3_pmpo._moved"}


def test_what_serves_every_setting_knows_no_environment() -> None:
    modules = "bandit", "distributions", "learner", "objectives"
    packages, _ = imported_by(", ".join(f"sb3_pmpo.{module}" for module in modules))
    assert not packages & HEAVY


def test_every_public_name_is_there_and_is_listed() -> None:
    import sb3_pmpo

    for name in sb3_pmpo.__all__:
        assert getattr(sb3_pmpo, name) is not None
        assert name in dir(sb3_pmpo)
    with pytest.raises(AttributeError, match="'sb3_pmpo' has no attribute 'nonsense'"):
        sb3_pmpo.nonsense  # noqa: B018  # reading it is the point
