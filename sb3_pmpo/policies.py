"""SB3 policies of the MPO family: actor, lagged reference actor, critics and their target.

Axes: B states, A action dimensions. Actions of a Box are in [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_pmpo.actor import Actor, BoundedPolicy
from sb3_pmpo.core.checks import LARGEST, blaming
from sb3_pmpo.critics import QuantileCritic, StateActionFeatures, try_critic
from sb3_pmpo.embeddings import EmbeddingCritic
from sb3_pmpo.features import ObservationNormaliser
from sb3_pmpo.networks import ABSURD, RunningMoments
from sb3_pmpo.policy_checks import (
    checked_arguments,
    make_optimizer,
    refuse_sde,
)
from sb3_pmpo.space_checks import first_observations
from sb3_pmpo.storage.models import SavesAlone
from sb3_pmpo.summary import describe_policy

#: Critics that need no trial.
_OWN = (EmbeddingCritic, QuantileCritic)


class PMPOPolicy(SavesAlone, BoundedPolicy):
    """Actor, lagged reference actor, critics and critic target; ``MlpPolicy``.

    :param observation_space: the space of the observations.
    :param action_space: a bounded Box, Discrete or MultiDiscrete.
    :param lr_schedule: learning rate as a function of the remaining progress.
    :param net_arch: widths for both, or ``dict(pi=[...], qf=[...])``; ``[128, 128]`` if None.
    :param activation_fn: activation of all the bodies.
    :param features_extractor_class: class of the features extractor.
    :param features_extractor_kwargs: its arguments.
    :param normalize_images: divide images by 255.
    :param optimizer_class: class of both optimisers.
    :param optimizer_kwargs: their arguments besides the learning rate; by default Adam and AdamW
        are fused.
    :param n_critics: number of critics.
    :param n_quantiles: quantiles of the return that each critic learns, whose mean is its Q. More
        see rarer outcomes and cost time; 1 is near the median and misses them.
    :param share_features_extractor: the critics use the actor's extractor, which then learns
        from the policy loss only.
    :param normalize_observations: keep running statistics of the observations and normalise.
    :param layer_norm: layer norm in the critics.
    :param std_init: std of every state at the start, in units of half the action range.
    :param std_min: lower bound of the std.
    :param std_max: upper bound of the std.
    :param n_bins: discretise a Box: each dimension has this many equally likely actions at the
        start, from bound to bound, and a categorical distribution over them; None for a Gaussian.
    :param critic_class: makes the critics; see :mod:`sb3_pmpo.critics` for what one has to answer.
        None for :class:`sb3_pmpo.embeddings.EmbeddingCritic` with a Box and
        :class:`sb3_pmpo.critics.QuantileCritic` with discrete actions.
    :param critic_kwargs: its arguments, besides ``n_critics``, ``n_quantiles`` and ``layer_norm``.
    :param use_sde: refused; SB3's SAC writes ``use_sde=False`` into the dict it is given, which
        then serves here too.
    """

    actor: Actor
    reference_actor: Actor
    critic: Any  # of critic_class
    critic_target: Any

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        n_quantiles: int = 8,
        share_features_extractor: bool = False,
        normalize_observations: bool = True,
        layer_norm: bool = True,
        std_init: float = 0.6,
        std_min: float = 0.1,
        std_max: float = 1.0,
        n_bins: int | None = None,
        critic_class: type[StateActionFeatures] | None = None,
        critic_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        refuse_sde(use_sde)
        if critic_class is None:
            critic_class = (
                EmbeddingCritic if isinstance(action_space, spaces.Box) else QuantileCritic
            )
        given: dict[str, Any] = {
            "net_arch": net_arch,
            "activation_fn": activation_fn,
            "features_extractor_class": features_extractor_class,
            "features_extractor_kwargs": features_extractor_kwargs,
            "optimizer_class": optimizer_class,
            "optimizer_kwargs": optimizer_kwargs,
            "n_critics": n_critics,
            "n_quantiles": n_quantiles,
            "share_features_extractor": share_features_extractor,
            "normalize_observations": normalize_observations,
            "layer_norm": layer_norm,
            "std_init": std_init,
            "std_min": std_min,
            "std_max": std_max,
            "n_bins": n_bins,
            "critic_class": critic_class,
            "critic_kwargs": critic_kwargs,
            "normalize_images": normalize_images,
        }
        arguments = checked_arguments(given, observation_space, action_space)
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            dict(features_extractor_kwargs or {}),  # a copy, to which SB3 adds
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
            normalize_images=arguments.pop("normalize_images"),
        )
        self._arguments = arguments
        self.net_arch = arguments["net_arch"]
        self.activation_fn = activation_fn
        self.share_features_extractor = arguments["share_features_extractor"]
        self._build(lr_schedule)
        self._try()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return (
            super()._get_constructor_parameters()
            | self._arguments
            | {"lr_schedule": self._dummy_schedule}
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.normaliser: nn.Module = (
            ObservationNormaliser(self.observation_space, self.normalize_images)
            if self._arguments["normalize_observations"]
            else nn.Identity()
        )
        # A rare reward is no outlier, however small the others are: it is what the task is about.
        self.return_moments = RunningMoments((1,), believed=ABSURD)
        self.actor = self.make_actor()
        self.reference_actor = self.make_actor()
        self.reference_actor.load_state_dict(self.actor.state_dict())
        shared = self.actor.features_extractor if self.share_features_extractor else None
        self.critic = self.make_critic(shared)
        # The target keeps an extractor of its own: it lags behind with the rest.
        self.critic_target = self.make_critic()
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.actor.optimizer = self._make_optimizer(list(self.actor.parameters()), lr_schedule)
        self.critic.optimizer = self._make_optimizer(self.critic.parameter_groups(), lr_schedule)
        for lagged in (self.reference_actor, self.critic_target):
            lagged.set_training_mode(False)
            lagged.requires_grad_(False)

    def compile_networks(self) -> None:
        """Compile the bodies and heads in place: parameters, their names and pickles stay."""
        for actor in (self.actor, self.reference_actor):
            actor.latent_pi.compile()
        for critic in (self.critic, self.critic_target):
            critic.compile_body()

    @th.no_grad()
    def _try(self) -> None:
        """Evaluate two observations, so that parts that do not fit show at once."""
        was_training = self.training
        self.set_training_mode(False)
        with blaming(
            f"features_extractor_class={self.features_extractor_class.__name__} with "
            f"critic_class={self._arguments['critic_class'].__name__} on two made-up observations "
            f"of the observation space {self.observation_space}",
            "make them fit one another: the extractor returns [B, features_dim], the critic "
            "answers sb3_pmpo.critics.Critic",
        ):
            observations = self.obs_to_tensor(first_observations(self.observation_space, 2))[0]
            actions = self.actor(observations, deterministic=True)
            self.critic.score(observations, actions.unsqueeze(0))
            if type(self.critic) not in _OWN or self._arguments["critic_kwargs"]:
                try_critic(self.critic, observations, actions)
        self.set_training_mode(was_training)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Make one as SB3 does."""
        kwargs, name = self.features_extractor_kwargs, self.features_extractor_class.__name__
        remedy = f"give the arguments of {name}, or leave them out"
        with blaming(f"features_extractor_kwargs={kwargs} for {name}", remedy):
            return super().make_features_extractor()

    def _make_optimizer(self, parameters: list[Any], lr_schedule: Schedule) -> th.optim.Optimizer:
        return make_optimizer(
            self.optimizer_class, self.optimizer_kwargs, parameters, lr=lr_schedule(1)
        )

    def _part_kwargs(self, extractor: BaseFeaturesExtractor | None, which: int) -> dict[str, Any]:
        arch = get_actor_critic_arch(self.net_arch)[which]
        kwargs = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "net_arch": arch,
            "activation_fn": self.activation_fn,
            "normalize_images": self.normalize_images,
            "normaliser": self.normaliser,
        }
        return self._update_features_extractor(kwargs, extractor)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """Make an actor, with an extractor of its own if none is given."""
        head = {key: self._arguments[key] for key in ("std_init", "std_min", "std_max", "n_bins")}
        return Actor(**self._part_kwargs(features_extractor, 0), **head).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Make the critics; their loss does not train an extractor that is given."""
        named = {key: self._arguments[key] for key in ("n_critics", "n_quantiles", "layer_norm")}
        critic_class, given = self._arguments["critic_class"], self._arguments["critic_kwargs"]
        parts = self._part_kwargs(features_extractor, 1)

        def make() -> Any:
            return critic_class(
                **parts,
                return_moments=self.return_moments,
                share_features_extractor=features_extractor is not None,
                **named | (given or {}),
            ).to(self.device)

        if not given and critic_class in _OWN:
            return make()  # nothing that could be blamed
        with blaming(
            f"critic_class={critic_class.__name__} with critic_kwargs={given}",
            "give what its constructor takes besides the policy's own arguments",
        ):
            return make()

    def __repr__(self) -> str:
        return describe_policy(self)

    def forward(self, observations: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Return the actor's actions ``[B, A]``."""
        return self._predict(observations, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor(observation, deterministic)

    def update_statistics(self, observations: Any, returns: Any) -> None:
        """Take in what was just collected; what the policy has learned stays as it is.

        :param observations: ``[n_envs, ...]`` as the policy sees them, or a dict of such.
        :param returns: ``[n_envs]`` discounted returns so far, in units of the reward.
        :raises ValueError: for a return whose square is no float32.
        """
        if not (np.abs(returns) <= LARGEST).all():
            raise ValueError(
                f"the discounted return of an episode so far must be no larger than {LARGEST:g}, "
                f"got {returns}: scale the rewards down, or lower gamma"
            )
        if isinstance(self.normaliser, ObservationNormaliser):
            self.normaliser.update(observations)
        self.return_moments.update(th.as_tensor(returns).unsqueeze(-1))

    def begin_observations_anew(self, observations: Any) -> None:
        """Forget the observations seen, and take the statistics of these instead.

        :param observations: ``[T, ...]`` as the policy sees them, or a dict of such.
        """
        if isinstance(self.normaliser, ObservationNormaliser):
            self.normaliser.begin_anew(observations)

    def begin_returns_anew(self, returns: Any) -> None:
        """Forget the returns seen, and take the statistics of these instead.

        :param returns: ``[T]`` discounted returns so far, in units of the reward.
        """
        self.return_moments.begin_anew(th.as_tensor(returns).unsqueeze(-1))

    def sees_absurd_readings(self, observations: Any) -> bool:
        """Say whether some of the observations ``[T, ...]``, or a dict of them, cannot be true."""
        if isinstance(self.normaliser, ObservationNormaliser):
            return self.normaliser.sees_absurd_readings(observations)
        return False

    @property
    def statistics_keys(self) -> list[str]:
        """Which parts of a dict of observations are normalised."""
        normaliser = self.normaliser
        return normaliser.keys if isinstance(normaliser, ObservationNormaliser) else []

    @property
    def statistics_counts(self) -> tuple[float, float]:
        """How many observations and returns the statistics are of.

        Infinitely many observations where none is normalised.
        """
        of_returns = float(self.return_moments.count)
        if isinstance(self.normaliser, ObservationNormaliser):
            return self.normaliser.count, of_returns
        return math.inf, of_returns

    @property
    def statistics_count(self) -> float:
        """How many observations and returns the statistics are of, the fewer of the two."""
        return min(self.statistics_counts)

    def set_training_mode(self, mode: bool) -> None:
        """Switch actor and critic between training and evaluation; the lagged copies stay put."""
        if mode == self.training == self.actor.training == self.critic.training:
            return  # SB3 asks before each action; asking every module takes long
        self.actor.set_training_mode(mode)
        self.critic.set_training_mode(mode)
        for lagged in (self.reference_actor, self.critic_target):  # train() has switched them too
            lagged.set_training_mode(False)
        self.training = mode


MlpPolicy = PMPOPolicy


class CnnPolicy(PMPOPolicy):
    """The policy for images: :class:`PMPOPolicy` with SB3's NatureCNN by default."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": NatureCNN} | kwargs)


class MultiInputPolicy(PMPOPolicy):
    """The policy for Dict observations: with SB3's CombinedExtractor by default."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": CombinedExtractor} | kwargs)
