"""What the algorithms save and load: models, replay buffers, checkpoints."""

from __future__ import annotations

import io
import pathlib
import pickle
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.core.e_step import Duals
from sb3_pmpo.critics import QuantileCritic
from sb3_pmpo.files import whole_stream
from sb3_pmpo.online import checkpoints
from sb3_pmpo.online.arguments import check_names, chosen_by_space
from sb3_pmpo.online.env_checks import was_moved
from sb3_pmpo.online.statistics import complete_statistics
from sb3_pmpo.policies import CnnPolicy, MultiInputPolicy, PMPOPolicy
from sb3_pmpo.replay import adopt_replay_buffer, close_open_episodes, close_other_episodes
from sb3_pmpo.replay.checks import check_loaded_buffer
from sb3_pmpo.storage.buffers import load_buffer, save_buffer
from sb3_pmpo.storage.checkpoints import read_checkpoint
from sb3_pmpo.storage.models import ModelFile, save_model
from sb3_pmpo.storage.pickles import UntrustedFileError

#: Not saved: parts of the policy, and what is made anew from the arguments.
_PARTS = ("actor", "reference_actor", "critic", "critic_target", "objective", "duals", "learner")
_MADE = (
    "noise",
    "metrics",
    "_feedback",
    "given_labels",
    "label_rng",
    "label_log_probs",
    "label_check",
    "_kept",
    "_left_at",
    "_awaits_step",
    "_given",
    "lr_schedule",
    "actor_lr_schedule",
)

#: Of the package's policies.
_CONSTRUCTORS = {kind.__init__ for kind in (PMPOPolicy, CnnPolicy, MultiInputPolicy)}

#: In a file, the name of the class that saved it.
_ALGORITHM = "algorithm"


def _keep_critics(file: ModelFile, kwargs: dict[str, Any]) -> None:
    """Name the critics of a model that was saved when :class:`QuantileCritic` was the default."""
    told, policy = file.items.get("policy_kwargs"), file.items.get("policy_class")
    if not isinstance(told, dict) or told.get("critic_class") is not None:
        return
    if getattr(policy, "__init__", None) not in _CONSTRUCTORS:  # it may choose them itself
        return
    names = file.parameter_names()
    if names and not any(name.startswith("critic.embedding.") for name in names):
        named = {"critic_class": QuantileCritic}
        file.items["policy_kwargs"] = told | named
        if kwargs.get("policy_kwargs") == told:
            kwargs["policy_kwargs"] = told | named


