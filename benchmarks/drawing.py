"""The pictures of a suite: learning curves, aggregates, and the sweep of figure 3."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks import aggregates

MARKERS = "sD^vPX*"
#: Curves that can be told apart in one panel, beside that of the default.
FEW = 6


class PanelRow(NamedTuple):
    """A row of panels, one for each task: what is drawn in it, and against what."""

    title: str
    algorithms: Sequence[str]
    minutes: bool = False


def draw_curves(
    data: pd.DataFrame, tasks: Sequence[str], rows: Sequence[PanelRow], path: Path
) -> None:
    """Draw the mean over the seeds, and their range, a column for each task.

    Published results of other systems, ``results/anchors.csv``, are dashed lines where the
    steps of a panel reach theirs.
    """
    colours = colours_of([name for row in rows for name in row.algorithms])
    anchors = pd.read_csv(Path(__file__).parent / "results" / "anchors.csv")
    anchors = anchors[anchors.task.isin(tasks) & (anchors.env_steps <= data.steps.max())]
    figure = Figure(figsize=(3.1 * len(tasks) + 1, 3 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots(len(rows), len(tasks), squeeze=False, sharey=True)
    for (i, row), (j, task) in product(enumerate(rows), enumerate(tasks)):
        _draw_panel(axes[i, j], data[data.task == task], row, colours)
        if not row.minutes:
            axes[i, j].set_xlim(right=1.03 * data.steps.max())  # of a task without rows too
            _draw_anchors(axes[i, j], anchors[anchors.task == task], list(anchors.algo.unique()))
        axes[i, j].set_title(f"{task}, {row.title}" if row.title else task, fontsize="medium")
        axes[i, 0].set_ylabel("return")
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.suptitle(
        f"{_seeds(data)}; {_repeats(data)}; {_caption(anchors)}", fontsize="small", wrap=True
    )
    inches = 0.6 + 0.085 * max(map(len, handles))  # of a label with its line
    columns = min(6, int(figure.get_figwidth() / inches))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    figure.savefig(path, dpi=100)


def draw_changes(
    data: pd.DataFrame, tasks: Sequence[str], default: str, changes: Sequence[str], path: Path
) -> None:
    """Draw many changes of one default against steps: a row of panels for each few of them.

    The default is black, and in every row. A row has its own legend, so colours come again.
    """
    groups = [changes[start : start + FEW] for start in range(0, len(changes), FEW)]
    size = (3.1 * len(tasks) + 2.8, 2.6 * len(groups) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(groups), len(tasks), squeeze=False, sharex=True, sharey=True)
    for (i, group), (j, task) in product(enumerate(groups), enumerate(tasks)):
        colours: dict[str, Any] = {name: f"C{number}" for number, name in enumerate(group)}
        row = PanelRow("", [*group, default])  # the default lies above
        _draw_panel(axes[i, j], data[data.task == task], row, colours | {default: "black"})
        axes[0, j].set_title(task, fontsize="medium")
        axes[i, 0].set_ylabel("return")
        if i < len(groups) - 1:
            axes[i, j].set_xlabel("")
    for row_axes in axes:
        row_axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small")
    figure.suptitle(f"{_seeds(data)}; {_repeats(data)}", fontsize="small")
    figure.savefig(path, dpi=100)


def colours_of(algorithms: Sequence[str]) -> dict[str, Any]:
    """Return one colour for each algorithm; a discretised one, ``-D``, has its Gaussian's."""
    names = dict.fromkeys(name.removesuffix("-D") for name in algorithms)
    palette = {name: f"C{i}" for i, name in enumerate(names)}
    if len(names) > 10:
        spaced = np.linspace(0, 0.95, len(names))
        palette = {name: colormaps["turbo"](x) for name, x in zip(names, spaced, strict=True)}
    return {name: palette[name.removesuffix("-D")] for name in algorithms}


def _draw_panel(axis: Any, data: pd.DataFrame, row: PanelRow, colours: dict[str, Any]) -> None:
    for algorithm in row.algorithms:
        part = data[data.algorithm == algorithm]
        if part.empty:
            continue
        curve = aggregates.mean_curve(part)
        x = curve.train_seconds / 60 if row.minutes else curve.index
        spread = part.groupby("steps").return_mean.agg(["min", "max"]).loc[curve.index]
        label = algorithm.removesuffix("-D")
        axis.plot(x, curve.return_mean, color=colours[algorithm], label=label)
        axis.fill_between(
            x, spread["min"], spread["max"], color=colours[algorithm], alpha=0.12, linewidth=0
        )
    axis.set(ylim=(0, 1000), xlabel="minutes of training" if row.minutes else "environment steps")
    axis.set_xlim(left=0)
    if not row.minutes:
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
    axis.grid(alpha=0.3)


