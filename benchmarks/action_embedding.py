r"""A critic on learned embeddings of states and actions: a trial, see trials.md.

The embedding ``e(z(s), a)`` predicts, by one linear layer, the next state's embedding and the
reward, as that of MR.Q does (Fujimoto et al., 2025). The quantile critics see ``z`` and ``e``. In
``benchmarks.labels`` and ``benchmarks.learning`` its name is ``"ActionEmbeddingCritic"``:

    python -m benchmarks.learning run ablation --tasks walker-run --seeds 0 \
        --variant PMPO-embedding '{"policy_kwargs": {"critic_class": "ActionEmbeddingCritic"}}'

Axes: N critics, S actions, B states, K quantiles, F features, A action dimensions, Z of embeddings.
"""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_pmpo.core.batch import Batch
from sb3_pmpo.core.td import quantile_critic_gradient
from sb3_pmpo.critics import CriticLoss, QuantileCritic
from sb3_pmpo.networks import EnsembleQ, fastest_dtype

WIDTH = 128  # of the hidden layers, and Z


def embedding(n_inputs: int) -> nn.Sequential:
    """Make two layers, each with layer norm and ELU."""
    first = nn.Linear(n_inputs, WIDTH), nn.LayerNorm(WIDTH), nn.ELU()
    return nn.Sequential(*first, nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ELU())


class ActionEmbeddingCritic(QuantileCritic):
    """Quantile critics of ``z(s)`` and ``e(z(s), a)``.

    :param parts: the arguments of :class:`QuantileCritic`.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.of_state = embedding(self.features_dim)
        self.of_action = embedding(WIDTH + self.code_dim)
        self.predict = nn.Linear(WIDTH, WIDTH + 1)
        self.ensemble = EnsembleQ(
            WIDTH,
            WIDTH,
            self.net_arch,
            self.n_critics,
            self.activation_fn,
            parts["layer_norm"],
            parts["n_quantiles"],
        )

    def state_features(self, observations: PyTorchObs) -> th.Tensor:
        """Embed the states, ``[B, Z]``."""
        embedded: th.Tensor = self.of_state(super().state_features(observations))
        return embedded

    def embed(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Embed the actions ``[S, B, A]`` in their states ``[B, Z]``; ``[S, B, Z]``."""
        codes = self.encode(actions)
        embedded: th.Tensor = self.of_action(
            th.cat((features.expand(*codes.shape[:-1], -1), codes), -1)
        )
        return embedded

    def _evaluate(self, features: th.Tensor, actions: th.Tensor, quantiles: bool) -> th.Tensor:
        return self._values(features, self.embed(features, actions), quantiles)

    def _values(self, features: th.Tensor, embedded: th.Tensor, quantiles: bool) -> th.Tensor:
        values: th.Tensor = self.ensemble(
            features, embedded, fastest_dtype(features.device, self.net_arch), quantiles
        )
        return values

    def loss(self, batch: Batch, target: th.Tensor, weights: th.Tensor | None = None) -> CriticLoss:
        """Regress the quantiles, and predict the next embedding and the reward.

        Not by ``auxiliary_loss``: that would embed the actions once more.
        """
        features, scale = self.state_features(batch.observations), self.scale
        embedded = self.embed(features, batch.actions.unsqueeze(0))
        quantiles = self._values(features, embedded, quantiles=True)[:, 0]
        q_values = quantiles.detach().mean(-1)  # [N, B]
        errors = (q_values - target.mean(-1)) / scale
        with th.no_grad():
            following = self.state_features(batch.next_observations)
        predicted = self.predict(embedded[0])
        of_state = (predicted[:, :-1] - following).square().mean(-1) * (1.0 - batch.dones)
        predicting = of_state + (predicted[:, -1] - batch.rewards).square()
        metrics = {
            "critic_loss": 0.5 * errors.square().mean(-1).sum(),
            "q_value": q_values.mean(),
            "return_scale": scale.mean(),
        }
        return CriticLoss(
            quantiles,
            quantile_critic_gradient(quantiles, target, scale, weights),
            errors.abs().mean(0),
            metrics,
            (predicting if weights is None else weights * predicting).mean(),
        )
