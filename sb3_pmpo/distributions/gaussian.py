"""Gaussian policies, with a diagonal and with a full covariance.

Axes: S samples, ``*B`` batch, A action dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_pmpo.distributions.protocol import Component, Proposal, component, propose_draws

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class DiagGaussian(NamedTuple):
    """A Gaussian with a diagonal covariance, not squashed.

    :param mean: ``[*B, A]``.
    :param std: ``[*B, A]``, > 0.
    """

    mean: th.Tensor
    std: th.Tensor

    @staticmethod
    def parts() -> tuple[str, ...]:
        """Name the parts that can be fitted apart."""
        return ("mean", "std")

    def sample(self, n_samples: int) -> th.Tensor:
        """Draw ``[S, *B, A]`` samples, without gradient."""
        mean = self.mean.detach()
        noise = th.randn(n_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        return th.addcmul(mean, self.std.detach(), noise)

    def propose(self, n_samples: int) -> Proposal:
        """Draw ``[S, *B, A]`` samples, A at a time at right angles to each other.

        Each is a draw of this distribution; together they search a state's directions more
        evenly than independent ones, so that 6 tell more of a score's slope than 8 of those.
        """
        mean, std = self.mean.detach(), self.std.detach()
        return propose_draws(th.addcmul(mean, std, _orthogonal_noise(n_samples, mean)))

    def mode(self) -> th.Tensor:
        """Return the mean."""
        return self.mean

    def at_quantile(self, z: th.Tensor) -> th.Tensor:
        """Scale and shift standard normal draws ``z [*B, A]``."""
        return self.mean + self.std * z

    def overshoot(self, actions: th.Tensor) -> th.Tensor:
        """Sum over A how far ``actions [S, *B, A]`` leave [-1, 1]; ``[S, *B]``."""
        return _outside(actions)

    def edge_barrier(self) -> th.Tensor:
        """Sum ``-log(1 - mean^2)`` over A; ``[*B]``, with gradient; see :func:`edge_barrier`."""
        return edge_barrier(self.mean)

    def describe(self) -> dict[str, th.Tensor]:
        """Return the smallest, the mean and the largest std."""
        return _describe_std(self.std)

    def detach(self) -> DiagGaussian:
        """Cut the gradient of both parameters."""
        return DiagGaussian(self.mean.detach(), self.std.detach())

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Compute the log-density of ``actions [S, *B, A]``; ``[S, *B]``."""
        z = (actions - self.mean) / self.std
        return -(0.5 * z.square() + self.std.log() + _LOG_SQRT_2PI).sum(-1)

    def kl_per_dim(self, reference: DiagGaussian) -> th.Tensor:
        """Compute ``KL(reference || self)`` of each dimension in closed form; ``[*B, A]``.

        The gradient flows to self alone.
        """
        reference = reference.detach()
        ratio = reference.std / self.std
        shift = (reference.mean - self.mean) / self.std
        return 0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()

    def kl_from(self, reference: DiagGaussian) -> th.Tensor:
        """Compute ``KL(reference || self)``; ``[*B]``."""
        return self.kl_per_dim(reference).sum(-1)

    def joint(self, reference: DiagGaussian, actions: th.Tensor) -> tuple[Component, ...]:
        """Fit mean and std together, as the paper writes it: one component."""
        return (component("joint", self, reference, actions),)

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
        fixed = reference.detach()
        return (
            component("mean", DiagGaussian(self.mean, fixed.std), reference, actions),
            component("std", DiagGaussian(fixed.mean, self.std), reference, actions),
        )


