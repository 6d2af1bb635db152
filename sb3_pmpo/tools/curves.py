"""Curves of runs: from the Zoo's logs, from sweeps and from TensorBoard."""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_pmpo.envs import action_repeat_of
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.tensorboard import ABOUT

#: What TensorBoard has of the returns; the first that a run logged.
TAGS = ("eval/mean_reward", "rollout/ep_rew_mean")
#: Points of a curve of training episodes, on which the runs' means are taken.
GRID = 100
#: Of TensorBoard's logs that say nothing of an action repeat.
UNKNOWN_REPEAT = "decisions of the agent (environment steps without an action repeat)"
#: Behind the name of an algorithm whose runs ``sb3-pmpo offline`` made.
OFFLINE = " offline"
COLUMNS = ("algorithm", "env", "run", "seed", "steps", "return")


class NothingToPlotError(ValueError):
    """There is no curve; the message says what is there."""


class RunFolder(NamedTuple):
    """A run of the Zoo or of a sweep.

    :param algorithm: the name of the folder that it is in.
    :param env: Gymnasium's id.
    :param action_repeat: environment steps of a decision.
    :param before: the folder of the run that this one was resumed from.
    :param from_step: the decisions of the checkpoint that it was resumed from, if it was one.
    :param offline: whether its steps are gradient steps, on data.
    """

    folder: Path
    algorithm: str
    env: str
    seed: int | None
    action_repeat: int
    before: Path | None = None
    from_step: int | None = None
    offline: bool = False

    @property
    def name(self) -> str:
        """Return what its line is called: runs that act and those on data are never averaged."""
        return self.algorithm + (OFFLINE if self.offline else "")


def find_runs(logs: Path) -> Iterator[RunFolder]:
    """Find the runs ``<logs>/<algorithm>/<run>/`` of the Zoo and of sweeps.

    :raises NothingToPlotError: if the folder does not exist.
    """
    if not logs.is_dir():
        raise NothingToPlotError(f"there is no folder {logs}; -f names the one that train wrote")
    for folder in sorted(path for path in logs.glob("*/*") if path.is_dir()):
        if (folder / "run.json").exists():
            about = _read_about(folder / "run.json", ("env", "env_wrapper"))
            if about is None:
                continue
            wrappers: Any = about["env_wrapper"]
        else:
            saved = next(folder.glob("*/args.yml"), None)
            if saved is None:
                continue
            try:
                about = read(saved)
                wrappers = read(saved.with_name("config.yml")).get("env_wrapper")
                about["env"]  # has to be there
            except (OSError, ValueError, KeyError, TypeError) as error:
                _leave_out(folder, repr(error))
                continue
        offline = bool(about.get("offline"))
        agent = Path(str(about["trained_agent"])) if about.get("trained_agent") else None
        if offline:
            agent = None  # its steps are counted from 0
        yield RunFolder(
            folder,
            folder.parent.name,
            about["env"],
            about.get("seed"),
            1 if offline else action_repeat_of(wrappers),
            None if agent is None else agent.parent,
            None if agent is None else _step_of(agent.name),
            offline,
        )


def _step_of(name: str) -> int | None:
    """Read the decisions of a checkpoint from its name, ``rl_model_1000_steps.zip``."""
    found = re.fullmatch(r"rl_model_(\d+)_steps\.zip", name)
    return int(found[1]) if found else None


def joined(runs: Sequence[RunFolder]) -> list[list[RunFolder]]:
    """Put the parts of resumed runs together, in their order.

    :param runs: of which some may have been resumed from others.
    :return: the parts of each run; a part that several went on from is in each.
    """
    there = {run.folder.resolve(): run for run in runs}
    # Its name within the folder of logs is also known from another working directory.
    named = {run.folder.resolve().parts[-2:]: run for run in runs}

    def find(before: Path | None) -> RunFolder | None:
        if before is None:
            return None
        key = before.parts[-2:]
        found = there.get(before.resolve()) if before.exists() else named.get(key)
        return None if found is None or found.offline else found  # decisions are counted from 0

    before = {run.folder: find(run.before) for run in runs}
    resumed = {run.folder for run in before.values() if run is not None}
    chains = []
    for run in runs:
        if run.folder in resumed:
            continue
        chain: list[RunFolder] = [run]
        while (earlier := before[chain[0].folder]) is not None and earlier not in chain:
            chain.insert(0, earlier)
        chains.append(chain)
    return chains


