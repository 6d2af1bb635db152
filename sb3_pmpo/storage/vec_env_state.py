"""The state of vectorised environments, in this process, in SubprocVecEnv's and Ray's workers."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_pmpo.storage import environment_state
from sb3_pmpo.storage.environment_state import UnknownStateError
from sb3_pmpo.storage.generators import get_generators, set_generators

#: Attributes that are the state of SB3's wrappers; () where they have none.
_WRAPPERS: dict[type, tuple[str, ...]] = {
    VecCheckNan: (),
    VecExtractDictObs: (),
    VecTransposeImage: (),
    VecMonitor: ("episode_count", "episode_lengths", "episode_returns"),
    VecNormalize: (),  # see normalisers
}


#: Whose classes have no other state than is told here.
_LIBRARIES = ("stable_baselines3.", "sb3_contrib.", "sb3_pmpo.")


class VecState(NamedTuple):
    """The state of a vectorised environment.

    :param environments: of each, see :func:`sb3_pmpo.storage.environment_state.get_state`.
    :param wrappers: of each wrapper around them, outermost first, its class's name and its state.
    :param generators: of the process of each, where that is a process of its own.
    """

    environments: list[Any]
    wrappers: list[Any]
    generators: Sequence[Any] = ()


def get_state(env: VecEnv) -> VecState:
    """Tell the state of a vectorised environment.

    :raises UnknownStateError: saying what is in the way.
    """
    wrappers = []
    _check_known(env)
    while isinstance(env, VecEnvWrapper):
        wrappers.append([type(env).__qualname__, _wrapper_state(env)])
        env = env.venv
        _check_known(env)
    nothing: list[tuple[Any, ...]] = [()] * env.num_envs
    environments = _ask(env, environment_state.get_state, nothing)
    generators = () if isinstance(env, DummyVecEnv) else _ask(env, _get_generators, nothing)
    return VecState(environments, wrappers, generators)


def _check_known(env: VecEnv) -> None:
    """Refuse a class made from one of the libraries': it may have a state of its own."""
    if not type(env).__module__.startswith(_LIBRARIES):
        name = type(env).__qualname__
        raise UnknownStateError(f"nobody has said how to tell the state of {name}")


def set_state(env: VecEnv, state: VecState) -> None:
    """Put a state into a vectorised environment that was made alike and has been reset.

    :raises UnknownStateError: if it was not made alike.
    """
    for name, told in state.wrappers:
        if type(env).__qualname__ != name or not isinstance(env, VecEnvWrapper):
            raise UnknownStateError(f"a {type(env).__qualname__} stands in the place of a {name}")
        _set_wrapper_state(env, told)
        env = env.venv
    if isinstance(env, VecEnvWrapper) or env.num_envs != len(state.environments):
        raise UnknownStateError("other wrappers or another number of environments")
    _ask(env, environment_state.set_state, [(told,) for told in state.environments])
    if state.generators and not isinstance(env, DummyVecEnv):
        _ask(env, _set_generators, [(told,) for told in state.generators])


def _get_generators(env: gym.Env, adapters: environment_state.Adapters) -> dict[str, Any]:
    return get_generators()


def _set_generators(
    env: gym.Env, state: dict[str, Any], adapters: environment_state.Adapters
) -> None:
    set_generators(state)


def _wrapper_state(env: VecEnvWrapper) -> dict[str, Any]:
    if isinstance(env, VecFrameStack):
        stacked = env.stacked_obs
        return {"stacked": stacked.stacked_obs}
    for kind in type(env).__mro__:
        if kind in _WRAPPERS:
            return {name: vars(env)[name] for name in _WRAPPERS[kind]}
    raise UnknownStateError(f"nobody has said how to tell the state of {type(env).__qualname__}")


def _set_wrapper_state(env: VecEnvWrapper, state: dict[str, Any]) -> None:
    if isinstance(env, VecFrameStack):
        env.stacked_obs.stacked_obs = state["stacked"]
    else:
        vars(env).update(state)


# ---------------------------------------------------------------------- normalisers

#: What of VecNormalize changes while it runs.
_RUNNING = ("obs_rms", "ret_rms", "returns", "old_obs", "old_reward")


def normaliser_state(env: VecNormalize) -> dict[str, Any]:
    """Tell the statistics of a VecNormalize, its running returns and its last observations."""
    return {name: vars(env)[name] for name in _RUNNING if name in vars(env)}


def set_normaliser_state(env: VecNormalize, state: dict[str, Any]) -> None:
    """Put them back."""
    vars(env).update(state)


# ---------------------------------------------------------------------- other processes

_METHOD = "sb3_pmpo_apply"


class _OutermostMeta(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        vars(instance)[_METHOD] = types.MethodType(_apply, instance)
        return True


class _Outermost(metaclass=_OutermostMeta):
    """Any wrapper is an instance: to ask whether an environment is wrapped in it gives it a method.

    SB3's workers, and ours in Ray, call methods of an environment that are its own, and no others.
    """


def _apply(env: Any, request: bytes) -> tuple[bool, Any]:
    """Call a function with the environment; an error in here must not end the worker."""
    vars(env).pop(_METHOD, None)
    try:
        function, arguments, adapters = cloudpickle.loads(request)
        return True, function(env, *arguments, adapters)
    except Exception as error:  # whatever it is, the environment goes on without
        return False, str(error)


def _ask(env: VecEnv, function: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Call a function with each of the environments, where it is."""
    adapters = environment_state.registered()
    if isinstance(env, DummyVecEnv):
        pairs = zip(env.envs, arguments, strict=True)
        return [function(each, *given, adapters) for each, given in pairs]
    if not all(env.env_is_wrapped(_Outermost)):  # type: ignore[arg-type]  # it passes for a wrapper
        raise UnknownStateError(
            "an environment in another process can be reached through a wrapper only: wrap it in "
            "SB3's Monitor, as make_vec_env does"
        )
    results = []
    for index, given in enumerate(arguments):
        request = cloudpickle.dumps((function, given, adapters))
        ((done, result),) = env.env_method(_METHOD, request, indices=[index])
        if not done:
            raise UnknownStateError(result)
        results.append(result)
    return results
