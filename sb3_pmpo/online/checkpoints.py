"""Checkpoints of a run that go on as if it had never stopped, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pmpo.storage import vec_env_state
from sb3_pmpo.storage.checkpoints import (
    Checkpoint,
    read_state,
    write_checkpoint,
)
from sb3_pmpo.storage.environment_state import UnknownStateError
from sb3_pmpo.storage.generators import get_generators, set_generators
from sb3_pmpo.storage.vec_env_state import VecState

#: Of the model, what is made anew when it is loaded, or is not saved with it.
_ATTRIBUTES = (
    "discounted_returns",
    "noise",
    "statistics_due",
    "label_rng",
    "label_log_probs",
    "label_check",
)

#: The given labels' file in a checkpoint, for :meth:`sb3_pmpo.feedback.FeedbackBuffer.load`.
FEEDBACK = "feedback.npz"

_said: set[str] = set()


def save(model: Any, folder: str | Path, files: Mapping[str, Path]) -> Checkpoint:
    """Write a checkpoint of a model; see :meth:`sb3_pmpo.PMPO.save_checkpoint`."""
    normaliser = model.get_vec_normalize_env()
    labels = model.given_labels
    feedback = {} if labels is None else {FEEDBACK: labels.save}
    items = {
        "attributes": {name: vars(model)[name] for name in _ATTRIBUTES},
        "random": random_state(model),
        "normaliser": normaliser and vec_env_state.normaliser_state(normaliser),
        "environments": _environments(model),
    }
    return write_checkpoint(
        Path(folder),
        model.num_timesteps,
        write_model=model.save,
        buffer=model.replay_buffer,
        items=items,
        files={**feedback, **files},
    )


def _environments(model: Any) -> list[Any] | None:
    """Tell the state of the environments; None where the next step begins new episodes."""
    if model._last_obs is None:
        return None
    if not model.is_between_steps:
        _say_once(
            "the checkpoint is saved in the middle of a step, so a run that goes on from it begins "
            "new episodes: save between rollouts, as sb3_pmpo.online.checkpoints.SaveCheckpoints "
            "does"
        )
        return None
    try:
        return list(vec_env_state.get_state(model.env))
    except UnknownStateError as error:
        _say_once(f"a run that goes on from a checkpoint begins new episodes: {error}")
        return None


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=4)


def resume(model: Any, checkpoint: Checkpoint, *, trust: bool) -> None:
    """Bring a model that was loaded from a checkpoint to where it was, environments included.

    :raises ValueError: if the environments are not those of the checkpoint.
    """
    items = read_state(checkpoint, trust=trust)
    buffer = items["buffer"]
    if model.env is not None and buffer.n_envs != model.n_envs:
        raise ValueError(
            f"the checkpoint in {checkpoint.folder} is one of {buffer.n_envs} environment(s), got "
            f"{model.n_envs}: give as many"
        )
    model.take_replay_buffer(buffer)
    vars(model).update(items["attributes"])
    if model.env is not None:
        model.env.reset()
        _set_normaliser(model.get_vec_normalize_env(), items["normaliser"])
    if not _set_environments(model, items["environments"]):
        model.begin_new_episodes()
    set_random_state(model, items["random"])


def _set_normaliser(normaliser: VecNormalize | None, state: dict[str, Any] | None) -> None:
    if (normaliser is None) != (state is None):
        with_or_without = "without" if state is None else "with"
        raise ValueError(
            f"the checkpoint was saved {with_or_without} VecNormalize around the environments: "
            "give environments that are wrapped alike"
        )
    if normaliser is not None and state is not None:
        vec_env_state.set_normaliser_state(normaliser, state)


def _set_environments(model: Any, state: list[Any] | None) -> bool:
    if state is None or model.env is None:
        return False
    try:
        vec_env_state.set_state(model.env, VecState(*state))
    except UnknownStateError as error:
        _say_once(f"the run begins new episodes: {error}")
        return False
    return True


# ---------------------------------------------------------------------- generators


def random_state(model: Any) -> dict[str, Any]:
    """Tell the state of all the generators but those of the environments."""
    state = {**get_generators(), "action_space": model.action_space._np_random}
    if model.device.type == "cuda":
        state["cuda"] = th.cuda.get_rng_state(model.device).numpy()
    return state


def set_random_state(model: Any, state: dict[str, Any]) -> None:
    """Put the state of the generators back."""
    set_generators(state)
    model.action_space._np_random = state["action_space"]
    if "cuda" in state and model.device.type == "cuda":
        th.cuda.set_rng_state(th.from_numpy(state["cuda"]), model.device)


class SaveCheckpoints(BaseCallback):
    """Save a checkpoint every so many steps, between rollouts, where it can go on exactly.

    SB3's CheckpointCallback saves in the middle of a step.

    :param folder: where to.
    :param save_freq: steps from one to the next.
    """

    def __init__(self, folder: str | Path, save_freq: int) -> None:
        super().__init__()
        self._folder, self._save_freq, self._saved = folder, save_freq, 0

    def _on_training_start(self) -> None:
        self._saved = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        self._save_if_due()

    def _on_training_end(self) -> None:
        if cast(Any, self.model).is_between_steps:  # no callback has stopped it within one
            self._save_if_due()

    def _save_if_due(self) -> None:
        steps = self.model.num_timesteps
        if steps // self._save_freq > self._saved // self._save_freq:
            self._saved = steps
            save(self.model, self._folder, {})

    def _on_step(self) -> bool:
        return True
