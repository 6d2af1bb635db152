"""Black-box optimisation by the same objectives: a bandit without a state (Sec. 5.1, Fig. 1).

Axes: S samples, ``*B`` independent runs (none in :func:`minimize`), A dimensions, K bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_pmpo.core.checks import check_number, check_positive
from sb3_pmpo.core.e_step import Duals
from sb3_pmpo.core.labels import rejected_share, top_k
from sb3_pmpo.core.samples import Candidates
from sb3_pmpo.distributions import Categorical, DiagGaussian, FullGaussian, matvec
from sb3_pmpo.learner import policy_step
from sb3_pmpo.objectives import MPOObjective, Objective, PMPOObjective

#: The paper's rule for 4 samples, accept and reject, with a KL that outweighs the rejections.
DEFAULT_OBJECTIVE = PMPOObjective(0.5, 1.0, 1.0, top_k(2))


Policy = DiagGaussian | FullGaussian | Categorical


class OptimizeResult(NamedTuple):
    """What was found, with the names of ``scipy.optimize.OptimizeResult``.

    :param x: ``[A]`` the best point evaluated.
    :param fun: its value.
    :param mean: ``[A]`` the mode of the policy, the optimiser's own estimate; not evaluated.
    :param nfev: function evaluations.
    :param nit: iterations.
    :param success: whether ``target`` was reached; True where none was given.
    :param message: why it stopped.
    """

    x: np.ndarray
    fun: float
    mean: np.ndarray
    nfev: int
    nit: int
    success: bool
    message: str


class Bandit:
    """A sampling distribution over a box that learns from the values of its samples: ask, tell.

    The distribution is learned relative to its reference: a Gaussian in coordinates in which the
    reference is a standard normal, a categorical's logits as differences. Each refresh starts
    anew from the reference, so the steps scale with the distribution and it converges
    geometrically, however narrow it has become.

    :param low: ``[A]`` lower bounds, finite.
    :param high: ``[A]`` upper bounds, above ``low``.
    :param x0: ``[*B, A]`` in the box, where the mean starts; ``*B`` are independent runs. A
        categorical starts uniform.
    :param objective: what to minimise, of :mod:`sb3_pmpo.objectives`; see :func:`mpo_objective`.
    :param n_bins: discretise each dimension; None for a Gaussian.
    :param full_covariance: of a Gaussian: it then learns the valleys that are not parallel to an
        axis, of Rosenbrock's function for one.
    :param n_samples: S, points an iteration asks for.
    :param reference_update_interval: iterations between refreshes of the reference.
    :param learning_rate: of Adam, in the units of the relative parameters; it falls to zero
        linearly between two refreshes.
    :param std_init: a Gaussian's first std, in half the width of the box.
    :raises ValueError: for a number out of its range.
    """

    def __init__(
        self,
        low: th.Tensor,
        high: th.Tensor,
        x0: th.Tensor,
        *,
        objective: Objective = DEFAULT_OBJECTIVE,
        n_bins: int | None = None,
        full_covariance: bool = True,
        n_samples: int = 4,
        reference_update_interval: int = 100,
        learning_rate: float = 0.05,
        std_init: float = 0.5,
    ) -> None:
        _check(
            low,
            high,
            n_bins=n_bins,
            n_samples=n_samples,
            reference_update_interval=reference_update_interval,
            learning_rate=learning_rate,
            std_init=std_init,
        )
        self.centre, self.half_width = (low + high) / 2, (high - low) / 2
        self.n_samples = int(n_samples)
        if isinstance(objective, PMPOObjective):  # its bound depends on how many are rejected
            share = rejected_share(objective.labeller, self.n_samples)
            if share != objective.rejected:
                objective = replace(objective, rejected=share)
        self.objective = objective
        self.interval, self.learning_rate = int(reference_update_interval), learning_rate
        self.n_iterations = 0
        self._samples: th.Tensor | None = None  # those that were asked for
        start = (x0 - self.centre) / self.half_width
        n_bins = None if n_bins is None else int(n_bins)
        self._refresh(_first_policy(start, n_bins, full_covariance, std_init))

    def _refresh(self, reference: Policy) -> None:
        """Start anew from a reference: with the relative parameters at zero the policy is it."""
        self.reference = reference
        if isinstance(reference, Categorical):
            relative = [th.zeros_like(reference.logits)]
        else:
            relative = [th.zeros_like(part) for part in reference]
        self.parameters = [part.requires_grad_() for part in relative]
        self.optimizer = th.optim.Adam(self.parameters, lr=self.learning_rate)

    def policy(self) -> Policy:
        """Return the distribution that is being learned."""
        match self.reference:
            case Categorical() as reference:
                return reference._replace(logits=reference.logits + self.parameters[0])
            case DiagGaussian(mean, std):
                shift, growth = self.parameters
                return DiagGaussian(mean + std * shift, std * growth.exp())
            case FullGaussian(mean, factor):
                shift, growth = self.parameters
                diagonal = growth.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
                return FullGaussian(
                    mean + matvec(factor, shift),
                    factor @ (growth.tril(-1) + diagonal),
                )

    def mode(self) -> th.Tensor:
        """Return the likeliest point of each run, ``[*B, A]``, in the function's units."""
        return self._to_box(self.policy().mode().detach())

    def _to_box(self, actions: th.Tensor) -> th.Tensor:
        return self.centre + self.half_width * actions.clamp(-1.0, 1.0)

    def ask(self) -> th.Tensor:
        """Draw the points ``[S, *B, A]`` to evaluate, in the function's units and its box."""
        self._samples = samples = self.reference.sample(self.n_samples)
        return self._to_box(samples)

    def tell(self, values: th.Tensor) -> None:
        """Learn from the values ``[S, *B]`` of the points last asked for; lower is better.

        :raises ValueError: if no points were asked for, or for another number of values.
        """
        samples = self._samples
        if samples is None or values.shape != samples.shape[:-1]:
            wanted = "no" if samples is None else tuple(samples.shape[:-1])
            raise ValueError(
                f"values must be of the points of one ask(), {wanted} of them, got "
                f"{tuple(values.shape)}: ask(), evaluate, tell()"
            )
        candidates = Candidates(-values, samples, outside=self.reference.overshoot(samples))
        step = self.n_iterations % self.interval
        self.optimizer.param_groups[0]["lr"] = self.learning_rate * (1.0 - step / self.interval)
        # The weights are 1: each run has its own gradient.
        weights = values.new_ones(values.shape[1:])
        policy_step(
            self.objective, [self.optimizer], self.policy(), self.reference, candidates, weights
        )
        self.n_iterations += 1
        if self.n_iterations % self.interval == 0:
            self._refresh(self.policy().detach())


