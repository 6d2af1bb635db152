"""What the algorithms ask of a policy's distribution.

Axes: S samples, ``*B`` batch, A action dimensions. Log-probabilities and KLs are sums over A, but
for ``kl_per_dim``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, TypeVar

import torch as th

from sb3_pmpo.core.samples import uniform_weights


class Component(NamedTuple):
    """A part of a policy that is fitted with a KL weight of its own.

    :param name: what it is called in the logs.
    :param log_prob: ``[S, *B]`` of the samples; the gradient reaches this part alone.
    :param kl_per_dim: ``[*B, A]`` the part's share of ``KL(reference || policy)``, in nats.
    """

    name: str
    log_prob: th.Tensor
    kl_per_dim: th.Tensor

    @property
    def kl(self) -> th.Tensor:
        """Sum the KL over the dimensions; ``[*B]``."""
        return self.kl_per_dim.sum(-1)


class Proposal(NamedTuple):
    """Actions to be scored.

    :param actions: ``[S, *B, A]``, as drawn, or one of each.
    :param weights: ``[S, *B]`` of each in an expectation; they sum to 1 over S.
    """

    actions: th.Tensor
    weights: th.Tensor


class Distribution(Protocol):
    """What the algorithms ask of a policy's distribution over A dimensions."""

    @staticmethod
    def parts() -> tuple[str, ...]:
        """Name the parts that :meth:`decoupled` fits apart; one name if there are none."""
        ...

    def sample(self, n_samples: int) -> th.Tensor:
        """Draw ``[S, *B, A]`` samples, without gradient."""
        ...

    def propose(self, n_samples: int) -> Proposal:
        """Draw samples, or list all the actions where they are few; no gradient."""
        ...

    def mode(self) -> th.Tensor:
        """Return the likeliest action, ``[*B, A]``."""
        ...

    def at_quantile(self, z: th.Tensor) -> th.Tensor:
        """Map standard normal draws ``z [*B, A]`` to draws of this distribution, in order."""
        ...

    def overshoot(self, actions: th.Tensor) -> th.Tensor | None:
        """Measure how far ``actions [S, *B, A]`` leave [-1, 1], ``[S, *B]``; None: they cannot."""
        ...

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Compute the log-probability of ``actions [S, *B, A]``; ``[S, *B]``."""
        ...

    def kl_per_dim(self, reference: Self) -> th.Tensor:
        """Compute ``KL(reference || self)`` of each dimension; ``[*B, A]``."""
        ...

    def kl_from(self, reference: Self) -> th.Tensor:
        """Compute ``KL(reference || self)``; ``[*B]``."""
        ...

    def joint(self, reference: Self, actions: th.Tensor) -> tuple[Component, ...]:
        """Return the one part that all parameters make, and its KL to the reference."""
        ...

    def decoupled(self, reference: Self, actions: th.Tensor) -> tuple[Component, ...]:
        """Return the parts that can be fitted apart, each with a KL of its own."""
        ...

    def edge_barrier(self) -> th.Tensor:
        """Measure how near it is to the edge where it would learn no more; ``[*B]``, >= 0.

        That is a mean at the box's edge, or choices of which one is all there is.
        """
        ...

    def describe(self) -> dict[str, th.Tensor]:
        """Return scalars for the log, without gradient."""
        ...


D = TypeVar("D", bound=Distribution)


def component(name: str, part: D, reference: D, actions: th.Tensor) -> Component:
    """Make the component of a part: its log-probability of the samples and its KL."""
    return Component(name, part.log_prob(actions.detach()), part.kl_per_dim(reference))


def propose_draws(actions: th.Tensor) -> Proposal:
    """Make the proposal of draws ``[S, *B, A]``, which all weigh the same."""
    return Proposal(actions, uniform_weights(actions[..., 0]))
