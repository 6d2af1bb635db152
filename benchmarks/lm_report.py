"""Draw the language-model suites and write their tables, from the rows that there are.

python -m benchmarks.lm_report          # every suite that has rows
"""

from __future__ import annotations

import argparse

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.lm_runs import RESULTS, SUITES

#: What is drawn of a suite: columns of the rows, and what they are called.
PANELS = {
    "rewards": {"pass_1": "pass@1, held out", "pass_8": "pass@8, held out",
                "distinct": "distinct completions", "kl_base": "KL to the base, nats"},
    "tuning": {"pass_1": "pass@1, held out", "pass_8": "pass@8, held out",
               "distinct": "distinct completions", "kl_base": "KL to the base, nats"},
    "figure4": {"train_reward": "proxy reward while training", "gold": "gold judge",
                "win_rate": "win rate, gold", "kl_base": "KL to the base, nats"},
    "figure5": {"train_reward": "", "gold": "", "win_rate": "", "kl_base": ""},
}  # fmt: skip


def read(suite: str) -> pd.DataFrame:
    """Read the rows of a suite; an empty frame if there are none."""
    files = sorted((RESULTS / suite).glob("*.csv"))
    return pd.concat(map(pd.read_csv, files), ignore_index=True) if files else pd.DataFrame()


def draw(rows: pd.DataFrame, suite: str) -> None:
    """Draw the mean over the seeds and their range, a panel for each column.

    Of Figure 5 a panel for each of AR, A and R, as in the paper.
    """
    names = [m for m in SUITES[suite].methods if m in set(rows.method)]
    panels = [(title, column, names) for column, title in PANELS[suite].items()]
    if suite == "figure5":
        title = "proxy reward while training"
        panels = [
            (f"{kind}: {title}", "train_reward", [n for n in names if n.startswith(f"{kind} ")])
            for kind in ("AR", "A", "R")
        ]
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=suite == "figure5")
    for axis, (title, column, members) in zip(axes, panels, strict=True):
        for name in members:
            by_step = rows[rows.method == name].dropna(subset=[column]).groupby("step")[column]
            middle = by_step.mean()
            (line,) = axis.plot(middle.index, middle, label=name)
            axis.fill_between(
                middle.index, by_step.min(), by_step.max(), alpha=0.15, color=line.get_color()
            )
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("optimizer steps")
        if suite == "figure5":
            axis.legend(fontsize="small")
    if suite != "figure5":
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figure.suptitle(f"{suite}: {rows.task.iloc[0]}, mean and range, {seeds(rows)}")
    figure.savefig(RESULTS / f"{suite}.png", dpi=110)


def seeds(rows: pd.DataFrame) -> str:
    """Say how many seeds the methods have."""
    counts = rows.groupby("method").seed.nunique()
    low, high = counts.min(), counts.max()
    return f"{low} seed(s)" if low == high else f"{low} to {high} seeds"


def table(rows: pd.DataFrame, suite: str) -> str:
    """Write the last evaluation of each method: the mean over its seeds, and the first's range."""
    columns = [c for c in PANELS[suite] if c != "train_reward"]
    if "train_reward" in PANELS[suite]:  # the table has what the evaluation says of it
        columns = ["reward", *columns]
    last = rows[rows.step == rows.step.max()]
    lines = ["| method | seeds | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    first = rows[rows.step == 0]
    parts = [
        ("(base)", first),
        *((name, last[last.method == name]) for name in SUITES[suite].methods),
    ]
    for name, part in parts:
        if len(part):
            cells = " | ".join(f"{part[c].mean():.3f}" for c in columns)
            if part.seed.nunique() > 1:
                low, high = part[columns[0]].min(), part[columns[0]].max()
                first_mean, _, others = cells.partition(" | ")
                cells = f"{first_mean} ({low:.2f} to {high:.2f}) | {others}"
            lines.append(f"| {name} | {part.seed.nunique()} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Report every suite that has rows."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for suite in SUITES:
        rows = read(suite)
        if rows.empty:
            print(f"{suite}: no rows yet")
            continue
        if suite != "tuning":  # one evaluation each
            draw(rows, suite)
        text = f"# {suite}: {rows.task.iloc[0]}\n\n{table(rows, suite)}\n"
        (RESULTS / f"{suite}.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
