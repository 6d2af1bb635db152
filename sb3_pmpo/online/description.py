"""What ``print(model)`` says: what it learns by, how far it has come, what its policy is."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn


def describe_model(model: OffPolicyAlgorithm) -> str:
    """Describe a model of the family.

    :return: a line for the model, one for its objective, and those of its policy.
    """
    told: Any = model
    if "policy" not in vars(model):
        return f"{type(model).__name__}, not set up yet"
    buffer = told.replay_buffer
    stored = "no replay buffer" if buffer is None else f"{_stored(buffer)} transitions stored"
    return "\n".join(
        (
            f"{type(model).__name__} on {model.device}: {model.num_timesteps:,} steps (decisions), "
            f"{told.n_updates:,} updates of the critics, {stored}",
            f"  objective: {_call(told.objective)}, {model.n_samples} samples a state",  # type: ignore[attr-defined]  # the family's
            f"  gamma={model.gamma}, n_steps={told.n_steps}, batch_size={model.batch_size}, "
            f"gradient_steps={model.gradient_steps}, policy_delay={told.policy_delay}",
            str(model.policy),
        )
    )


def _stored(buffer: Any) -> str:
    return f"{buffer.size() * buffer.n_envs:,} of {buffer.buffer_size * buffer.n_envs:,}"


def _call(thing: Any) -> str:
    """Write a dataclass as the call that makes it, without what is the default."""
    if not is_dataclass(thing) or isinstance(thing, type):
        if callable(thing) and hasattr(thing, "__name__"):
            return str(thing.__name__)
        return type(thing).__name__ if isinstance(thing, nn.Module) else repr(thing)
    values = ((each, getattr(thing, each.name)) for each in fields(thing))
    given = (f"{each.name}={_call(value)}" for each, value in values if value != each.default)
    return f"{type(thing).__name__}({', '.join(given)})"
