"""Temporally correlated exploration: noise in place of independent standard normal draws.

Axes: E environments, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import colorednoise
import numpy as np


class ExplorationNoise(Protocol):
    """A source of unit-variance noise that the policy's std scales."""

    def __call__(self) -> np.ndarray:
        """Return the next noise ``[E, A]``."""
        ...

    def reset(self, env: int) -> None:
        """Start anew for one environment, at the end of its episode."""
        ...


#: Makes the noise from the number of environments, the action dimension and a seed.
NoiseFactory = Callable[[int, int, int], ExplorationNoise]


class ColouredNoise:
    """Noise with a power spectrum of ``1 / f ** exponent``, in blocks, an episode at a time.

    Pink noise (exponent 1) in place of white is the better default for off-policy continuous
    control (Eberhard et al., 2023, "Pink noise is all you need", on MPO and SAC).

    :param n_envs: E.
    :param action_dim: A.
    :param seed: of the generator.
    :param exponents: 0 white, 1 pink, 2 red; one of them is drawn for each block.
    :param length: steps of a block; a longer episode continues with a new block.
    """

    def __init__(
        self,
        n_envs: int,
        action_dim: int,
        seed: int,
        exponents: tuple[float, ...] = (1.0,),
        length: int = 1000,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._exponents = exponents
        self._blocks = np.empty((n_envs, action_dim, length), dtype=np.float32)
        self._step = np.full(n_envs, length)

    def __call__(self) -> np.ndarray:
        """Return the next noise ``[E, A]``, each entry of zero mean and unit variance."""
        for env in np.flatnonzero(self._step >= self._blocks.shape[-1]):
            self._blocks[env] = colorednoise.powerlaw_psd_gaussian(
                self._rng.choice(self._exponents), self._blocks.shape[1:], random_state=self._rng
            )
            self._step[env] = 0
        noise = self._blocks[np.arange(len(self._step)), :, self._step]
        self._step += 1
        return noise

    def reset(self, env: int) -> None:
        """Draw a new block for ``env`` at its next step."""
        self._step[env] = self._blocks.shape[-1]


def pink_noise(n_envs: int, action_dim: int, seed: int) -> ColouredNoise:
    """Make pink noise; a picklable factory."""
    return ColouredNoise(n_envs, action_dim, seed)


def pink_or_white_noise(n_envs: int, action_dim: int, seed: int) -> ColouredNoise:
    """Make noise that is pink in one half of the episodes and white in the other; picklable.

    The default of the algorithms: pink noise finds more, but a policy may come to lean on its
    slow part, which is not there when the policy is used; white noise shows where that leads.
    """
    return ColouredNoise(n_envs, action_dim, seed, exponents=(0.0, 1.0))
