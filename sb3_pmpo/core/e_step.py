"""MPO's E-step and its duals: weights, the temperature that bounds them, KL multipliers.

Axes: S samples, ``*B`` batch, A action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch as th
from torch import nn

from sb3_pmpo.core.checks import check_positive


def boltzmann_weights(
    scores: th.Tensor, temperature: th.Tensor | float, weights: th.Tensor
) -> th.Tensor:
    """Weigh the samples of the reference by ``exp(score / temperature)`` (App. G.1).

    :param scores: ``[S, *B]``.
    :param temperature: > 0, in units of the scores.
    :param weights: ``[S, *B]`` of the samples under the reference; they sum to 1 over S.
    :return: ``[S, *B]`` weights that sum to 1 over S, without gradient.
    """
    above = scores.detach() - scores.detach().amax(0)  # first: the quotient may overflow
    return (above / temperature + weights.log()).softmax(0).detach()


def weights_kl(posterior: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """Compute the KL of the E-step's weights to those of the samples, ``[*B]`` in nats.

    :param posterior: ``[S, *B]`` the E-step's; they sum to 1 over S.
    :param weights: ``[S, *B]`` the samples'; they sum to 1 over S.
    """
    return (th.xlogy(posterior, posterior) - th.xlogy(posterior, weights)).sum(0)


def temperature_loss(
    scores: th.Tensor, temperature: th.Tensor, weights: th.Tensor, *, epsilon: float
) -> th.Tensor:
    """Compute the convex dual of the E-step, per entry (Abdolmaleki et al., 2018a, Eq. 9).

    ``g(eta) = eta * epsilon + eta * log E_S[exp(Q / eta)]``. At the minimum of its mean over the
    batch the weights ``softmax(Q / eta)`` have a mean KL of ``epsilon`` to the samples.

    :param scores: ``[S, *B]`` Q values, no gradient.
    :param temperature: eta > 0 in units of the scores, a scalar, or ``[*B]`` where each batch
        entry has its own; the gradient flows to it.
    :param weights: ``[S, *B]`` of the samples under the reference; they sum to 1 over S.
    :param epsilon: > 0, in nats.
    :return: ``[*B]`` in units of the scores.
    """
    best = scores.detach().amax(0)
    # Further below the weight is 0, and the quotient may overflow.
    below = (scores.detach() - best).maximum(-104.0 * temperature.detach())
    log_mean = (below / temperature + weights.log()).logsumexp(0)
    return temperature * (epsilon + log_mean) + best


def multiplier_loss(multipliers: th.Tensor, kl_per_dim: th.Tensor, *, epsilon: float) -> th.Tensor:
    """Compute ``sum_A multiplier * (epsilon - KL)``: a multiplier grows while its KL is over.

    :param multipliers: ``[A]``, or ``[*B, A]``, > 0; the gradient flows to them alone.
    :param kl_per_dim: ``[*B, A]`` in nats, no gradient.
    :param epsilon: > 0, what each dimension's mean KL may be.
    :return: ``[*B]``.
    """
    return (multipliers * (epsilon - kl_per_dim.detach())).sum(-1)


class Duals(nn.Module):
    """The duals of MPO, held as log values in their own optimiser.

    A learning rate is then a relative one, whatever the unit of the returns.

    :param multipliers: initial multiplier of each named KL.
    :param n_dims: A, multipliers a KL has.
    :param temperatures: initial value of each named temperature.
    :param learning_rate: of their Adam.
    :param runs: shape of independent problems that have duals of their own.
    :raises ValueError: for a value or a rate that is not above 0.
    """

    BOUND = 18.0  # of the log values: within [1.5e-8, 6.6e7]

    def __init__(
        self,
        *,
        multipliers: Mapping[str, float],
        n_dims: int,
        temperatures: Mapping[str, float],
        learning_rate: float,
        runs: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        for name, value in (*multipliers.items(), *temperatures.items()):
            check_positive(f"the first value of {name}", value, "its logarithm is learned")
        check_positive("learning_rate", learning_rate, "it is of the duals' Adam; 1e-2 is usual")
        self.log_multipliers = nn.ParameterDict(
            {name: th.full((*runs, n_dims), math.log(value)) for name, value in multipliers.items()}
        )
        self.log_temperatures = nn.ParameterDict(
            {name: th.full(runs, math.log(value)) for name, value in temperatures.items()}
        )
        self.optimizer = th.optim.Adam(self.parameters(), lr=learning_rate)

    def multipliers(self, name: str) -> th.Tensor:
        """Return the multipliers ``[*runs, A]`` of a KL, with gradient."""
        return th.exp(self.log_multipliers[name])

    def temperature(self, name: str) -> th.Tensor:
        """Return a temperature, ``[*runs]``, with gradient."""
        return th.exp(self.log_temperatures[name])

    @th.no_grad()
    def clamp_(self) -> None:
        """Bound the log values, after a step of the optimiser."""
        for parameter in self.parameters():
            parameter.clamp_(-self.BOUND, self.BOUND)
