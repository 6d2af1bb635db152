"""The state of environments: the episode in progress, counters and generators.

An environment and each wrapper around it is told by its attributes. What belongs to rendering is
left out. Of functions and classes the name is kept, and what they hold, to see that it is the
same. What is neither these nor plain data makes the state unknown, and a run that goes on then
begins a new episode. Simulations of MuJoCo are told by :mod:`sb3_pmpo.storage.physics`.
"""

from __future__ import annotations

import functools
import hashlib
import random
import types
from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_pmpo.storage import physics
from sb3_pmpo.storage.filling import Shared, as_text
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
_TOLD_ELSEWHERE = {
    *("env", "metadata", "spec", "_cached_spec"),
    *("_ezpickle_args", "_ezpickle_kwargs", "_saved_kwargs"),
}

#: Of rendering, of files and of the clock: a new environment has its own. An environment of a
#: user's may call something else so, so there only what is not plain data counts as such.
_OWN = {
    *("clock", "isopen", "mujoco_renderer", "screen", "surf", "viewer", "render_kwargs"),
    *("results_writer", "t_start", "env_type"),
}

#: Whose attributes of those names are what is meant above.
_LIBRARIES = ("gymnasium.", "gymnasium_robotics.", "shimmy.", "stable_baselines3.", "sb3_pmpo.")

#: What draws windows. A user's object of one of those names that is of another module may have a
#: state of its own.
_RENDERING = (
    *("OpenGL", "PIL", "cairo", "cv2", "glfw", "gymnasium", "matplotlib", "mujoco", "panda3d"),
    *("pybullet", "pygame", "pyglet", "tkinter", "vispy"),
)

#: Of the libraries, what a user's own classes are made from.
_BASES = ("gymnasium.core", "gymnasium.utils.")

#: Functions of NumPy's that choose by the type of an argument, such as ``np.clip``.
_DISPATCHER = type(np.clip)

_CONSTANT = (types.ModuleType, type, EnvSpec, np.ufunc, np.dtype, _DISPATCHER)

#: Whose methods draw from the generators of the process, which are told elsewhere.
_OF_THE_PROCESS = tuple(each.__self__ for each in cast(Any, (np.random.rand, random.random)))

_ADAPTERS: dict[type, tuple[GetState, SetState]] = {}


class UnknownStateError(TypeError):
    """Nobody has said how to tell the state of an environment."""


def get_attributes(part: Any) -> dict[str, Any]:
    """Tell the state of an environment or a wrapper by its attributes.

    :raises UnknownStateError: naming an attribute that is neither constant nor plain.
    """
    state: dict[str, Any] = {_CLASS: of_class} if (of_class := _class_state(part)) else {}
    model = None
    for name, value in vars(part).items():
        if name in _TOLD_ELSEWHERE or (name in _OWN and _is_rendering(part, value)):
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


def _is_rendering(part: Any, value: Any) -> bool:
    of_a_library = any(
        kind.__module__.startswith(_LIBRARIES) and not kind.__module__.startswith(_BASES)
        for kind in type(part).__mro__
    )
    of_a_window = type(value).__module__.partition(".")[0] in _RENDERING or type(value) is object
    return of_a_library or (of_a_window and not _is_plain(value))


def _is_plain(value: Any) -> bool:
    try:
        encode(value, lambda path, array: path)
    except (NotPlainError, RecursionError):
        return False
    return True


def _own_classes(part: Any) -> list[type]:
    """Return the classes of a part that are a user's own."""
    libraries = (*_LIBRARIES, *_PARTS, "dm_control.", "shimmy.", "builtins", "typing", "abc")
    return [kind for kind in type(part).__mro__ if not f"{kind.__module__}.".startswith(libraries)]


#: Among the attributes: what the classes hold.
_CLASS = ":class"


def _class_state(part: Any) -> dict[str, Any]:
    """Tell what is plain data in a user's classes: compared, for others hold it, too."""
    told = {}
    for kind in _own_classes(part):
        if vars(kind).get("__slots__"):
            raise UnknownStateError(f"{kind.__qualname__} has __slots__")
        for name, value in vars(kind).items():
            is_data = not (name.startswith("__") or name in _TOLD_ELSEWHERE or callable(value))
            if is_data and not isinstance(value, spaces.Space) and _is_plain(value):
                told[f"{kind.__qualname__}.{name}"] = as_text(value)
    return told