def _draw_anchors(axis: Any, anchors: pd.DataFrame, systems: list[str]) -> None:
    for anchor in anchors.itertuples():
        number = systems.index(anchor.algo)
        grey = str(0.25 + 0.5 * number / max(len(systems) - 1, 1))
        returned = anchors.loc[anchor.Index, "return"]
        axis.plot(
            [0, anchor.env_steps],
            [returned, returned],
            linestyle="--",
            linewidth=0.9,
            color=grey,
            marker=MARKERS[number % len(MARKERS)],
            markevery=[1],
            clip_on=False,
            label=f"{anchor.algo} at {anchor.env_steps // 1000}k, published",
        )


def span(counts: Collection[int]) -> str:
    """Write "3", or "2 to 3"."""
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)}))


def _seeds(data: pd.DataFrame) -> str:
    seeds = span(data.groupby(["task", "algorithm"]).seed.nunique())
    return "one seed" if seeds == "1" else f"mean and range of {seeds} seeds"


def _repeats(data: pd.DataFrame) -> str:
    return f"action repeat {', '.join(str(repeat) for repeat in data.action_repeat.unique())}"


def _caption(anchors: pd.DataFrame) -> str:
    if anchors.empty:
        return "no published results at these steps"
    cited = anchors.drop_duplicates("algo")
    return "published means, action repeat and source: " + "; ".join(
        f"{row.algo}: {row.action_repeat}, {row.source}" for row in cited.itertuples()
    )


def draw_aggregates(
    table: pd.DataFrame, scores: dict[str, np.ndarray], title: str, path: Path
) -> None:
    """Draw rliable's interval estimates, a panel for each metric, and the performance profiles.

    :param table: of :func:`benchmarks.aggregates.aggregate`.
    """
    metrics = list(table.metric.unique())
    colours = colours_of(list(scores))
    height = 1.6 + 0.3 * max(len(scores), 6)
    figure = Figure(figsize=(3.4 * len(metrics) + 5, height), layout="constrained")
    axes = figure.subplots(1, len(metrics) + 1, width_ratios=[3.4] * len(metrics) + [5])
    names = list(scores)[::-1]
    for axis, metric in zip(axes, metrics, strict=False):
        for row in table[table.metric == metric].itertuples():
            y = names.index(row.algorithm)
            axis.barh(y, row.high - row.low, left=row.low, color=colours[row.algorithm], alpha=0.6)
            axis.vlines(row.value, y - 0.4, y + 0.4, color="black", linewidth=1.2)
        axis.set(xlabel=metric, ylim=(-0.6, len(names) - 0.4), xlim=(0, 1.02))
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
        axis.grid(alpha=0.3, axis="x")
        if metric.startswith("probability"):
            axis.axvline(0.5, color="black", linestyle=":")
    thresholds = np.linspace(0, 1, 51)
    profiles, intervals = aggregates.performance_profiles(scores, thresholds)
    for name, profile in profiles.items():
        style = "--" if name.endswith("-D") else "-"
        axes[-1].plot(thresholds, profile, style, color=colours[name], label=name)
        axes[-1].fill_between(thresholds, *intervals[name], color=colours[name], alpha=0.12)
    axes[-1].set(xlabel="score", ylabel="share of runs above it", xlim=(0, 1), ylim=(0, 1))
    axes[-1].grid(alpha=0.3)
    axes[-1].legend(fontsize="x-small", ncols=1 + len(names) // 9)
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=100)


def draw_sweep(
    data: pd.DataFrame,
    tasks: Sequence[str],
    lines: dict[str, dict[float, str]],
    xlabel: str,
    path: Path,
) -> None:
    """Draw the final return against a swept number: seeds as points, their mean as a line.

    :param data: final rows only.
    :param lines: of each line's label, the algorithm of each value of the number.
    """
    figure = Figure(figsize=(3.6 * len(tasks), 3.6), layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axis, task in zip(axes, tasks, strict=True):
        part = data[data.task == task]
        for i, (label, algorithms) in enumerate(lines.items()):
            values = {algorithm: value for value, algorithm in algorithms.items()}
            points = part[part.algorithm.isin(values)]
            x = points.algorithm.map(values) + 0.02 * (i - 1)  # side by side
            axis.plot(x, points.return_mean, "o", color=f"C{i}", alpha=0.45, markersize=4)
            means = points.return_mean.groupby(points.algorithm.map(values)).mean()
            axis.plot(means.index, means, color=f"C{i}", label=label)
        axis.set(title=task, xlabel=xlabel, ylim=(0, 1000))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("return")
    axes[0].legend()
    figure.savefig(path, dpi=100)
