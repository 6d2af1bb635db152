"""``sb3-pmpo sweep``: algorithms x tasks x seeds, on this machine's cores or a Ray cluster."""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from sb3_pmpo.tools.runs.checkpoints import write_whole
from sb3_pmpo.tools.runs.runs import Result, Run, execute, fail
from sb3_pmpo.tools.runs.spec import Spec, plan_runs

#: How often Ray begins a run again after its node or process died. Each time goes on from the last
#: checkpoint, so many deaths are no harm; the bound stops a run that kills its process each time.
MAX_RETRIES = 10

Outcome = tuple[Run, Result]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sb3-pmpo sweep",
        description="Train algorithms x tasks x seeds. A run that was stopped, by whatever, goes "
        "on from its last checkpoint when the same command is given again, and one that is "
        "finished is left alone.",
    )
    parser.add_argument("spec", type=Path, help="a YAML file that says what to run")
    parser.add_argument(
        "--log-folder", type=Path, help="where the runs' folders are (default: the spec's)"
    )
    parser.add_argument(
        "--workers",
        type=int,
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
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    try:
        spec = Spec.read(options.spec, options.log_folder)
        runs = plan_runs(spec)
        for run in runs:
            run.check_folder()
    except (OSError, ValueError) as error:
        parser.error(str(error))
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
    resumed = sum(outcomes[run.folder].status == "unfinished" for run in open_runs)
    print(
        f"{len(runs)} runs: {len(runs) - len(open_runs)} already finished, {resumed} to resume, "
        f"{len(open_runs) - resumed} to begin, in {log_folder}",
        flush=True,
    )
    if ray_address is None:
        execution = run_locally(open_runs, workers or os.cpu_count() or 1)
    else:
        execution = run_on_ray(open_runs, ray_address, workers)
    interrupted = False
    try:
        for run, result in execution:
            outcomes[run.folder] = result
            print(f"{result.status} after {result.steps} steps: {run.folder}", flush=True)
    except KeyboardInterrupt:
        interrupted = True
        print("Interrupted. Give the same command again to go on from the last checkpoints.")
        outcomes |= {run.folder: run.result() for run in open_runs}
    _report(runs, [outcomes[run.folder] for run in runs], log_folder)
    failed = any(result.status == "failed" for result in outcomes.values())
    return 130 if interrupted else int(failed)


# ---------------------------------------------------------------------- where they run


def run_locally(runs: Sequence[Run], workers: int) -> Iterator[Outcome]:
    """Run each in a process of its own, so many at a time.

    :raises KeyboardInterrupt: after it has ended the processes.
    """
    context = multiprocessing.get_context("spawn")
    queue = list(runs)
    running: dict[int, tuple[SpawnProcess, Run]] = {}
    try:
        while queue or running:
            while queue and len(running) < workers:
                process = context.Process(target=_execute_in_child, args=(queue[0],))
                process.start()
                running[process.sentinel] = process, queue.pop(0)
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)  # as we put them in
                process, run = running.pop(sentinel)
                process.join()
                yield run, _outcome(run, process.exitcode)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _execute_in_child(run: Run) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    raise SystemExit(execute(run).status == "failed")


def _end_with_parent() -> None:
    # An orphan would write into the folder that the next sweep goes on in.
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child
    parent.join()
    os._exit(1)


def _outcome(run: Run, exit_code: int | None) -> Result:
    if exit_code == 0:
        return run.result()
    if exit_code == 1:  # it has written why
        return run.result()._replace(status="failed")
    why = f"The process ended with exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        why = f"The process was killed by {signal.Signals(-exit_code).name}"
    return fail(
        run,
        f"{why}; one reason is a machine out of memory, where fewer --workers help. The next sweep "
        "goes on from the last checkpoint.\n",
    )


def run_on_ray(runs: Sequence[Run], address: str, workers: int | None) -> Iterator[Outcome]:
    """Run each as a Ray task of one core; those of a node that dies begin again on another."""
    from sb3_pmpo.tools.ray_vec_env import connect  # says what to do where Ray is missing

    # isort: split
    import ray

    connect(address)
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(execute)
    queue = list(runs)
    running: dict[ray.ObjectRef, Run] = {}
    while queue or running:
        while queue and len(running) < (workers or len(runs)):
            run = queue.pop(0)
            running[task.remote(run)] = run
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            run = running.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                result = fail(run, f"Ray could not complete the run: {error}\n")
            yield run, result


# ---------------------------------------------------------------------- the report


def _report(runs: Sequence[Run], results: Sequence[Result], log_folder: Path) -> None:
    header = ["algorithm", "task", "seed", "status", "steps", "last_return", "best_return"]
    rows = [
        [run.algorithm, run.env, run.seed, result.status, result.steps, result.last, result.best]
        for run, result in zip(runs, results, strict=True)
    ]
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow([*header, "folder"])
    table.writerows([*row, run.folder] for run, row in zip(runs, rows, strict=True))
    log_folder.mkdir(parents=True, exist_ok=True)
    write_whole(log_folder / "sweep.csv", text.getvalue().encode())
    cells = [header, *([_cell(value) for value in row] for row in rows)]
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
