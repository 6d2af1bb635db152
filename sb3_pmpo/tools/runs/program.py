"""``sb3-pmpo sweep``: algorithms x tasks x seeds, on this machine's cores or a Ray cluster."""

from __future__ import annotations

import argparse
import csv
import os
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from sb3_pmpo.command_line import Parser, count, reason
from sb3_pmpo.files import whole
from sb3_pmpo.tools.outputs import check_output
from sb3_pmpo.tools.runs.pool import run_locally, run_on_ray
from sb3_pmpo.tools.runs.spec import Spec, plan_runs
from sb3_pmpo.tools.runs.sweep import Result, Run, execute

_REMEDY = (
    "one reason is a machine out of memory, where fewer --workers help. The next sweep goes on "
    "from the last checkpoint."
)


EXAMPLE = """
example, spec.yml:
  algorithms: [pmpo, sac]
  tasks: [dm_control/walker-walk-v0, Pendulum-v1]
  seeds: [0, 1, 2]
  n_timesteps: 25000
  hyperparams: {gamma: 0.98}
  algorithm_hyperparams:
    pmpo: {labeller: "top_k(2)", n_samples: 4, policy_kwargs: {net_arch: [64, 64]}}

  sb3-pmpo sweep spec.yml --workers 2
  sb3-pmpo plot -f sweeps -o curves.png curves.svg
"""


def _keys() -> str:
    """List the keys of a spec, what they say and their defaults, from its documentation."""
    defaults = {
        each.name: each.default
        for each in fields(Spec)
        if each.default is not MISSING and each.default is not None
    }
    documented = (Spec.__doc__ or "").split("    :param ")[1:]
    lines = []
    for part in documented:
        name, _, text = part.partition(": ")
        text = " ".join(text.partition("\n    :raises")[0].split())
        said = f" (default: {defaults[name]})" if name in defaults else ""
        indent = {"initial_indent": f"  {name:22}", "subsequent_indent": " " * 24}
        lines.append(textwrap.fill(text + said, 96, **indent))  # type: ignore[arg-type]  # both are str
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="sb3-pmpo sweep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"keys of the spec (steps are decisions of the agent):\n{_keys()}\n{EXAMPLE}",
        description="Train algorithms x tasks x seeds. A run that was stopped, by whatever, goes\n"
        "on from its last checkpoint when the same command is given again, and one that is\n"
        "finished is left alone.",
    )
    parser.add_argument("spec", type=Path, help="a YAML file that says what to run")
    parser.add_argument(
        "--log-folder", type=Path, help="where the runs' folders are (default: the spec's)"
    )
    parser.add_argument(
        "--workers",
        type=count,
        help="runs at a time, of one core each (default: one for each core; on a cluster, as many "
        "as it has room for)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="run on a Ray cluster: its host:port, 'auto' for the one of this machine, 'local' for "
        "a new one. Runs of a node that dies go on elsewhere from their last checkpoint: the log "
        "folder must be on a file system that this machine and all nodes see under one path, and "
        "sb3_pmpo and the environments must be installed on each",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status.

    :return: 0 if all runs are finished, 1 if any failed, 130 if interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        spec = Spec.read(options.spec, options.log_folder)
        check_output(Path(spec.log_folder, "sweep.csv"), ",".join(HEADER))
        runs = plan_runs(spec)
        for run in runs:
            run.check_folder()
    except (OSError, ValueError) as error:
        parser.error(reason(error))
    return sweep(runs, Path(spec.log_folder), options.workers, options.ray_address)


def sweep(
    runs: Sequence[Run], log_folder: Path, workers: int | None, ray_address: str | None
) -> int:
    """Carry out the runs that are not finished, then print all and write ``sweep.csv``.

    :param runs: in their order.
    :param log_folder: where ``sweep.csv`` goes.
    :param workers: runs at a time, >= 1; None for as many as there is room for.
    :param ray_address: None for processes of this machine, without Ray.
    :return: the exit status, see :func:`main`.
    """
    outcomes = {run.folder: run.result() for run in runs}
    open_runs = [run for run in runs if outcomes[run.folder].status != "finished"]
    resumed = sum(outcomes[run.folder].steps > 0 for run in open_runs)
    print(
        f"{len(runs)} runs: {len(runs) - len(open_runs)} already finished, {resumed} to resume, "
        f"{len(open_runs) - resumed} to begin, in {log_folder}",
        flush=True,
    )
    if ray_address is None:
        execution = run_locally(execute, open_runs, workers or os.cpu_count() or 1)
    else:
        execution = run_on_ray(execute, open_runs, workers, ray_address)
    interrupted = False
    try:
        for run, why in execution:
            if why is None and run.result().status not in ("finished", "failed"):
                why = "The process ended before the run was finished"  # os._exit(0)
            if why is not None:  # what fails in the process has written the reason itself
                run.fail(f"{why}; {_REMEDY}\n")
            result = outcomes[run.folder] = run.result()
            print(f"{result.status} after {result.steps} decisions: {run.folder}", flush=True)
    except KeyboardInterrupt:
        interrupted = True
        print("Interrupted. Give the same command again to go on from the last checkpoints.")
        outcomes |= {run.folder: run.result() for run in open_runs}
    _report(runs, [outcomes[run.folder] for run in runs], log_folder)
    failed = any(result.status == "failed" for result in outcomes.values())
    return 130 if interrupted else int(failed)


# ---------------------------------------------------------------------- the report


HEADER = ["algorithm", "task", "seed", "status", "decisions", "last_return", "best_return"]


def _report(runs: Sequence[Run], results: Sequence[Result], log_folder: Path) -> None:
    rows = [
        [run.algorithm, run.env, run.seed, result.status, result.steps, result.last, result.best]
        for run, result in zip(runs, results, strict=True)
    ]
    with whole(log_folder / "sweep.csv") as writing, writing.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*HEADER, "folder"])
        table.writerows([*row, run.folder] for run, row in zip(runs, rows, strict=True))
    cells = [HEADER, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    for run, result in zip(runs, results, strict=True):
        if result.status == "failed":
            print(f"failed: see {run.folder / 'error.txt'}")
    print(f"The table is {log_folder / 'sweep.csv'}.")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
