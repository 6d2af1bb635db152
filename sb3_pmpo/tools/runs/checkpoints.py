"""Checkpoints that a kill at any moment leaves whole: model, replay buffer, counters, results."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.files import clear_unfinished, copy_whole, whole
from sb3_pmpo.replay import close_open_episodes
from sb3_pmpo.storage import buffers


@contextmanager
def lock(folder: Path, patience: float = 0.0) -> Iterator[bool]:
    """Hold a run's folder, so that no two processes train the run; it ends with the process.

    :param patience: seconds to wait for another process to leave it.
    :return: whether the folder was free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    with (folder / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    yield False
                    return
                time.sleep(0.2)
                continue
            except OSError:  # a file system of a cluster that has no locks
                pass
            yield True
            return


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints in the folder of a run, the newest last.

    A kill while old ones are deleted leaves parts of them, but never of the newest.
    """
    return sorted(folder.glob("checkpoint_*"), key=steps_of)


def steps_of(checkpoint: Path) -> int:
    """Return the decisions that were made until a checkpoint."""
    return int(checkpoint.name.split("_")[1])


class Checkpoint(BaseCallback):
    """Save model, replay buffer, counters and results together, so that a kill never parts them.

    SB3's CheckpointCallback writes one file after the other, in the middle of a step: the counter
    has that step and the buffer has not. This one saves between rollouts, into a folder that gets
    its name once it is complete; then the one before is deleted. A subclass says what has been
    measured so far, which has to agree with the model that a resumed run goes on from.

    :param folder: the run's.
    :param save_freq: steps between checkpoints.
    """

    #: Files of results in the run's folder.
    files: tuple[str, ...] = ()
    #: Callbacks that come first.
    before: Sequence[BaseCallback] = ()

    def __init__(self, folder: Path, save_freq: int) -> None:
        super().__init__()
        self._folder, self._save_freq = folder, save_freq
        self._saved = 0

    def started(self) -> None:
        """Begin, or go on after a checkpoint was loaded."""

    def measure(self) -> None:
        """Measure what a checkpoint shall have."""

    def state(self) -> dict[str, Any]:
        """Return the counters and results beside the files, as JSON can hold them."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them from a checkpoint; the files are in the run's folder already."""

    def saved(self) -> None:
        """Go on: the checkpoint is written."""

    def restore(self, checkpoint: Path | None) -> None:
        """Put the results of a checkpoint in place of what a killed process left."""
        clear_unfinished(self._folder)
        for name in self.files:
            if checkpoint is not None and (checkpoint / name).exists():
                copy_whole(checkpoint / name, self._folder / name)
            else:
                (self._folder / name).unlink(missing_ok=True)
        if checkpoint is not None:
            self.load_state(json.loads((checkpoint / "progress.json").read_text()))

    def _on_training_start(self) -> None:
        self._saved = self.model.num_timesteps
        self.started()

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps // self._save_freq > self._saved // self._save_freq:
            self.save()

    def _on_step(self) -> bool:
        return True

    def save(self) -> None:
        """Measure, write a new checkpoint, give it its name, then delete the one before."""
        self.measure()
        self._saved = self.model.num_timesteps
        target = self._folder / f"checkpoint_{self._saved}"
        with whole(target) as writing:
            writing.mkdir()
            self.model.save(writing / "model.zip")
            save_buffer(writing / "replay_buffer.pkl", self.model)
            for name in self.files:
                if (self._folder / name).exists():
                    shutil.copyfile(self._folder / name, writing / name)
            progress = {"steps": self._saved} | self.state()
            (writing / "progress.json").write_text(json.dumps(progress, default=float) + "\n")
        for old in checkpoints(self._folder)[:-1]:
            shutil.rmtree(old)
        self.saved()


# ---------------------------------------------------------------------- replay buffers


def save_buffer(path: Path, model: BaseAlgorithm) -> None:
    """Save the filled part of a model's replay buffer as data, if it has one."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        buffers.save_buffer(buffer, path)


def load_buffer(path: Path, model: BaseAlgorithm) -> None:
    """Give a new model the replay buffer that was saved; the episode that was open ends there.

    A resumed run begins with new episodes. Without an end, returns of several steps, and goals
    taken in hindsight, would reach from one episode into another.
    """
    if getattr(model, "replay_buffer", None) is None:
        return
    buffer = buffers.load_buffer(path)
    if isinstance(buffer, HerReplayBuffer):
        buffer.env = model.env
    buffer.device = model.device
    close_open_episodes(buffer)
    model.replay_buffer = buffer  # type: ignore[attr-defined]  # an off-policy one has it
