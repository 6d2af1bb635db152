"""Sweeps: what a spec may say, runs that are killed and go on, processes and a Ray cluster."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forked import Forked, program
from stable_baselines3.common.utils import set_random_seed

from sb3_pmpo import PMPO, top_k
from sb3_pmpo.storage.checkpoints import MANIFEST
from sb3_pmpo.tools.checkpoints import UNIT, find
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.runs.spec import Spec, plan_runs
from sb3_pmpo.tools.runs.sweep import Run, algorithms, execute

TESTS = Path(__file__).parent
SMALL = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 8, "learning_starts": 10}


@pytest.fixture(autouse=True)
def _children_find_the_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)


def write_spec(folder: Path, **changes: Any) -> Path:
    content = {
        "algorithms": ["pmpo", "sac"],
        "tasks": ["worker_toys:Toy-v0"],
        "seeds": [0, 1],
        "n_timesteps": 60,
        "eval_freq": 20,
        "save_freq": 20,
        "eval_episodes": 1,
        "hyperparams": SMALL,
        "log_folder": str(folder / "runs"),
    }
    path = folder / "spec.yml"
    path.write_text(yaml.safe_dump({k: v for k, v in (content | changes).items() if v is not None}))
    return path


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs" / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- what a spec may say


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithms": ["pmpoo"]}, "did you mean pmpo"),
        ({"seeds": []}, "seeds must be a list of whole numbers, not empty"),
        ({"seeds": [0, 0]}, "0 more than once"),
        ({"seeds": [-1]}, "seeds must be >= 0, got -1"),
        ({"tasks": ["Pendulm-v1"]}, "Pendulum-v1"),
        ({"tasks": ["no_such_module:Toy-v0"]}, "no_such_module"),
        ({"n_timesteps": 0}, "n_timesteps must be a whole number >= 1, got 0"),
        ({"hyperparams": {"batchsize": 8}}, "did you mean batch_size"),
        ({"hyperparams": {"seed": 8}}, "given by the sweep itself"),
        ({"hyperparams": {"learning_rate": "3e-4"}}, "write 3.0e-04"),
        ({"algorithm_hyperparams": {"ppo": {}}}, "got 'ppo'"),
        ({"hyperparams": {"gamma": 3.0}}, "gamma must be a number >= 0.0 and <= 1.0, got 3.0"),
        ({"hyperparams": {"policy_kwargs": "dict(n_bins=open)"}}, "'open' is not known here"),
        ({"algorithm_hyperparams": {"pmpo": {"labeller": "top_q(2)"}}}, "did you mean top_k"),
        ({"algorithms": ["dqn"]}, "dqn on worker_toys:Toy-v0"),
        ({"worker": 3}, "a key of the spec must be one of"),
        ({"tasks": None}, "the spec must have tasks"),
    ],
)
def test_a_bad_spec_is_refused_before_anything_starts(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", str(write_spec(tmp_path, **changes))])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_settings_come_from_the_configuration_and_the_spec(tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path,
        algorithms=["pmpo", "sac"],
        tasks=["dm_control/walker-walk-v0"],
        n_timesteps=None,
        hyperparams={"gamma": 0.9},
        algorithm_hyperparams={"pmpo": {"labeller": "top_k(2)", "gamma": 0.8}},
    )
    pmpo, _, sac, _ = plan_runs(Spec.read(spec))
    assert pmpo.n_timesteps == sac.n_timesteps == 50_000
    assert pmpo.env_wrapper == sac.env_wrapper
    assert pmpo.env_wrapper
    assert pmpo.hyperparameters["learning_starts"] == 1000
    assert pmpo.hyperparameters["gamma"] == 0.8
    assert sac.hyperparameters == {"gamma": 0.9}  # its own defaults otherwise
    assert pmpo.folder == tmp_path / "runs/pmpo/dm_control-walker-walk-v0_seed0"


# ---------------------------------------------------------------------- runs


def make_run(folder: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {
        "algorithm": "pmpo",
        "env": "worker_toys:Toy-v0",
        "seed": 0,
        "folder": folder,
        "policy": "MlpPolicy",
        "env_wrapper": [],
        "n_timesteps": 60,
        "eval_freq": 20,
        "save_freq": 20,
        "eval_episodes": 1,
        "hyperparameters": SMALL | {"labeller": "top_k(3)"},
    }
    return Run(**settings | changes)


def test_a_run_leaves_model_curve_and_result(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    execute(run)
    result = run.result()
    assert (result.status, result.steps) == ("finished", 60)
    model = PMPO.load(run.folder / "model.zip")
    assert model.labeller == top_k(3)
    with np.load(run.folder / "evaluations.npz") as saved:
        assert saved["timesteps"].tolist() == [20, 40, 60]
        assert result.last == saved["results"][-1].mean()
    assert find(run.folder) is None
    assert not (run.folder / UNIT).exists()
    stamp = (run.folder / "model.zip").stat().st_mtime_ns
    execute(run)  # it is finished: nothing happens
    assert (run.folder / "model.zip").stat().st_mtime_ns == stamp


def test_a_failing_run_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", hyperparameters={"gamma": 3.0})
    execute(run)
    assert run.result().status == "failed"
    assert "gamma must be" in (tmp_path / "run" / "error.txt").read_text()
    execute(make_run(tmp_path / "run"))  # it is tried again, with what was mended
    assert not (tmp_path / "run" / "error.txt").exists()


def test_a_run_that_exits_without_an_error_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(job: Any) -> None:
        sys.exit(0)

    monkeypatch.setattr("sb3_pmpo.tools.runs.sweep.train", leave)
    run = make_run(tmp_path / "run")
    execute(run)
    assert run.result().status == "failed"
    assert "SystemExit: 0" in (run.folder / "error.txt").read_text()
    pool = "sb3_pmpo.tools.runs.program.run_locally"  # os._exit(0) leaves nobody to say so
    monkeypatch.setattr(pool, lambda _, runs, workers: ((run, None) for run in runs))
    spec = write_spec(tmp_path, algorithms=["pmpo"], seeds=[0])
    assert main(["sweep", str(spec)]) == 1
    (row,) = read_table(tmp_path)
    assert row["status"] == "failed"


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    execute(make_run(tmp_path / "run"))
    make_run(tmp_path / "run").check_folder()
    with pytest.raises(ValueError, match=r"n_timesteps \(was 60, is 80\)"):
        make_run(tmp_path / "run", n_timesteps=80).check_folder()


def test_the_zoos_algorithms_are_known() -> None:
    assert {"pmpo", "mpo", "dpo", "sac", "tqc", "dqn"} <= algorithms().keys()


# ---------------------------------------------------------------------- on this machine


def test_a_sweep_runs_everything_and_only_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A step size that no check refuses and no network survives.
    spec = write_spec(tmp_path, algorithm_hyperparams={"sac": {"learning_rate": 1e30}}, seeds=[0])
    assert main(["sweep", str(spec), "--workers", "2"]) == 1
    printed = capsys.readouterr().out
    assert "2 runs: 0 already finished, 0 to resume, 2 to begin" in printed
    rows = {row["algorithm"]: row for row in read_table(tmp_path)}
    assert rows["pmpo"]["status"] == "finished"
    assert float(rows["pmpo"]["last_return"]) <= 10.0
    assert rows["sac"]["status"] == "failed"
    assert f"see {tmp_path}/runs/sac/worker_toys-Toy-v0_seed0/error.txt" in printed
    assert main(["sweep", str(write_spec(tmp_path, algorithms=["pmpo"], seeds=[0]))]) == 0
    assert "1 runs: 1 already finished" in capsys.readouterr().out


def wait_for(folder: Path, pattern: str, process: Forked | subprocess.Popen) -> Path:
    for _ in range(4800):  # four minutes: a busy machine starts Ray's workers slowly
        found = sorted(folder.rglob(pattern))
        if found:
            return found[0]
        assert process.poll() is None, (folder / "printed.log").read_text()
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {folder}")


def test_a_sweep_that_is_interrupted_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path, algorithms=["pmpo"], seeds=[0], tasks=["worker_toys:SlowToy-v0"], n_timesteps=100
    )
    process = program(tmp_path / "printed.log", "sweep", str(spec))
    wait_for(tmp_path, MANIFEST, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130, process.printed()
    assert read_table(tmp_path)[0]["status"] == "unfinished"
    (folder,) = (tmp_path / "runs" / "pmpo").iterdir()
    done = find(folder).step
    assert done >= 20
    assert main(["sweep", str(spec)]) == 0
    assert f"from step {done} " in (folder / "log.txt").read_text()
    model = PMPO.load(folder / "model.zip")
    assert model.num_timesteps == 100
    # Updates at every step but for the warm-up, of which there was one.
    assert model._n_updates == pytest.approx(model.gradient_steps * 90, abs=8)
    with np.load(folder / "evaluations.npz") as saved:
        assert saved["timesteps"].tolist() == list(range(20, 101, 20))


# ---------------------------------------------------------------------- on a cluster


def test_a_cluster_that_loses_a_node_finishes_every_run(tmp_path: Path) -> None:
    """Two nodes of one core; the one without the driver dies with a run on it."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    set_random_seed(0)
    node = {"num_cpus": 1, "object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    other = cluster.add_node(**node)
    spec = write_spec(
        tmp_path, algorithms=["pmpo"], tasks=["worker_toys:SlowestToy-v0"], n_timesteps=80,
        eval_freq=80, save_freq=5,
    )  # fmt: skip
    command = [sys.executable, "-m", "sb3_pmpo", "sweep", spec, "--ray-address", cluster.address]
    log = (tmp_path / "printed.log").open("w")  # not forked, which Ray does not survive
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        checkpoint_of = {
            seed: wait_for(tmp_path, f"*_seed{seed}/{UNIT}/{MANIFEST}", process) for seed in (0, 1)
        }
        on_other = [
            int(path.parents[1].name[-1])
            for path in checkpoint_of.values()
            if _parents(_process_of(path.parents[1] / "log.txt")) & _processes(other)
        ]
        assert len(on_other) == 1  # one run on each node
        cluster.remove_node(other, allow_graceful=False)
        status = process.wait(timeout=600)  # Ray is slow on a busy machine
        assert status == 0, (tmp_path / "printed.log").read_text()
    finally:
        process.kill()
        process.wait()
        log.close()
        ray.shutdown()
        cluster.shutdown()
    assert {row["status"] for row in read_table(tmp_path)} == {"finished"}
    for seed in (0, 1):
        folder = next((tmp_path / "runs" / "pmpo").glob(f"*_seed{seed}"))
        starts = [
            int(line.split("from step ")[1].split()[0])
            for line in (folder / "log.txt").read_text().splitlines()
        ]
        assert starts[0] == 0
        # Only the lost run began again, and not at its beginning.
        assert (len(starts) > 1) == (seed in on_other)
        assert all(step >= 5 for step in starts[1:])
        assert PMPO.load(folder / "model.zip").num_timesteps == 80


def _process_of(log: Path) -> int:
    return int(log.read_text().rsplit("process ", 1)[1])


def _parents(process: int) -> set[int]:
    found = set()
    while process > 1:
        found.add(process)
        status = Path(f"/proc/{process}/stat").read_text()
        process = int(status.rpartition(")")[2].split()[1])
    return found


def _processes(node: Any) -> set[int]:
    return {info.process.pid for infos in node.all_processes.values() for info in infos}


def test_a_table_of_somebody_elses_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(tmp_path, algorithms=["pmpo"], seeds=[0])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sweep.csv").write_text("my,own,table\n")
    with pytest.raises(SystemExit):
        main(["sweep", str(spec)])
    assert "this command did not write it" in capsys.readouterr().err
    assert (tmp_path / "runs" / "sweep.csv").read_text() == "my,own,table\n"
