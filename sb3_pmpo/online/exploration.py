"""Temporally correlated exploration: noise in place of independent standard normal draws.

Axes: E environments, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import colorednoise
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim

from sb3_pmpo.online.noise_checks import check_drawn


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


def seed_of(seed: int | None, steps: int) -> int | None:
    """Derive the seed of a run that goes on after some steps; a new run has its own.

    With the same seed a resumed run would meet its first episodes and its first noise again.
    """
    if seed is None or steps == 0:
        return seed
    return int(np.random.SeedSequence([seed, steps]).generate_state(1)[0])


def make_noise(
    factory: NoiseFactory | None, n_envs: int, action_space: spaces.Space
) -> ExplorationNoise | None:
    """Make the noise of a model, seeded by NumPy's global generator; None for independent draws.

    Discrete actions have no order in which a draw could resemble the one before.
    """
    if factory is None or not isinstance(action_space, spaces.Box):
        return None
    return factory(n_envs, get_action_dim(action_space), np.random.randint(2**31))


def draw(
    policy: BasePolicy, observations: Any, noise: ExplorationNoise, more: ActionNoise | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the actions of a Box where the noise has them in the policy's distribution.

    :param policy: with an ``actor``.
    :param observations: ``[E, ...]`` as the environments gave them.
    :param noise: in the place of independent draws.
    :param more: added to the actions; None for nothing.
    :return: the actions, in the environment's units and in [-1, 1].
    """
    tensors, _ = policy.obs_to_tensor(observations)
    drawn = noise()
    check_drawn(drawn, (len(drawn), get_action_dim(policy.action_space)), noise)
    with th.no_grad():
        z = th.as_tensor(drawn, device=policy.device, dtype=th.float32)
        actions = policy.actor.distribution(tensors).at_quantile(z)  # type: ignore[union-attr, operator]  # ours has one
    scaled = actions.cpu().numpy().reshape(-1, *policy.action_space.shape)  # type: ignore[misc]  # a Box has a shape
    if more is not None:
        added = more()
        if not np.isfinite(added).all():
            raise ValueError(
                f"action_noise must draw finite noise, got {added} from {more}: mend it"
            )
        scaled = scaled + added
    scaled = np.clip(scaled, -1.0, 1.0).astype(np.float32)
    return policy.unscale_action(scaled), scaled


def explore(model: Any, observations: Any, episode_start: np.ndarray | None = None) -> np.ndarray:
    """Act with the model's exploration noise, as ``learn`` does: for what is to be labelled.

    ``model.predict(..., deterministic=False)`` draws each action by itself. What a person says of
    some steps tells little then, as their noise has nothing in common. Noise such as
    :func:`pink_noise` goes on from one step to the next, so a label also says which way of acting
    it is about. The default is white in every other episode on average; discrete actions are drawn
    each by itself. An ``action_noise`` is not added.

    :param model: an algorithm of this package.
    :param observations: ``[E, ...]`` of as many environments as the model has, or a dict of such.
    :param episode_start: ``[E]`` whether an episode begins; the noise begins anew there. None where
        none does.
    :return: ``[E, A]`` in the environment's units, or the numbers of discrete actions ``[E, ...]``.
    :raises ValueError: for observations of another number of environments.
    """
    given, vectorized = model.policy.obs_to_tensor(observations)
    first = next(iter(given.values())) if isinstance(given, dict) else given
    if not vectorized or len(first) != model.n_envs:
        raise ValueError(
            f"explore needs the observations of all {model.n_envs} environments of the model, got "
            f"{len(first) if vectorized else 'those of one'}: give them as the VecEnv's reset and "
            "step return them"
        )
    if model.noise is None:
        return model.predict(observations, deterministic=False)[0]
    for env in np.flatnonzero([] if episode_start is None else episode_start):
        model.noise.reset(int(env))
    return draw(model.policy, observations, model.noise, None)[0]