def mpo_objective(
    n_dims: int,
    *,
    runs: tuple[int, ...] = (),
    categorical: bool = False,
    epsilon: float = 1.0,
    epsilon_kl: float = 0.3,
    dual_learning_rate: float = 5e-2,
) -> MPOObjective:
    """Make MPO's objective for :class:`Bandit`; it keeps its duals, so make one for each search.

    :param n_dims: A for a diagonal Gaussian or a categorical, 1 for a full covariance.
    :param runs: ``*B`` of the search.
    :param categorical: whether the policy is discretised.
    :param epsilon: KL in nats of the E-step's weights to the samples; below ``log(n_samples)``.
    :param epsilon_kl: KL in nats that each part of the policy may have to the reference.
    :param dual_learning_rate: of the duals' Adam.
    """
    names = ("joint",) if categorical else ("mean", "std")
    duals = Duals(
        multipliers=dict.fromkeys(names, 1.0),
        n_dims=n_dims,
        temperatures={"action": 1.0},
        learning_rate=dual_learning_rate,
        runs=runs,
    )
    return MPOObjective(epsilon, None, dict.fromkeys(names, epsilon_kl), duals)


def minimize(
    function: Callable[[np.ndarray], float],
    bounds: Sequence[tuple[float, float]],
    *,
    x0: Sequence[float] | np.ndarray | None = None,
    maxfev: int = 20_000,
    target: float = -math.inf,
    callback: Callable[[OptimizeResult], None] | None = None,
    seed: int | None = None,
    **bandit: Any,
) -> OptimizeResult:
    """Minimise a black-box function, in the shape of ``scipy.optimize.minimize``.

    An iteration evaluates ``n_samples`` points that the reference policy proposes; the better half
    is accepted, the worse rejected, and the policy takes one step on the loss. Only the order of
    the values counts, so noise and jumps do no harm.

    :param function: of a point ``[A]``; lower is better. Its value must be finite.
    :param bounds: a pair (low, high) for each of the A dimensions, finite.
    :param x0: ``[A]`` in the box, where a Gaussian's mean starts; None for the centre.
    :param maxfev: function evaluations, at least ``n_samples``.
    :param target: stop when a value is at most this.
    :param callback: called after each iteration with the result so far; StopIteration stops.
    :param seed: of the samples; None for a random one. The global generators are left alone.
    :param bandit: arguments of :class:`Bandit`: ``objective``, ``n_bins``, ``n_samples``, ...
    :return: the best point evaluated, its value, and the policy's mode.
    :raises ValueError: for bounds that are not finite or not ordered, for too small a ``maxfev``,
        an ``x0`` outside, and for a value that is not finite, with the point that has it.
    """
    low, high = _check_bounds(bounds)
    start = (low + high) / 2 if x0 is None else np.array(x0, dtype=np.float64)
    if start.shape != low.shape or not ((low <= start) & (start <= high)).all():
        raise ValueError(f"x0 must be a point in bounds={bounds}, got {x0}")
    best = OptimizeResult(
        start, math.inf, start, 0, 0, False, f"maxfev={maxfev} evaluations are used up"
    )
    with th.random.fork_rng(devices=[]):
        if seed is None:
            th.default_generator.seed()
        else:
            th.default_generator.manual_seed(seed)
        search = Bandit(*map(th.from_numpy, (low, high, start)), **bandit)
        hint = "it counts evaluations of the function, n_samples of them an iteration"
        check_number("maxfev", maxfev, search.n_samples, math.inf, int, hint)
        for _ in range(int(maxfev) // search.n_samples):
            points = search.ask().numpy()
            values = np.array([_evaluate(function, point) for point in points])
            search.tell(th.from_numpy(values))
            lowest = int(values.argmin())
            if values[lowest] < best.fun:
                best = best._replace(x=points[lowest], fun=float(values[lowest]))
            best = best._replace(
                mean=search.mode().numpy(),
                nfev=search.n_iterations * search.n_samples,
                nit=search.n_iterations,
            )
            if best.fun <= target:
                return best._replace(success=True, message=f"target={target} is reached")
            try:
                if callback is not None:
                    callback(best)
            except StopIteration:
                return best._replace(message="the callback stopped it")
    return best._replace(success=target == -math.inf)


def _evaluate(function: Callable[[np.ndarray], float], point: np.ndarray) -> float:
    value = float(function(point.copy()))
    if not math.isfinite(value):
        raise ValueError(
            f"the function's value must be finite, got {value} at {point}: return a large number "
            "where it is not defined"
        )
    return value


def _check_bounds(bounds: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.asarray(bounds, dtype=np.float64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(f"bounds must be a (low, high) pair for each dimension, got {bounds}")
    if not (np.isfinite(pairs).all() and (pairs[:, 0] < pairs[:, 1]).all()):
        raise ValueError(f"bounds must be finite and each low below its high, got {bounds}")
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def _first_policy(
    mean: th.Tensor, n_bins: int | None, full_covariance: bool, std_init: float
) -> Policy:
    """Make the policy of each run around ``mean [*B, A]`` in [-1, 1], or uniform over the bins."""
    if n_bins is not None:
        logits = th.zeros(*mean.shape, n_bins, dtype=mean.dtype)
        return Categorical(logits, (n_bins,) * mean.shape[-1], -1.0, 2.0 / (n_bins - 1))
    std = th.full_like(mean, std_init)
    return FullGaussian(mean, std.diag_embed()) if full_covariance else DiagGaussian(mean, std)


#: Name, lowest value, what it is.
_COUNTS = (
    ("n_samples", 2, "it counts the points of an iteration; the paper uses 4"),
    (
        "reference_update_interval",
        2,
        "a reference that is always the policy holds nothing; the paper uses 100",
    ),
    ("n_bins", 2, "it counts the values of a dimension; None is for a Gaussian"),
)


def _check(low: th.Tensor, high: th.Tensor, **given: Any) -> None:
    """Refuse what a search cannot begin with, by name."""
    if not (low < high).all() or not (low.isfinite() & high.isfinite()).all():
        raise ValueError(
            f"low must be finite and below high in each dimension, got low={low.tolist()}, "
            f"high={high.tolist()}"
        )
    for name, least, hint in _COUNTS:
        if given[name] is not None or name != "n_bins":
            check_number(name, given[name], least, 1_000_000, int, hint)
    check_positive("learning_rate", given["learning_rate"], "it is Adam's; 0.05 is usual")
    check_positive("std_init", given["std_init"], "it is in half the width of the box")
