"""The state of environments: the episode in progress, counters and generators.

An environment and each wrapper around it is told by its attributes. What belongs to rendering is
left out, and of functions and classes only the name is kept, to see that they are the same. What is
neither these nor plain data makes the state unknown, and a run that goes on then begins a new
episode. Simulations of MuJoCo are told by
:mod:`sb3_pmpo.storage.physics`.
"""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_pmpo.storage import physics
from sb3_pmpo.storage.plain import NotPlainError, encode

#: Returns the state of an environment or a wrapper, without that of what it wraps: plain data.
GetState = Callable[[Any], Any]
#: Puts a state back into a new environment or wrapper of the same kind.
SetState = Callable[[Any, Any], None]

#: Environments that are known to be told by their attributes; any wrapper of Gymnasium's is, too.
_KNOWN = (
    "gymnasium.envs.classic_control.",
    "gymnasium.envs.mujoco.",
    "gymnasium.envs.toy_text.",
    "gymnasium_robotics.",
    "shimmy.dm_control_compatibility",
    "stable_baselines3.common.envs.",
)

#: Parts of those that have attributes of their own.
_PARTS = (
    "dm_control.rl.control",
    "dm_control.suite.",
    "gymnasium.wrappers.utils",
    "stable_baselines3.common.running_mean_std",
)

#: Of any environment: told by its own layer, or by the environment's registration.
_TOLD_ELSEWHERE = {"env", "metadata", "spec", "_cached_spec", "_ezpickle_args", "_ezpickle_kwargs"}

#: Of rendering, of files and of the clock: a new environment has its own. An environment of a
#: user's may call something else so, so there only what is not plain data counts as such.
_OWN = {
    *("clock", "isopen", "mujoco_renderer", "screen", "surf", "viewer", "render_kwargs"),
    *("results_writer", "t_start", "env_type"),
}

#: Whose attributes of those names are what is meant above.
_LIBRARIES = ("gymnasium.", "gymnasium_robotics.", "shimmy.", "stable_baselines3.", "sb3_pmpo.")

#: Of the libraries, what a user's own classes are made from.
_BASES = ("gymnasium.core", "gymnasium.utils.")

#: Functions of NumPy's that choose by the type of an argument, such as ``np.clip``.
_DISPATCHER = type(np.clip)

_CONSTANT = (types.FunctionType, types.ModuleType, type, EnvSpec, np.ufunc, np.dtype, _DISPATCHER)

#: Whose methods draw from the generators of the process, which are told elsewhere.
_OF_THE_PROCESS = tuple(each.__self__ for each in cast(Any, (np.random.rand, random.random)))

_ADAPTERS: dict[type, tuple[GetState, SetState]] = {}


class UnknownStateError(TypeError):
    """Nobody has said how to tell the state of an environment."""


def get_attributes(part: Any) -> dict[str, Any]:
    """Tell the state of an environment or a wrapper by its attributes.

    :raises UnknownStateError: naming an attribute that is neither constant nor plain.
    """
    state: dict[str, Any] = {}
    model = None
    for name, value in vars(part).items():
        if name in _TOLD_ELSEWHERE or (name in _OWN and _is_own(part, value)):
            continue
        if physics.is_model(value):
            model = value
            state[name] = {"model": physics.model_state(value)}
        elif physics.is_data(value):
            model = model or vars(part)["model"]
            state[name] = {"data": physics.data_state(model, value)}
        else:
            state[name] = _get(part, value, f"{type(part).__name__}.{name}")
    return state


def _is_own(part: Any, value: Any) -> bool:
    of_a_library = any(
        kind.__module__.startswith(_LIBRARIES) and not kind.__module__.startswith(_BASES)
        for kind in type(part).__mro__
    )
    return of_a_library or not _is_plain(value)


def _is_plain(value: Any) -> bool:
    try:
        encode(value, lambda path, array: path)
    except (NotPlainError, RecursionError):
        return False
    return True


def _constant(part: Any, value: Any) -> str | None:
    """Name a function, a class or another constant; None for what may have a state of its own."""
    if isinstance(value, types.MethodType | types.BuiltinMethodType):
        owner = value.__self__  # whose state is told here, or which has none
        told = (*_layers(part), *_OF_THE_PROCESS)
        has_none = owner is None or isinstance(owner, types.ModuleType | type)
        if has_none or any(owner is each for each in told):
            return f"method {value.__qualname__}"
        return None
    if isinstance(value, functools.partial):
        inside = [value.func, *value.args, *value.keywords.values()]
        named = [_constant(part, each) or _immutable(part, each) for each in inside]
        return None if None in named else f"partial {named}"
    if isinstance(value, _CONSTANT):
        return str(getattr(value, "__qualname__", getattr(value, "__name__", value)))
    return None


def _immutable(part: Any, value: Any) -> str | None:
    if isinstance(value, tuple):
        named = [_constant(part, each) or _immutable(part, each) for each in value]
        return None if None in named else f"tuple {named}"
    return repr(value) if isinstance(value, int | float | str | bytes | None) else None


def _get(part: Any, value: Any, name: str) -> dict[str, Any]:
    if (constant := _constant(part, value)) is not None:
        return {"constant": constant}
    if isinstance(value, spaces.Space):
        return {"space": _generators(value)}
    if physics.is_physics(value):
        model = value.model.ptr
        return {
            "physics": [physics.model_state(model), physics.data_state(model, value.data.ptr)],
        }
    if type(value).__module__.startswith(_PARTS):
        return {"part": get_attributes(value)}
    if not _is_plain(value):
        raise UnknownStateError(f"{name} is a {type(value).__qualname__}")
    return {"value": value}


