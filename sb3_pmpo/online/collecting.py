"""Collecting under watch: what VecNormalize would clip, and who else moves the environments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.common.vec_env import VecEnv

from sb3_pmpo.learn_checks import check_count
from sb3_pmpo.online.checks import check_choices, check_finite, check_terminals
from sb3_pmpo.online.env_checks import KeptStatistics, was_moved, whereabouts
from sb3_pmpo.online.persistence import Persistent

_MOVED = (
    "a callback, or somebody else, has stepped or reset the training environments since the "
    "model's last step: new episodes begin, so that no return runs from one episode into another. "
    "An evaluation needs an environment of its own"
)


@contextmanager
def _followed(env: VecEnv, name: str, look: Callable[[Any], None]) -> Iterator[None]:
    """Look at what a method of the environments returns.

    In its place is a method of the object, not a function: a copy that a callback makes of the
    environments, by ``deepcopy`` or ``pickle``, has to move itself.
    """
    own = vars(env).get(name)

    def method(self: VecEnv, *args: Any) -> Any:
        found = getattr(type(self), name)(self, *args) if own is None else own(*args)
        if self is env:
            look(found)
        return found

    method.__name__ = name  # by which pickle finds that of the class
    vars(env)[name] = MethodType(method, env)
    try:
        yield
    finally:
        if own is None:
            del vars(env)[name]
        else:
            vars(env)[name] = own


class WatchedCollecting(Persistent):
    """Collects as SB3 does, but joins no episodes and lets VecNormalize hide no bad value."""

    discounted_returns: np.ndarray
    #: To be put back if what the next step brings is refused.
    _kept: KeptStatistics
    #: Whether the next step of the environments is this model's own.
    _awaits_step: bool
    #: Observations and rewards of the last step as VecNormalize was given them.
    _given: tuple[Any, ...]

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> RolloutReturn:
        """Collect as SB3 does, see there."""
        if kwargs.get("log_interval") is not None:  # of learn(), which gives it to nobody else
            check_count("log_interval", kwargs["log_interval"], 1)
        with self._watched(env):
            return super().collect_rollouts(env, *args, **kwargs)

    @contextmanager
    def _watched(self, env: VecEnv) -> Iterator[None]:
        """Look at each step before VecNormalize and the callbacks do.

        The one clips what is infinite at the end, the others may move the environments. Methods are
        followed, because another wrapper would be one too many where SB3 compares the environments
        with those of an evaluation.
        """
        normalize = self._vec_normalize_env

        def leave(_: Any) -> None:
            if self._awaits_step:  # and no callback's
                self._awaits_step, self._left_at = False, whereabouts(env)

        def look(found: Any) -> None:
            if self._awaits_step:
                check_terminals(found[3], self.num_timesteps + env.num_envs)
                self._given = found[:2]
                if env is normalize:
                    leave(found)

        with ExitStack() as stack:
            if normalize is not None:
                stack.enter_context(_followed(normalize.venv, "step_wait", look))
            if env is not normalize:  # whose file of statistics would hold the method
                stack.enter_context(_followed(env, "step", leave))
            yield

    def before_step(self) -> None:
        """Begin new episodes where somebody has moved the environments since the last step."""
        if self.env is not None and was_moved(self.env, self._left_at):
            warnings.warn(_MOVED, stacklevel=2)
            self.begin_new_episodes()
            kept = KeptStatistics(self._vec_normalize_env)
            self._last_obs = self.env.reset()  # type: ignore[assignment]  # no tuple
            self._last_episode_starts = np.ones(self.n_envs, bool)
            if self._vec_normalize_env is not None:
                self._last_original_obs = self._vec_normalize_env.get_original_obs()
            self.check_first_observations(kept)

    def expect_step(self) -> None:
        """Keep what the next step may spoil."""
        self._kept, self._awaits_step = KeptStatistics(self._vec_normalize_env), True

    def check_first_observations(self, kept: KeptStatistics) -> None:
        """Check what the environments were reset to, which episodes begin with.

        :param kept: the statistics before that, to be put back.
        :raises ValueError: naming the environment and the value.
        """
        self._left_at = whereabouts(self.env)
        # VecNormalize has clipped what was infinite and spread what was NaN by now.
        raw: Any = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
        try:
            check_finite(raw, np.zeros(self.n_envs), [], self.num_timesteps)
            check_choices(self._last_obs, self.observation_space, self.num_timesteps)
        except ValueError:
            kept.put_back()
            raise

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Leave all statistics as they were before the step, if what it brought is refused."""
        normalize, returns = self._vec_normalize_env, self.discounted_returns
        if normalize is not None and was_moved(self.env, self._left_at):  # by a callback
            normalize.old_obs, normalize.old_reward = self._given
        try:
            yield
        except ValueError:
            self._kept.put_back()  # VecNormalize has taken it in
            self.discounted_returns = returns
            raise
