"""Policy distributions: sampling, log-probability and closed-form KL, joint and decoupled.

Axes: S samples, *B batch, A action dimensions, K bins. Log-probabilities and KLs are sums over A,
but for ``kl_per_dim``.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, Self, TypeVar

import torch as th
from torch.nn import functional as F

D = TypeVar("D", "DiagGaussian", "FullGaussian", "Categorical")

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


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
    :param counts: ``[S, *B]`` how many of the samples asked for each of them stands for; None
        where they are those samples.
    """

    actions: th.Tensor
    counts: th.Tensor | None


class Distribution(Protocol):
    """What the algorithms ask of a policy's distribution over A independent dimensions."""

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

    def edge_barrier(self) -> th.Tensor | None:
        """Measure how near the mean is to the box's edge, ``[*B]``; None: it has no such edge."""
        ...

    def describe(self) -> dict[str, th.Tensor]:
        """Return scalars for the log, without gradient."""
        ...


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

    def propose(self, n_samples: int) -> Proposal:
        """Draw ``[S, *B, A]`` samples, A at a time at right angles to each other.

        Each is a draw of this distribution; together they search a state's directions more
        evenly than independent ones, so that 6 tell more of a score's slope than 8 of those.
        """
        mean, std = self.mean.detach(), self.std.detach()
        return Proposal(th.addcmul(mean, std, _orthogonal_noise(n_samples, mean)), None)

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
        """Sum ``-log(1 - mean^2)`` over A, for a mean in [-1, 1]; ``[*B]``, with gradient.

        0 in the middle of the box. Where the mean is ``tanh(x)`` its slope in x is ``2 * mean``,
        and stays so where tanh's own is gone, up to the mean that rounds to 1.
        """
        return -(1.0 - self.mean.square() + 1e-6).log().sum(-1)

    def describe(self) -> dict[str, th.Tensor]:
        """Return the smallest, the mean and the largest std."""
        std = self.std.detach()
        return {"std_min": std.min(), "std_mean": std.mean(), "std_max": std.max()}

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
        return (_component("joint", self, reference, actions),)

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
            _component("mean", DiagGaussian(self.mean, fixed.std), reference, actions),
            _component("std", DiagGaussian(fixed.mean, self.std), reference, actions),
        )


class FullGaussian(NamedTuple):
    """A Gaussian with a full covariance; its dimensions are not independent.

    :param mean: ``[*B, A]``.
    :param scale_tril: ``[*B, A, A]`` the covariance's Cholesky factor: lower triangular, with a
        positive diagonal.
    """

    mean: th.Tensor
    scale_tril: th.Tensor

    def sample(self, n_samples: int) -> th.Tensor:
        """Draw ``[S, *B, A]`` samples, without gradient."""
        mean = self.mean.detach()
        noise = th.randn(n_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        return mean + matvec(self.scale_tril.detach(), noise)

    def mode(self) -> th.Tensor:
        """Return the mean."""
        return self.mean

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
        return (_component("joint", self, reference, actions),)

    def decoupled(self, reference: FullGaussian, actions: th.Tensor) -> tuple[Component, ...]:
        """Fit the mean under the reference's covariance, the covariance around its mean.

        :return: the components ``mean`` and ``std``, as of :meth:`DiagGaussian.decoupled`.
        """
        fixed = reference.detach()
        return (
            _component("mean", FullGaussian(self.mean, fixed.scale_tril), reference, actions),
            _component("std", FullGaussian(fixed.mean, self.scale_tril), reference, actions),
        )


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

    def sample(self, n_samples: int) -> th.Tensor:
        """Draw ``[S, *B, A]`` actions, without gradient."""
        logits = self.logits
        shape = (n_samples, *logits.shape[:-1])
        return self._at(th.rand(shape, dtype=logits.dtype, device=logits.device))

    def propose(self, n_samples: int) -> Proposal:
        """List all joint actions if they are at most :data:`MAX_LISTED`, else draw samples.

        A listed action stands for the ``n_samples * probability`` samples that it would have in
        expectation.
        """
        if math.prod(self.sizes) > MAX_LISTED:
            return Proposal(self.sample(n_samples), None)
        bins = [th.arange(size, device=self.logits.device) for size in self.sizes]
        index = th.cartesian_prod(*bins).view(-1, *[1] * (self.logits.dim() - 2), len(bins))
        actions = self._actions(index.expand(-1, *self.logits.shape[:-1]))  # [S, *B, A]
        return Proposal(actions, n_samples * self.log_prob(actions).detach().exp())

    def mode(self) -> th.Tensor:
        """Return the likeliest action of each dimension, ``[*B, A]``."""
        return self._actions(self.logits.argmax(-1))

    def at_quantile(self, z: th.Tensor) -> th.Tensor:
        """Invert the cumulative distribution where standard normal draws ``z [*B, A]`` lie."""
        return self._at(th.special.ndtr(z))

    def overshoot(self, actions: th.Tensor) -> None:
        """Return None: no bin is outside."""

    def edge_barrier(self) -> None:
        """Return None: nothing saturates."""

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
        return (_component("joint", self, reference, actions),)

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


def _component(name: str, part: D, reference: D, actions: th.Tensor) -> Component:
    return Component(name, part.log_prob(actions.detach()), part.kl_per_dim(reference))


def _orthogonal_noise(n_samples: int, like: th.Tensor) -> th.Tensor:
    """Draw standard normal vectors ``[S, *B, A]``, orthogonal in groups of A along S.

    A group is an orthogonal matrix of the uniform (Haar) distribution whose columns have the
    lengths of independent draws (Yu et al., 2016, "Orthogonal random features").

    :param like: ``[*B, A]`` gives shape, dtype and device.
    """
    dim = like.shape[-1]
    size, groups = min(n_samples, dim), math.ceil(n_samples / dim)
    noise = th.randn(groups, *like.shape, size, dtype=like.dtype, device=like.device)
    if size > 1:
        # QR factorises one matrix after the other on a GPU, hundreds of launches.
        directions = _gram_schmidt(noise) if noise.is_cuda else _unique_qr(noise)
        noise = directions * noise.square().sum(-2, keepdim=True).sqrt()
    return noise.movedim(-1, 1).flatten(0, 1)[:n_samples]


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
