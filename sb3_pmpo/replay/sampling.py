"""Batches from a replay buffer of any class.

Axes: B transitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.core.batch import Batch
from sb3_pmpo.replay.episodes import has_cuts
from sb3_pmpo.replay.hindsight import relabelled
from sb3_pmpo.replay.storage import Chooses, Draw, draw_uniformly, is_gathered
from sb3_pmpo.replay.window import Transitions, gather


@dataclass(frozen=True)
class Replay:
    """Samples n-step transitions from a buffer, which stores them one by one.

    It holds no state: priorities and cut episodes belong to the buffer and are saved with it. So
    it may be made anew whenever a buffer, n or gamma has changed.

    :param buffer: one of SB3's, one that :class:`~sb3_pmpo.replay.storage.Chooses`, or one of the
        user's. The latter is asked for samples by its own ``sample``, and n and gamma are its own
        business.
    :param n_steps: n, at least 1.
    :param gamma: discount of one step.
    """

    buffer: ReplayBuffer
    n_steps: int
    gamma: float

    def sample(
        self,
        batch_size: int,
        env: VecNormalize | None = None,
        progress_remaining: float = 0.0,
        parts: int = 1,
    ) -> Batch:
        """Sample transitions.

        :param batch_size: B, at least 1.
        :param env: normalises observations and rewards, if given.
        :param progress_remaining: of the training, from 1 at its start to 0 at its end; what
            importance weights depend on.
        :param parts: how many updates share the batch, each the next part of it. A divisor of B:
            hindsight goals, which are drawn together, are then spread over all of them.
        :return: single steps are drawn by the buffer's own ``sample``, n-step transitions with
            the same random numbers.
        """
        batch = self._sample(batch_size, env, progress_remaining)
        if parts == 1 or not isinstance(self.buffer, HerReplayBuffer):
            return batch
        order = np.arange(batch_size).reshape(-1, parts).T.ravel()  # every parts-th to the first
        rows = th.as_tensor(order, device=batch.rewards.device)
        spread = batch.map(lambda values: values[rows])
        return spread._replace(indices=None if batch.indices is None else batch.indices[order])

    def _sample(
        self, batch_size: int, env: VecNormalize | None, progress_remaining: float
    ) -> Batch:
        buffer = self.buffer
        if isinstance(buffer, Chooses):
            return self._gather(buffer.choose(batch_size, progress_remaining), env)
        if is_gathered(buffer) and (self.n_steps > 1 or has_cuts(buffer)):
            return self._gather(draw_uniformly(buffer, batch_size), env)
        data: Any = buffer.sample(batch_size, env=env)
        discounts = getattr(data, "discounts", None)  # a class of the user's may not have any
        return Batch(
            data.observations,
            data.actions,
            data.next_observations,
            data.rewards.flatten(),
            data.dones.flatten(),
            self.gamma if discounts is None else discounts.flatten(),
        )

    def update_priorities(self, indices: np.ndarray | None, errors: th.Tensor | np.ndarray) -> None:
        """Tell the buffer how far off the critics were, if it keeps priorities.

        :param indices: ``[B]`` of the batch; None does nothing.
        :param errors: ``[B]`` TD errors of that batch, in its order.
        """
        if indices is None or not isinstance(self.buffer, Chooses):
            return
        if isinstance(errors, th.Tensor):
            errors = errors.detach().float().cpu().numpy()
        self.buffer.update_priorities(indices, errors)

    def _gather(self, draw: Draw, env: VecNormalize | None) -> Batch:
        if isinstance(self.buffer, HerReplayBuffer):
            draw, found = self._gather_hindsight(self.buffer, draw, env)
        else:
            settings: Any = {"n_steps": self.n_steps, "gamma": self.gamma}
            found = gather(self.buffer, draw.rows, draw.envs, env, **settings)
        to_torch = self.buffer.to_torch
        fields: dict[str, Any] = {
            name: {key: to_torch(value) for key, value in field.items()}
            if isinstance(field, dict)
            else to_torch(field)
            for name, field in found._asdict().items()
        }
        weights = indices = None
        if draw.weights is not None:
            weights = to_torch(draw.weights)
            indices = draw.rows * self.buffer.n_envs + draw.envs
        return Batch(**fields, weights=weights, indices=indices)

    def _gather_hindsight(
        self, buffer: HerReplayBuffer, draw: Draw, env: VecNormalize | None
    ) -> tuple[Draw, Transitions]:
        """Relabel the first part of a draw, as SB3 does; it comes second in the batch."""
        number = int(buffer.her_ratio * len(draw.rows))
        order = np.roll(np.arange(len(draw.rows)), -number)
        weights = None if draw.weights is None else draw.weights[order]
        draw = Draw(draw.rows[order], draw.envs[order], weights)
        true, hindsight = slice(None, len(order) - number), slice(len(order) - number, None)
        settings: Any = {"n_steps": self.n_steps, "gamma": self.gamma}
        parts = [
            gather(buffer, draw.rows[part], draw.envs[part], env, relabel=relabel, **settings)
            for relabel, part in ((None, true), (partial(relabelled, buffer), hindsight))
            if len(order[part]) > 0
        ]
        return draw, parts[0] if len(parts) == 1 else _join(*parts)


def _join(one: Transitions, other: Transitions) -> Transitions:
    """Put two batches together, of Dict observations or not."""

    def join(first: Any, second: Any) -> Any:
        if isinstance(first, dict):
            return {key: np.concatenate((value, second[key])) for key, value in first.items()}
        return np.concatenate((first, second))

    return Transitions(*map(join, one, other))
