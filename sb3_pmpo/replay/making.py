"""The buffer that a model's arguments ask for."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.core.checks import blaming
from sb3_pmpo.replay.checks import buffer_class_of
from sb3_pmpo.replay.storage import is_gathered


def make_replay_buffer(model: OffPolicyAlgorithm) -> ReplayBuffer:
    """Make the buffer that the arguments of a model ask for, changing none of them.

    :param model: an algorithm with its environment's spaces known.
    :raises ValueError: if ``replay_buffer_kwargs`` holds ``n_steps`` or ``gamma`` for a class that
        takes neither.
    """
    buffer_class = buffer_class_of(model)
    kwargs = dict(model.replay_buffer_kwargs)
    for name in ("n_steps", "gamma"):
        if name in kwargs and not _takes(buffer_class, name):
            raise ValueError(
                f"replay_buffer_kwargs has {name}={kwargs[name]}, which {buffer_class.__name__} "
                f"does not take: use {name}={kwargs[name]} of the algorithm"
            )
    kwargs |= _own_settings(model, buffer_class)
    if issubclass(buffer_class, HerReplayBuffer):
        kwargs["env"] = model.env
    with blaming(
        f"replay_buffer_class={buffer_class.__name__} with replay_buffer_kwargs="
        f"{model.replay_buffer_kwargs} and buffer_size={model.buffer_size}",
        "give what its constructor takes besides the algorithm's own arguments, and as many "
        "transitions as the memory holds",
    ):
        buffer = buffer_class(
            model.buffer_size,
            model.observation_space,
            model.action_space,
            device=model.device,
            n_envs=model.n_envs,
            optimize_memory_usage=model.optimize_memory_usage,
            **kwargs,
        )
    _warn_of_ignored_n_steps(model, buffer)
    return buffer


def adopt_replay_buffer(model: OffPolicyAlgorithm) -> None:
    """Give a loaded buffer the model's ``n_steps`` and ``gamma``, if its class takes them.

    It has been checked by :func:`sb3_pmpo.replay.checks.check_loaded_buffer`.
    """
    buffer = model.replay_buffer
    assert buffer is not None  # it has just been loaded
    for name, value in _own_settings(model, type(buffer)).items():
        setattr(buffer, name, value)
    _warn_of_ignored_n_steps(model, buffer)


def _own_settings(model: OffPolicyAlgorithm, buffer_class: type[ReplayBuffer]) -> dict[str, Any]:
    """Collect what a class that makes n-step returns itself is told of them.

    ``replay_buffer_kwargs`` go first. A class that the user brings keeps its own ``n_steps`` if
    nobody asks for more than one.
    """
    settings: dict[str, Any] = {"gamma": model.gamma}
    if model.replay_buffer_class is None or model.n_steps > 1:
        settings["n_steps"] = model.n_steps
    given = model.replay_buffer_kwargs
    settings |= {name: given[name] for name in ("n_steps", "gamma") if name in given}
    return {name: value for name, value in settings.items() if _takes(buffer_class, name)}


def _takes(buffer_class: type, name: str) -> bool:
    """Say whether a class has a constructor's argument of that name, its own or inherited."""
    constructors = [vars(c)["__init__"] for c in buffer_class.__mro__ if "__init__" in vars(c)]
    return any(
        name in inspect.signature(constructor).parameters
        for constructor in constructors
        if inspect.isfunction(constructor)
    )


def _warn_of_ignored_n_steps(model: OffPolicyAlgorithm, buffer: ReplayBuffer) -> None:
    if model.n_steps == 1 or is_gathered(buffer) or _takes(type(buffer), "n_steps"):
        return
    warnings.warn(
        f"`n_steps={model.n_steps}` is ignored: {type(buffer).__name__} samples transitions in a "
        "way of its own and takes no `n_steps`; leave `replay_buffer_class` at None for n-step "
        "returns",
        stacklevel=3,
    )
