"""Statistics over the runs of a suite: rliable's aggregates, and wall-clock to a return.

A table of runs has a row for each evaluation, with the columns of :data:`records.FIELDS`. Scores
are returns over 1000, the Control Suite's maximum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

MAX_RETURN = 1000.0
#: Resamples of a 95% stratified bootstrap interval.
REPETITIONS = 1000
SEED = 0


def import_rliable() -> tuple[Any, Any]:
    """Import rliable's ``library`` and ``metrics``.

    It needs arch 7, which calls a decorator of pandas 2 as it is imported, of which pandas 3 has
    changed the arguments. The decorator renames an argument of a plot that nobody draws here.
    """
    from pandas.util import _decorators

    changed = _decorators.deprecate_kwarg
    _decorators.deprecate_kwarg = lambda *_, **__: lambda function: function
    try:
        from rliable import library, metrics
    finally:
        _decorators.deprecate_kwarg = changed
    return library, metrics


def final_scores(data: pd.DataFrame, steps: int) -> dict[str, np.ndarray]:
    """Return each algorithm's scores at a step, [runs, tasks] as rliable has them.

    :param steps: environment steps at which all are compared.
    :return: by algorithm, over the tasks that all of them have, in the order of their names; as
        many runs as the task with the fewest has, the lowest seeds.
    """
    last = data[data.steps == steps].sort_values("seed")
    tasks = shared_tasks(data, steps)
    scores = {}
    for algorithm, part in last.groupby("algorithm"):
        by_task = [part[part.task == task].return_mean.to_numpy(float) for task in tasks]
        runs = min((len(returns) for returns in by_task), default=0)
        if runs:
            scores[str(algorithm)] = np.stack([x[:runs] for x in by_task], 1) / MAX_RETURN
    return scores


def shared_tasks(data: pd.DataFrame, steps: int) -> list[str]:
    """Return the tasks on which every algorithm has a run that reached the step."""
    last = data[data.steps == steps]
    counts = last.groupby("task").algorithm.nunique()
    return sorted(counts[counts == last.algorithm.nunique()].index)


def aggregate(
    scores: dict[str, np.ndarray], baseline: str, repetitions: int = REPETITIONS
) -> pd.DataFrame:
    """Aggregate over tasks and runs, with 95% stratified bootstrap intervals.

    :param scores: of :func:`final_scores`.
    :param baseline: the algorithm that the others' probability of improvement is over.
    :param repetitions: resamples of the bootstrap.
    :return: rows of ``metric, algorithm, value, low, high``; ``mean`` is over runs, then tasks.
    """
    library, metrics = import_rliable()
    rows = []

    def estimate(name: str, pairs: dict[str, Any], function: Any) -> None:
        np.random.seed(SEED)  # rliable 1.2 draws from the global generator
        values, intervals = library.get_interval_estimates(
            pairs, lambda *x: np.array([function(*x)]), reps=repetitions
        )
        for algorithm in pairs:
            low, high = intervals[algorithm][:, 0]
            rows.append((name, algorithm, float(values[algorithm][0]), float(low), float(high)))

    estimate("IQM", scores, metrics.aggregate_iqm)
    estimate("mean", scores, metrics.aggregate_mean)
    if baseline in scores:
        pairs = {name: (x, scores[baseline]) for name, x in scores.items() if name != baseline}
        estimate(
            f"probability of improvement over {baseline}", pairs, metrics.probability_of_improvement
        )
    return pd.DataFrame(rows, columns=["metric", "algorithm", "value", "low", "high"])


def performance_profiles(
    scores: dict[str, np.ndarray], thresholds: np.ndarray, repetitions: int = REPETITIONS
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the share of runs above each score, and its 95% intervals [2, thresholds]."""
    library, _ = import_rliable()
    np.random.seed(SEED)
    profiles, intervals = library.create_performance_profile(scores, thresholds, reps=repetitions)
    return profiles, intervals


def mean_curve(part: pd.DataFrame) -> pd.DataFrame:
    """Average one algorithm's seeds on one task, at the steps that all of them have.

    :return: ``return_mean`` and ``train_seconds`` by step.
    """
    values = part.pivot(index="steps", columns="seed", values=["return_mean", "train_seconds"])
    values = values.dropna()
    return pd.DataFrame({name: values[name].mean(axis=1) for name in values.columns.levels[0]})


def seconds_to_reach(curve: pd.DataFrame, threshold: float) -> float:
    """Return when a mean curve first reaches a return, linear between two evaluations.

    :param curve: of :func:`mean_curve`.
    :return: seconds of training; those of the first evaluation if it is above already, infinity
        if the curve does not get there.
    """
    returns, seconds = curve.return_mean.to_numpy(), curve.train_seconds.to_numpy()
    above = np.flatnonzero(returns >= threshold)
    if not len(above):
        return float("inf")
    i = above[0]
    if i == 0:
        return float(seconds[0])
    share = (threshold - returns[i - 1]) / (returns[i] - returns[i - 1])
    return float(seconds[i - 1] + share * (seconds[i] - seconds[i - 1]))


def wall_clock_ratios(
    data: pd.DataFrame, steps: int, algorithm: str, baseline: str
) -> dict[str, float]:
    """Return an algorithm's wall-clock to the baseline's final return, over the baseline's own.

    :param steps: where the baseline's return and wall-clock are taken, means over its seeds.
    :return: by task that both have, the algorithm's time to get there over the baseline's.
    """
    ratios = {}
    data = data[data.steps <= steps]
    for task, part in data.groupby("task"):
        wanted = part[part.algorithm.isin([algorithm, baseline])]
        curves = {name: mean_curve(runs) for name, runs in wanted.groupby("algorithm")}
        if not {algorithm, baseline} <= curves.keys() or steps not in curves[baseline].index:
            continue
        own = curves[baseline].loc[steps]
        reached = seconds_to_reach(curves[algorithm], own.return_mean)
        ratios[str(task)] = reached / own.train_seconds
    return ratios
