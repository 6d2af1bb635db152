"""What the runs of a suite say: aggregates, tables and figures from their committed rows.

    python -m benchmarks.report development
    python -m benchmarks.report figure2 --csv benchmarks/results/figure2.csv

Writes ``results/<suite>_aggregates.csv`` and ``.png``, the tables ``results/<suite>.md`` and the
figure ``results/<suite>.png``. Runs that have not reached the step yet are in the curves alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import aggregates, drawing
from benchmarks.drawing import PanelRow
from benchmarks.records import FIELDS, Places
from benchmarks.suites import (
    FIGURE2_GROUPS,
    FIGURE3_ALPHAS,
    FIGURE3_BETAS,
    SUITES,
    Suite,
    figure3_name,
)


def load(paths: Sequence[Path]) -> pd.DataFrame:
    """Read the rows of runs; older files lack columns, which are missing values then."""
    frames = [pd.read_csv(path) for path in paths]
    if not frames:
        raise ValueError("no rows yet: run `python -m benchmarks.learning run` with this suite")
    return pd.concat(frames, ignore_index=True).reindex(columns=list(FIELDS))


def report(name: str, data: pd.DataFrame, steps: int, results: Path) -> str:
    """Write the files of a suite's report; return its tables.

    :param name: of the suite.
    :param steps: environment steps at which the algorithms are compared.
    :raises ValueError: if no run has reached the step.
    """
    suite = SUITES[name]
    if not (data.steps == steps).any():
        raise ValueError(f"no run has reached {steps} steps, only {data.steps.max()}: use --steps")
    scores = in_order(aggregates.final_scores(data, steps), suite)
    tasks = aggregates.shared_tasks(data, steps)
    table = aggregates.aggregate(scores, suite.baseline)
    rows = pd.concat([table, per_task(data, steps, suite, scores, tasks)], ignore_index=True)
    rows.insert(0, "steps", steps)
    results.mkdir(parents=True, exist_ok=True)
    rows.round(4).to_csv(results / f"{name}_aggregates.csv", index=False)
    runs = drawing.span([len(x) for x in scores.values()])
    title = (
        f"{name}: {runs} runs of each of {len(tasks)} tasks at {steps} "
        "environment steps, score = return / 1000; rliable, 95% stratified bootstrap intervals"
    )
    text = f"{title}\n\n{returns_table(rows, scores, suite, tasks)}\n"
    text += f"\n{wall_clock_table(rows, scores, suite)}\n"
    (results / f"{name}.md").write_text(text)
    drawing.draw_aggregates(table, scores, title, results / f"{name}_aggregates.png")
    draw(name, data, steps, results / f"{name}.png")
    return text


def in_order(scores: dict[str, np.ndarray], suite: Suite) -> dict[str, np.ndarray]:
    """Sort by the mean, best first, the baseline at the end."""
    names = sorted(scores, key=lambda name: (name == suite.baseline, -scores[name].mean()))
    return {name: scores[name] for name in names}


def per_task(
    data: pd.DataFrame, steps: int, suite: Suite, scores: dict[str, np.ndarray], tasks: list[str]
) -> pd.DataFrame:
    """Return rows of ``metric, algorithm, task, value``: return, minutes, memory, wall-clock."""
    last = data[data.steps == steps]
    rows = []
    for algorithm, score in scores.items():
        for i, task in enumerate(tasks):
            part = last[(last.algorithm == algorithm) & (last.task == task)]
            rows += [
                ("return", algorithm, task, aggregates.MAX_RETURN * score[:, i].mean()),
                ("train minutes", algorithm, task, part.train_seconds.mean() / 60),
                ("peak RSS MiB", algorithm, task, part.peak_rss_mib.mean()),
            ]
        if algorithm != suite.baseline:
            ratios = aggregates.wall_clock_ratios(data, steps, algorithm, suite.baseline)
            rows += [("wall-clock ratio", algorithm, task, x) for task, x in ratios.items()]
            if ratios:
                median = statistics.median(ratios.values())
                rows.append(("wall-clock ratio", algorithm, "median", median))
    return pd.DataFrame(rows, columns=["metric", "algorithm", "task", "value"])


def returns_table(
    rows: pd.DataFrame, scores: dict[str, np.ndarray], suite: Suite, tasks: list[str]
) -> str:
    """Return each algorithm beside the baseline, for each task and over all, as Markdown."""
    by = dict(list(rows.groupby(["metric", "algorithm"])))
    header = [f"return ({len(scores)} algorithms)", *tasks, "mean", "95%", "IQM", "95%",
              f"of {suite.baseline}", "P(better)", "minutes", "RSS MiB"]  # fmt: skip
    lines = []
    for name, score in scores.items():
        cells = [f"{1000 * mean:.0f}" for mean in score.mean(0)]
        for metric in ("mean", "IQM"):
            one = by[metric, name].iloc[0]
            cells += [f"{1000 * one.value:.0f}", f"{1000 * one.low:.0f}-{1000 * one.high:.0f}"]
        better = (f"probability of improvement over {suite.baseline}", name)
        baseline = scores.get(suite.baseline)
        cells.append("" if baseline is None else f"{score.mean() / baseline.mean():.2f}")
        cells.append(f"{by[better].value.iloc[0]:.2f}" if better in by else "")
        cells.append(f"{by['train minutes', name].value.mean():.1f}")
        peak = by["peak RSS MiB", name].value.max()
        cells.append("" if np.isnan(peak) else f"{peak:.0f}")
        lines.append([name, *cells])
    return markdown(header, lines)


def wall_clock_table(rows: pd.DataFrame, scores: dict[str, np.ndarray], suite: Suite) -> str:
    """Return each algorithm's time to the baseline's final return over the baseline's time."""
    ratios = rows[rows.metric == "wall-clock ratio"]
    tasks = [*sorted(set(ratios.task) - {"median"}), "median"]
    by_name = ratios.pivot(index="algorithm", columns="task", values="value")
    cells = by_name.map("{:.2f}".format, na_action="ignore").fillna("")  # empty: lacks the task
    lines = [[name, *cells.loc[name, tasks]] for name in scores if name in cells.index]
    return markdown([f"wall-clock to {suite.baseline}'s return, of its own", *tasks], lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in
                     [header, ["---"] * len(header), *lines])  # fmt: skip


