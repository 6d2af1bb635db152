"""Rejections fade as they are heeded, where the reference follows the policy.

Axes: S rows of the minibatch, N rows of the source.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th

from sb3_pmpo.core.samples import Candidates
from sb3_pmpo.offline.columns import flat
from sb3_pmpo.offline.dataset import Rows
from sb3_pmpo.offline.run import Batch, Labelled, observe
from sb3_pmpo.offline.tensors import to_policy_actions

#: Least and most logarithm of what a rejection counts for, which is 0 when it comes. Less than the
#: least would be 0 in float32, and no rejection any more.
LEAST, MOST = -80.0, math.log(2.0)


class Fading:
    """What is left of rejections, which fade as they are heeded.

    Eq. 10 averages over what the *reference* does and is rejected for. A reference that follows the
    policy, step by step or from one round of learning to the next, leaves old rows behind. Each of
    them would push the policy on, the harder the further it has gone, to the edge of the box and to
    the smallest std. So a rejected row counts by an importance weight, the reference's density of
    its action now over that when it was first learned from, and twice at most. As long as the
    reference is held, that is 1. The weight is that of the whole action: with many dimensions a
    rejection fades by any change of the policy. Accepted rows draw the policy to where they are,
    and keep their weight.

    The model keeps the densities for the next round, and for a checkpoint.

    :param model: an algorithm of this package.
    :param source: the rows, which may grow.
    """

    def __init__(self, model: Any, source: Labelled) -> None:
        self.model, self.source = model, source
        known = model.label_log_probs
        if known is not None and not self._are_of(len(known)):
            model.label_log_probs = None  # they are of other rows

    @th.no_grad()
    def __call__(self, reference: Any, batch: Batch) -> Candidates:
        """Let each rejected row's label be what is left of it, from -2 to 0."""
        candidates = batch.candidates
        scores, actions = candidates.scores, candidates.actions
        assert actions is not None  # they are the rows'
        now = reference.log_prob(actions.unsqueeze(0)).squeeze(0)
        then = th.as_tensor(self._log_probs(batch.rows), device=now.device)
        left = (now - then).clamp(LEAST, MOST).exp()
        return replace(candidates, scores=th.where(scores < 0, scores * left, scores))

    def _log_probs(self, rows: np.ndarray) -> np.ndarray:
        """Return ``[S]``, the log-density of each rejected row when it was first learned from."""
        model, known = self.model, self.model.label_log_probs
        if known is None:
            known, model.label_check = np.zeros(0, np.float32), []
        if rows.max() >= len(known):  # there is a new sampler, of more rows
            n = len(self.source)
            grown = np.concatenate([known, np.zeros(n - len(known), np.float32)])
            for index, rows_there in self._rejected(len(known), n):
                grown[index] = self._log_prob(rows_there)
                model.label_check = _checksum(index, rows_there, model.label_check)
            model.label_log_probs = known = grown
        return known[rows]

    def _are_of(self, n: int) -> bool:
        """Say whether the densities that the model has are of the source's first n rows."""
        if n > len(self.source):
            return False
        check: list[int] = []
        for index, rows in self._rejected(0, n):
            check = _checksum(index, rows, check)
        return check == self.model.label_check

    def _rejected(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, Rows]]:
        """Yield the rejected rows of a range and their numbers, a minibatch at a time."""
        labels = self.source.labels_and_weights()[0][start:stop]
        found = start + np.flatnonzero(labels < 0)
        size = self.model.batch_size
        for begin in range(0, len(found), size):
            index = found[begin : begin + size]
            yield index, self.source.rows(index)

    def _log_prob(self, rows: Rows) -> np.ndarray:
        reference = self.model.policy.reference_actor.distribution(
            observe(self.model, self.source, rows)
        )
        actions = to_policy_actions(rows.actions, self.source.action_space, self.model.device)
        return reference.log_prob(actions.unsqueeze(0)).squeeze(0).float().cpu().numpy()


def _checksum(index: np.ndarray, rows: Rows, before: list[int]) -> list[int]:
    """Return those of the rows' numbers and of what was seen and done, which go on from before.

    One for each column: so it does not matter in what portions the rows have come.
    """
    columns = (index, *flat(rows.observations), rows.actions)
    return [
        zlib.crc32(np.ascontiguousarray(values).tobytes(), check)
        for values, check in zip(columns, before or [0] * len(columns), strict=True)
    ]
