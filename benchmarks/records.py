"""The rows of a run: their columns and their files."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.suites import Run
from sb3_pmpo.files import whole

Row = dict[str, Any]

#: One row an evaluation. ``train_seconds`` is collecting and updating so far, no evaluation;
#: ``peak_rss_mib`` the process's peak of resident memory so far.
FIELDS = ("algorithm", "task", "seed", "steps", "train_seconds", "return_mean", "return_min",
          "return_max", "episodes", "action_repeat", "peak_rss_mib", "arguments", "commit",
          "machine", "versions")  # fmt: skip


class Places(NamedTuple):
    """Where the files are: results to commit, and what is only needed to go on."""

    results: Path = Path(__file__).parent / "results"
    state: Path = Path("runs/benchmarks")

    def rows(self, run: Run) -> Path:
        """Return the file of a run's rows."""
        return self.results / "runs" / run.suite / f"{run.name}.csv"

    def checkpoints(self, run: Run) -> Path:
        """Return the folder of a run's models and replay buffers."""
        return self.state / run.suite / run.name


def read(path: Path) -> list[Row]:
    """Read a file of rows; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Iterable[Row], fields: tuple[str, ...] = FIELDS) -> None:
    """Write a file of rows in one step: a crash leaves the old one."""
    with whole(path) as writing, writing.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def is_finished(rows: list[Row], run: Run) -> bool:
    """Return whether the rows reach the last step."""
    return bool(rows) and int(rows[-1]["steps"]) >= run.steps
