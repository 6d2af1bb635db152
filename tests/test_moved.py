"""Modules of earlier versions are still found, by scripts and by pickles that name them."""

from __future__ import annotations

import importlib
import pickle

import pytest

from sb3_pmpo._moved import MOVED, new_name


@pytest.mark.parametrize("old", [*MOVED, "sb3_pmpo.zoo.manager", "sb3_pmpo.sweep.spec"])
def test_an_old_name_is_the_same_module(old: str) -> None:
    new = new_name(old)
    assert new is not None
    module = importlib.import_module(old)
    assert module is importlib.import_module(new)
    assert module.__name__ == module.__spec__.name == new  # type: ignore[union-attr]  # it has one


def test_a_pickle_that_names_an_old_module_loads() -> None:
    from sb3_pmpo.tools.tensorboard import TensorBoardLayout

    assert pickle.loads(b"csb3_pmpo.layout\nTensorBoardLayout\n.") is TensorBoardLayout


def test_what_never_was_is_not_found() -> None:
    assert new_name("sb3_pmpo.bandit") is None  # it stayed where it was
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        importlib.import_module("sb3_pmpo.zoo.nothing")
