"""Checkpoints of runs: one unit for every algorithm, and the callback that writes it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.files import WRITING, clear_unfinished, copy_whole
from sb3_pmpo.online.persistence import Persistent
from sb3_pmpo.replay import close_open_episodes
from sb3_pmpo.storage import vec_env_state
from sb3_pmpo.storage.buffers import load_buffer
from sb3_pmpo.storage.checkpoints import (
    Checkpoint,
    find_checkpoint,
    read_state,
    tidy,
    write_checkpoint,
)
from sb3_pmpo.tools.evaluation import Evaluation
from sb3_pmpo.tools.loading import load_model
from sb3_pmpo.tools.saving import save_model

#: Where in a run's folder its checkpoint is.
UNIT = "checkpoint"

#: What a checkpoint calls the counters and results.
_PROGRESS = "progress.json"


@contextmanager
def lock(folder: Path, patience: float = 0.0) -> Iterator[bool]:
    """Hold a run's folder, so that no two processes train the run; it ends with the process.

    Where the body fails, the lock goes, and the folder with it unless something is in it.

    :param patience: seconds to wait for another process to leave it.
    :return: whether the folder was free.
    """
    path, end = folder / "lock", time.monotonic() + patience
    made = [each for each in (path, *path.parents) if not each.exists()]
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            if _hold(file, path):
                try:
                    yield True
                except BaseException:
                    for each in made:
                        with suppress(OSError):  # others' files are in it
                            each.unlink() if each == path else each.rmdir()
                    raise
                return
        if time.monotonic() >= end:
            yield False
            return
        time.sleep(0.2)


def _hold(file: TextIO, path: Path) -> bool:
    """Take the lock, unless another has it, or had it and removed the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system of a cluster that has no locks
        return True
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------------- the unit


def find(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run.

    :param folder: the run's.
    :raises ValueError: if what is there is none.
    """
    return find_checkpoint(folder / UNIT) or _of_0_1(folder)


def _of_0_1(folder: Path) -> Checkpoint | None:
    """Return the checkpoint of a sweep that version 0.1 began: a folder of its own."""
    found = _folders_of_0_1(folder)
    if not found:
        return None
    last = max(found, key=_steps)
    parts = {"model.zip": "model", "replay_buffer.pkl": "buffer"}
    files = {parts.get(path.name, path.name): path.name for path in last.iterdir()}
    return Checkpoint(last, _steps(last), files, [])


def _folders_of_0_1(folder: Path) -> list[Path]:
    """Return what is a checkpoint of 0.1; another folder of that name is somebody's own."""
    return [
        path
        for path in folder.glob("checkpoint_*")
        if path.name.removeprefix("checkpoint_").isdecimal()
        and not path.is_symlink()
        and (path / _PROGRESS).is_file()
    ]


def _state_of_0_1(found: Checkpoint) -> dict[str, Any]:
    return {"buffer": load_buffer(found.path("buffer"))} if "buffer" in found.files else {}


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("_")[2])


def save(model: BaseAlgorithm, folder: Path, files: dict[str, Path]) -> None:
    """Write a checkpoint in the place of the one before, between rollouts.

    :param model: one of ours with all that it goes on from, bit for bit; one of SB3's with its
        replay buffer and VecNormalize's statistics.
    :param folder: the checkpoint's.
    :param files: more of the run that must agree with it, by name.
    """
    if isinstance(model, Persistent):
        model.save_checkpoint(folder, files=files)
        return
    normaliser = model.get_vec_normalize_env()
    write_checkpoint(
        folder,
        model.num_timesteps,
        write_model=partial(save_model, model),
        buffer=getattr(model, "replay_buffer", None),
        items={"normaliser": normaliser and vec_env_state.normaliser_state(normaliser)},
        files=files,
    )