def set_attributes(part: Any, state: dict[str, Any]) -> None:
    """Put back what :func:`get_attributes` told."""
    # The model first: the data of a simulation belongs to one.
    for name, told in sorted(state.items(), key=lambda item: "model" not in item[1]):
        ((kind, value),) = told.items()
        present = vars(part).get(name)
        if name in _OWN and not _is_plain(present):
            continue  # the new environment's window
        if kind == "value":
            _set_value(part, name, present, value)
        elif kind == "constant":
            _check_constant(part, name, present, value)
        elif kind == "space":
            _set_generators(present, value)
        elif kind == "part":
            set_attributes(present, value)
        elif kind == "model":
            physics.set_model_state(present, value)
        elif kind == "data":
            physics.set_data_state(vars(part)["model"], present, value)
        else:
            physics.set_model_state(present.model.ptr, value[0])
            physics.set_data_state(present.model.ptr, present.data.ptr, value[1])


def _check_constant(part: Any, name: str, present: Any, told: str) -> None:
    """Refuse a function that is another now: one that changes is part of the state."""
    found = _constant(part, present)
    if found != told:
        raise UnknownStateError(
            f"{type(part).__name__}.{name} was {told}, and is {found or type(present).__qualname__}"
        )


def _set_value(part: Any, name: str, present: Any, value: Any) -> None:
    """Set in place where others may hold the same array or generator."""
    if (
        isinstance(value, np.random.Generator)
        and isinstance(present, np.random.Generator)
        and type(present.bit_generator) is type(value.bit_generator)
    ):
        present.bit_generator.state = value.bit_generator.state
        return
    if isinstance(value, np.random.RandomState) and isinstance(present, np.random.RandomState):
        present.set_state(value.get_state())
        return
    if (
        isinstance(value, np.ndarray)
        and isinstance(present, np.ndarray)
        and (present.shape, present.dtype) == (value.shape, value.dtype)
        and present.flags.writeable
    ):
        present[...] = value
        return
    setattr(part, name, value)


def _generators(space: Any) -> list[Any]:
    """Return the generators of a space and of its parts; None where it has not drawn yet."""
    return [space._np_random, [_generators(part) for part in _parts(space)]]


def _set_generators(space: Any, state: list[Any]) -> None:
    space._np_random = state[0]
    for part, of_part in zip(_parts(space), state[1], strict=True):
        _set_generators(part, of_part)


def _parts(space: Any) -> list[Any]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.values())
    return list(space.spaces) if isinstance(space, spaces.Tuple) else []


# ---------------------------------------------------------------------- adapters


def register_environment(
    kind: type, get_state: GetState = get_attributes, set_state: SetState = set_attributes
) -> None:
    """Say how the state of an environment or a wrapper of your own is told.

    Without functions it is told by its attributes; that is your word that nothing of its state is
    elsewhere, such as in a simulator behind a socket.

    :param kind: its class; those derived from it, too.
    :param get_state: returns plain data: numbers, text, arrays, generators of NumPy, and lists
        and dictionaries of these. What it wraps is not its business.
    :param set_state: puts that into a new environment that has been reset.
    """
    _ADAPTERS[kind] = (get_state, set_state)


Adapters = dict[type, tuple[GetState, SetState]]


def registered() -> Adapters:
    """Return what was registered, for other processes."""
    return dict(_ADAPTERS)


def _adapter(part: Any, adapters: Adapters) -> tuple[GetState, SetState]:
    for kind in type(part).__mro__:
        if kind in adapters:
            return adapters[kind]
    if isinstance(part, gym.Wrapper):
        return get_attributes, set_attributes
    if any(kind.__module__.startswith(_KNOWN) for kind in type(part).__mro__):
        return get_attributes, set_attributes
    raise UnknownStateError(
        f"nobody has said how to tell the state of {type(part).__qualname__}: if its attributes "
        "are all of it, call sb3_pmpo.storage.environment_state.register_environment with it"
    )


def _layers(env: gym.Env) -> list[Any]:
    """Return the wrappers and the environment, the outermost first."""
    layers: list[Any] = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def get_state(env: gym.Env, adapters: Adapters) -> list[list[Any]]:
    """Tell the state of an environment with its wrappers, outermost first.

    :return: of each the name of its class and its state.
    :raises UnknownStateError: saying what is in the way.
    """
    return [
        [type(layer).__qualname__, _adapter(layer, adapters)[0](layer)] for layer in _layers(env)
    ]


def set_state(env: gym.Env, state: list[list[Any]], adapters: Adapters) -> None:
    """Put a state into an environment that was made alike and has been reset.

    :raises UnknownStateError: if it was not made alike.
    """
    layers = _layers(env)
    names = [type(layer).__qualname__ for layer in layers]
    if names != [name for name, _ in state]:
        raise UnknownStateError(
            f"the environment is {' of '.join(names)}, but the state is one of "
            f"{' of '.join(name for name, _ in state)}"
        )
    for layer, (_, told) in reversed(list(zip(layers, state, strict=True))):
        _adapter(layer, adapters)[1](layer, told)
