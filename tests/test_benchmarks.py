"""The benchmark harness: runs that resume, rows with their provenance, failures that stay alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks import learning, models, records, throughput, training
from benchmarks.records import Places
from benchmarks.suites import SUITES, Run, Suite
from sb3_pmpo import PMPO, top_k
from sb3_pmpo.tools import checkpoints
from sb3_pmpo.tools.runs import pool

SMALL = {
    "policy_kwargs": {"net_arch": [8]}, "learning_starts": 50, "buffer_size": 1000,
    "batch_size": 16, "gradient_steps": 1,
}  # fmt: skip


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "results", tmp_path / "state")


def make_run(algorithm: str = "PMPO-small", steps: int = 600, **arguments: Any) -> Run:
    # An interval of 200 environment steps is 100 decisions.
    return Run("small", algorithm, "Pendulum-v1", 3, SMALL | arguments, steps, 200, 1, 2)


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
    found = checkpoints.find(places.checkpoints(make_run()))
    env = models.make_task("Pendulum-v1", 2)
    model: Any = checkpoints.load(PMPO, found, env, 0)
    assert model.num_timesteps == 200
    assert model.replay_buffer.size() == 200
    assert model._n_updates == model.gradient_steps * (200 - 50)
    # No file of a run has the room for what is not there yet.
    assert sum(path.stat().st_size for path in found.folder.glob("*rows*")) < 30_000


def test_a_finished_run_is_not_run_again_in_a_fresh_clone(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(steps=200)
    training.train(run, places)
    shutil.rmtree(places.state)  # it is not in git
    rows = places.rows(run).read_bytes()
    started = []
    monkeypatch.setattr(learning, "run_locally", lambda _, jobs, __: started.extend(jobs) or [])
    suite = Suite(("Pendulum-v1",), {"PMPO-small": SMALL}, "PMPO-small", (3, 4), steps=200)
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


@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_algorithms_of_sb3_have_a_checkpoint_too(name: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"n_steps": 16, "batch_size": 16} if name == "PPO" else SMALL

    def envs() -> VecNormalize:
        return VecNormalize(make_vec_env("Pendulum-v1", 2))

    model = models.make_model(name, "Pendulum-v1", envs(), 0, arguments)
    saving = checkpoints.Checkpoints(tmp_path, 20)
    model.learn(40, callback=saving)
    found = checkpoints.find(tmp_path)
    assert found is not None
    assert found.step == (32 if name == "PPO" else 20)
    loaded: Any = checkpoints.load(type(model), found, envs(), seed=1, device="cpu")
    assert loaded.num_timesteps == found.step
    assert loaded.get_vec_normalize_env().obs_rms.count == pytest.approx(2 + found.step, abs=0.1)
    if name == "SAC":
        assert loaded.replay_buffer.pos == 10
        np.testing.assert_equal(loaded.replay_buffer.rewards[:10], model.replay_buffer.rewards[:10])
        assert loaded.replay_buffer.dones[9].all()  # the episodes that were open end
    loaded.learn(20, reset_num_timesteps=False)


def test_a_checkpoint_of_a_sweep_of_0_1_is_taken(tmp_path: Path) -> None:
    model = models.make_model("SAC", "Pendulum-v1", "Pendulum-v1", 0, SMALL)
    model.learn(20)
    for steps in (20, 40):
        old = tmp_path / f"checkpoint_{steps}"
        old.mkdir()
        model.save(old / "model.zip")
        model.save_replay_buffer(old / "replay_buffer.pkl")
        if steps == 20:  # the other is somebody's own folder, for all that one can tell
            (old / "progress.json").write_text('{"steps": 20}')
    found = checkpoints.find(tmp_path)
    assert found is not None
    assert found.step == 20
    loaded: Any = checkpoints.load(type(model), found, make_vec_env("Pendulum-v1"), seed=1)
    assert loaded.replay_buffer.size() == 20
    loaded.learn(20, callback=checkpoints.Checkpoints(tmp_path, 30), reset_num_timesteps=False)
    assert checkpoints.find(tmp_path).step == 30
    assert {path.name for path in tmp_path.iterdir()} == {checkpoints.UNIT, "checkpoint_40"}


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
    jobs = [str(tmp_path / "no" / "folder"), str(tmp_path / "made")]
    ended = [(jobs[0], "The process ended with exit code 1"), (jobs[1], None)]
    assert list(pool.run_locally(os.mkdir, jobs, workers=1)) == ended
    assert (tmp_path / "made").exists()


def test_a_killed_job_does_not_stop_the_others() -> None:
    jobs = [signal.SIGKILL, 0]
    ended = [(signal.SIGKILL, "The process was killed by SIGKILL"), (0, None)]
    assert list(pool.run_locally(signal.raise_signal, jobs, workers=1)) == ended


@pytest.mark.parametrize("algorithm", ["PMPO", "QR-DQN", "PPO"])
def test_any_gymnasium_id_is_a_task(algorithm: str, places: Places) -> None:
    run = Run("small", algorithm, "CartPole-v1", 0, {}, 100, 50, 1, 2, action_repeat=1)
    training.train(run, places)
    rows = records.read(places.rows(run))
    assert steps_of(rows) == ([100] if algorithm == "PPO" else [50, 100])  # a rollout of PPO's
    assert float(rows[-1]["return_mean"]) >= 8


@pytest.mark.parametrize(("algorithm", "flat"), [("PMPO", False), ("DQN", True)])
def test_actuators_become_choices(algorithm: str, flat: bool) -> None:
    env = models.make_task("ball_in_cup-catch@3", 2, algorithm)
    assert env.action_space == (spaces.Discrete(9) if flat else spaces.MultiDiscrete([3, 3]))
    chosen = env.action(5 if flat else np.array([1, 2]))  # 5 = 1 * 3 + 2
    np.testing.assert_array_equal(chosen, [0.0, 1.0])


def test_a_task_has_a_schedule_of_its_own() -> None:
    def schedules(suite: Suite) -> set[tuple[str, int, int]]:
        return {(run.task, run.action_repeat, run.steps) for run in suite.runs("discrete")}

    suite = SUITES["discrete"]
    assert ("MountainCar-v0", 1, 100_000) in schedules(suite)
    narrow = suite.only(tasks=["MountainCar-v0", "walker-walk"], steps=500)
    assert schedules(narrow) == {("MountainCar-v0", 1, 500), ("walker-walk", 2, 500)}


def test_seed_0_of_everything_comes_first(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Run] = []
    monkeypatch.setattr(
        learning, "run_locally", lambda _, jobs, __: started.extend(job[0] for job in jobs) or []
    )
    learning.run_suites({name: SUITES[name] for name in ("development", "figure3")}, places, 2)
    seeds = [run.seed for run in started]
    assert seeds == sorted(seeds)
    assert len(started) == 6 * 5 * 3 + 3 * 15 * 3
    assert {run.suite for run in started[:60]} == {"development", "figure3"}


def test_a_suite_is_narrowed_and_widened() -> None:
    suite = SUITES["ablation"].with_variants({"PMPO-x": {"gamma": 0.9}})
    suite = suite.only(algorithms=["PMPO-x"], tasks=None, seeds=[0])
    assert [run.name for run in suite.runs("x")] == [f"PMPO-x__{task}__0" for task in suite.tasks]
    with pytest.raises(ValueError, match="add it with --variant"):
        SUITES["development"].only(algorithms=["PMPO-x"])


@pytest.mark.filterwarnings("ignore:.*beta=")  # figure 3 sweeps through what is unstable
@pytest.mark.parametrize("name", sorted(SUITES.keys() - {"peers"}))
def test_the_arguments_of_every_suite_make_a_model(name: str) -> None:
    for algorithm, arguments in SUITES[name].algorithms.items():
        arguments = json.loads(json.dumps(arguments))
        if algorithm != "PPO":
            arguments |= {"buffer_size": 10}
        env = "CartPole-v1" if name == "discrete" else "Pendulum-v1"
        models.make_model(algorithm, "none", env, 0, arguments)


def test_peers_are_named_by_their_class() -> None:
    named = {algorithm: models.base_of(algorithm) for algorithm in SUITES["peers"].algorithms}
    assert named["SBX-SAC-SimBa"] == "SBX-SAC"
    assert named["TQC"] == "TQC"
    with pytest.raises(ValueError, match="'XYZ' must start with one of PMPO"):
        models.base_of("XYZ")


def test_a_variant_gets_its_arguments() -> None:
    arguments = {"n_samples": 4, "labeller": "top_k(2)", "beta": [1, 5], "buffer_size": 9}
    model = models.make_model("PMPO-S4", "none", "Pendulum-v1", 0, arguments)
    assert (model.n_samples, model.labeller, model.beta) == (4, top_k(2), (1, 5))


def test_flops_are_those_of_the_matrix_products() -> None:
    # 24 -> 256 -> 256 -> 12 on 10 rows: a multiply and an add for each weight and row.
    assert throughput.mlp_flops(24, 12, 10) == 2 * 10 * (24 * 256 + 256 * 256 + 256 * 12)
