"""What the Zoo's callbacks write, in one atomic step each."""

from __future__ import annotations

from pathlib import Path

import rl_zoo3.exp_manager
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_pmpo.tools.evaluation import Evaluation
from sb3_pmpo.tools.saving import save_model, save_vec_normalize


class SaveModels(CheckpointCallback):
    """Writes ``rl_model_<steps>_steps.zip``, which ``enjoy --load-checkpoint`` reads."""

    def _on_step(self) -> bool:
        if self.n_calls % self.save_freq == 0:
            save_model(self.model, Path(self._checkpoint_path(extension="zip")))
        return True


class SaveStatistics(SaveVecNormalizeCallback):
    """Writes ``vecnormalize.pkl`` beside the best model."""

    def _on_step(self) -> bool:
        env = self.model.get_vec_normalize_env()
        if env is not None:
            save_vec_normalize(env, Path(self.save_path, "vecnormalize.pkl"))
        return True


def write_whole() -> None:
    """Let the Zoo's experiment manager use these and :class:`Evaluation`."""
    theirs = vars(rl_zoo3.exp_manager)
    theirs["CheckpointCallback"] = SaveModels
    theirs["SaveVecNormalizeCallback"] = SaveStatistics
    theirs["EvalCallback"] = Evaluation
