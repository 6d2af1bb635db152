"""What ``print(policy)`` says: the parts of a policy and their sizes, a line each."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from torch import nn

from sb3_pmpo.networks import GaussianHead


def short(space: spaces.Space) -> str:
    """Name a space without its bounds, ``Box(24,)``."""
    if isinstance(space, spaces.Dict):
        parts = ", ".join(f"{key}: {short(part)}" for key, part in space.spaces.items())
        return f"Dict({parts})"
    if isinstance(space, spaces.Box):
        return f"Box{space.shape}".replace(" ", "")
    return str(space)


def size(module: nn.Module) -> str:
    """Count a module's parameters."""
    return f"{sum(parameter.numel() for parameter in module.parameters()):,} parameters"


def head_of(actor: Any) -> str:
    """Say what distribution an actor's head makes."""
    head = actor.head
    if isinstance(head, GaussianHead):
        width = head.linear.out_features // 2
        return f"Gaussian of {width} (std from {head.std_min:g} to {head.std_max:g})"
    return f"categorical of {len(head.sizes)} with {', '.join(map(str, head.sizes))} choices"


def describe_policy(policy: Any) -> str:
    """Describe a :class:`sb3_pmpo.policies.PMPOPolicy`.

    :return: a line for each part, and one for the whole.
    """
    actor, critic = policy.actor, policy.critic
    body = [str(each.out_features) for each in actor.latent_pi if isinstance(each, nn.Linear)]
    layers = " -> ".join([f"{actor.features_dim} features", *body, head_of(actor)])
    extractor = type(actor.features_extractor).__name__
    seen = policy.statistics_count
    critics = f"{type(critic).__name__}, {size(critic)}"
    if hidden := getattr(getattr(critic, "ensemble", None), "hidden", None):
        told = policy._get_constructor_parameters()
        widths = " -> ".join(str(layer.weight.shape[-1]) for layer in hidden)
        critics = (
            f"{told['n_critics']} x {type(critic).__name__}: {widths} -> {told['n_quantiles']} "
            f"quantiles of the return, {size(critic)}"
        )
    normalises = type(policy.normaliser).__name__
    return "\n".join(
        (
            f"{type(policy).__name__}: {short(policy.observation_space)} -> "
            f"{short(policy.action_space)}",
            f"  observations: {normalises} ({seen:,.0f} seen), {extractor}",
            f"  actor, reference_actor: {layers}, {size(actor)} each",
            f"  critic, critic_target: {critics} each",
            f"  optimizers: {type(actor.optimizer).__name__} (actor), "
            f"{type(critic.optimizer).__name__} (critic)",
        )
    )
