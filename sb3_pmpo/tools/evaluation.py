"""Evaluations while learning: written whole, and the same ones in a run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback

from sb3_pmpo.files import whole
from sb3_pmpo.tools.saving import save_model

#: What SB3's EvalCallback keeps from one evaluation to the next.
_KEPT = ("n_calls", "best_mean_reward", "evaluations_timesteps", "evaluations_results",
         "evaluations_length", "evaluations_successes")  # fmt: skip


#: Ends of episodes in a row that Monitor may not see: a lost life is one, in Atari's games.
_MAX_UNSEEN = 200


class Evaluation(EvalCallback):
    """SB3's EvalCallback, with these differences.

    - ``evaluations.npz`` and ``best_model.zip`` are each written in one atomic step.
    - The seed of an evaluation follows from the model's and the step. So a run that goes on from a
      checkpoint is evaluated on the episodes that it would have met.
    - An evaluation that would never end is an error. SB3 counts the episodes that Monitor sees, and
      Monitor sees none that a wrapper around it ends.

    :param args: SB3's.
    :param best_model_save_path: folder of the best model; None to save none.
    :param kwargs: SB3's.
    """

    def __init__(
        self, *args: Any, best_model_save_path: str | Path | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        folder = best_model_save_path
        self._best_model = None if folder is None else Path(folder, "best_model.zip")
        self._unseen = 0
        #: Of the episodes of the last evaluation.
        self.last_returns: list[float] = []

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        if self.model.seed is not None:
            drawn = np.random.SeedSequence([self.model.seed, self.num_timesteps])
            self.eval_env.seed(int(drawn.generate_state(1)[0] >> 1))
        best = self.best_mean_reward
        goes_on = self._evaluate()
        if self._best_model is not None and self.best_mean_reward > best:
            save_model(self.model, self._best_model)
        return goes_on

    def _evaluate(self) -> bool:
        if self.log_path is None:
            return super()._on_step()
        path = self.log_path
        with whole(Path(f"{path}.npz")) as writing:
            self.log_path = str(writing)
            try:
                return super()._on_step()
            finally:
                self.log_path = path

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)
        self.last_returns = locals_["episode_rewards"]  # it grows until the evaluation ends
        if locals_["done"]:
            self._unseen = 0 if "episode" in locals_["info"] else self._unseen + 1
        if self._unseen == _MAX_UNSEEN:
            raise ValueError(
                f"{_MAX_UNSEEN} episodes ended in this evaluation and Monitor saw none of them, so "
                "it would never end: a wrapper around Monitor ends the episodes. For a time limit, "
                "write env_kwargs: {max_episode_steps: N} instead of a TimeLimit in env_wrapper"
            )

    def state(self) -> dict[str, Any]:
        """Return the counter and the results."""
        return {name: getattr(self, name) for name in _KEPT}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name in _KEPT:
            setattr(self, name, state[name])
