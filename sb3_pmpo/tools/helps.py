"""Write the help of each command down, so that it is printed at once.

    python -m sb3_pmpo.tools.helps

To be run after a change of a parser; a test compares.
"""

from __future__ import annotations

import contextlib
import io
import os
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

from sb3_pmpo.tools.cli import COMMANDS

FOLDER = Path(__file__).parent / "help"


#: Commands in which an option that is filled in before the parser sees it names the environment.
NAMES_THE_ENV = {"train": "--from-pretrained or -i FOLDER", "enjoy": "--pretrained",
                 "record": "--pretrained", "export": "--pretrained"}  # fmt: skip


def live_help(command: str) -> str:
    """Return what a command's own parser says, at a width of 100 columns."""
    module, _, function = COMMANDS[command][0].partition(":")
    printed = io.StringIO()
    with (
        patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        getattr(import_module(module), function)(["--help"])
    text = printed.getvalue().replace("``", "")
    if command in NAMES_THE_ENV:
        text = text.replace(" --env ENV ", " [--env ENV] ", 1)
        lines = (f"{line}; {NAMES_THE_ENV[command]} names it, too" if line.startswith("  --env ENV")
                 else line for line in text.splitlines())  # fmt: skip
        text = "\n".join((*lines, ""))
    return text


def write() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for command in COMMANDS:
        (FOLDER / f"{command}.txt").write_text(live_help(command))


if __name__ == "__main__":
    write()
