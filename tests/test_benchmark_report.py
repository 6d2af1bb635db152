"""The report of a suite, against numbers computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import aggregates, report
from benchmarks.records import Places


def curves(algorithm: str, seconds: float, *seeds: list[float], task: str = "t") -> pd.DataFrame:
    """Returns of each seed at 100, 200, ... steps, an evaluation every so many seconds."""
    return pd.DataFrame(
        {
            "algorithm": algorithm, "task": task, "seed": seed, "steps": 100 * (i + 1),
            "train_seconds": seconds * (i + 1), "return_mean": value, "peak_rss_mib": 500,
            "action_repeat": 2,
        }
        for seed, returns in enumerate(seeds)
        for i, value in enumerate(returns)
    )  # fmt: skip


def test_the_wall_clock_ratio_is_that_of_the_curves() -> None:
    sac = curves("SAC", 10, [0, 100, 300], [0, 100, 500])  # 400 after 30 s
    # The mean is 100, 300, 500 at 8, 16, 24 s: 400 after 20 s.
    pmpo = curves("PMPO", 8, [0, 200, 600], [200, 400, 400])
    ratio = aggregates.wall_clock_ratios(pd.concat([sac, pmpo]), 300, "PMPO", "SAC")
    assert ratio == {"t": pytest.approx(20 / 30)}
    never, at_once = curves("PMPO", 8, [1, 2, 399]), curves("PMPO", 8, [400, 0, 0])
    for own, expected in ((never, float("inf")), (at_once, 8 / 30)):
        ratio = aggregates.wall_clock_ratios(pd.concat([sac, own]), 300, "PMPO", "SAC")
        assert ratio == {"t": pytest.approx(expected)}


def test_the_wall_clock_ratio_is_of_the_tasks_that_both_have() -> None:
    data = pd.concat(
        [
            curves("SAC", 1, [400, 400], task="a"),
            curves("PMPO", 1, [400], task="a"),
            curves("SAC", 1, [400], task="SAC's, not there yet"),
            curves("PMPO", 1, [400, 400], task="SAC's, not there yet"),
            curves("SAC", 1, [400, 400], task="only SAC's"),
            curves("PMPO", 1, [400, 400], task="only PMPO's"),
        ]
    )
    assert aggregates.wall_clock_ratios(data, 200, "PMPO", "SAC") == {"a": 0.5}


def test_aggregates_are_those_computed_by_hand() -> None:
    data = pd.concat(
        [
            curves("PMPO", 1, [100], [300], [999], task="a"),
            curves("PMPO", 1, [500], [700], task="b"),
            curves("SAC", 1, [200], [200], task="a"),
            curves("SAC", 1, [500], [500], task="b"),
            curves("SAC", 1, [1000], [1000], task="only SAC's"),
        ]
    )
    scores = aggregates.final_scores(data, 100)
    np.testing.assert_allclose(scores["PMPO"], [[0.1, 0.5], [0.3, 0.7]])  # the third has no b
    table = aggregates.aggregate(scores, "SAC", repetitions=50)
    value = table.set_index(["metric", "algorithm"]).value
    assert value["mean", "PMPO"] == pytest.approx(0.4)
    assert value["IQM", "PMPO"] == pytest.approx(0.4)  # of 0.3 and 0.5, the middle half
    # On a: one of two is above; on b: a tie counts half, the other is above.
    name = "probability of improvement over SAC"
    assert value[name, "PMPO"] == pytest.approx((0.5 + 0.75) / 2)
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()


def test_a_report_has_its_tables_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregates.aggregate, "__defaults__", (20,))
    monkeypatch.setattr(aggregates.performance_profiles, "__defaults__", (20,))
    pmpo, others = ([0, 200, 600], [200, 400, 400]), ([0, 100, 300], [0, 100, 500])
    data = pd.concat(
        [
            curves("PMPO", 8, *pmpo, task="walker-walk"),
            curves("SAC", 10, *others, task="walker-walk"),
            curves("MPO", 10, *others, task="walker-walk"),
            curves("PMPO", 8, *pmpo, task="cheetah-run"),
            curves("SAC", 10, *others, task="cheetah-run"),
        ]
    )
    text = report.report("development", data, 300, tmp_path)
    assert "| PMPO | 500 | 500 |" in text
    assert "| PMPO | 0.67 | 0.67 | 0.67 |" in text
    assert "| MPO |  | 1.00 | 1.00 |" in text  # of the task that it has
    assert {path.name for path in tmp_path.iterdir()} == {
        "development.md", "development.png", "development_aggregates.csv",
        "development_aggregates.png",
    }  # fmt: skip
    with pytest.raises(ValueError, match="use --steps"):
        report.report("development", data, 400, tmp_path)


def test_older_result_files_can_be_read() -> None:
    data = report.load([Places().results / "learning.csv", Places().results / "figure2.csv"])
    assert data.return_mean.notna().all()
