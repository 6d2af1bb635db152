"""What a figure needs beside it: versions, machine, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("sb3_pmpo", "stable-baselines3", "sb3-contrib", "sbx-rl", "cma", "torch", "jax",
            "gymnasium", "dm-control", "mujoco", "numpy", "trl", "transformers")  # fmt: skip


def provenance() -> dict[str, str]:
    """Return the columns that every result file carries."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package}={version(package)}")
        except PackageNotFoundError:
            continue
    return {"commit": commit(), "machine": machine(), "versions": " ".join(versions)}


def commit() -> str:
    """Return the commit of the working tree, with ``-dirty`` if the package differs from it."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--", "sb3_pmpo", "benchmarks/*.py")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Name the processor, as the kernel does, and count its cores."""
    import os

    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"
