"""Policy distributions: sampling, log-probability and closed-form KL, joint and decoupled.

Axes: S samples, *B batch, A action dimensions. Log-probabilities and KLs are sums over A.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch as th

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class Component(NamedTuple):
    """A part of a policy that is fitted with a KL weight of its own.

    :param name: what it is called in the logs.
    :param log_prob: ``[S, *B]`` of the samples; the gradient reaches this part alone.
    :param kl: ``[*B]`` the part's share of ``KL(reference || policy)``, in nats.
    """

    name: str
    log_prob: th.Tensor
    kl: th.Tensor


class DiagGaussian(NamedTuple):
    """A Gaussian with a diagonal covariance, not squashed.

    :param mean: ``[*B, A]``.
    :param std: ``[*B, A]``, > 0.
    """

    mean: th.Tensor
    std: th.Tensor

    def sample(self, n_samples: int) -> th.Tensor:
        """Draw ``[S, *B, A]`` samples, without gradient."""
        mean = self.mean.detach()
        noise = th.randn(n_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        return th.addcmul(mean, self.std.detach(), noise)

    def detach(self) -> DiagGaussian:
        """Cut the gradient of both parameters."""
        return DiagGaussian(self.mean.detach(), self.std.detach())

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Compute the log-density of ``actions [S, *B, A]``; ``[S, *B]``."""
        z = (actions - self.mean) / self.std
        return -(0.5 * z.square() + self.std.log() + _LOG_SQRT_2PI).sum(-1)

    def kl_from(self, reference: DiagGaussian) -> th.Tensor:
        """Compute ``KL(reference || self)`` in closed form; ``[*B]``.

        The gradient flows to self alone.
        """
        reference = reference.detach()
        ratio = reference.std / self.std
        shift = (reference.mean - self.mean) / self.std
        return (0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()).sum(-1)

    def joint(self, reference: DiagGaussian, actions: th.Tensor) -> tuple[Component, ...]:
        """Fit mean and std together, as the paper writes it: one component."""
        return (Component("joint", self.log_prob(actions.detach()), self.kl_from(reference)),)

    def decoupled(self, reference: DiagGaussian, actions: th.Tensor) -> tuple[Component, ...]:
        """Fit the mean under the reference's std, and the std around the reference's mean.

        MPO's decoupling (Abdolmaleki et al., 2018b, "Relative entropy regularized policy
        iteration"): moving the mean cannot shrink the std. The two KLs are
        ``1/2 ((mean - mean_ref) / std_ref)^2`` and
        ``log(std / std_ref) + (std_ref / std)^2 / 2 - 1/2``, summed over A.

        :param reference: where the samples come from; no gradient flows to it.
        :param actions: ``[S, *B, A]``, no gradient.
        :return: the components ``mean`` and ``std``.
        """
        reference, actions = reference.detach(), actions.detach()
        only_mean = DiagGaussian(self.mean, reference.std)
        only_std = DiagGaussian(reference.mean, self.std)
        return (
            Component("mean", only_mean.log_prob(actions), only_mean.kl_from(reference)),
            Component("std", only_std.log_prob(actions), only_std.kl_from(reference)),
        )
