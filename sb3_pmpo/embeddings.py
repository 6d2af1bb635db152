"""Quantile critics that see learned embeddings of the states and of the actions in them.

An embedding ``z(s)`` of the state and one of state and action, ``e(z(s), a)``, learn so that a
linear layer predicts ``z(s')`` from ``e``, as in TD7 (Fujimoto et al., 2023) and MR.Q (Fujimoto et
al., 2025). The critics see ``[s, z]`` and ``[a, e]``, as those of TD7 do. Other than there, the
gradient of the values reaches the embeddings, too.

Axes: N critics, S actions, B states, F features, C an action's code, Z an embedding.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, cast

import torch as th
from torch import nn

from sb3_pmpo.core.batch import Batch
from sb3_pmpo.critics import QuantileCritic
from sb3_pmpo.learn_checks import check_count


def _embedding(n_inputs: int, width: int) -> nn.Sequential:
    first = nn.Linear(n_inputs, width), nn.LayerNorm(width), nn.ELU(inplace=True)
    return nn.Sequential(*first, nn.Linear(width, width), nn.LayerNorm(width), nn.ELU(inplace=True))


class Embedding(Protocol):
    """A module that adds learned inputs, which predict the next state, to what an ensemble sees."""

    width: int  # how many it adds to the features, and to the codes of the actions

    def __call__(self, features: th.Tensor, codes: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Add to the features ``[B, F]`` and to the codes ``[S, B, C]``."""
        ...

    def loss(self, of_action: th.Tensor, next_features: th.Tensor, batch: Batch) -> th.Tensor:
        """Compute the loss of the prediction.

        :param of_action: ``[B, C + width]`` as it made them, with gradient.
        :param next_features: ``[B, F]`` of the next states; no gradient is to reach what is made
            of them.
        :param batch: the transitions, for its ends.
        :return: ``[B]``.
        """
        ...


class NextEmbedding(nn.Module):
    """Embeddings of states and of actions in them, of which the latter predict the next state's.

    :param features_dim: F.
    :param code_dim: C.
    :param width: Z, also the width of the embeddings' hidden layers.
    """

    def __init__(self, features_dim: int, code_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.of_state = _embedding(features_dim, width)
        self.of_action = _embedding(width + code_dim, width)
        self.predict = nn.Linear(width, width)

    def forward(self, features: th.Tensor, codes: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return ``[s, z]`` of shape ``[B, F + Z]`` and ``[a, e]`` of ``[S, B, C + Z]``."""
        of_state = self.of_state(features)
        given = th.cat((of_state.expand(*codes.shape[:-1], -1), codes), -1)
        return th.cat((features, of_state), -1), th.cat((codes, self.of_action(given)), -1)

    def loss(self, of_action: th.Tensor, next_features: th.Tensor, batch: Batch) -> th.Tensor:
        """Compute ``mean((W e + b - z(s'))^2)`` over Z, ``[B]``, without gradient of ``z(s')``.

        It is 0 where an episode ends.
        """
        with th.no_grad():
            following = self.of_state(next_features)
        predicted = self.predict(of_action[..., -self.width :])
        errors = (predicted - following).square().mean(-1)
        return cast(th.Tensor, errors * (1.0 - batch.dones))


class EmbeddingCritic(QuantileCritic):
    """An ensemble of quantile critics on learned embeddings, which predict the next state's.

    The loss of the prediction is its auxiliary loss. With n-step returns the next state is the one
    n steps later.

    :param embedding_dim: Z, at least 1; None for the width of the critics' first layer, 128 where
        they have no hidden one.
    :param parts: the arguments of :class:`sb3_pmpo.critics.QuantileCritic`.
    :raises ValueError: for an ``embedding_dim`` that is out of range.
    """

    def __init__(self, *, embedding_dim: int | None = None, **parts: Any) -> None:
        if embedding_dim is None:
            embedding_dim = (parts["net_arch"] or [128])[0]
        check_count("embedding_dim", embedding_dim, 1)
        super().__init__(**parts, embedding_class=partial(NextEmbedding, width=int(embedding_dim)))
