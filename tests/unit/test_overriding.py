"""A concrete method of a class of the package is overridden by no other class of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import sb3_pmpo

#: Of the tools, around the Zoo's own classes, which call these by name.
EXCEPTIONS = {
    "TrialEvaluation._on_step",
    "TuningManager.create_envs",
    "TuningManager.create_log_folder",
    "ZooParser.add_argument",
}


def classes() -> list[ast.ClassDef]:
    """Return the package's classes, read from the files: nothing is imported."""
    return [
        node
        for path in Path(sb3_pmpo.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]


def methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """Return the methods of a class; constructors are each class's own."""
    defined = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    return {each.name: each for each in defined if each.name != "__init__"}


def is_concrete(method: ast.FunctionDef) -> bool:
    """Say whether it does something: a hook that does nothing is there to be overridden."""
    if any("abstractmethod" in ast.unparse(each) for each in method.decorator_list):
        return False
    return any(
        not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in method.body
    )


def overridden(among: list[ast.ClassDef]) -> Iterator[str]:
    """List the methods that override a concrete one of a class of these."""

    def ancestors(node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for each in among:
            if each.name in bases:
                yield each
                yield from ancestors(each)

    for node in among:
        for ancestor in ancestors(node):
            theirs = methods(ancestor)
            for name in methods(node):
                if name in theirs and is_concrete(theirs[name]):
                    yield f"{node.name}.{name}"


def test_no_concrete_method_is_overridden_within_the_package() -> None:
    assert set(overridden(classes())) == EXCEPTIONS


def test_what_overrides_is_found_and_hooks_are_not() -> None:
    source = """
class Base:
    def __init__(self): self.a = 1
    def hook(self): "Do nothing."
    @abstractmethod
    def abstract(self): return 0
    def concrete(self): return 1
class Between(Base): pass
class Final(module.Between):
    def __init__(self): self.a = 2
    def hook(self): return 2
    def abstract(self): return 2
    def concrete(self): return 2
"""
    found = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    assert list(overridden(found)) == ["Final.concrete"]
