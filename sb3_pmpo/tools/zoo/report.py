"""What a study found: the best trial as an entry to paste, plots, and what went wrong."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from sb3_pmpo.files import whole
from sb3_pmpo.pretrained.files import ENOUGH, interval_apart
from sb3_pmpo.tools.outputs import OutputError, check_output
from sb3_pmpo.tools.settings import to_yaml
from sb3_pmpo.tools.zoo.study import DEFAULT

#: The first line of each setting that was found.
MARK = "# Found by sb3-pmpo tune."

#: How the names of the files end.
_BEST, _TRIALS = "_best.yml", "_trials.csv"


def report(
    study: optuna.Study,
    env_id: str,
    setting_of: Callable[[dict[str, Any]], dict[str, Any]],
    folder: Path,
    storage: str | None,
    *,
    budget: str,
    with_plots: bool,
) -> None:
    """Print and write what a study found.

    :param study: the study.
    :param env_id: key of the entry.
    :param setting_of: turns a trial's parameters into an entry.
    :param folder: where the files go.
    :param storage: as the user named it.
    :param budget: what each trial was trained for, in words.
    :param with_plots: whether to draw history and importances.
    :raises SystemExit: with status 1, if no trial completed.
    """
    count_trials(study)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        errors = [t.user_attrs["error"] for t in study.trials if "error" in t.user_attrs]
        last = f"; the last error was {errors[-1]}" if errors else ""
        raise SystemExit(f"no trial completed{last}")
    folder.mkdir(parents=True, exist_ok=True)
    best = study.best_trial
    name = study.study_name if storage is not None else unused(folder, study.study_name)
    path = folder / f"{name}{_BEST}"
    entry = to_yaml(setting_of(best.params), env_id)
    text = (
        f"{MARK}\n# Trial {best.number} of {len(study.trials)}, value {best.value:.6g}, found with "
        f"{best.user_attrs.get('budget', budget)}.\n# {compare(study)}\n{entry}"
    )
    try:
        check_output(path, MARK)
    except OutputError as error:
        raise SystemExit(f"sb3-pmpo tune: error: {error}; the best setting:\n\n{text}") from error
    with whole(path) as writing:
        writing.write_text(text)
    table = folder / f"{name}{_TRIALS}"
    _check(table, "number,value,")
    with whole(table) as writing:
        study.trials_dataframe().to_csv(writing, index=False)
    print(f"\nThe best trial as a setting, to paste, or with --conf-file {path}:\n\n{text}")
    print(f"All trials:  {table}")
    if with_plots:
        for title, figure in draw(study, folder, name).items():
            print(f"{title + ':':12} {figure}")
    if storage is not None:
        print(f"Dashboard:   pip install optuna-dashboard && optuna-dashboard {storage}")


def unused(folder: Path, name: str) -> str:
    """Name the files of a study that is stored nowhere: what an earlier one found stays."""
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(
        tried
        for tried in names
        if not any((folder / f"{tried}{end}").exists() for end in (_BEST, _TRIALS))
    )


def compare(study: optuna.Study) -> str:
    """Say how far the best trial is from the setting that ships, with an interval.

    :param study: with a complete trial.
    """
    best = study.best_trial
    defaults = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.user_attrs.get(DEFAULT)
    ]
    if not defaults:
        return "The setting that ships was not among the complete trials: nothing to compare with."
    default = defaults[0]
    if best.number == default.number:
        return "The best trial is the setting that ships: none that was tried is better."
    apart = (best.value or 0.0) - (default.value or 0.0)  # complete ones have a value
    said = f"{apart:+.6g} from the setting that ships (trial {default.number}"
    luck = "The best of many trials is partly luck: train both on other seeds."
    ours, theirs, over, few = _to_compare(best, default)
    if few < 2:
        return f"{said}), of one episode each, so without an interval. {luck}"
    low, high = interval_apart(np.array(ours), np.array(theirs))
    narrow = f" (of {few}, too narrow)" if few < ENOUGH else ""
    return f"{said}), 95% bootstrap interval [{low:.6g}, {high:.6g}] over {over}{narrow}. {luck}"


def _to_compare(*trials: Any) -> tuple[list[float], list[float], str, int]:
    """Choose what two trials are compared by: their seeds, or the episodes of the one seed."""
    ours, theirs = (trial.user_attrs.get("values", []) for trial in trials)
    over = "the seeds"
    if min(len(ours), len(theirs)) < 2:
        ours, theirs = (trial.user_attrs.get("returns", []) for trial in trials)
        over = "the last episodes of one seed each (seeds differ by more: --trial-seeds 3)"
    return ours, theirs, over, min(len(ours), len(theirs))


def count_trials(study: optuna.Study) -> None:
    """Print how many trials completed, were pruned, were bad and why, or lost their worker."""
    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state.name for trial in trials)
    bad = Counter(
        trial.user_attrs["error"].splitlines()[0] for trial in trials if "error" in trial.user_attrs
    )
    pruned = states["PRUNED"] - bad.total()
    print(
        f"{len(trials)} trials: {states['COMPLETE']} complete, {pruned} pruned, {bad.total()} bad, "
        f"{states['FAIL']} without their worker, {states['RUNNING'] + states['WAITING']} left"
    )
    for error, count in bad.most_common(3):
        print(f"  {count} x {error}")


def draw(study: optuna.Study, folder: Path, name: str) -> dict[str, Path]:
    """Draw the values by trial, and how much each parameter mattered, if that can be said yet."""
    drawn = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "The number of trials is too small", UserWarning)
        axes = plots.plot_optimization_history(study)
        drawn["History"] = _save(axes, folder / f"{name}_history.png")
        try:
            axes = plots.plot_param_importances(study, PedAnovaImportanceEvaluator())
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            print(f"Importances: too few trials to say ({error})")
        else:
            drawn["Importances"] = _save(axes, folder / f"{name}_importances.png")
    return drawn


def _save(axes: Any, path: Path) -> Path:
    axes.figure.set_layout_engine("constrained")
    _check(path, MARK)
    with whole(path) as writing:
        about = {"Software": MARK}
        axes.figure.savefig(writing, dpi=110, format=path.suffix[1:], metadata=about)
    return path


def _check(path: Path, mark: str) -> None:
    try:
        check_output(path, mark)
    except OutputError as error:
        raise SystemExit(f"sb3-pmpo tune: error: {error}; the trials are in the study") from error
