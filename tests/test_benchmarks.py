"""The benchmark harness: runs that resume, rows with their provenance, failures that stay alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks import (
    checkpoints,
    learning,
    models,
    pool,
    records,
    throughput,
    training,
)
from benchmarks.records import Places
from benchmarks.suites import SUITES, Run, Suite
from sb3_pmpo import PMPO, top_k

SMALL = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 50, "buffer_size": 1000}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "results", tmp_path / "state")


def make_run(algorithm: str = "PMPO-small", steps: int = 600, **arguments: Any) -> Run:
    # An interval of 200 environment steps is 100 decisions.
    return Run("small", algorithm, "cartpole-swingup", 3, SMALL | arguments, steps, 200, 1, 2)


def steps_of(rows: list[dict[str, Any]]) -> list[int]:
    return [int(row["steps"]) for row in rows]


@pytest.mark.parametrize("algorithm", ["PMPO-small", "SAC-small"])
def test_a_run_resumes_where_it_stopped(algorithm: str, places: Places) -> None:
    training.train(make_run(algorithm, steps=200), places)
    run = make_run(algorithm)
    first = records.read(places.rows(run))
    training.train(run, places)
    rows = records.read(places.rows(run))
    assert rows[:1] == first
    assert steps_of(rows) == [200, 400, 600]
    assert [int(row["episodes"]) for row in rows] == [2, 1, 2]  # each last evaluation has two
    for column in ("train_seconds", "peak_rss_mib"):
        values = [float(row[column]) for row in rows]
        assert values == sorted(values)
    for row in rows:
        assert (row["algorithm"], row["seed"]) == (algorithm, "3")
        assert json.loads(row["arguments"]) == SMALL
        assert float(row["peak_rss_mib"]) > 100
        assert "torch=" in row["versions"]
        assert row["machine"]
        assert row["commit"]


def test_resuming_continues_the_model_and_its_buffer(places: Places) -> None:
    for steps in (200, 400):
        training.train(make_run(steps=steps), places)
    [checkpoint] = checkpoints.list_checkpoints(places.checkpoints(make_run()))
    model = PMPO.load(checkpoint / "model", env=models.make_task("cartpole-swingup", 2))
    checkpoints.load_buffer(checkpoint / "buffer.pkl", model.replay_buffer)
    assert model.num_timesteps == 200
    assert model.replay_buffer.size() == 200
    assert model._n_updates == model.gradient_steps * (200 - 50)
    # No file of a run has the room for what is not there yet.
    assert (checkpoint / "buffer.pkl").stat().st_size < 30_000


def test_a_finished_run_is_not_run_again_in_a_fresh_clone(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(steps=200)
    training.train(run, places)
    shutil.rmtree(places.state)  # it is not in git
    rows = places.rows(run).read_bytes()
    started = []
    monkeypatch.setattr(learning, "run_all", lambda _, jobs, workers: started.extend(jobs) or {})
    suite = Suite(("cartpole-swingup",), {"PMPO-small": SMALL}, "PMPO-small", (3, 4), steps=200)
    learning.run_suites({"small": suite}, places, workers=1)
    assert [job[0].seed for job in started] == [4]
    training.train(run, places)  # neither by a process that had started already
    assert places.rows(run).read_bytes() == rows


@pytest.mark.parametrize("lost", ["rows", "checkpoint"])
def test_rows_and_checkpoint_need_not_be_of_one_step(lost: str, places: Places) -> None:
    run = make_run(steps=200)
    training.train(run, places)
    before = records.read(places.rows(run))
    if lost == "rows":  # killed between checkpoint and rows
        places.rows(run).unlink()
        training.train(run, places)
        assert records.read(places.rows(run)) == before
    else:  # rows of a longer run than the checkpoint
        ahead = [*before, before[-1] | {"steps": 400, "return_mean": "from elsewhere"}]
        records.write(places.rows(run), ahead)
        training.train(make_run(steps=600), places)
        rows = records.read(places.rows(run))
        assert steps_of(rows) == [200, 400, 600]
        assert rows[0] == before[0]
        assert rows[1]["return_mean"] != "from elsewhere"


class _Model:
    """As much of a model as a checkpoint needs."""

    def __init__(self, buffer_size: int = 8) -> None:
        self.replay_buffer = ReplayBuffer(
            buffer_size, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), "cpu"
        )

    def save(self, path: Path) -> None:
        path.write_text("a model")


class _KilledError(BaseException):
    """What kill -9 looks like from inside: nothing after it is executed."""


def _kill(*_: Any, **__: Any) -> None:
    raise _KilledError


@pytest.mark.parametrize(
    ("victim", "latest"),
    [
        ("save_buffer", "step-000000200"),
        ("os", "step-000000200"),
        ("shutil", "step-000000400"),
    ],
)
def test_a_whole_checkpoint_is_there_whenever_the_process_is_killed(
    victim: str, latest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [dict.fromkeys(records.FIELDS, "") | {"steps": steps} for steps in (200, 400, 600)]
    checkpoints.save(tmp_path, _Model(), rows[:1])
    (tmp_path / "incomplete").mkdir()
    kill = {
        "save_buffer": _kill,
        "os": SimpleNamespace(replace=_kill),
        # The first call clears what was left of an incomplete one, the second the old one.
        "shutil": SimpleNamespace(
            rmtree=lambda path, ignore_errors=False: (
                shutil.rmtree(path) if ignore_errors else _kill()
            )
        ),
    }
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, victim, kill[victim])
        with pytest.raises(_KilledError):
            checkpoints.save(tmp_path, _Model(), rows[:2])
    last = checkpoints.list_checkpoints(tmp_path)[-1]
    assert last.name == latest
    assert {path.name for path in last.iterdir()} == {"model.zip", "buffer.pkl", "rows.csv"}
    checkpoints.save(tmp_path, _Model(), rows)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["step-000000600"]


def test_a_buffer_saves_what_is_in_it_only(tmp_path: Path) -> None:
    saved, loaded = _Model(5).replay_buffer, _Model(5).replay_buffer
    for adds in (3, 9):  # not full, and around its end
        for i in range(adds):
            row = np.full((1, 2), i / 10, np.float32)
            saved.add(row, row, row[:, :1], np.array([float(i)]), np.array([i % 2]), [{}])
        checkpoints.save_buffer(tmp_path / "buffer.pkl", saved)
        checkpoints.load_buffer(tmp_path / "buffer.pkl", loaded)
        assert (loaded.pos, loaded.full) == (saved.pos, saved.full)
        for name in ("observations", "actions", "rewards", "dones"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))


def test_a_run_that_is_killed_goes_on_from_its_last_evaluation(places: Places) -> None:
    run = make_run(steps=100_000)
    process = multiprocessing.get_context("spawn").Process(
        target=training.train, args=(run, places)
    )
    process.start()
    while process.is_alive() and not records.read(places.rows(run)):
        time.sleep(0.05)
    process.kill()
    process.join()
    before = records.read(places.rows(run))
    steps = steps_of(before)[-1] + run.interval
    training.train(run._replace(steps=steps), places)
    rows = records.read(places.rows(run))
    assert rows[: len(before)] == before
    assert steps_of(rows) == list(range(200, steps + 1, 200))


def test_a_run_is_trained_by_one_process(places: Places) -> None:
    run = make_run()
    with checkpoints.lock(places.checkpoints(run)) as is_free:
        assert is_free
        training.train(run, places)
    assert records.read(places.rows(run)) == []


def test_rows_of_other_arguments_are_refused(places: Places) -> None:
    training.train(make_run(steps=200), places)
    with pytest.raises(ValueError, match="give the variant another name"):
        training.train(make_run(batch_size=8), places)


def test_a_failing_job_does_not_stop_the_others(tmp_path: Path) -> None:
    jobs = [(str(tmp_path / "no" / "folder"),), (str(tmp_path / "made"),)]
    assert pool.run_all(os.mkdir, jobs, workers=1) == {0: 1}
    assert (tmp_path / "made").exists()


def test_a_killed_job_does_not_stop_the_others() -> None:
    assert pool.run_all(signal.raise_signal, [(signal.SIGKILL,), (0,)], workers=1) == {0: -9}


def test_seed_0_of_everything_comes_first(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Run] = []
    monkeypatch.setattr(
        learning, "run_all", lambda _, jobs, workers: started.extend(job[0] for job in jobs) or {}
    )
    learning.run_suites({name: SUITES[name] for name in ("development", "figure3")}, places, 2)
    seeds = [run.seed for run in started]
    assert seeds == sorted(seeds)
    assert len(started) == 6 * 2 * 3 + 3 * 15 * 3
    assert {run.suite for run in started[:60]} == {"development", "figure3"}


def test_a_suite_is_narrowed_and_widened() -> None:
    suite = SUITES["ablation"].with_variants({"PMPO-x": {"gamma": 0.9}})
    suite = suite.only(algorithms=["PMPO-x"], tasks=None, seeds=[0])
    assert [run.name for run in suite.runs("x")] == [f"PMPO-x__{task}__0" for task in suite.tasks]
    with pytest.raises(ValueError, match="add it with --variant"):
        SUITES["development"].only(algorithms=["PMPO-x"])


@pytest.mark.filterwarnings("ignore:beta=")  # figure 3 sweeps through what is unstable
@pytest.mark.parametrize("name", sorted(SUITES))
def test_the_arguments_of_every_suite_make_a_model(name: str) -> None:
    for algorithm, arguments in SUITES[name].algorithms.items():
        arguments = json.loads(json.dumps(arguments)) | {"buffer_size": 10}
        models.make_model(algorithm, "none", "Pendulum-v1", 0, arguments)


def test_a_variant_gets_its_arguments() -> None:
    arguments = {"n_samples": 4, "labeller": "top_k(2)", "beta": [1, 5], "buffer_size": 9}
    model = models.make_model("PMPO-S4", "none", "Pendulum-v1", 0, arguments)
    assert (model.n_samples, model.labeller, model.beta) == (4, top_k(2), (1, 5))


def test_flops_are_those_of_the_matrix_products() -> None:
    # 24 -> 256 -> 256 -> 12 on 10 rows: a multiply and an add for each weight and row.
    assert throughput.mlp_flops(24, 12, 10) == 2 * 10 * (24 * 256 + 256 * 256 + 256 * 12)
