"""Checkpoints that a kill at any moment leaves whole: model, replay buffer, counters, results."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.files import whole_file

#: Files of a run that must agree with the model it goes on from.
RESULTS = ("evaluations.npz", "best_model.zip")


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints in the folder of a run, the newest last.

    A kill while old ones are deleted leaves parts of them, but never of the newest.
    """
    return sorted(folder.glob("checkpoint_*"), key=lambda path: int(path.name.split("_")[1]))


def save_model(model: BaseAlgorithm, path: Path) -> None:
    """Save any of SB3's algorithms in one atomic step."""
    with whole_file(path, "zip") as file:
        model.save(file)


class SaveModel(BaseCallback):
    """Save the model when it is called, in one atomic step."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def _on_step(self) -> bool:
        save_model(self.model, self._path)
        return True


class Checkpoint(BaseCallback):
    """Save model, replay buffer, counters and results together, so that a kill never parts them.

    SB3's CheckpointCallback writes one file after the other, in the middle of a step: the counter
    has that step and the buffer has not. This one saves between rollouts, into a folder that gets
    its name once it is complete; then the one before is deleted.

    :param folder: the run's.
    :param save_freq: steps between checkpoints.
    :param evaluation: whose counter and results to save.
    """

    def __init__(self, folder: Path, save_freq: int, evaluation: EvalCallback) -> None:
        super().__init__()
        self._folder, self._save_freq, self._evaluation = folder, save_freq, evaluation
        self._saved = 0

    def _on_training_start(self) -> None:
        self._saved = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps // self._save_freq > self._saved // self._save_freq:
            self.save()

    def _on_step(self) -> bool:
        return True

    def save(self) -> None:
        """Write a new checkpoint, give it its name, then delete the one before."""
        self._saved = self.model.num_timesteps
        writing = _temporary(self._folder)
        writing.mkdir()
        self.model.save(writing / "model.zip")
        if isinstance(self.model, OffPolicyAlgorithm):
            self.model.save_replay_buffer(writing / "replay_buffer.pkl")
        for name in RESULTS:
            if (self._folder / name).exists():
                shutil.copyfile(self._folder / name, writing / name)
        progress = {"steps": self._saved, "evaluation_calls": self._evaluation.n_calls}
        (writing / "progress.json").write_text(json.dumps(progress) + "\n")
        to_disk(*writing.iterdir())
        os.replace(writing, self._folder / f"checkpoint_{self._saved}")
        for old in checkpoints(self._folder)[:-1]:
            shutil.rmtree(old)


def _temporary(folder: Path) -> Path:
    return folder / f"writing_{uuid.uuid4().hex}"


def to_disk(*paths: Path) -> None:
    """Make sure that files survive the death of the machine.

    A name can reach the disk before what it names; an empty file would be left.
    """
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one atomic step."""
    writing = _temporary(path.parent)
    writing.write_bytes(content)
    to_disk(writing)
    os.replace(writing, path)


def tidy(folder: Path, checkpoint: Path | None) -> None:
    """Delete what a killed process left in a run's folder; put back the checkpoint's results."""
    for path in folder.glob("writing*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for name in RESULTS:
        if checkpoint is not None and (checkpoint / name).exists():
            write_whole(folder / name, (checkpoint / name).read_bytes())
        else:
            (folder / name).unlink(missing_ok=True)


def restore_evaluation(evaluation: EvalCallback, checkpoint: Path) -> None:
    """Give a new callback the counter and the results of a checkpoint."""
    progress = json.loads((checkpoint / "progress.json").read_text())
    evaluation.n_calls = progress["evaluation_calls"]
    if not (checkpoint / "evaluations.npz").exists():
        return
    with np.load(checkpoint / "evaluations.npz") as saved:
        evaluation.evaluations_timesteps = saved["timesteps"].tolist()
        evaluation.evaluations_results = saved["results"].tolist()
        evaluation.evaluations_length = saved["ep_lengths"].tolist()
        if "successes" in saved:
            evaluation.evaluations_successes = saved["successes"].tolist()
        evaluation.best_mean_reward = float(saved["results"].mean(1).max())


def end_trajectory(buffer: ReplayBuffer) -> None:
    """Mark the newest transitions as truncated: a resumed run begins with new episodes.

    Without it an n-step return would run from one episode into another.
    """
    if isinstance(buffer, HerReplayBuffer) or buffer.size() == 0:  # SB3 does it for HER
        return
    buffer.dones[buffer.pos - 1] = 1.0
    if buffer.handle_timeout_termination:
        buffer.timeouts[buffer.pos - 1] = 1.0
