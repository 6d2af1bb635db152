"""Who of a segment's steps is meant by one thumb up or down."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: From the number of steps K to their weights ``[K]``, >= 0, in order of time.
Credit = Callable[[int], np.ndarray]


def uniform(n_steps: int) -> np.ndarray:
    """Share the answer out equally."""
    return np.full(n_steps, 1.0 / n_steps)


def last(n_steps: int) -> np.ndarray:
    """Give all of it to the last step."""
    return np.eye(n_steps)[-1]


def fading(rate: float) -> Credit:
    """Give each step this share of what the next one has.

    :param rate: in (0, 1].
    :raises ValueError: if it is not.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate must be in (0, 1], got {rate}: 0.9 looks back about ten steps")

    def credit(n_steps: int) -> np.ndarray:
        weights = rate ** np.arange(n_steps - 1.0, -1.0, -1.0)
        return weights / weights.sum()

    return credit


CREDITS: dict[str, Credit] = {"uniform": uniform, "last": last}


def credit_weights(credit: str | Credit, n_steps: int) -> np.ndarray:
    """Compute the weights of K steps.

    :param credit: ``"uniform"``, ``"last"``, or a function of K.
    :raises ValueError: if the name is unknown, or the function returns no such weights.
    """
    if isinstance(credit, str) and credit in CREDITS:
        return CREDITS[credit](n_steps)
    if not callable(credit):
        raise ValueError(f"credit must be one of {sorted(CREDITS)} or callable, got {credit!r}")
    weights = np.asarray(credit(n_steps), np.float64)
    if weights.shape != (n_steps,) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(
            f"credit must return {n_steps} finite weights >= 0, one a step, got {weights}"
        )
    return weights
