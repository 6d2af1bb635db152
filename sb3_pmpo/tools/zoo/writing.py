"""What the Zoo's callbacks write, in one atomic step each."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import rl_zoo3.exp_manager
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_pmpo.tools.evaluation import Evaluation
from sb3_pmpo.tools.saving import save_model, save_vec_normalize


class NewFolder:
    """Makes the folder of a run, and takes it away if the run does not begin.

    :param path: of the folder.
    :raises FileExistsError: if it is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._above = [folder for folder in path.parents if not folder.exists()]
        path.mkdir(parents=True)

    def remove(self) -> None:
        """Remove the folder, and those above it that were made for it and hold nothing else."""
        shutil.rmtree(self._path, ignore_errors=True)
        with suppress(OSError):  # another run has begun there
            for folder in self._above:
                folder.rmdir()


class SaveModels(CheckpointCallback):
    """Writes ``rl_model_<steps>_steps.zip``, which ``enjoy --load-checkpoint`` reads.

    VecNormalize's statistics at that step lie beside it, where :func:`statistics_of` finds them.
    """

    def _on_step(self) -> bool:
        if self.n_calls % self.save_freq == 0:
            path = Path(self._checkpoint_path(extension="zip"))
            save_model(self.model, path)
            env = self.model.get_vec_normalize_env()
            if env is not None:
                save_vec_normalize(env, statistics_of(path, path.parent))
        return True


def statistics_of(model: Path, settings: Path) -> Path:
    """Return where the statistics lie that a run's model was saved with.

    :param settings: the folder of the run's settings, which has those of the end and of the best.
    """
    if model.name == "best_model.zip":
        return settings / "best_vecnormalize.pkl"
    return model.with_name(f"{model.stem}_vecnormalize.pkl")


class SaveStatistics(SaveVecNormalizeCallback):
    """Writes ``vecnormalize.pkl``, and what the best model had apart."""

    def _on_step(self) -> bool:
        env = self.model.get_vec_normalize_env()
        if env is not None:
            for name in ("vecnormalize.pkl", "best_vecnormalize.pkl"):
                save_vec_normalize(env, Path(self.save_path, name))
        return True


def write_whole() -> None:
    """Let the Zoo's experiment manager use these and :class:`Evaluation`."""
    theirs = vars(rl_zoo3.exp_manager)
    theirs["CheckpointCallback"] = SaveModels
    theirs["SaveVecNormalizeCallback"] = SaveStatistics
    theirs["EvalCallback"] = Evaluation