def draw(name: str, data: pd.DataFrame, steps: int, path: Path) -> None:
    """Draw the figure of a suite: curves, for figure 3 the sweep, for the levers a row for few."""
    suite = SUITES[name]
    planned = dict.fromkeys(run.task for run in suite.runs(name))
    tasks = [task for task in planned if task in set(data.task)]
    present = list(dict.fromkeys([*suite.algorithms, *data.algorithm]))
    present = [algorithm for algorithm in present if algorithm in set(data.algorithm)]
    if name == "figure3":
        lines = {
            label: {beta: figure3_name(label, beta) for beta in FIGURE3_BETAS}
            for label in FIGURE3_ALPHAS
        }
        drawing.draw_sweep(data[data.steps == steps], tasks, lines, "beta", path)
    elif name == "figure2":
        rows = [PanelRow(group, list(names)) for group, names in FIGURE2_GROUPS.items()]
        drawing.draw_curves(data, tasks, rows, path)
    elif name == "levers":
        default, *changes = present
        drawing.draw_changes(data, tasks, default, changes, path)
    else:
        rows = [PanelRow("", present), PanelRow("", present, minutes=True)]
        drawing.draw_curves(data, tasks, rows, path)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", choices=list(SUITES), metavar="suite")
    parser.add_argument("--steps", type=int, help="compare here, instead of at the suite's end")
    parser.add_argument("--csv", type=Path, nargs="+", help="rows, instead of the suite's runs")
    parser.add_argument("--results", type=Path, default=Places().results)
    parser.add_argument("--output", type=Path, help="folder of what is written, --results if none")
    options = parser.parse_args()
    for name in options.suites:
        paths = options.csv or sorted((options.results / "runs" / name).glob("*.csv"))
        steps = options.steps or SUITES[name].steps
        print(report(name, load(paths), steps, options.output or options.results))


if __name__ == "__main__":
    main()
