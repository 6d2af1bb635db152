"""``sb3-pmpo plot``: learning curves from the Zoo's logs, from sweeps and from TensorBoard."""

from __future__ import annotations

import argparse
import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_pmpo.envs import action_repeat_of
from sb3_pmpo.files import whole
from sb3_pmpo.tools.plain_yaml import read

#: What TensorBoard has of the returns; the first that a run logged.
TAGS = ("eval/mean_reward", "rollout/ep_rew_mean")
#: Points of a curve of training episodes, on which the runs' means are taken.
GRID = 100
X_AXIS = {
    "eval": "environment steps",
    "train": "environment steps",
    "tensorboard": "steps of the agent",
}
Y_AXIS = {"eval": "return of the evaluations", "train": "return of the training episodes"}


class NothingToPlotError(ValueError):
    """There is no curve; the message says what is there."""


class RunFolder(NamedTuple):
    """A run of the Zoo or of a sweep.

    :param algorithm: the name of the folder that it is in.
    :param env: Gymnasium's id.
    :param action_repeat: environment steps of a decision.
    """

    folder: Path
    algorithm: str
    env: str
    seed: int | None
    action_repeat: int


def plot(arguments: Sequence[str]) -> int:
    """Draw median and range over the runs of each algorithm; write the data beside the picture."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.window < 1:
        parser.error(f"--window must be at least 1, got {args.window}")
    try:
        if args.source == "tensorboard":
            folder = args.folder or Path("tb")
            data = tensorboard_curves(folder, args.tag, args.algo, args.env)
            label = str(data.attrs["tag"])
        else:
            runs = list(find_runs(args.folder or Path("logs")))
            data = log_curves(_chosen(runs, args.algo, args.env), args.source, args.window)
            label = Y_AXIS[args.source]
    except NothingToPlotError as error:
        parser.error(str(error))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with whole(args.output.with_suffix(".csv")) as writing:
        data.to_csv(writing, index=False)
    picture = args.output if args.output.suffix else args.output.with_suffix(".png")
    with whole(picture) as writing:
        figure = draw(data, X_AXIS[args.source], label)
        figure.savefig(writing, dpi=110, format=picture.suffix[1:])
    for (env, algorithm), part in data.groupby(["env", "algorithm"]):
        last = part[part.steps == part.groupby("run").steps.transform("max")]["return"]
        print(f"{algorithm} on {env}: {last.median():.1f} at the end, {_runs(len(last))}")
    print(f"{picture}, its data in {args.output.with_suffix('.csv')}")
    return 0


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sb3-pmpo plot",
        description="Draw learning curves: median and range over runs, against environment steps "
        "(an action that is repeated counts each time).",
    )
    add = parser.add_argument
    add("--algo", nargs="+", help="algorithms (default: all there are)")
    add("--env", nargs="+", help="environment ids (default: all there are)")
    add("-f", "--folder", type=Path, help="folder of train or sweep (default: logs; TensorBoard: "
        "tb)")  # fmt: skip
    add("--source", choices=list(X_AXIS), default="eval", help="evaluations (default), training "
        "episodes, or TensorBoard's logs")  # fmt: skip
    add("--tag", help=f"what to draw of TensorBoard's logs (default: {' or '.join(TAGS)})")
    add("--window", type=int, default=10, help="episodes of the rolling mean (default: 10)")
    add("-o", "--output", type=Path, default=Path("curve.png"), help="default: curve.png")
    return parser


# ---------------------------------------------------------------------- runs


def find_runs(logs: Path) -> Iterator[RunFolder]:
    """Find the runs ``<logs>/<algorithm>/<run>/`` of the Zoo and of sweeps.

    :raises NothingToPlotError: if the folder does not exist.
    """
    if not logs.is_dir():
        raise NothingToPlotError(f"there is no folder {logs}; -f names the one that train wrote")
    for folder in sorted(path for path in logs.glob("*/*") if path.is_dir()):
        if (folder / "run.json").exists():
            try:
                about = json.loads((folder / "run.json").read_text())
            except ValueError as error:
                _leave_out(folder / "run.json", error)
                continue
            wrappers: Any = about["env_wrapper"]
        else:
            saved = next(folder.glob("*/args.yml"), None)
            if saved is None:
                continue
            try:
                about = read(saved)
                wrappers = read(saved.with_name("config.yml")).get("env_wrapper")
            except (OSError, ValueError) as error:
                _leave_out(folder, error)
                continue
        repeat = action_repeat_of(wrappers)
        yield RunFolder(folder, folder.parent.name, about["env"], about.get("seed"), repeat)


def _chosen(
    runs: list[RunFolder], algorithms: list[str] | None, envs: list[str] | None
) -> list[RunFolder]:
    # TensorBoard has PMPO and dm_control-walker-walk-v0 for pmpo and dm_control/walker-walk-v0.
    chosen = [
        run
        for run in runs
        if (algorithms is None or run.algorithm.lower() in map(str.lower, algorithms))
        and (envs is None or run.env.replace("/", "-") in [env.replace("/", "-") for env in envs])
    ]
    if not chosen:
        there = sorted({f"{run.algorithm} on {run.env}" for run in runs})
        raise NothingToPlotError(f"no such run; there is {', '.join(there) or 'none at all'}")
    return chosen


def log_curves(runs: Sequence[RunFolder], source: str, window: int) -> pd.DataFrame:
    """Read the curves of some runs.

    :param source: ``"eval"`` for ``evaluations.npz``, ``"train"`` for Monitor's files.
    :param window: episodes of the rolling mean of ``"train"``.
    :return: columns algorithm, env, run, seed, steps (of the environment), return.
    :raises NothingToPlotError: if none has such data.
    """
    parts = []
    for run in runs:
        curve = _evaluations(run) if source == "eval" else _episodes(run, window)
        if curve is None:
            continue
        frame = pd.DataFrame({"steps": curve[0], "return": curve[1]})
        about = {"algorithm": run.algorithm, "env": run.env, "run": str(run.folder)}
        parts.append(frame.assign(**about, seed=run.seed))
    if not parts:
        remedy = (
            "evaluations: train with --eval-freq, or plot --source train"
            if source == "eval"
            else f"{window} episodes in Monitor's files: train longer, or lower --window"
        )
        raise NothingToPlotError(f"none of the {len(runs)} runs has {remedy}")
    return pd.concat(parts)[["algorithm", "env", "run", "seed", "steps", "return"]]


def _leave_out(path: Path, why: object) -> None:
    warnings.warn(f"{path} is not drawn: {why}", stacklevel=3)


def _evaluations(run: RunFolder) -> tuple[np.ndarray, np.ndarray] | None:
    path = run.folder / "evaluations.npz"
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as saved:
            return saved["timesteps"] * run.action_repeat, saved["results"].mean(1)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        _leave_out(path, f"it is empty or torn ({error})")
        return None


def load_episodes(folder: Path) -> pd.DataFrame:
    """Read Monitor's files of a run, in the order in which the episodes ended.

    SB3's ``load_results`` does not read a file whose last line is unfinished.

    :return: columns r, l and t; t counts from the run's start.
    """
    parts = []
    for path in sorted(folder.glob("*monitor.csv")):
        text = path.read_text()
        lines, _, rest = text.rpartition("\n")
        if rest:
            _leave_out(path, f"its last line is unfinished, which are {len(rest)} characters")
        try:
            header, _, table = lines.partition("\n")
            part = pd.read_csv(io.StringIO(table))[["r", "l", "t"]]
            parts.append(part.assign(t=part.t + json.loads(header.removeprefix("#"))["t_start"]))
        except (ValueError, KeyError, TypeError) as error:
            _leave_out(path, f"it is empty or torn ({error})")
    if not parts:
        return pd.DataFrame({"r": [], "l": [], "t": []})
    episodes = pd.concat(parts).sort_values("t", ignore_index=True)
    return episodes.assign(t=episodes.t - episodes.t.min())


def _episodes(run: RunFolder, window: int) -> tuple[np.ndarray, np.ndarray] | None:
    episodes = load_episodes(run.folder)
    if len(episodes) < window:
        return None
    # The Zoo's Monitor is inside the wrappers: it counts environment steps.
    steps = episodes.l.cumsum().to_numpy()
    means = episodes.r.rolling(window).mean().to_numpy()
    grid = np.linspace(steps[window - 1], steps[-1], min(GRID, len(steps) - window + 1))
    return grid, np.interp(grid, steps[window - 1 :], means[window - 1 :])


def tensorboard_curves(
    logdir: Path,
    tag: str | None,
    algorithms: list[str] | None = None,
    envs: list[str] | None = None,
) -> pd.DataFrame:
    """Read a scalar of the runs in TensorBoard's folder, which may be that of a sweep.

    :param tag: None for the first of ``TAGS`` that any run has.
    :param algorithms: whose runs to read; None for all.
    :param envs: Gymnasium ids of those to read; None for all.
    :return: the columns of :func:`log_curves`; ``attrs["tag"]`` is the tag.
    :raises NothingToPlotError: if no run has it, naming those there are.
    """
    logged: dict[Path, EventAccumulator] = {}
    for folder in sorted({path.parent for path in logdir.rglob("events.out.tfevents.*")}):
        logged[folder] = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    known = sorted({name for events in logged.values() for name in events.Tags()["scalars"]})
    if not known:
        raise NothingToPlotError(
            f"{logdir} has no scalars of TensorBoard; -f names the folder that train was given as "
            "--tensorboard-log"
        )
    chosen = tag or next((name for name in TAGS if name in known), None)
    if chosen not in known:
        raise NothingToPlotError(f"--tag {tag}: no run has it; there is {', '.join(known)}")
    runs = {_logged_run(folder, logdir): events for folder, events in logged.items()}
    parts = []
    for run in _chosen(list(runs), algorithms, envs):
        events = runs[run]
        if chosen not in events.Tags()["scalars"]:
            continue
        scalars = events.Scalars(chosen)
        about = {"algorithm": run.algorithm, "env": run.env, "run": str(run.folder)}
        points = {"steps": [s.step for s in scalars], "return": [s.value for s in scalars]}
        parts.append(pd.DataFrame(points).assign(**about, seed=run.seed))
    if not parts:
        raise NothingToPlotError(f"none of the chosen runs has {chosen}; --tag names another")
    data = pd.concat(parts)[["algorithm", "env", "run", "seed", "steps", "return"]]
    data.attrs["tag"] = chosen
    return data


def _logged_run(folder: Path, logdir: Path) -> RunFolder:
    about = folder.parent.parent / "run.json"
    if about.exists():  # a sweep's: <run>/tensorboard/<algorithm>_<number>
        run = json.loads(about.read_text())
        return RunFolder(folder, run["algorithm"], run["env"], run["seed"], 1)
    # The Zoo's: <environment>/<algorithm>_<number>.
    algorithm = folder.name.rpartition("_")[0] or folder.name
    env = folder.parent.relative_to(logdir).as_posix()
    return RunFolder(folder, algorithm, env, None, 1)


# ---------------------------------------------------------------------- the picture


def draw(data: pd.DataFrame, x_label: str, y_label: str) -> Figure:
    """Draw a panel for each environment and a line for each algorithm: median and range."""
    envs = sorted(data.env.unique())
    columns = min(3, len(envs))
    rows = -(-len(envs) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    named = data.assign(
        algorithm=data.algorithm.map(
            lambda name: f"{name} ({_runs(data[data.algorithm == name].run.nunique())})"
        )
    )
    order = sorted(named.algorithm.unique())
    for axis, env in zip(axes, envs, strict=False):
        seaborn.lineplot(
            named[named.env == env],
            x="steps",
            y="return",
            hue="algorithm",
            hue_order=order,
            estimator="median",
            errorbar=("pi", 100),
            ax=axis,
        )
        axis.set(title=env, xlabel=x_label, ylabel=y_label)
        axis.grid(alpha=0.3)
        axis.legend(title=None)
    for axis in axes[len(envs) :]:
        axis.set_visible(False)
    return figure
