"""``sb3-pmpo plot``: learning curves from the Zoo's logs, from sweeps and from TensorBoard."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sb3_pmpo.command_line import Parser, count
from sb3_pmpo.files import whole
from sb3_pmpo.tools.curves import (
    COLUMNS,
    OFFLINE,
    TAGS,
    NothingToPlotError,
    chosen_runs,
    find_runs,
    log_curves,
    tensorboard_curves,
)
from sb3_pmpo.tools.outputs import OutputError, check_output
from sb3_pmpo.tools.pictures import BANDS, CREATED_BY, MARK, draw, save, summary

#: What the steps are.
STEPS, GRADIENT_STEPS = "environment steps", "gradient steps"
Y_AXIS = {"eval": "return of the evaluations", "train": "return of the training episodes"}


def plot(arguments: Sequence[str]) -> int:
    """Draw each algorithm's runs with a band; write the data beside the picture."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        if args.source == "tensorboard":
            folder = args.folder or Path("tb")
            data = tensorboard_curves(folder, args.tag, args.algo, args.env)
            label = str(data.attrs["tag"])
        else:
            runs = list(find_runs(args.folder or Path("logs")))
            data = log_curves(chosen_runs(runs, args.algo, args.env), args.source, args.window)
            label = Y_AXIS[args.source]
        table = args.output[0].with_suffix(".csv")
        for path in args.output:
            check_output(path, MARK)
        check_output(table, ",".join(COLUMNS[:-1]))
    except (NothingToPlotError, OutputError) as error:
        parser.error(str(error))
    table.parent.mkdir(parents=True, exist_ok=True)
    tag = data.attrs.get("tag", TAGS[0])
    named = {} if tag in TAGS else {"return": tag}
    with whole(table) as writing:
        data.rename(columns=named).to_csv(writing, index=False)
    figure = draw(data, data.attrs.get("x") or _unit_of(data), label, band=args.band)
    for path in args.output:
        save(figure, path)
    for (env, algorithm), part in data.groupby(["env", "algorithm"]):
        print(f"{algorithm} on {env}: {summary(part)}")
    print(f"{', '.join(map(str, args.output))}, the data in {table}")
    return 0


def _unit_of(data: pd.DataFrame) -> str:
    """Say what the steps of curves are."""
    is_offline = data.algorithm.str.endswith(OFFLINE)
    if is_offline.all():
        return GRADIENT_STEPS
    return f"{STEPS} (offline: {GRADIENT_STEPS})" if is_offline.any() else STEPS


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="sb3-pmpo plot",
        description="Draw learning curves over runs, against environment steps (an action that is "
        "repeated counts each time). A run that was resumed by train -i is one run. Runs of "
        "offline have a line of their own, against gradient steps.",
    )
    add = parser.add_argument
    add("--algo", nargs="+", help="algorithms (default: all there are)")
    add("--env", nargs="+", help="environment ids (default: all there are)")
    add("-f", "--folder", type=Path, help="folder of train or sweep (default: logs; TensorBoard: "
        "tb)")  # fmt: skip
    add("--source", choices=("eval", "train", "tensorboard"), default="eval", help="evaluations "
        "(default), training episodes, or TensorBoard's logs")  # fmt: skip
    add("--tag", help=f"what to draw of TensorBoard's logs (default: {' or '.join(TAGS)})")
    add("--window", type=count, default=10, help="episodes of the rolling mean (default: 10)")
    add("--band", choices=list(BANDS), default="interval", help="mean and its 95%% bootstrap "
        "interval over the runs (default), or median and range")  # fmt: skip
    add("-o", "--output", type=_picture, nargs="+", default=[Path("curve.png")], help="pictures, "
        "*.png, *.svg or *.pdf; the data goes beside the first (default: curve.png)")  # fmt: skip
    return parser


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in CREATED_BY:
        raise argparse.ArgumentTypeError(f"{text} must end in {', '.join(CREATED_BY)}")
    return path
