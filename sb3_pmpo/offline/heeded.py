"""Rejections beside a reference that follows the policy: what is heeded counts less.

Axes: S rows of the minibatch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th

from sb3_pmpo.core.samples import Candidates
from sb3_pmpo.offline.run import Batch, LabelSteps
from sb3_pmpo.offline.tensors import to_policy_actions

#: The most that a rejection counts for, in units of what it counted for when it came.
MOST = 2.0

#: Rows that are looked at together.
CHUNK = 4096


class FollowedSteps(LabelSteps):
    """Steps on labelled rows where the reference follows the policy.

    Eq. 10 averages over what the *reference* does and is rejected for. A reference that follows the
    policy leaves old rows behind. Each of them would push the policy on, the harder the further it
    has gone, to the edge of the box. So a rejected row counts by an importance weight: the
    reference's density of its action now, over that when the row came, :data:`MOST` at most. An
    action that is not done any more is then heeded, and labels that tell nothing about the action
    move nothing. Accepted rows, which draw the policy to where they are, need no weight.

    The model keeps the densities, so that a run goes on from a checkpoint bit for bit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.model.label_source not in (None, self.source):
            self.model.label_log_probs = None  # of other rows
        self.model.label_source = self.source

    @th.no_grad()
    def weigh(self, reference: Any, batch: Batch) -> Candidates:
        """Let each rejected row's label be what is left of it, between -:data:`MOST` and 0."""
        candidates = batch.candidates
        assert candidates.actions is not None  # they are the rows'
        now = reference.log_prob(candidates.actions.unsqueeze(0)).squeeze(0)
        then = th.as_tensor(self._log_probs()[batch.rows], device=now.device)
        left = (now - then).clamp(max=math.log(MOST)).exp()
        scores = candidates.scores
        return replace(candidates, scores=th.where(scores < 0, scores * left, scores))

    def _log_probs(self) -> np.ndarray:
        """Return ``[N]``, the log-density of each rejected row's action when the row came."""
        known, n = self.model.label_log_probs, len(self.source)
        if known is None or len(known) > n:
            known = np.zeros(0, np.float32)
        if len(known) < n:
            labels = self.source.labels_and_weights()[0][len(known) :]
            grown = np.concatenate([known, np.zeros(len(labels), np.float32)])
            rejected = len(known) + np.flatnonzero(labels < 0)
            for start in range(0, len(rejected), CHUNK):
                index = rejected[start : start + CHUNK]
                grown[index] = self._log_prob(index)
            self.model.label_log_probs = known = grown
        return known

    def _log_prob(self, index: np.ndarray) -> np.ndarray:
        rows = self.source.rows(index)
        reference = self.model.policy.reference_actor.distribution(self.observe(rows))
        actions = to_policy_actions(rows.actions, self.source.action_space, self.model.device)
        return reference.log_prob(actions.unsqueeze(0)).squeeze(0).float().cpu().numpy()
