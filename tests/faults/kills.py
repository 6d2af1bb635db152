"""Kill -9 of train, of a sweep's run and of tune: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import worker_toys  # noqa: F401  # registers Toy-v0, and how its state is told
from optuna.trial import TrialState

from sb3_pmpo import PMPO
from sb3_pmpo.files import WRITING
from sb3_pmpo.tools.checkpoints import find
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.curves import load_episodes
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.runs.sweep import Run, execute
from sb3_pmpo.tools.zoo.found import is_archive
from sb3_pmpo.tools.zoo.study import open_storage

from . import processes
from .processes import Job

SMALL = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 8, "learning_starts": 10}
SMALL |= {"gradient_steps": 1}
ENV = "Toy-v0"


class Program(ABC):
    """A program that is killed and called again.

    :param folder: where it works.
    :param steps: of its training.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.log = folder.with_name(f"{folder.name}.log")
        self.begin()

    def begin(self) -> None:
        """Forget all that was done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    @abstractmethod
    def job(self) -> Job:
        """Return what begins, or goes on from what is there."""

    @abstractmethod
    def progress(self) -> int:
        """Check that what is there is whole; return how far it has come, which must not fall."""

    @abstractmethod
    def result(self) -> Any:
        """Return what the finished program leaves, to be compared."""


class Trained(Program):
    """What train and sweeps share: a run's folder."""

    run: Path | None

    def progress(self) -> int:
        if self.run is None or not self.run.exists():
            return 0
        check_files(self.run)
        found = find(self.run)
        if found is None:
            return 0
        missing = [name for name in found.files.values() if not (found.folder / name).exists()]
        assert not missing, missing
        steps = json.loads(found.path("progress.json").read_text())["steps"]
        assert steps == found.step
        return int(steps)

    def _learned(self, model: Path) -> dict[str, Any]:
        loaded = PMPO.load(model, device="cpu")
        weights = {key: value.numpy() for key, value in loaded.policy.state_dict().items()}
        assert self.run is not None
        with np.load(self.run / "evaluations.npz") as saved:
            results = {f"evaluations {name}": saved[name] for name in saved.files}
        assert not list(self.run.rglob(f"{WRITING}*")), "what was unfinished is still there"
        return weights | results | {"updates": np.array(loaded.n_updates)}


class Train(Trained):
    """``sb3-pmpo train``, then ``train -i`` in the folder of its run."""

    @property
    def run(self) -> Path | None:  # type: ignore[override]  # it is made while the program runs
        return self.folder / "pmpo" / f"{ENV}_1"

    def job(self) -> Job:
        assert self.run is not None
        if (self.run / "checkpoint" / "checkpoint.json").exists():
            return lambda: main(["train", "-i", str(self.run)])
        self.begin()
        given = [
            "train",
            "--env",
            ENV,
            "-f",
            str(self.folder),
            "-n",
            str(self.steps),
            "--seed",
            "3",
        ]
        given += ["--save-freq", "20", "--eval-freq", "30", "--eval-episodes", "1"]
        given += ["-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:8"]
        given += ["learning_starts:10", "gradient_steps:1", "normalize:True"]
        return lambda: main(given)

    def result(self) -> dict[str, Any]:
        assert self.run is not None
        episodes = load_episodes(self.run)
        found = {"returns": episodes.r.to_numpy(), "lengths": episodes.l.to_numpy()}
        return found | self._learned(self.run / f"{ENV}.zip")


class Sweep(Trained):
    """A run of ``sb3-pmpo sweep``, as its process executes it."""

    @property
    def run(self) -> Path | None:  # type: ignore[override]  # as above
        return self.folder / "run"

    def _spec(self) -> Run:
        assert self.run is not None
        return Run(
            algorithm="pmpo", env=f"worker_toys:{ENV}", seed=3, folder=self.run,
            policy="MlpPolicy", env_wrapper=[], n_timesteps=self.steps, eval_freq=30, save_freq=20,
            eval_episodes=1, hyperparameters=SMALL,
        )  # fmt: skip

    def job(self) -> Job:
        return lambda: execute(self._spec())

    def progress(self) -> int:
        assert self.run is not None
        error = self.run / "error.txt"
        assert not error.exists(), error.read_text()
        if self._spec().result().status == "finished":
            return self.steps
        return super().progress()

    def result(self) -> dict[str, Any]:
        assert self.run is not None
        assert self._spec().result().status == "finished"
        return self._learned(self.run / "model.zip")


