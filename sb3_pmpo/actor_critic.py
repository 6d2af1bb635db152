"""The parts of a policy: observation normaliser, actor and critics, as SB3 models.

Axes: N critics, K quantiles, S samples, B states, F features, A action dimensions. Actions of a
Box are in [-1, 1], those of a discrete space are the numbers 0, 1, ... of each dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_pmpo.distributions import Distribution
from sb3_pmpo.networks import CategoricalHead, EnsembleQ, GaussianHead, RunningMoments


class ObservationNormaliser(nn.Module):
    """Normalise the vectors of an observation; images and one-hot codes pass unchanged.

    The statistics are those of the observations handed to :meth:`update`, and are part of the
    policy's state: saved, loaded and moved with it. One instance serves all of a policy's parts.

    :param observation_space: a space that SB3 supports; a Dict is normalised key by key.
    """

    CLIP = 10.0

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__()
        self.is_dict = isinstance(observation_space, spaces.Dict)
        parts: dict[str, spaces.Space]
        if isinstance(observation_space, spaces.Dict):
            parts = observation_space.spaces
        else:
            parts = {"": observation_space}
        self.keys = [key for key, space in parts.items() if self._is_vector(space)]
        self.moments = nn.ModuleList(RunningMoments(parts[key].shape or ()) for key in self.keys)

    def _by_key(self) -> Iterator[tuple[str, RunningMoments]]:
        return zip(self.keys, cast(Iterable[RunningMoments], self.moments), strict=True)

    @staticmethod
    def _is_vector(space: spaces.Space) -> bool:
        return isinstance(space, spaces.Box) and not is_image_space(space) and space.shape != ()

    def update(self, observations: Any) -> None:
        """Take in a batch of raw observations: arrays ``[B, ...]``, or a dict of them."""
        for key, moments in self._by_key():
            batch = observations[key] if self.is_dict else observations
            moments.update(th.as_tensor(batch))

    def forward(self, observations: Any) -> Any:
        """Normalise preprocessed observations."""
        if not self.is_dict:
            for _, moments in self._by_key():  # one, or none
                observations = moments.normalise(observations, clip=self.CLIP)
            return observations
        normalised = dict(observations)
        for key, moments in self._by_key():
            normalised[key] = moments.normalise(observations[key], clip=self.CLIP)
        return normalised


class NormalisedFeatures(BaseModel):
    """A model that normalises what it sees before it extracts features."""

    normaliser: nn.Module
    features_extractor: BaseFeaturesExtractor

    def features(self, observations: PyTorchObs) -> th.Tensor:
        """Preprocess, normalise and extract: ``[B, F]``."""
        preprocessed = preprocess_obs(
            observations, self.observation_space, normalize_images=self.normalize_images
        )
        return self.features_extractor(self.normaliser(preprocessed))


def n_choices(action_space: spaces.Space) -> tuple[int, ...] | None:
    """Return the number of choices in each dimension of a discrete space; None for a Box."""
    if isinstance(action_space, spaces.Discrete):
        return (int(action_space.n),)
    if isinstance(action_space, spaces.MultiDiscrete):
        return tuple(int(n) for n in action_space.nvec)
    return None


class BoundedPolicy(BasePolicy):
    """A policy whose unscaled actions are in the Box."""

    action_space: spaces.Box  # where there is something to unscale

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
        self.features_dim = features_dim
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

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._arguments

    def distribution(self, observations: PyTorchObs, dtype: th.dtype = th.float32) -> Distribution:
        """Compute the action distribution of each state, over ``[B, A]``.

        :param observations: a batch of B.
        :param dtype: of the body; features and head are float32.
        """
        features = self.features(observations)
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


class Critic(NormalisedFeatures):
    """An ensemble of Q functions whose mean is the value, each the mean of quantiles of the return.

    :param observation_space: the space of the observations.
    :param action_space: a bounded Box, or a discrete space, whose actions are one-hot coded.
    :param net_arch: widths of each critic.
    :param features_extractor: from preprocessed, normalised observations to ``[B, F]``.
    :param features_dim: F.
    :param normaliser: normalises the observations; shared.
    :param return_moments: moments of the discounted returns seen while collecting; shared. Their
        root mean square is the unit of the loss and of the output layer's learning rate.
    :param activation_fn: activation of the body.
    :param normalize_images: divide images by 255.
    :param n_critics: N.
    :param layer_norm: layer norm in the body.
    :param n_quantiles: K.
    :param share_features_extractor: the extractor belongs to the actor, and no gradient of the
        critic's loss reaches it.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        normaliser: nn.Module,
        return_moments: RunningMoments,
        activation_fn: type[nn.Module],
        normalize_images: bool,
        n_critics: int,
        layer_norm: bool,
        n_quantiles: int,
        share_features_extractor: bool,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.normaliser = normaliser
        self.return_moments = return_moments
        self.n_critics = n_critics
        self.share_features_extractor = share_features_extractor
        self.n_choices = n_choices(action_space)
        self.ensemble = EnsembleQ(
            features_dim,
            sum(self.n_choices) if self.n_choices else get_action_dim(action_space),
            net_arch,
            n_critics,
            activation_fn,
            layer_norm,
            n_quantiles,
        )

    @property
    def scale(self) -> th.Tensor:
        """Root mean square of the discounted returns seen; 1 while they are all zero."""
        rms = (self.return_moments.var + self.return_moments.mean.square()).sqrt()
        return th.where(rms > 1e-8, rms, 1.0)

    def q_values(
        self, observations: PyTorchObs, actions: th.Tensor, dtype: th.dtype = th.float32
    ) -> th.Tensor:
        """Evaluate S actions for each state, extracting its features once.

        :param observations: a batch of B.
        :param actions: ``[S, B, A]``; in a Box what is outside is taken at the edge.
        :param dtype: of the hidden layers' products.
        :return: ``[N, S, B]`` in units of the reward.
        """
        return self._evaluate(observations, actions, dtype, quantiles=False)

    def quantiles(
        self, observations: PyTorchObs, actions: th.Tensor, dtype: th.dtype = th.float32
    ) -> th.Tensor:
        """Compute the quantiles ``[N, S, B, K]`` of which :meth:`q_values` is the mean."""
        return self._evaluate(observations, actions, dtype, quantiles=True)

    def _evaluate(
        self, observations: PyTorchObs, actions: th.Tensor, dtype: th.dtype, quantiles: bool
    ) -> th.Tensor:
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            features = self.features(observations)
        return cast(th.Tensor, self.ensemble(features, self._encode(actions), dtype, quantiles))

    def _encode(self, actions: th.Tensor) -> th.Tensor:
        if self.n_choices is None:
            return actions.clamp(-1.0, 1.0)
        by_dim = zip(actions.long().unbind(-1), self.n_choices, strict=True)
        return th.cat([F.one_hot(index, n) for index, n in by_dim], dim=-1).float()

    def forward(self, observations: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """Return each critic's Q ``[B, 1]`` of one action per state, as SB3's critics do."""
        return tuple(self.q_values(observations, actions.unsqueeze(0))[:, 0].unsqueeze(-1))
