"""What all commands share: errors of one sentence, lists that add up, arguments that are counts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn


class AddsUp(argparse.Action):
    """Store a list, to which the same option given again adds; the first one replaces the default.

    argparse would forget what the option was given before.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add the values."""
        had = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(() if had is self.default else had), *values])


class Parser(argparse.ArgumentParser):
    """A parser whose error is one sentence, the last line, instead of the list of all options.

    Options that take several values are :class:`AddsUp`.
    """

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an argument as argparse does."""
        if names and names[0].startswith("-") and settings.get("nargs") in ("+", "*"):
            settings.setdefault("action", AddsUp)
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the options are; exit with status 2."""
        self.exit(
            2,
            f"usage: {self.prog} [options], which {self.prog} --help lists\n"
            f"{self.prog}: error: {message}\n",
        )


def counted(number: int, noun: str) -> str:
    """Say how many there are, ``"1 run"`` or ``"2 runs"``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def reason(error: Exception) -> str:
    """Say an error's reason: of a file or folder, its name and what is wrong with it."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: there is no such file"
    return f"{error.filename}: {error.strerror}"


def at_least(least: int = 1, besides: str = "") -> Callable[[str], int]:
    """Make a ``type`` of argparse's that reads a whole number.

    :param least: the lowest that is allowed.
    :param besides: ``"-1 for ..."``: -1 is allowed too, and means that.
    """

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least and not (besides and text.strip() == "-1"):
            allowed = f"must be a whole number >= {least}" + (f", or {besides}" if besides else "")
            raise argparse.ArgumentTypeError(f"{allowed}, got {text}")
        return number

    return read


#: Reads a number of which there must be one at least.
count = at_least()