class Tune(Program):
    """``sb3-pmpo tune`` with a journal file; ``steps`` are its trials."""

    @property
    def _journal(self) -> Path:
        return self.folder / "study.log"

    def job(self) -> Job:
        conf = self.folder / "settings.yml"
        conf.write_text(f"{ENV}: {{n_timesteps: 30, policy: MlpPolicy, learning_starts: 20}}\n")
        given = ["tune", "--env", ENV, "-n", "30", "--n-evaluations", "1", "--eval-episodes", "1"]
        given += ["--n-startup-trials", "99", "--seed", "1", "--pruner", "none", "--no-optim-plots"]
        given += ["--conf-file", str(conf), "--storage", str(self._journal), "--study-name", "s"]
        given += ["--max-total-trials", str(self.steps), "--beat", "0.1", "--grace", "0.5"]
        given += ["-f", str(self.folder)]
        return lambda: main(given)

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        if not self._journal.exists() or not self._journal.stat().st_size:
            return []
        storage = open_storage(str(self._journal))
        assert not isinstance(storage, str)
        names = optuna.get_all_study_names(storage)  # type: ignore[arg-type]  # not None
        return optuna.load_study(study_name="s", storage=storage).trials if names else []

    def progress(self) -> int:
        trials = self._trials()
        known = {trial.number: trial for trial in trials}
        for trial in trials:  # a trial that was taken up again is counted once
            before = known.get(trial.user_attrs.get("retried_from", -1))
            assert before is None or before.state is TrialState.FAIL
        return sum(trial.state is TrialState.COMPLETE for trial in trials)

    def result(self) -> dict[str, Any]:
        trials = self._trials()
        counted = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        running = [t for t in trials if t.state is TrialState.RUNNING]
        return {"counted": np.array(len(counted)), "running": np.array(len(running))}


def check_files(folder: Path) -> None:
    """Check that each file of a run that has its name is whole."""
    for path in folder.rglob("*"):
        if not path.is_file() or any(part.startswith(WRITING) for part in path.parts):
            continue
        if path.parent.name == "checkpoint" and path.name != "checkpoint.json":
            continue  # what it names is checked by those who find it
        if path.suffix in (".zip", ".npz"):
            assert is_archive(path), f"{path} is torn"
        elif path.suffix == ".yml":
            assert read(path), path
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pkl":
            assert path.read_bytes().endswith(b"."), f"{path} is torn"


def once(program: Program) -> tuple[Any, float]:
    """Run a program in one go; return what it leaves, and how long that takes once more.

    The first time is in this process, whose children then need not import anything.
    """
    with program.log.open("w") as log, contextlib.redirect_stdout(log):
        program.job()()
    expected = program.result()
    program.begin()
    started = time.monotonic()
    assert_same(expected, finish(program))
    return expected, time.monotonic() - started


def finish(program: Program) -> Any:
    """Let a program come to its end, and return what it leaves."""
    status = processes.run(program.job(), program.log)
    assert status == 0, program.log.read_text()[-3000:]
    return program.result()


def assert_same(expected: Any, found: Any) -> None:
    """Compare two results bit for bit."""
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)


def kill_at_random(program: Program, kills: int, seed: int = 0) -> str:
    """Kill a program at random moments, call it again each time, and compare its ends.

    :param kills: how often.
    :param seed: of the moments.
    :return: what happened, in words.
    """
    expected, seconds = once(program)
    longest = 0.7 * seconds
    program.begin()
    moments, done, ends, before, went_on = random.Random(seed), 0, 0, 0, 0
    while done < kills:
        moment = moments.uniform(0.0, longest)
        status = processes.killed_after(moment, program.job(), program.log)
        if status == 0:  # it was faster
            assert_same(expected, program.result())
            program.begin()
            ends, before = ends + 1, 0
            continue
        assert status == -9, program.log.read_text()[-3000:]
        done += 1
        progress = program.progress()
        assert progress >= before, f"from {before} back to {progress}"
        went_on, before = went_on + (progress > before), progress
    assert_same(expected, finish(program))
    return f"{done} kills, {went_on} of them after new progress; {ends + 1} ends, all equal"


def kill_at_writes(program: Program, each: int, most: int | None = None, seed: int = 0) -> str:
    """Kill a program at writes of each kind, and let it finish.

    :param each: kills at writes of one kind: the first one, and others.
    :param most: kills in all.
    :param seed: of those that are chosen.
    :return: what happened, in words.
    """
    expected, _ = once(program)
    program.begin()
    writes = processes.writes_of(program.job(), program.folder, program.log)
    of_kind: dict[str, list[int]] = {}
    for number, kind in enumerate(writes):
        of_kind.setdefault(kind, []).append(number)
    chance = random.Random(seed)
    chosen = [
        number
        for numbers in of_kind.values()
        for number in [numbers[0], *chance.sample(numbers[1:], min(each, len(numbers)) - 1)]
    ]
    chosen = chosen if most is None else chance.sample(chosen, most)
    for number in chosen:
        program.begin()
        status = processes.killed_at_write(number, program.folder, program.job(), program.log)
        assert status in (0, -9), program.log.read_text()[-3000:]
        program.progress()
        assert_same(expected, finish(program))
    return f"killed at {len(chosen)} writes of {len(of_kind)} kinds; all ends equal"