def chosen_runs(
    runs: list[RunFolder], algorithms: list[str] | None, envs: list[str] | None
) -> list[RunFolder]:
    """Choose the runs of these algorithms and environments; None for all.

    :raises NothingToPlotError: if there is none, saying what there is.
    """
    # TensorBoard has PMPO and dm_control-walker-walk-v0 for pmpo and dm_control/walker-walk-v0.
    found = [
        run
        for run in runs
        if (algorithms is None or run.algorithm.lower() in map(str.lower, algorithms))
        and (envs is None or run.env.replace("/", "-") in [env.replace("/", "-") for env in envs])
    ]
    if not found:
        there = sorted({f"{run.name} on {run.env}" for run in runs})
        raise NothingToPlotError(f"no such run; there is {', '.join(there) or 'none at all'}")
    return found


def log_curves(runs: Sequence[RunFolder], source: str, window: int) -> pd.DataFrame:
    """Read the curves of some runs.

    :param source: ``"eval"`` for ``evaluations.npz``, ``"train"`` for Monitor's files.
    :param window: episodes of the rolling mean of ``"train"``.
    :return: columns algorithm, env, run, seed, steps (of the environment), return.
    :raises NothingToPlotError: if none has such data.
    """
    parts = []
    for chain in joined(runs):
        read_curve = _evaluations if source == "eval" else partial(_episodes, window=window)
        curve = read_curve(chain)
        if curve is None:
            continue
        frame = pd.DataFrame({"steps": curve[0], "return": curve[1]})
        run = chain[-1]
        about = {"algorithm": run.name, "env": run.env, "run": str(run.folder)}
        parts.append(frame.assign(**about, seed=chain[0].seed))
    if not parts:
        which = "the run has no" if len(runs) == 1 else f"none of the {len(runs)} runs has"
        raise NothingToPlotError(f"{which} {_missing(runs, source, window)}")
    return pd.concat(parts)[[*COLUMNS]]


def _missing(runs: Sequence[RunFolder], source: str, window: int) -> str:
    """Say what the runs have not, and what to do."""
    monitored = any(any(run.folder.glob("*monitor.csv")) for run in runs)
    if source == "eval":
        remedy = "train with --eval-freq" + (", or plot --source train" if monitored else "")
        return f"evaluations: {remedy}"
    if not monitored:
        return "files of training episodes, which train alone writes: plot --source eval"
    if window == 1:
        return "whole episode: train longer"
    return f"{window} episodes: train longer, or lower --window"


def _leave_out(path: Path, why: object) -> None:
    warnings.warn(f"{path} is not drawn: {why}", stacklevel=3)


def _read_about(path: Path, needed: Sequence[str]) -> Any:
    """Read a dictionary that has these names; None, with a warning, for a file that is none."""
    try:
        about = json.loads(path.read_text())
        missing = [name for name in needed if name not in about]
        if isinstance(about, dict) and not missing:
            return about
        _leave_out(path, f"it does not say {missing}")
    except (OSError, ValueError, TypeError) as error:
        _leave_out(path, f"it is empty or torn ({error})")
    return None


def _evaluations(chain: Sequence[RunFolder]) -> tuple[np.ndarray, np.ndarray] | None:
    curve: list[tuple[int, float]] = []
    for run in chain:
        found = _evaluated(run)
        if found is None or not len(found[0]):
            continue
        steps, returns = found
        # What the earlier part measured later than the checkpoint that was gone on from is not of
        # this run.
        curve = [point for point in curve if point[0] < steps[0]]
        curve += zip(steps, returns, strict=True)
    return (np.array([s for s, _ in curve]), np.array([r for _, r in curve])) if curve else None


