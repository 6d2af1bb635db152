"""The pictures of ``sb3-pmpo plot``: a panel an environment, a line with a band an algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from sb3_pmpo.command_line import counted
from sb3_pmpo.files import whole
from sb3_pmpo.pretrained.files import ENOUGH, interval

#: In the metadata of each picture.
MARK = "sb3-pmpo plot"
#: Kinds of pictures, and where they say who made them.
CREATED_BY = {".png": "Software", ".svg": "Creator", ".pdf": "Creator"}
#: What is drawn of the runs: seaborn's estimator and error bars.
BANDS: dict[str, dict[str, Any]] = {
    "interval": {"estimator": "mean", "errorbar": ("ci", 95), "seed": 0},
    "range": {"estimator": "median", "errorbar": ("pi", 100)},
}


def summary(data: pd.DataFrame) -> str:
    """Say what runs have at their end, or where the shortest ends if another is a tenth longer.

    :param data: columns :data:`COLUMNS`, of one environment and algorithm.
    """
    runs = [run.sort_values("steps") for _, run in data.groupby("run")]
    ends = [run.steps.iloc[-1] for run in runs]
    shortest, longest = min(ends), max(ends)
    if longest > 1.1 * shortest:
        returns = np.array([np.interp(shortest, run.steps, run["return"]) for run in runs])
        where = f"at {shortest:.0f} steps, where the shortest run ends (the longest: {longest:.0f})"
    else:
        returns, where = np.array([run["return"].iloc[-1] for run in runs]), "at the end"
    if len(runs) == 1:
        return f"{returns.mean():.1f} {where}, of one run, so without an interval"
    low, high = interval(returns)
    narrow = ", whose bootstrap is too narrow" if len(runs) < ENOUGH else ""
    return (
        f"{returns.mean():.1f} [{low:.1f}, {high:.1f}] {where}, {counted(len(runs), 'run')}{narrow}"
    )


def save(figure: Figure, path: Path) -> None:
    """Write a picture in one step, with who made it in its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as writing:
        about = {CREATED_BY[path.suffix]: MARK}
        figure.savefig(writing, dpi=110, format=path.suffix[1:], metadata=about)


def on_one_grid(data: pd.DataFrame) -> pd.DataFrame:
    """Give each algorithm's runs the same steps, where they have others, by interpolation.

    seaborn averages over runs where their steps are equal, and nowhere else. Episodes that vary in
    length end at other steps in each run.

    :param data: columns :data:`COLUMNS`, of one environment.
    """
    parts = []
    for _, of_algorithm in data.groupby("algorithm"):
        runs = [run.sort_values("steps") for _, run in of_algorithm.groupby("run")]
        longest = max(runs, key=len)
        if set(of_algorithm.steps) == set(longest.steps):
            parts.append(of_algorithm)
            continue
        start = max(run.steps.iloc[0] for run in runs)
        stop = max(run.steps.iloc[-1] for run in runs)
        grid = np.linspace(start, stop, len(longest))
        for run in runs:
            own = grid[grid <= run.steps.iloc[-1]]
            row = run.iloc[[0] * len(own)].assign(steps=own)
            row["return"] = np.interp(own, run.steps, run["return"])
            parts.append(row)
    return pd.concat(parts, ignore_index=True)


def draw(data: pd.DataFrame, x_label: str, y_label: str, *, band: str = "interval") -> Figure:
    """Draw a panel for each environment, and a line with a band for each algorithm.

    :param data: columns :data:`COLUMNS`.
    :param x_label: what ``steps`` counts.
    :param y_label: what ``return`` is.
    :param band: one of :data:`BANDS`.
    """
    envs = sorted(data.env.unique())
    columns = min(3, len(envs))
    rows = -(-len(envs) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    order = sorted(data.algorithm.unique())
    for axis, env in zip(axes, envs, strict=False):
        part = on_one_grid(data[data.env == env])
        seaborn.lineplot(
            part,
            x="steps",
            y="return",
            hue="algorithm",
            hue_order=order,
            ax=axis,
            **BANDS[band],
        )
        for line in axis.get_lines():
            if len(line.get_xdata()) == 1:  # which is no line
                line.set_marker("o")
        axis.set(title=env, xlabel=x_label, ylabel=y_label)
        axis.grid(alpha=0.3)
        lines, names = axis.get_legend_handles_labels()
        runs = part.groupby("algorithm").run.nunique()
        shown = [(line, name) for line, name in zip(lines, names, strict=True) if name in runs]
        axis.legend(
            [line for line, _ in shown],
            [f"{name} ({counted(runs[name], 'run')})" for _, name in shown],
        )
    for axis in axes[len(envs) :]:
        axis.set_visible(False)
    return figure
