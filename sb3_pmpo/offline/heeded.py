"""Rejections fade as they are heeded, where the reference follows the policy.

Axes: S rows of the minibatch, N rows of the source.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th

from sb3_pmpo.core.samples import Candidates
from sb3_pmpo.offline.run import Batch, LabelSteps
from sb3_pmpo.offline.tensors import to_policy_actions

#: Least and most logarithm of what a rejection counts for, which is 0 when it comes. Less than the
#: least would be 0 in float32, and no rejection any more.
LEAST, MOST = -80.0, math.log(2.0)


class FadingSteps(LabelSteps):
    """Steps on labelled rows whose rejections fade as they are heeded.

    Eq. 10 averages over what the *reference* does and is rejected for. A reference that follows the
    policy, step by step or from one round of learning to the next, leaves old rows behind. Each of
    them would push the policy on, the harder the further it has gone, to the edge of the box and to
    the smallest std. So a rejected row counts by an importance weight, the reference's density of
    its action now over that when it was first learned from, :data:`MOST` at most. As long as the
    reference is held, that is 1. The weight is that of the whole action: with many dimensions a
    rejection fades by any change of the policy. Accepted rows draw the policy to where they are,
    and keep their weight.

    The model keeps the densities for the next round, and for a checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        known = self.model.label_log_probs
        if known is not None and self._check(0, len(known), 0) != self.model.label_check:
            self.model.label_log_probs = None  # they are of other rows

    @th.no_grad()
    def weigh(self, reference: Any, batch: Batch) -> Candidates:
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
            known, model.label_check = np.zeros(0, np.float32), 0
        if rows.max() >= len(known):  # there is a new sampler, of more rows
            n = len(self.source)
            grown = np.concatenate([known, np.zeros(n - len(known), np.float32)])
            for index in self._rejected(len(known), n):
                grown[index] = self._log_prob(index)
            model.label_check = self._check(len(known), n, model.label_check)
            model.label_log_probs = known = grown
        return known[rows]

    def _rejected(self, start: int, stop: int) -> list[np.ndarray]:
        """Return the numbers of the rejected rows in a range, a minibatch at a time."""
        labels = self.source.labels_and_weights()[0][start:stop]
        index = start + np.flatnonzero(labels < 0)
        size = self.batch_size
        return [index[begin : begin + size] for begin in range(0, len(index), size)]

    def _check(self, start: int, stop: int, before: int) -> int:
        """Return a checksum of the rejected actions of a range, which goes on from another's."""
        if stop > len(self.source):
            return -1  # no checksum: there are fewer rows
        for index in self._rejected(start, stop):
            actions = np.ascontiguousarray(self.source.rows(index).actions)
            before = zlib.crc32(actions.tobytes(), before)
        return before

    def _log_prob(self, index: np.ndarray) -> np.ndarray:
        rows = self.source.rows(index)
        reference = self.model.policy.reference_actor.distribution(self.observe(rows))
        actions = to_policy_actions(rows.actions, self.source.action_space, self.model.device)
        return reference.log_prob(actions.unsqueeze(0)).squeeze(0).float().cpu().numpy()
