"""The benchmark scripts: rows with their provenance, and a run that resumes where it stopped."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch as th

from benchmarks import learning, throughput
from sb3_pmpo import PMPO, top_k

SMALL = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 50, "buffer_size": 1000}


@pytest.fixture(autouse=True)
def _threads():
    threads = th.get_num_threads()
    yield
    th.set_num_threads(threads)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "rows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("algorithm", ["PMPO-small", "SAC-small"])
def test_a_run_resumes_where_it_stopped(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "STATE", tmp_path)
    job = (algorithm, "cartpole-swingup", 3)
    folder = tmp_path / f"{algorithm}__cartpole-swingup__3"
    # An interval of 200 environment steps is 100 decisions.
    learning.run(job, 200, 200, 1, 2, {algorithm: SMALL})
    first = rows_of(folder)
    learning.run(job, 600, 200, 1, 2, {algorithm: SMALL})
    rows = rows_of(folder)
    assert rows[:1] == first
    assert [int(row["steps"]) for row in rows] == [200, 400, 600]
    seconds = [float(row["train_seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    for row in rows:
        assert row["algorithm"] == algorithm
        assert row["seed"] == "3"
        assert "torch=" in row["versions"]
        assert row["machine"]
        assert row["commit"]
    # A finished run is left alone.
    learning.run(job, 600, 200, 1, 2, {algorithm: SMALL})
    assert rows_of(folder) == rows


def test_resuming_continues_the_model_and_its_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "STATE", tmp_path)
    job = ("PMPO-small", "cartpole-swingup", 0)
    for steps in (200, 400):
        learning.run(job, steps, 200, 1, 2, {"PMPO-small": SMALL})
    folder = tmp_path / "PMPO-small__cartpole-swingup__0"
    model = PMPO.load(folder / "model")
    model.load_replay_buffer(folder / "buffer.pkl")
    assert model.num_timesteps == 200
    assert model.replay_buffer.size() == 200
    assert model._n_updates == 2 * (200 - 50)


def test_a_variant_gets_its_arguments() -> None:
    arguments = {"n_samples": 4, "top_k": 2, "policy_kwargs": {"net_arch": [8]}, "buffer_size": 9}
    model = learning.make_model("PMPO-S4", "none", "Pendulum-v1", 0, {"PMPO-S4": arguments})
    assert model.n_samples == 4
    assert model.labeller == top_k(2)


def test_flops_are_those_of_the_matrix_products() -> None:
    # 24 -> 256 -> 256 -> 12 on 10 rows: a multiply and an add for each weight and row.
    assert throughput.mlp_flops(24, 12, 10) == 2 * 10 * (24 * 256 + 256 * 256 + 256 * 12)
