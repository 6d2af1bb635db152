"""Quantile critics that see learned embeddings of the states and of the actions in them.

An embedding ``z(s)`` of the state and one of state and action, ``e(z(s), a)``, learn so that a
linear layer predicts ``z(s')`` from ``e``, as in TD7 (Fujimoto et al., 2023) and MR.Q (Fujimoto et
al., 2025). The critics see ``[s, z]`` and ``[a, e]``, as those of TD7 do. Other than there, the
gradient of the values reaches the embeddings, too.

Axes: N critics, S actions, B states, F features, C an action's code, Z an embedding.
"""

from __future__ import annotations

from typing import Any, cast

import torch as th
from torch import nn

from sb3_pmpo.core.batch import Batch
from sb3_pmpo.critics import QuantileCritic
from sb3_pmpo.learn_checks import check_count


def _embedding(n_inputs: int, width: int) -> nn.Sequential:
    first = nn.Linear(n_inputs, width), nn.LayerNorm(width), nn.ELU(inplace=True)
    return nn.Sequential(*first, nn.Linear(width, width), nn.LayerNorm(width), nn.ELU(inplace=True))


class EmbeddingCritic(QuantileCritic):
    """An ensemble of quantile critics on learned embeddings, which predict the next state's.

    The loss of the prediction is the auxiliary loss ``mean((W e(z(s), a) + b - z(s'))^2)`` over Z
    and B, without the transitions that end an episode. No gradient reaches ``z(s')``. With n-step
    returns ``s'`` is the state n steps later.

    :param embedding_dim: Z, also the width of the embeddings' hidden layers; at least 1.
    :param parts: the arguments of :class:`sb3_pmpo.critics.QuantileCritic`.
    :raises ValueError: for an ``embedding_dim`` that is out of range.
    """

    def __init__(self, *, embedding_dim: int = 128, **parts: Any) -> None:
        check_count("embedding_dim", embedding_dim, 1)
        super().__init__(**parts, embedding_dim=int(embedding_dim))
        self.of_state = _embedding(self.features_dim, self.embedding_dim)
        self.of_action = _embedding(self.embedding_dim + self.code_dim, self.embedding_dim)
        self.predict = nn.Linear(self.embedding_dim, self.embedding_dim)

    def inputs(self, features: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Add the embeddings: ``[B, F + Z]`` of the states, ``[S, B, C + Z]`` of the actions."""
        codes, of_state = self.encode(actions), self.of_state(features)
        given = th.cat((of_state.expand(*codes.shape[:-1], -1), codes), -1)
        return th.cat((features, of_state), -1), th.cat((codes, self.of_action(given)), -1)

    def auxiliary_loss(
        self,
        batch: Batch,
        features: th.Tensor,
        weights: th.Tensor | None,
        inputs: tuple[th.Tensor, th.Tensor] | None = None,
    ) -> th.Tensor:
        """Compute how far the next states' embeddings are from what is predicted, a scalar.

        :param inputs: of the transitions, as :meth:`inputs` returns them; None to compute them.
        """
        _, of_action = inputs or self.inputs(features, batch.actions.unsqueeze(0))
        with th.no_grad():
            following = self.of_state(self.features(batch.next_observations))
        predicted = self.predict(of_action[0, :, self.code_dim :])
        entries = (predicted - following).square().mean(-1) * (1.0 - batch.dones)
        loss = cast(th.Tensor, (entries if weights is None else weights * entries).mean())
        further = super().auxiliary_loss(batch, features, weights)
        return loss if further is None else loss + further