class Persistent(OffPolicyAlgorithm):
    """Saves and loads as SB3 does, but without pickles for what is plain."""

    policy: PMPOPolicy
    replay_buffer: ReplayBuffer
    duals: Duals | None
    stored_steps: int
    has_given_weights: bool
    noise: Any
    _left_at: tuple[Any, ...] | None

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save as SB3 does, in one atomic step: a crash leaves the file that was there.

        Only what JSON cannot tell, such as a schedule that is a closure, is pickled, and signed
        with your key.
        """
        parts, variables = self._get_torch_save_params()
        left_out = {*(exclude or ()), *self._excluded_save_params()} - set(include or ())
        left_out |= {name.partition(".")[0] for name in (*parts, *variables)}
        items = {name: value for name, value in vars(self).items() if name not in left_out}
        items[_ALGORITHM] = type(self).__name__
        of_torch = {name: recursive_getattr(self, name) for name in variables}
        with whole_stream(path, "zip") as file:
            save_model(file, items, self.get_parameters(), of_torch)

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trust: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load as SB3 does; a file that somebody else made runs nothing.

        :param path: of the file.
        :param env: to learn in; None to predict only.
        :param device: where to run.
        :param custom_objects: to take in the place of what the file has under these names.
        :param print_system_info: of the system that saved it.
        :param force_reset: reset the environment before learning goes on.
        :param trust: load any pickle that the file holds.
        :param kwargs: arguments of the constructor to change.
        :raises TypeError: for a name that is none of them.
        :raises sb3_pmpo.storage.pickles.UntrustedFileError: for a pickle that you did not write and
            that is not known to be harmless.
        """
        file = ModelFile(path, custom_objects, trust=trust)
        cls._check_algorithm(path, file.items.pop(_ALGORITHM, None))
        check_names(kwargs, cls, known=file.items)
        kwargs |= chosen_by_space(file.items | kwargs, file.items.get("action_space"))
        _keep_critics(file, kwargs)
        if "stats_window_size" in kwargs:  # the attribute that SB3 makes of it
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
        try:
            model = super().load(
                file.content, env, device, file.items, print_system_info, force_reset, **kwargs
            )
        except pickle.UnpicklingError as error:  # SB3 reads weights with weights_only=True
            raise UntrustedFileError(
                f"the weights in {path} are not only numbers, and are not loaded even with "
                f"trust=True, as with SB3: {str(error).partition('. ')[0]}"
            ) from error

        vars(model).pop(_ALGORITHM, None)  # SB3 makes an attribute of whatever a file has
        model.has_given_weights = file.items.get("has_given_weights", False)
        return model

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """Set as SB3 does: the weights are no longer the first ones, though no step was taken."""
        super().set_parameters(load_path_or_dict, exact_match, device)
        self.has_given_weights = True

    @classmethod
    def _check_algorithm(cls, path: Any, name: Any) -> None:
        """Refuse another algorithm's model, whose weights would fit; what users call theirs may."""
        if name in {"PMPO", "MPO", "DPO"} - {kind.__name__ for kind in cls.__mro__}:
            raise ValueError(f"{path} is a model of {name}, not of {cls.__name__}: use {name}.load")

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Save it in one atomic step, as data: columns of numbers with a JSON header."""
        with whole_stream(path, "pkl") as file:
            save_buffer(self.replay_buffer, file)

    def load_replay_buffer(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        truncate_last_traj: bool = True,
        *,
        trust: bool = False,
    ) -> None:
        """Load a saved buffer; its n-step returns then use this model's ``gamma``, ``n_steps``.

        :param path: of the file.
        :param truncate_last_traj: the environment will be reset: end the episodes that are open.
        :param trust: load any pickle that the file holds.
        :raises sb3_pmpo.storage.pickles.UntrustedFileError: for a pickle that you did not write and
            that is not known to be harmless.
        """
        self.take_replay_buffer(load_buffer(path, trust=trust))
        if truncate_last_traj:
            close_open_episodes(self.replay_buffer)
        adopt_replay_buffer(self)
        self.complete_statistics()

    def begin_new_episodes(self) -> None:
        """Let the next step reset the environments; what was open in the buffer ends."""
        close_open_episodes(self.replay_buffer)
        if self._last_obs is not None:
            self._last_obs = None
            self.forget_episodes()

    def end_other_episodes(self) -> None:
        """End what is open in the buffer, if it is not what the environments are in the middle of.

        So it is in a buffer that was assigned, or loaded with ``truncate_last_traj=False``.
        """
        raw: Any = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
        close_other_episodes(self.replay_buffer, raw)

    def forget_episodes(self) -> None:
        """Begin returns and noise anew, as the environments do."""
        self.discounted_returns = np.zeros(self.n_envs)
        if self.noise is not None:
            for env in range(self.n_envs):
                self.noise.reset(env)

    def complete_statistics(self) -> None:
        """Take the policy's statistics from the buffer where they are missing."""
        env, learned = self._vec_normalize_env, self._n_updates > 0
        complete_statistics(self.policy, self.replay_buffer, self.gamma, env, learned=learned)

    @property
    def is_between_steps(self) -> bool:
        """Whether all that was experienced is stored, so that a checkpoint goes on exactly.

        Not where somebody else has moved the environments since, with ``evaluate_policy`` say: the
        next step would join two episodes.
        """
        moved = was_moved(self.env, self._left_at)
        return self.stored_steps == self.num_timesteps and not moved

    def save_checkpoint(
        self, folder: str | pathlib.Path, *, files: Mapping[str, pathlib.Path] | None = None
    ) -> None:
        """Save all that learning goes on from, bit for bit, in the place of the checkpoint before.

        Model, replay buffer, VecNormalize's statistics, generators and the episodes in progress are
        one unit: a kill at any moment leaves this checkpoint or the one before. Of the buffer, what
        changed since is written. The labels of ``learn(feedback=...)`` are its file
        ``feedback.npz``. To be called between rollouts, as
        :class:`sb3_pmpo.online.checkpoints.SaveCheckpoints` does while learning.

        :param folder: of the checkpoint; it is made if it is not there.
        :param files: more of the run that must agree with it, by name, to be copied into it.
        """
        checkpoints.save(self, folder, files or {})

    @classmethod
    def load_checkpoint(
        cls,
        folder: str | pathlib.Path,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        *,
        trust: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint: ``learn(n, reset_num_timesteps=False)`` goes on from it.

        :param folder: that :meth:`save_checkpoint` was given.
        :param env: made as the one that the checkpoint was saved with. Where its state cannot be
            put back, a warning says so, and new episodes begin. None for a model that learns
            offline, or is to predict only.
        :param device: where to run.
        :param custom_objects: as :meth:`load` takes them.
        :param trust: load any pickle that its files hold.
        :param kwargs: arguments to change.
        :raises FileNotFoundError: if there is no checkpoint.
        :raises ValueError: if it is one of other environments.
        :raises sb3_pmpo.storage.pickles.UntrustedFileError: for a pickle that you did not write and
            that is not known to be harmless.
        """
        found = read_checkpoint(folder)
        path = found.path("model")
        model = cls.load(path, env, device, custom_objects, False, False, trust=trust, **kwargs)
        checkpoints.resume(model, found, trust=trust)
        adopt_replay_buffer(model)
        return model

    def take_replay_buffer(self, buffer: ReplayBuffer) -> None:
        """Take a buffer that was loaded, on this model's device and by its ``gamma``, ``n_steps``.

        :raises ValueError: if it is not of this model's spaces and number of environments.
        """
        if "handle_timeout_termination" not in vars(buffer):  # SB3 before 2.1
            buffer.handle_timeout_termination = False
            buffer.timeouts = 0.0 * buffer.dones
        if isinstance(buffer, HerReplayBuffer):
            if self.env is None:
                raise ValueError(
                    "a HerReplayBuffer computes rewards by an environment, and there is none: give "
                    "load_checkpoint one, or call set_env before"
                )
            buffer.env = self.env
        buffer.device = self.device
        check_loaded_buffer(self, buffer)
        self.replay_buffer = buffer

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_PARTS, *_MADE]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        duals = [] if self.duals is None else ["duals", "duals.optimizer"]
        return ["policy", "actor.optimizer", "critic.optimizer", *duals], []