class FullGaussian(NamedTuple):
    """A Gaussian with a full covariance; its dimensions are not independent.

    :param mean: ``[*B, A]``.
    :param scale_tril: ``[*B, A, A]`` the covariance's Cholesky factor: lower triangular, with a
        positive diagonal.
    """

    mean: th.Tensor
    scale_tril: th.Tensor

    @staticmethod
    def parts() -> tuple[str, ...]:
        """Name the parts that can be fitted apart."""
        return ("mean", "std")

    def sample(self, n_samples: int) -> th.Tensor:
        """Draw ``[S, *B, A]`` samples, without gradient."""
        mean = self.mean.detach()
        noise = th.randn(n_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        return mean + matvec(self.scale_tril.detach(), noise)

    def propose(self, n_samples: int) -> Proposal:
        """Draw ``[S, *B, A]`` samples that all weigh the same, without gradient."""
        return propose_draws(self.sample(n_samples))

    def mode(self) -> th.Tensor:
        """Return the mean."""
        return self.mean

    def at_quantile(self, z: th.Tensor) -> th.Tensor:
        """Scale, shear and shift standard normal draws ``z [*B, A]``."""
        return self.mean + matvec(self.scale_tril, z)

    def edge_barrier(self) -> th.Tensor:
        """Sum ``-log(1 - mean^2)`` over A; ``[*B]``, with gradient; see :func:`edge_barrier`."""
        return edge_barrier(self.mean)

    def describe(self) -> dict[str, th.Tensor]:
        """Return the smallest, the mean and the largest std of a dimension."""
        return _describe_std(self.scale_tril.square().sum(-1).sqrt())

    def overshoot(self, actions: th.Tensor) -> th.Tensor:
        """Sum over A how far ``actions [S, *B, A]`` leave [-1, 1]; ``[S, *B]``."""
        return _outside(actions)

    def detach(self) -> FullGaussian:
        """Cut the gradient of both parameters."""
        return FullGaussian(self.mean.detach(), self.scale_tril.detach())

    def _whiten(self, deviation: th.Tensor) -> th.Tensor:
        factor = self.scale_tril.expand(*deviation.shape, -1)
        solved = th.linalg.solve_triangular(factor, deviation.unsqueeze(-1), upper=False)
        return solved.squeeze(-1)

    def _half_log_det(self) -> th.Tensor:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Compute the log-density of ``actions [S, *B, A]``; ``[S, *B]``."""
        z = self._whiten(actions - self.mean)
        return -0.5 * z.square().sum(-1) - self._half_log_det() - z.shape[-1] * _LOG_SQRT_2PI

    def kl_from(self, reference: FullGaussian) -> th.Tensor:
        """Compute ``KL(reference || self)`` in closed form; ``[*B]``; no gradient to the former."""
        reference = reference.detach()
        shift = self._whiten(reference.mean - self.mean).square().sum(-1)
        ratio = th.linalg.solve_triangular(self.scale_tril, reference.scale_tril, upper=False)
        trace = ratio.square().sum((-2, -1))
        log_ratio = self._half_log_det() - reference._half_log_det()
        return 0.5 * (trace + shift - self.mean.shape[-1]) + log_ratio

    def kl_per_dim(self, reference: FullGaussian) -> th.Tensor:
        """Compute ``KL(reference || self)`` as that of one dimension, ``[*B, 1]``."""
        return self.kl_from(reference).unsqueeze(-1)

    def joint(self, reference: FullGaussian, actions: th.Tensor) -> tuple[Component, ...]:
        """Fit mean and covariance together: one component."""
        return (component("joint", self, reference, actions),)

    def decoupled(self, reference: FullGaussian, actions: th.Tensor) -> tuple[Component, ...]:
        """Fit the mean under the reference's covariance, the covariance around its mean.

        :return: the components ``mean`` and ``std``, as of :meth:`DiagGaussian.decoupled`.
        """
        fixed = reference.detach()
        return (
            component("mean", FullGaussian(self.mean, fixed.scale_tril), reference, actions),
            component("std", FullGaussian(fixed.mean, self.scale_tril), reference, actions),
        )


def edge_barrier(mean: th.Tensor) -> th.Tensor:
    """Sum ``-log(1 - mean^2)`` over A; ``[*B]``, with gradient.

    0 in the middle of the box. Where the mean is ``tanh(x)`` its slope in x is ``2 * mean``, and
    stays so where tanh's own is gone, up to the mean that rounds to 1. A mean without bounds may be
    outside the box: there it grows with ``mean^2 - 1``.

    :param mean: ``[*B, A]``.
    """
    beyond = (mean.square() - 1.0).clamp(min=0.0)
    return (beyond - (1.0 - mean.square() + beyond + 1e-6).log()).sum(-1)


def _describe_std(std: th.Tensor) -> dict[str, th.Tensor]:
    std = std.detach()
    return {"std_min": std.min(), "std_mean": std.mean(), "std_max": std.max()}


def _orthogonal_noise(n_samples: int, like: th.Tensor) -> th.Tensor:
    """Draw standard normal vectors ``[S, *B, A]``, orthogonal in groups of A along S.

    A group is an orthogonal matrix of the uniform (Haar) distribution whose columns have the
    lengths of independent draws (Yu et al., 2016, "Orthogonal random features").

    :param like: ``[*B, A]`` gives shape, dtype and device.
    """
    dim = like.shape[-1]
    size, groups = min(n_samples, dim), math.ceil(n_samples / dim)
    wide = th.promote_types(like.dtype, th.float32)  # no factorisation in half precision
    noise = th.randn(groups, *like.shape, size, dtype=wide, device=like.device)
    if size > 1:
        # QR factorises one matrix after the other on a GPU, hundreds of launches.
        directions = _gram_schmidt(noise) if noise.is_cuda else _unique_qr(noise)
        noise = directions * noise.square().sum(-2, keepdim=True).sqrt()
    return noise.movedim(-1, 1).flatten(0, 1)[:n_samples].to(like.dtype)


def _unique_qr(matrices: th.Tensor) -> th.Tensor:
    """Compute Q ``[..., A, K]`` of the factorisation whose R has a positive diagonal.

    It is unique, and with it Q's distribution uniform where the columns are normal.
    """
    directions, triangle = th.linalg.qr(matrices)
    return directions * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _gram_schmidt(matrices: th.Tensor) -> th.Tensor:
    """Compute the same in a few kernels, for many small matrices on a GPU."""
    basis = matrices[..., :0]
    for column in matrices.split(1, dim=-1):
        for _ in range(2):  # once more, against rounding
            column = column - basis @ (basis.mT @ column)
        basis = th.cat((basis, F.normalize(column, dim=-2)), dim=-1)
    return basis


def _outside(actions: th.Tensor) -> th.Tensor:
    return (actions.abs() - 1.0).clamp(min=0.0).sum(-1)


def matvec(matrix: th.Tensor, vectors: th.Tensor) -> th.Tensor:
    """Multiply ``[*B, A, A]`` by each vector of ``[..., *B, A]``."""
    return (matrix @ vectors.unsqueeze(-1)).squeeze(-1)