def _check_class(part: Any, told: dict[str, Any]) -> None:
    found = _class_state(part)
    for name in sorted({*told, *found}):
        if told.get(name) != found.get(name):
            raise UnknownStateError(
                f"{name}, an attribute of a class, was {told.get(name)}, and is {found.get(name)}"
            )


def _not_told(part: Any, state: dict[str, Any]) -> list[str]:
    """Return what a new environment of a user's has, and the one before had not, or no longer."""
    if not _own_classes(part):  # a library's may have more in another version
        return []
    return [
        name
        for name, value in vars(part).items()
        if name not in state
        and name not in _TOLD_ELSEWHERE
        and not (name in _OWN and _is_rendering(part, value))
    ]


def _constant(part: Any, value: Any, within: tuple[Any, ...] = ()) -> str | None:
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
        named = [_constant(part, each, within) or _immutable(part, each) for each in inside]
        return None if None in named else f"partial {named}"
    if isinstance(value, types.FunctionType):
        return _function(part, value, within)
    if isinstance(value, _CONSTANT):
        return str(getattr(value, "__qualname__", getattr(value, "__name__", value)))
    return None


def _function(part: Any, function: types.FunctionType, within: tuple[Any, ...]) -> str | None:
    """Name a function with what it holds, which it may change: compared, not put back.

    :param within: functions that hold this one, which may hold them.
    """
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    defaults = enumerate(function.__defaults__ or ())
    held = {
        **{f"default {i}": value for i, value in defaults},
        **(function.__kwdefaults__ or {}),
        **vars(function),
    }
    for name, cell in cells:
        try:
            held[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    told = []
    for name, value in held.items():
        if any(value is each for each in (function, *within, *_layers(part))):
            continue
        named = _constant(part, value, (*within, function))
        if named is None and isinstance(value, spaces.Space):
            named = repr(value)
        elif named is None and _is_plain(value):
            named = hashlib.sha256(as_text(value).encode()).hexdigest()[:16]
        if named is None:
            return None
        told.append(f"{name}={named}")
    return f"{function.__qualname__} with {told}" if told else function.__qualname__


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


def set_attributes(part: Any, state: dict[str, Any], shared: Shared | None = None) -> None:
    """Put back what :func:`get_attributes` told.

    :param part: an environment or a wrapper.
    :param state: of one that was made alike.
    :param shared: what the other layers of the environment hold, too.
    """
    shared = Shared() if shared is None else shared
    if _CLASS in state:
        _check_class(part, state[_CLASS])
    # The model first: the data of a simulation belongs to one.
    for name, told in sorted(state.items(), key=lambda item: "model" not in item[1]):
        if name == _CLASS:
            continue
        ((kind, value),) = told.items()
        present = vars(part).get(name)
        if name in _OWN and _is_rendering(part, present):
            continue  # the new environment's window
        if kind == "value":
            if not shared.fill(present, value):
                setattr(part, name, value)
        elif kind == "constant":
            _check_constant(part, name, present, value)
        elif kind == "space":
            _set_generators(present, value)
        elif kind == "part":
            set_attributes(present, value, shared)
        elif kind == "model":
            physics.set_model_state(present, value)
        elif kind == "data":
            physics.set_data_state(vars(part)["model"], present, value)
        else:
            physics.set_model_state(present.model.ptr, value[0])
            physics.set_data_state(present.model.ptr, present.data.ptr, value[1])
    for name in _not_told(part, state):
        delattr(part, name)


def _check_constant(part: Any, name: str, present: Any, told: str) -> None:
    """Refuse a function that is another now: one that changes is part of the state."""
    found = _constant(part, present)
    if found != told:
        raise UnknownStateError(
            f"{type(part).__name__}.{name} was {told}, and is {found or type(present).__qualname__}"
        )


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
    shared = Shared()
    for layer, (_, told) in reversed(list(zip(layers, state, strict=True))):
        setter = _adapter(layer, adapters)[1]
        if setter is set_attributes:
            set_attributes(layer, told, shared)
        else:
            setter(layer, told)
