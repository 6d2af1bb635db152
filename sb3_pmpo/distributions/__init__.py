"""Policy distributions: sampling, log-probability and closed-form KL, joint and decoupled.

Axes: S samples, ``*B`` batch, A action dimensions, K bins. Log-probabilities and KLs are sums over
A, but for ``kl_per_dim``.
"""

from sb3_pmpo.distributions.categorical import MAX_LISTED, NO_BIN, Categorical
from sb3_pmpo.distributions.gaussian import DiagGaussian, FullGaussian, matvec
from sb3_pmpo.distributions.protocol import Component, Distribution, Proposal

__all__ = [
    "MAX_LISTED",
    "NO_BIN",
    "Categorical",
    "Component",
    "DiagGaussian",
    "Distribution",
    "FullGaussian",
    "Proposal",
    "matvec",
]
