"""The critics: what the learner asks of one, and the ensemble of quantile critics that ships.

``policy_kwargs={"critic_class": ...}`` chooses another. A critic of one's own builds on
:class:`StateActionCritic`, an ensemble on :class:`StateActionFeatures`, and answers the protocol
:class:`Critic`.

Axes: N critics, K quantiles, S actions, B states, F features, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_pmpo.core.batch import Batch
from sb3_pmpo.core.td import quantile_critic_gradient, td_target
from sb3_pmpo.features import NormalisedFeatures, n_choices
from sb3_pmpo.networks import EnsembleQ, RunningMoments, fastest_dtype


class CriticLoss(NamedTuple):
    """What a critic step minimises, and what it learned of the transitions.

    :param outputs: where the gradient starts: a scalar loss, or outputs of the network.
    :param gradient: of the loss with respect to ``outputs``; None where ``outputs`` is the loss.
    :param errors: ``[B]`` absolute TD errors, without gradient: the priorities of replay.
    :param metrics: scalars without gradient, by their name under ``train/``.
    :param auxiliary: a scalar loss that is added, of predictions from the features; None for none.
    """

    outputs: th.Tensor
    gradient: th.Tensor | None
    errors: th.Tensor
    metrics: dict[str, th.Tensor]
    auxiliary: th.Tensor | None = None


class Critic(Protocol):
    """What the learner asks of a critic, which is also a ``torch.nn.Module``.

    What it is made of is its own business: its outputs, its dtype, the learning rates of its parts.
    """

    @property
    def scale(self) -> th.Tensor:
        """Say how large a return is, in units of the reward: a scalar, the labellers' ``unit``."""
        ...

    def score(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Compute what orders the actions of each state.

        :param observations: a batch of B.
        :param actions: ``[S, B, A]``.
        :return: ``[S, B]`` values in units of the reward.
        """
        ...

    def score_each(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Compute the same by each of N critics, ``[N, S, B]``; how far they agree is no noise."""
        ...

    def bootstrap(
        self, observations: PyTorchObs, actions: th.Tensor, weights: th.Tensor, pessimism: float
    ) -> th.Tensor:
        """Compute what a TD target takes for the return of a state; of the target critic.

        :param observations: a batch of B.
        :param actions: ``[S, B, A]`` of the reference.
        :param weights: ``[S, B]`` of the actions in an expectation; they sum to 1 over S.
        :param pessimism: in [0, 1], from the ensemble's mean to its lowest.
        :return: ``[B, K]`` in units of the reward: K quantiles, or the value with K = 1.
        """
        ...

    def loss(self, batch: Batch, target: th.Tensor, weights: th.Tensor | None = None) -> CriticLoss:
        """Compute the loss of the transitions.

        :param batch: B transitions; an auxiliary loss finds ``next_observations`` there.
        :param target: ``[B, K]`` TD targets, without gradient.
        :param weights: ``[B]`` of the transitions; None for 1 each.
        """
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """List what is trained, in groups that may have learning rates of their own."""
        ...

    def rate_scales(self) -> Sequence[th.Tensor | float]:
        """Say by what each group's learning rate is multiplied, now; the first one's is 1."""
        ...

    def compile_body(self) -> None:
        """Compile what is worth it in place, for ``compile=True`` on a CPU."""
        ...


def try_critic(critic: Any, observations: PyTorchObs, actions: th.Tensor) -> None:
    """Compute the loss of two made-up transitions, so that a fault shows before training.

    The critic is as before afterwards, with the statistics that it keeps.

    :param critic: of a class that the user gives.
    :param observations: two, which the transitions lead back to.
    :param actions: ``[2, A]``.
    :raises TypeError: if what it returns is no :class:`CriticLoss` of two transitions.
    """
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    zeros = th.zeros(len(actions), device=actions.device)
    batch = Batch(observations, actions, observations, zeros, zeros, 0.0)
    weights = th.ones(1, len(actions), device=actions.device)
    with th.no_grad():
        target = critic.bootstrap(observations, actions.unsqueeze(0), weights, 0.5)
    with th.enable_grad():
        loss = critic.loss(batch, td_target(zeros, zeros, 0.0, target))
    critic.load_state_dict(before)
    if not isinstance(loss, CriticLoss):
        raise TypeError(f"loss() returned a {type(loss).__name__}, not a CriticLoss")
    if loss.errors.shape != zeros.shape:
        raise TypeError(
            f"the errors of CriticLoss have the shape {tuple(loss.errors.shape)} for a batch of "
            f"{len(zeros)}, not [B]"
        )


class AuxiliaryLoss(Protocol):
    """A module that learns to predict something from the critic's features, to shape them."""

    def __call__(
        self, features: th.Tensor, actions: th.Tensor, next_features: th.Tensor, batch: Batch
    ) -> th.Tensor:
        """Compute the loss.

        :param features: ``[B, F]`` with gradient.
        :param actions: ``[B, A]`` as the critic codes them.
        :param next_features: ``[B, F]`` of ``batch.next_observations``, without gradient.
        :param batch: the transitions, for their rewards.
        :return: ``[B]``.
        """
        ...


class StateActionFeatures(NormalisedFeatures):
    """Features of the states and codes of the actions, from which a critic computes values.

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
    :param share_features_extractor: the extractor belongs to the actor, and no gradient of the
        critic's loss reaches it.
    :param auxiliary_class: makes an :class:`AuxiliaryLoss` from F and the width of an action's
        code; None for none.
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
        share_features_extractor: bool,
        auxiliary_class: type[nn.Module] | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.normaliser = normaliser
        self.return_moments = return_moments
        self.share_features_extractor = share_features_extractor
        self.n_choices = n_choices(action_space)
        self.features_dim, self.net_arch, self.activation_fn = features_dim, net_arch, activation_fn
        self.code_dim = sum(self.n_choices) if self.n_choices else get_action_dim(action_space)
        self.auxiliary = (
            None if auxiliary_class is None else auxiliary_class(features_dim, self.code_dim)
        )

    @property
    def scale(self) -> th.Tensor:
        """Root mean square of the discounted returns seen; 1 while they are all zero."""
        rms = (self.return_moments.var + self.return_moments.mean.square()).sqrt()
        return th.where(rms > 1e-8, rms, 1.0)

    def state_features(self, observations: PyTorchObs) -> th.Tensor:
        """Extract ``[B, F]``, without gradient where the extractor is the actor's."""
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            return self.features(observations)

    def encode(self, actions: th.Tensor) -> th.Tensor:
        """Clip the actions of a Box to [-1, 1]; code discrete ones as one-hot vectors."""
        if self.n_choices is None:
            return actions.clamp(-1.0, 1.0)
        by_dim = zip(actions.long().unbind(-1), self.n_choices, strict=True)
        return th.cat([F.one_hot(index, n) for index, n in by_dim], dim=-1).float()

    def auxiliary_loss(
        self, batch: Batch, features: th.Tensor, weights: th.Tensor | None
    ) -> th.Tensor | None:
        """Compute the auxiliary loss of the transitions, a scalar; None where there is none."""
        if self.auxiliary is None:
            return None
        with th.no_grad():
            following = self.features(batch.next_observations)
        loss = self.auxiliary(features, self.encode(batch.actions), following, batch)
        return cast(th.Tensor, (loss if weights is None else weights * loss).mean())

    def body_parameters(self, output: nn.Module) -> list[nn.Parameter]:
        """List what the critic trains besides its output layer."""
        theirs = self.features_extractor.parameters() if self.share_features_extractor else ()
        excluded = {id(p) for p in (*theirs, *output.parameters())}
        return [p for p in self.parameters() if id(p) not in excluded]


class StateActionCritic(StateActionFeatures):
    """One critic, not an ensemble, with the arguments of :class:`StateActionFeatures`."""

    def score_each(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Score as the one critic that this is, ``[1, S, B]``."""
        return cast(Critic, self).score(observations, actions).unsqueeze(0)

    def rate_scales(self) -> Sequence[th.Tensor | float]:
        """Leave each group of parameters its learning rate."""
        return [1.0] * len(cast(Critic, self).parameter_groups())

    def compile_body(self) -> None:
        """Compile nothing."""


class QuantileCritic(StateActionFeatures):
    """An ensemble of Q functions whose mean is the value, each the mean of quantiles of the return.

    :param n_critics: N.
    :param n_quantiles: K.
    :param layer_norm: layer norm in the body.
    :param embedding_class: makes a :class:`sb3_pmpo.embeddings.Embedding` from F and the width of
        an action's code; None for none.
    :param parts: the arguments of :class:`StateActionFeatures`.
    """

    def __init__(
        self,
        *,
        n_critics: int,
        n_quantiles: int,
        layer_norm: bool,
        embedding_class: Callable[[int, int], Any] | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.n_critics = n_critics
        self.embedding = (
            None if embedding_class is None else embedding_class(self.features_dim, self.code_dim)
        )
        added = 0 if self.embedding is None else self.embedding.width
        self.ensemble = EnsembleQ(
            self.features_dim + added,
            self.code_dim + added,
            self.net_arch,
            n_critics,
            self.activation_fn,
            layer_norm,
            n_quantiles,
        )

    def q_values(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Evaluate S actions for each state, extracting its features once.

        :param observations: a batch of B.
        :param actions: ``[S, B, A]``; in a Box what is outside is taken at the edge.
        :return: ``[N, S, B]`` in units of the reward.
        """
        return self._evaluate(self.state_features(observations), actions, quantiles=False)

    def quantiles(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Compute the quantiles ``[N, S, B, K]`` of which :meth:`q_values` is the mean."""
        return self._evaluate(self.state_features(observations), actions, quantiles=True)

    def _evaluate(self, features: th.Tensor, actions: th.Tensor, quantiles: bool) -> th.Tensor:
        return self._values(*self.inputs(features, actions), quantiles)

    def inputs(self, features: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Compute what the ensemble sees: ``[B, ...]`` of states, ``[S, B, ...]`` of actions.

        :param features: ``[B, F]``.
        :param actions: ``[S, B, A]``.
        """
        codes = self.encode(actions)
        return (features, codes) if self.embedding is None else self.embedding(features, codes)

    def _further_loss(
        self,
        batch: Batch,
        features: th.Tensor,
        of_action: th.Tensor,
        weights: th.Tensor | None,
    ) -> th.Tensor | None:
        auxiliary = self.auxiliary_loss(batch, features, weights)
        if self.embedding is None:
            return auxiliary
        with th.no_grad():
            following = self.features(batch.next_observations)
        entries = self.embedding.loss(of_action, following, batch)
        loss = cast(th.Tensor, (entries if weights is None else weights * entries).mean())
        return loss if auxiliary is None else loss + auxiliary

    def _values(self, of_state: th.Tensor, of_action: th.Tensor, quantiles: bool) -> th.Tensor:
        dtype = fastest_dtype(of_state.device, self.net_arch)
        return cast(th.Tensor, self.ensemble(of_state, of_action, dtype, quantiles))

    def score(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Average the critics; ``[S, B]``."""
        return self.q_values(observations, actions).mean(0)

    def score_each(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Compute :meth:`q_values`."""
        return self.q_values(observations, actions)

    def bootstrap(
        self, observations: PyTorchObs, actions: th.Tensor, weights: th.Tensor, pessimism: float
    ) -> th.Tensor:
        """Average the critics' quantiles, less where the critics disagree; ``[B, K]``.

        The policy seeks actions whose value is overestimated, and bootstrapping spreads the error.
        So the target subtracts ``pessimism * (mean - min)`` over the critics. With two of them a
        half is the soft clipped double Q of BCQ (Fujimoto et al., 2019, lambda of 0.75).
        """
        quantiles = self.quantiles(observations, actions)
        q_values = quantiles.mean(-1)
        penalty = pessimism * (q_values.mean(0) - q_values.amin(0))
        lowered = quantiles.mean(0) - penalty.unsqueeze(-1)  # [S, B, K]
        return (weights.unsqueeze(-1) * lowered).sum(0)

    def loss(self, batch: Batch, target: th.Tensor, weights: th.Tensor | None = None) -> CriticLoss:
        """Regress the quantiles to the target's; see :func:`quantile_critic_gradient`."""
        features, scale = self.state_features(batch.observations), self.scale
        inputs = self.inputs(features, batch.actions.unsqueeze(0))
        quantiles = self._values(*inputs, quantiles=True)[:, 0]
        q_values = quantiles.detach().mean(-1)  # [N, B]
        errors = (q_values - target.mean(-1)) / scale
        return CriticLoss(
            quantiles,
            quantile_critic_gradient(quantiles, target, scale, weights),
            errors.abs().mean(0),
            {
                "critic_loss": 0.5 * errors.square().mean(-1).sum(),
                "q_value": q_values.mean(),
                "return_scale": scale.mean(),
            },
            self._further_loss(batch, features, inputs[1][0], weights),
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """List the body and the output layer, whose weights have the unit of the returns.

        So an optimiser's weight decay leaves the latter alone: it would pull large values to zero.
        """
        output = self.ensemble.output
        return [
            {"params": self.body_parameters(output)},
            {"params": list(output.parameters()), "weight_decay": 0.0},
        ]

    def rate_scales(self) -> Sequence[th.Tensor | float]:
        """Give the output layer its learning rate in units of the returns.

        Values are in units of the reward, and Adam's steps have no unit: without this, large
        returns are learned slowly and small ones drown in noise.
        """
        return (1.0, self.scale)

    def compile_body(self) -> None:
        """Compile the ensemble in place with ``torch.compile``."""
        self.ensemble.compile()

    def forward(self, observations: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """Return each critic's Q ``[B, 1]`` of one action per state, as SB3's critics do."""
        return tuple(self.q_values(observations, actions.unsqueeze(0))[:, 0].unsqueeze(-1))
