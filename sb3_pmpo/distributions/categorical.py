"""Categorical policies: discretised boxes and discrete actions.

Axes: S samples, ``*B`` batch, A action dimensions, K bins.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_pmpo.distributions.protocol import Component, Proposal, component, propose_draws

#: Up to so many joint actions are listed; of more, samples are drawn.
MAX_LISTED = 32

#: Logit of a bin that a dimension lacks because it has fewer than K. Finite: the probability is
#: exactly 0, and 0 times a difference of two such log-probabilities is 0, not NaN.
NO_BIN = -1e9


class Categorical(NamedTuple):
    """Independent categorical dimensions; bin k stands for the action ``low + k * spacing``.

    The actions are the bin centres of a discretised Box, or the numbers 0, 1, ... of a discrete
    space.

    :param logits: ``[*B, A, K]``, :data:`NO_BIN` at the bins that a dimension lacks.
    :param sizes: the number of bins of each of the A dimensions, at most K.
    :param low: action of the first bin.
    :param spacing: from one bin to the next, > 0.
    """

    logits: th.Tensor
    sizes: tuple[int, ...]
    low: float = 0.0
    spacing: float = 1.0

    @staticmethod
    def parts() -> tuple[str, ...]:
        """Name the parts that can be fitted apart."""
        return ("joint",)

    def sample(self, n_samples: int) -> th.Tensor:
        """Draw ``[S, *B, A]`` actions, without gradient."""
        logits = self.logits
        shape = (n_samples, *logits.shape[:-1])
        return self._at(th.rand(shape, dtype=logits.dtype, device=logits.device))

    def propose(self, n_samples: int) -> Proposal:
        """List all joint actions if they are at most :data:`MAX_LISTED`, else draw samples.

        A listed action weighs its probability, so that expectations over the list are exact.
        """
        if math.prod(self.sizes) > MAX_LISTED:
            return propose_draws(self.sample(n_samples))
        bins = [th.arange(size, device=self.logits.device) for size in self.sizes]
        index = th.cartesian_prod(*bins).view(-1, *[1] * (self.logits.dim() - 2), len(bins))
        actions = self._actions(index.expand(-1, *self.logits.shape[:-1]))  # [S, *B, A]
        return Proposal(actions, self.log_prob(actions).detach().exp())

    def mode(self) -> th.Tensor:
        """Return the likeliest action of each dimension, ``[*B, A]``."""
        return self._actions(self.logits.argmax(-1))

    def at_quantile(self, z: th.Tensor) -> th.Tensor:
        """Invert the cumulative distribution where standard normal draws ``z [*B, A]`` lie."""
        return self._at(th.special.ndtr(z))

    def overshoot(self, actions: th.Tensor) -> None:
        """Return None: no bin is outside."""

    def edge_barrier(self) -> th.Tensor:
        """Sum ``2 * KL(uniform || self)`` over A; ``[*B]``, with gradient.

        0 where all bins are equally likely. Its slope in a bin's logit is ``2 * (p - 1 / K)``:
        clear labels outweigh it, and where they say nothing the policy becomes uniform again. With
        two bins it is ``-log(1 - m^2)`` of the difference m of their probabilities: what
        :func:`sb3_pmpo.distributions.gaussian.edge_barrier` is of a mean.
        """
        there = self.logits > NO_BIN
        sizes = there.sum(-1)  # [*B, A]
        log_probs = th.where(there, F.log_softmax(self.logits, -1), 0.0)
        return (-2.0 * (log_probs.sum(-1) / sizes + sizes.log())).sum(-1)

    def detach(self) -> Categorical:
        """Cut the gradient of the logits."""
        return self._replace(logits=self.logits.detach())

    def describe(self) -> dict[str, th.Tensor]:
        """Return the smallest, the mean and the largest entropy of a dimension, in nats."""
        log_probs = F.log_softmax(self.logits.detach(), -1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return {
            "entropy_min": entropy.min(),
            "entropy_mean": entropy.mean(),
            "entropy_max": entropy.max(),
        }

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Compute the log-probability ``[S, *B]`` of the bins nearest to ``actions [S, *B, A]``."""
        index = ((actions - self.low) / self.spacing).round().long()
        index = index.clamp(0, self.logits.shape[-1] - 1).unsqueeze(-1)
        log_probs = F.log_softmax(self.logits, -1).expand(len(index), *self.logits.shape)
        return log_probs.gather(-1, index).squeeze(-1).sum(-1)

    def kl_per_dim(self, reference: Categorical) -> th.Tensor:
        """Compute ``KL(reference || self)`` of each dimension in closed form; ``[*B, A]``.

        The gradient flows to self alone.
        """
        old = F.log_softmax(reference.logits.detach(), -1)
        return (old.exp() * (old - F.log_softmax(self.logits, -1))).sum(-1)

    def kl_from(self, reference: Categorical) -> th.Tensor:
        """Compute ``KL(reference || self)``; ``[*B]``."""
        return self.kl_per_dim(reference).sum(-1)

    def joint(self, reference: Categorical, actions: th.Tensor) -> tuple[Component, ...]:
        """Fit the logits, all there is: one component."""
        return (component("joint", self, reference, actions),)

    def decoupled(self, reference: Categorical, actions: th.Tensor) -> tuple[Component, ...]:
        """Return the same component: logits have no parts."""
        return self.joint(reference, actions)

    def _actions(self, index: th.Tensor) -> th.Tensor:
        return self.low + self.spacing * index.to(self.logits.dtype)

    def _at(self, level: th.Tensor) -> th.Tensor:
        """Invert the cumulative distribution at ``level [..., *B, A]`` in [0, 1]."""
        cumulative = self.logits.detach().softmax(-1).cumsum(-1)
        total = cumulative[..., -1:]  # 1 but for rounding
        index = (level.unsqueeze(-1) * total >= cumulative).sum(-1)
        last = (self.logits > NO_BIN).sum(-1) - 1
        return self._actions(index.minimum(last))