def load(
    algorithm: type[BaseAlgorithm], found: Checkpoint, env: Any, seed: int, **arguments: Any
) -> BaseAlgorithm:
    """Load a checkpoint: ours go on where they were, SB3's begin new episodes.

    :param algorithm: the class.
    :param found: the checkpoint.
    :param env: made as the one that it was saved with.
    :param seed: of what begins anew, for SB3's: with the run's, its first episodes came again.
    :param arguments: of ``algorithm.load``.
    :raises UntrustedFileError: for a pickle that is neither this user's nor harmless.
    """
    if issubclass(algorithm, Persistent) and "state" in found.files:
        return algorithm.load_checkpoint(found.folder, env, **arguments)
    model = load_model(algorithm, found.path("model"), env=env, seed=seed, **arguments)
    state = read_state(found) if "state" in found.files else _state_of_0_1(found)
    buffer = state.get("buffer")
    if buffer is not None:
        if isinstance(buffer, HerReplayBuffer):
            buffer.env = model.env
        buffer.device = model.device
        close_open_episodes(buffer)
        model.replay_buffer = buffer  # type: ignore[attr-defined]  # an off-policy one has it
    normaliser = model.get_vec_normalize_env()
    if normaliser is not None and state.get("normaliser") is not None:
        vec_env_state.set_normaliser_state(normaliser, state["normaliser"])
    return model


# ---------------------------------------------------------------------- the callback


class Checkpoints(BaseCallback):
    """Save checkpoints with results, counters and what else of a run agrees with the model.

    SB3's CheckpointCallback writes one file after the other, in the middle of a step: the counter
    has that step and the buffer has not. This one saves between rollouts, one unit.

    :param folder: the run's.
    :param save_freq: steps between checkpoints.
    :param evaluation: whose results belong to the checkpoint.
    :param files: paths in the run's folder that belong to it, no two of one name.
    """

    #: Callbacks that come first.
    before: Sequence[BaseCallback] = ()

    def __init__(
        self,
        folder: Path,
        save_freq: int,
        evaluation: Evaluation | None = None,
        files: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._folder, self._save_freq = folder, save_freq
        self._evaluation, self._files = evaluation, files
        self._saved = 0

    def started(self) -> None:
        """Begin, or go on after a checkpoint was loaded."""

    def measure(self) -> None:
        """Measure what a checkpoint shall have."""

    def state(self) -> dict[str, Any]:
        """Return the counters and results beside the files, as JSON can hold them."""
        return {} if self._evaluation is None else self._evaluation.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them from a checkpoint; the files are in the run's folder already."""
        if self._evaluation is not None and "n_calls" in state:
            self._evaluation.load_state(state)

    def saved(self) -> None:
        """Go on: the checkpoint is written."""

    def restore(self, found: Checkpoint | None) -> None:
        """Put the results of a checkpoint in place of those of a killed process."""
        for name in self._files:
            target = self._folder / name
            if found is not None and target.name in found.files:
                copy_whole(found.path(target.name), target)
            else:
                target.unlink(missing_ok=True)
        if found is not None and _PROGRESS in found.files:
            path = found.path(_PROGRESS)
            try:
                self.load_state(json.loads(path.read_text()))
            except ValueError as error:
                raise ValueError(f"{path} is damaged: {error}") from error

    def _on_training_start(self) -> None:
        self._saved = self.model.num_timesteps
        self.started()

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps // self._save_freq > self._saved // self._save_freq:
            self.save()

    def _on_step(self) -> bool:
        return True

    def save(self) -> None:
        """Measure, then write a checkpoint in the place of the one before."""
        self.measure()
        self._saved = self.model.num_timesteps
        paths = [self._folder / name for name in self._files]
        files = {path.name: path for path in paths if path.exists()}
        with TemporaryDirectory(dir=self._folder, prefix=WRITING) as aside:
            files[_PROGRESS] = Path(aside, _PROGRESS)
            progress = {"steps": self._saved} | self.state()
            files[_PROGRESS].write_text(json.dumps(progress, default=float) + "\n")
            save(self.model, self._folder / UNIT, files)
        for old in _folders_of_0_1(self._folder):
            shutil.rmtree(old)
        self.saved()


def clean(folder: Path) -> None:
    """Delete what killed processes were writing in the folder of a run."""
    for each in (folder, *(path for path in folder.glob("*") if path.is_dir())):
        clear_unfinished(each)
    if (folder / UNIT).is_dir():
        tidy(folder / UNIT)


def forget(folder: Path) -> None:
    """Delete the checkpoint of a run that is finished."""
    for path in (folder / UNIT, *_folders_of_0_1(folder)):
        if path.is_dir():
            shutil.rmtree(path)
