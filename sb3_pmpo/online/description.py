"""What ``print(model)`` says: what it learns by, how far it has come, what its policy is."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pmpo.core.checks import written


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
            f"{type(model).__name__} on {model.device}: {model.num_timesteps:,} steps (decisions, "
            f"or gradient steps on data), {told.n_updates:,} updates of the critics, {stored}",
            f"  objective: {_objective(told)}, {told.n_samples} samples a state",
            f"  gamma={model.gamma}, n_steps={told.n_steps}, batch_size={model.batch_size}, "
            f"gradient_steps={model.gradient_steps}, policy_delay={told.policy_delay}",
            str(model.policy),
        )
    )


def _objective(model: Any) -> str:
    """Write what the model's kind of policy has a use for."""
    of_a_gaussian = () if model.actor.has_parts else ("beta_std", "decoupled")
    return written(model.objective, without=("duals", *of_a_gaussian))


def _stored(buffer: Any) -> str:
    return f"{buffer.size() * buffer.n_envs:,} of {buffer.buffer_size * buffer.n_envs:,}"
