"""Tables and figures of the labelled logs: ``python -m benchmarks.labelled.report``.

Writes ``results/labelled.md`` and ``results/labelled.png`` from the rows that there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import bootstrap

RESULTS = Path("benchmarks/results")
LOGS = {
    "table1": "walker-run, a log of three tasks: return",
    "fetch": "FetchPush, scripts of mixed quality: share of successes",
}
#: What the judge of each demonstration would reject.
DEMOS = {
    "veto": "decisions beyond the knee's limit, %",
    "thumbs": "segments of 10 decisions with a hit, %",
}
METHODS = {
    "before": "before",
    "reject": "the rejections alone",
    "clone": "cloning what was not rejected",
    "penalty": "a penalty in the reward",
    "critic alone": "the reward alone, as long",
    "reject beside the critic": "the rejections beside the reward",
}


def read(name: str) -> pd.DataFrame | None:
    """Read the rows of a log; None if there are none."""
    path = RESULTS / f"labelled_{name}.csv"
    return pd.read_csv(path) if path.exists() else None


def interval(scores: np.ndarray) -> str:
    """Write a mean over seeds and its 95% bootstrap interval."""
    mean = f"{scores.mean():.3g}"
    if len(scores) < 2 or np.ptp(scores) == 0.0:
        return mean
    found = bootstrap((scores,), np.mean, rng=0, method="percentile").confidence_interval
    return f"{mean} ({found.low:.3g} to {found.high:.3g})"


def table(data: pd.DataFrame) -> Iterator[str]:
    """Write a log's rows, as the plan orders them."""
    yield "| row | score (95% interval over seeds) | seeds | episodes | accepted | rejected |"
    yield "|---|---|---|---|---|---|"
    for row, part in data.groupby("row", sort=False):
        scores = part.score.to_numpy(float)
        labels = [
            "" if part[kind].isna().all() else f"{part[kind].mean():.0f}"
            for kind in ("accepted", "rejected")
        ]
        yield (
            f"| {row} | {interval(scores)} | {len(part)} | {part.episodes.sum()} | "
            f"{' | '.join(labels)} |"
        )


def shares_table(data: pd.DataFrame) -> Iterator[str]:
    """Write the returns by the share of bad data, a column for each row of the plan."""
    rows = list(data.row.unique())
    yield f"| bad data | {' | '.join(rows)} |"
    yield "|---" * (len(rows) + 1) + "|"
    for log, part in data.groupby("log", sort=False):
        cells = [interval(part[part.row == row].score.to_numpy(float)) for row in rows]
        yield f"| {str(log).removeprefix('bad ')} | {' | '.join(cells)} |"


def draw_bars(axis: Axes, data: pd.DataFrame, title: str) -> None:
    """Draw the mean of each row over its seeds, and the interval."""
    seaborn.barplot(data, y="row", x="score", ax=axis, color="tab:blue", errorbar=("ci", 95))
    axis.set(title=title, ylabel="", xlabel="score")


def draw_shares(axis: Axes, data: pd.DataFrame) -> None:
    """Draw the returns against the share of bad data."""
    shares = data.assign(share=data.log.str.removeprefix("bad ").astype(float))
    seaborn.lineplot(
        shares, x="share", y="score", hue="row", style="row", markers=True, ax=axis, errorbar="sd"
    )
    axis.set(
        title="walker-run: return by the share of bad data",
        xlabel="share of bad data (bands: std over three seeds)",
        ylabel="return",
    )


def draw_demos(data: pd.DataFrame, path: Path) -> None:
    """Draw the return of each seed against what the judge would reject, a panel a demonstration.

    :param data: rows of ``demos.csv``.
    :param path: of the picture.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots(1, len(DEMOS), sharey=True, squeeze=False)[0]
    colours = dict(zip(METHODS, seaborn.color_palette("colorblind"), strict=False))
    # Dotted: the aims, nine tenths of the return and a fifth of the violations.
    for axis, (demo, label) in zip(axes, DEMOS.items(), strict=True):
        part = data[data.demo == demo].assign(percent=lambda rows: 100 * rows.rejected)
        means = part.groupby("method")[["percent", "return"]].mean()
        for marker, rows, size in (("o", part.set_index("method"), 14), ("D", means, 80)):
            for method in METHODS.keys() & {*rows.index}:
                chosen = rows.loc[[method]]
                axis.scatter(
                    chosen.percent, chosen["return"], size, color=colours[method], marker=marker
                )
        before = means.loc["before"]
        axis.axhline(0.9 * before["return"], color="grey", linestyle=":")
        if demo == "veto":
            axis.axvline(0.2 * before.percent, color="grey", linestyle=":")
        axis.set(xlabel=label, xlim=(0, None), ylim=(min(600, data["return"].min()) - 50, 1000))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("return of walker-walk")
    handles = [
        Line2D([], [], color=colours[method], marker="D", linestyle="", label=name)
        for method, name in METHODS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Write what there are rows for."""
    found = {name: data for name in LOGS if (data := read(name)) is not None}
    shares = read("shares")
    panels = len(found) + (shares is not None)
    figure = Figure(figsize=(7.5 * panels, 5), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    lines = ["# Learning from labelled logs", ""]
    for axis, (name, data) in zip(axes, found.items(), strict=False):
        lines += [f"## {LOGS[name]}", "", *table(data), ""]
        draw_bars(axis, data, LOGS[name])
    if shares is not None:
        lines += ["## walker-run: return by the share of bad data", "", *shares_table(shares), ""]
        draw_shares(axes[-1], shares)
    (RESULTS / "labelled.md").write_text("\n".join(lines))
    figure.savefig(RESULTS / "labelled.png", dpi=120)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
