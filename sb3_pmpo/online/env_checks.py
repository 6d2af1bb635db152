"""The environments: refuse what cannot be learned in, and see who has moved them."""

from __future__ import annotations

import logging
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_pmpo.core.checks import blaming
from sb3_pmpo.space_checks import check_action_space, check_observation_space


def checked_env(env: Any, verbose: int) -> GymEnv | None:
    """Make the environment of a name, and check the one that there is.

    Before SB3 wraps it: its wrappers fail on spaces that they do not know.

    :param env: an environment, its registered name, or None, which ``load`` gives.
    :param verbose: as of the constructor.
    :raises ValueError: if it is none, or if its spaces are not supported.
    """
    if env is None:
        return None
    remedy = remedy_for(env)
    if isinstance(env, type):
        raise ValueError(f"env must be an environment or a registered name, got {env}: {remedy}")
    if not isinstance(env, (gym.Env, VecEnv)):
        with blaming(f"env={env!r}", remedy):
            env = maybe_make_env(env, verbose) if isinstance(env, str) else _patch_env(env)
    _log_mujoco()
    check_observation_space(env.observation_space)
    check_action_space(env.action_space)
    if isinstance(env, VecEnv):
        normalize = unwrap_vec_normalize(env)
        check_vec_normalize(normalize)
        if normalize is not None and _has_channels_last(env.observation_space):
            raise ValueError(
                "VecNormalize must be outside of what puts an image's channels first, got "
                f"{env.observation_space}: SB3 would do it outside, and what VecNormalize keeps "
                "would not fit the buffer; write VecNormalize(VecTransposeImage(env)), of "
                "stable_baselines3.common.vec_env"
            )
        if normalize is not None and normalize.observation_space != env.observation_space:
            raise ValueError(
                f"VecNormalize must be outside of what changes its observations, got {env!r}: its "
                f"{normalize.observation_space} becomes {env.observation_space}; wrap the other "
                "way round, such as VecNormalize(VecFrameStack(env, 2))"
            )
    return env


def _has_channels_last(space: gym.Space) -> bool:
    """Say whether some observation is an image that SB3 will transpose."""
    parts = space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]
    return any(
        isinstance(part, gym.spaces.Box)
        and is_image_space(part)
        and not is_image_space_channels_first(part)
        for part in parts
    )


def remedy_for(env: Any) -> str:
    """Say what to give in the place of an environment that cannot be made."""
    name = env if isinstance(env, str) else ""
    if name.startswith("dm_control/"):
        task = name.removeprefix("dm_control/").removesuffix("-v0")
        return f'give make_dmc_env("{task}", action_repeat=2), of sb3_pmpo.envs'
    spec = gym.registry.get(name)
    if spec is not None and "box2d" in str(spec.entry_point):
        return "pip install 'sb3_pmpo[box2d]', in the clone -e '.[box2d]': it needs no compiler"
    return "give an object of a gymnasium.Env, a VecEnv, or a name that is registered"


def _log_mujoco() -> None:
    """Let MuJoCo warn by Python's logging, not in a file MUJOCO_LOG.TXT of the working folder."""
    mujoco = sys.modules.get("mujoco")  # not imported where nobody needs it
    if mujoco is not None and mujoco.get_mju_user_warning() is None:  # dm_control sets its own
        mujoco.set_mju_user_warning(logging.getLogger("sb3_pmpo").warning)


def _statistics(normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    """Collect the running statistics by a name to show."""
    of_observations: Any = normalize.obs_rms if normalize.norm_obs else {}
    if isinstance(of_observations, RunningMeanStd):
        of_observations = {"observations": of_observations}
    return {"returns": normalize.ret_rms, **of_observations}


def check_vec_normalize(normalize: VecNormalize | None) -> None:
    """Refuse statistics with NaN or infinity, which would make all observations or rewards so.

    :raises ValueError: naming the statistics and what to do.
    """
    if normalize is None:
        return
    for name, moments in _statistics(normalize).items():
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.var).all()):
            raise ValueError(
                f"VecNormalize's statistics of {name} must be finite, got mean={moments.mean}, "
                f"var={moments.var}: they have taken in a value that is not; load statistics that "
                "were saved before, or gather new ones"
            )


class KeptStatistics:
    """VecNormalize's statistics as they are now, to be put back after a bad value.

    It takes in a value before anybody can check it. Its moments are replaced, not changed in place,
    so that it is enough to hold on to them.

    :param normalize: None does nothing.
    """

    def __init__(self, normalize: VecNormalize | None) -> None:
        self._normalize = normalize
        if normalize is not None:
            self._moments = [
                (rms, rms.mean, rms.var, rms.count) for rms in _statistics(normalize).values()
            ]
            self._returns = normalize.returns.copy()

    def put_back(self) -> None:
        """Make the statistics what they were."""
        if self._normalize is None:
            return
        for rms, mean, var, count in self._moments:
            rms.mean, rms.var, rms.count = mean, var, count
        self._normalize.returns = self._returns


def whereabouts(env: VecEnv | None) -> tuple[Any, ...]:
    """Return objects that are others once the environments have been stepped or reset again.

    Attributes alone: a property of a user's VecEnv may return another object at each call.
    """
    if env is None:
        return ()
    held = vars(env.unwrapped)
    infos = held.get("reset_infos")
    return (held.get("actions"), infos, *(infos if isinstance(infos, (list, tuple)) else ()))


def was_moved(env: VecEnv | None, since: tuple[Any, ...] | None) -> bool:
    """Say whether somebody has stepped or reset the environments.

    :param since: :func:`whereabouts` of then; None is not known, which says no.
    """
    now = whereabouts(env)
    if since is None or len(now) != len(since):
        return False
    return any(one is not other for one, other in zip(now, since, strict=True))
