"""The policy: a body, and a head for Gaussian, discretised or discrete actions.

Axes: B states, F features, A action dimensions. Actions of a Box are in [-1, 1], those of a
discrete space are the numbers 0, 1, ... of each dimension.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_pmpo.distributions import Distribution
from sb3_pmpo.features import NormalisedFeatures, n_choices
from sb3_pmpo.networks import CategoricalHead, GaussianHead, fastest_dtype
from sb3_pmpo.space_checks import check_observation


class BoundedPolicy(BasePolicy):
    """A policy whose unscaled actions are in the Box."""

    action_space: spaces.Box  # where there is something to unscale

    def obs_to_tensor(
        self, observation: np.ndarray | dict[str, np.ndarray]
    ) -> tuple[PyTorchObs, bool]:
        """Convert as SB3 does.

        :raises ValueError: for an observation that is not finite, or is no choice of its space.
        """
        check_observation(observation, self.observation_space)
        return super().obs_to_tensor(observation)

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """Map [-1, 1] to the bounds, which rounding would overstep by a digit at the corners."""
        space = self.action_space
        return np.clip(super().unscale_action(scaled_action), space.low, space.high)


class Actor(NormalisedFeatures, BoundedPolicy):
    """A policy: a body, and a head for Gaussian, discretised or discrete actions.

    :param observation_space: the space of the observations.
    :param action_space: a bounded Box, whose bounds are mapped to [-1, 1], or a discrete space.
    :param net_arch: widths of the body.
    :param features_extractor: from preprocessed, normalised observations to ``[B, F]``.
    :param features_dim: F.
    :param normaliser: normalises the observations; shared with the other parts of the policy.
    :param activation_fn: activation of the body.
    :param normalize_images: divide images by 255.
    :param std_init: a Gaussian's std of every state at the start.
    :param std_min: lower bound of the std.
    :param std_max: upper bound of the std.
    :param n_bins: bins a dimension of a discretised Box has; None for a Gaussian.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        normaliser: nn.Module,
        activation_fn: type[nn.Module],
        normalize_images: bool,
        std_init: float,
        std_min: float,
        std_max: float,
        n_bins: int | None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,  # predict() then unscales from [-1, 1] to the Box's bounds
        )
        self.features_dim, self.net_arch = features_dim, net_arch
        self.normaliser = normaliser
        self._arguments = {
            "net_arch": net_arch,
            "features_extractor": features_extractor,
            "features_dim": features_dim,
            "normaliser": normaliser,
            "activation_fn": activation_fn,
            "std_init": std_init,
            "std_min": std_min,
            "std_max": std_max,
            "n_bins": n_bins,
        }
        self.latent_pi = nn.Sequential(*create_mlp(features_dim, -1, net_arch, activation_fn))
        width = net_arch[-1] if net_arch else features_dim
        action_dim, choices = get_action_dim(action_space), n_choices(action_space)
        self.head: GaussianHead | CategoricalHead
        if choices is not None:
            self.head = CategoricalHead(width, choices)
        elif n_bins is not None:
            # The first and the last bin's centres are the bounds.
            self.head = CategoricalHead(width, (n_bins,) * action_dim, -1.0, 2.0 / (n_bins - 1))
        else:
            self.head = GaussianHead(width, action_dim, std_init, std_min, std_max)

    @property
    def parts(self) -> tuple[str, ...]:
        """Name the parts of the distribution that can be fitted apart; one if there are none."""
        return self.head.parts

    @property
    def has_parts(self) -> bool:
        """Whether it is a Gaussian, whose mean and std can be fitted apart."""
        return len(self.parts) > 1

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._arguments

    def distribution(self, observations: PyTorchObs, *, exact: bool = True) -> Distribution:
        """Compute the action distribution of each state, over ``[B, A]``.

        :param observations: a batch of B.
        :param exact: compute the body in float32, not in what is fastest. Features and head always
            are float32.
        """
        features = self.features(observations)
        dtype = th.float32 if exact else fastest_dtype(features.device, self.net_arch)
        with th.autocast(features.device.type, dtype, enabled=dtype != th.float32):
            latent = self.latent_pi(features)
        return cast(Distribution, self.head(latent.float()))

    def forward(self, observations: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Return the likeliest actions ``[B, A]``, or samples; those of a Box in [-1, 1]."""
        distribution = self.distribution(observations)
        actions = distribution.mode() if deterministic else distribution.sample(1)[0]
        if isinstance(self.action_space, spaces.Box):
            return actions.clamp(-1.0, 1.0)
        return actions.long()

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)
