"""A batch of transitions.

Axes: B transitions, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th

Observations = th.Tensor | dict[str, th.Tensor]


class Batch(NamedTuple):
    """Transitions in the shapes that the mathematics wants.

    :param observations: B of them, in the observation space.
    :param actions: ``[B, A]`` in [-1, 1], or the numbers of discrete actions.
    :param next_observations: B of them, n steps later.
    :param rewards: ``[B]`` discounted sums over the n steps.
    :param dones: ``[B]`` 1 where the episode terminated.
    :param discounts: ``[B]``, or one number for all.
    :param weights: ``[B]`` importance weights in (0, 1], or None where all weigh the same.
    :param indices: ``[B]`` an array of the numbers by which the buffer knows the transitions, or
        None where it keeps no priorities.
    """

    observations: Observations
    actions: th.Tensor
    next_observations: Observations
    rewards: th.Tensor
    dones: th.Tensor
    discounts: th.Tensor | float
    weights: th.Tensor | None = None
    indices: Any = None

    def map(self, function: Callable[[th.Tensor], th.Tensor]) -> Batch:
        """Apply a function to each tensor; numbers, None and ``indices`` stay as they are."""

        def apply(field: Any) -> Any:
            if isinstance(field, dict):
                return {key: function(value) for key, value in field.items()}
            return function(field) if isinstance(field, th.Tensor) else field

        return Batch(*map(apply, self))