def _evaluated(run: RunFolder) -> tuple[np.ndarray, np.ndarray] | None:
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
        try:
            lines, _, rest = path.read_text().rpartition("\n")
            if rest:
                _leave_out(path, f"its last line is unfinished, which are {len(rest)} characters")
            header, _, table = lines.partition("\n")
            part = pd.read_csv(io.StringIO(table))[["r", "l", "t"]].astype(float)
            parts.append(part.assign(t=part.t + json.loads(header.removeprefix("#"))["t_start"]))
        except (ValueError, KeyError, TypeError) as error:
            _leave_out(path, f"it is empty or torn ({error})")
    if not parts:
        return pd.DataFrame({"r": [], "l": [], "t": []}, dtype=float)
    episodes = pd.concat(parts).sort_values("t", ignore_index=True)
    return episodes.assign(t=episodes.t - episodes.t.min())


def _episodes(chain: Sequence[RunFolder], window: int) -> tuple[np.ndarray, np.ndarray] | None:
    parts: list[pd.DataFrame] = []
    for run in chain:
        if run.from_step is not None and parts:
            # What came after the checkpoint that was gone on from is not of this run.
            earlier = pd.concat(parts, ignore_index=True)
            parts = [earlier[earlier.l.cumsum() <= run.from_step * run.action_repeat]]
        parts.append(load_episodes(run.folder))
    episodes = pd.concat(parts, ignore_index=True)
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
    found = ((_logged_run(folder, logdir), events) for folder, events in logged.items())
    runs = {run: events for run, events in found if run is not None}
    parts = []
    for run in chosen_runs(list(runs), algorithms, envs):
        events = runs[run]
        if chosen not in events.Tags()["scalars"]:
            continue
        scalars = events.Scalars(chosen)
        about = {"algorithm": run.name, "env": run.env, "run": str(run.folder)}
        steps = [scalar.step * run.action_repeat for scalar in scalars]
        points = {"steps": steps, "return": [scalar.value for scalar in scalars]}
        parts.append(pd.DataFrame(points).assign(**about, seed=run.seed))
    if not parts:
        raise NothingToPlotError(f"none of the chosen runs has {chosen}; --tag names another")
    data = pd.concat(parts)[[*COLUMNS]]
    data.attrs["tag"] = chosen
    if not all(_is_known(Path(run)) for run in data.run.unique()):  # one unit for all of them
        repeats = {str(run.folder): run.action_repeat for run in runs}
        data["steps"] //= data.run.map(repeats)
        data.attrs["x"] = UNKNOWN_REPEAT
    return data


def _is_known(folder: Path) -> bool:
    """Say whether a run says how many environment steps a decision of it takes."""
    return (folder.parent.parent / "run.json").exists() or (folder / ABOUT).exists()


def _logged_run(folder: Path, logdir: Path) -> RunFolder | None:
    about = folder.parent.parent / "run.json"
    if about.exists():  # a sweep's: <run>/tensorboard/<algorithm>_<number>
        run = _read_about(about, ("algorithm", "env", "env_wrapper", "seed"))
        if run is None:
            return None
        repeat = action_repeat_of(run["env_wrapper"])
        return RunFolder(folder, run["algorithm"], run["env"], run["seed"], repeat)
    # The Zoo's: <environment>/<algorithm>_<number>.
    algorithm = folder.name.rpartition("_")[0] or folder.name
    env = folder.parent.relative_to(logdir).as_posix()
    path = folder / ABOUT
    told = _read_about(path, ("action_repeat",)) if path.exists() else None
    repeat = 1 if told is None else told["action_repeat"]
    offline = told is not None and bool(told.get("offline"))
    algorithm = algorithm.removesuffix("-offline") if offline else algorithm
    return RunFolder(folder, algorithm, env, None, repeat, offline=offline)
