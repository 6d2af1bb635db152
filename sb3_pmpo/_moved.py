"""Modules of earlier versions under their old names, for scripts and for pickles that name them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Old name -> new name, of modules and of packages with all that is in them. A module of a package
#: that went elsewhere has an entry of its own.
MOVED = {
    "sb3_pmpo.buffers": "sb3_pmpo.replay.legacy",
    "sb3_pmpo.checks": "sb3_pmpo.online.checks",
    "sb3_pmpo.core.duals": "sb3_pmpo.core.e_step",
    "sb3_pmpo.dpo": "sb3_pmpo.online.dpo",
    "sb3_pmpo.exploration": "sb3_pmpo.online.exploration",
    "sb3_pmpo.mpo": "sb3_pmpo.online.mpo",
    "sb3_pmpo.off_policy": "sb3_pmpo.online.off_policy",
    "sb3_pmpo.pmpo": "sb3_pmpo.online.pmpo",
    "sb3_pmpo.cli": "sb3_pmpo.tools.cli",
    "sb3_pmpo.configs": "sb3_pmpo.tools.settings",
    "sb3_pmpo.layout": "sb3_pmpo.tools.tensorboard",
    "sb3_pmpo.plots": "sb3_pmpo.tools.plots",
    "sb3_pmpo.ray_vec_env": "sb3_pmpo.tools.ray_vec_env",
    "sb3_pmpo.sweep": "sb3_pmpo.tools.runs",
    "sb3_pmpo.sweep.runs": "sb3_pmpo.tools.runs.sweep",
    "sb3_pmpo.zoo": "sb3_pmpo.tools.zoo",
}


def new_name(name: str) -> str | None:
    """Return where a module of an earlier version is now; None if it did not move."""
    package, _, rest = name.rpartition(".")
    if name in MOVED or not package:
        return MOVED.get(name)
    moved = new_name(package)
    return None if moved is None else f"{moved}.{rest}"


class Finder(MetaPathFinder, Loader):
    """Import the new module under the old name: one module object with two names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for the old names alone."""
        return ModuleSpec(fullname, self) if new_name(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module by its new name."""
        module = importlib.import_module(new_name(spec.name) or spec.name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is: it ran under its new name, whose spec it gets back."""
        spec = module.__spec__
        module.__spec__ = spec and spec.loader_state


def install() -> None:
    """Let the import system know the old names; any number of times."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        # First, or a package's files would be loaded a second time, under its old name.
        sys.meta_path.insert(0, Finder())
