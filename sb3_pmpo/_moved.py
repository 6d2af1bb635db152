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
    "sb3_pmpo.zoo": "sb3_pmpo.tools.zoo",
}


def new_name(name: str) -> str | None:
    """Return where a module of an earlier version is now; None if it did not move."""
    head, tail = name, ""
    while head:
        if head in MOVED:
            return MOVED[head] + tail
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return None


class Finder(MetaPathFinder, Loader):
    """Import the new module under the old name: one module object with two names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for the old names alone."""
        return ModuleSpec(fullname, self) if new_name(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module by its new name."""
        name = new_name(spec.name)
        assert name is not None  # else find_spec would not have answered
        module = importlib.import_module(name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is: it ran under its new name."""
        assert module.__spec__ is not None  # set by the import system, just before
        module.__spec__ = module.__spec__.loader_state  # which has taken the old name's for it


def install() -> None:
    """Let the import system know the old names; any number of times."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        # First, or a package's files would be loaded a second time, under its old name.
        sys.meta_path.insert(0, Finder())
