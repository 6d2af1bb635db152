"""From rewards of completions to weights. Torch only.

Axes: S completions of a prompt, B prompts.
"""

from __future__ import annotations

import math

import pytest
import torch as th

from sb3_pmpo.core.labels import advantage, best_worst, threshold, top_k
from sb3_pmpo.core.samples import Preference
from sb3_pmpo.lm.labelling import combine_rewards, weigh_completions

REWARDS = th.tensor([3.0, 1.0, 2.0, 0.0, 0.0, 5.0, 6.0, 7.0])  # two prompts of four
NONE = th.zeros(8, dtype=th.bool)


@pytest.mark.parametrize(
    ("labeller", "accept", "reject"),
    [
        (top_k(2), [0.5, 0, 0.5, 0, 0, 0, 0.5, 0.5], [0, 0.5, 0, 0.5, 0.5, 0.5, 0, 0]),
        (best_worst(), [1, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 0, 0, 0]),
        (threshold(6.0), [0, 0, 0, 0, 0, 0, 0.5, 0.5], [0.25] * 4 + [0.5, 0.5, 0, 0]),
    ],
)
def test_each_prompt_is_labelled_by_itself(labeller, accept, reject):
    weights = weigh_completions(REWARDS, NONE, 4, labeller)
    th.testing.assert_close(weights.accept, th.tensor(accept, dtype=th.float32))
    th.testing.assert_close(weights.reject, th.tensor(reject, dtype=th.float32))
    assert weights.kl.tolist() == [0.25] * 8


def test_what_nobody_could_judge_is_left_out():
    rewards = REWARDS.clone()
    rewards[0] = math.nan
    weights = weigh_completions(rewards, NONE, 4, threshold(1.5))
    assert weights.accept[:4].tolist() == [0, 0, 1, 0]
    assert weights.reject[:4].tolist() == [0, 0.5, 0, 0.5]
    th.testing.assert_close(weights.kl[:4], th.tensor([0, 1, 1, 1]) / 3)


@pytest.mark.parametrize("labeller", [top_k(2), threshold(1.5), advantage()])
class TestTruncated:
    CUT = th.tensor([True, False, False, False, False, False, False, False])

    def test_kept(self, labeller):
        kept = weigh_completions(REWARDS, self.CUT, 4, labeller, "keep")
        assert kept.accept[0] > 0

    def test_rejected(self, labeller):
        rejected = weigh_completions(REWARDS, self.CUT, 4, labeller, "reject")
        assert rejected.accept[0] == 0
        assert rejected.reject[0] > 0
        assert rejected.kl[0] == 0.25

    def test_masked(self, labeller):
        masked = weigh_completions(REWARDS, self.CUT, 4, labeller, "mask")
        assert masked.accept[0] == masked.reject[0] == masked.kl[0] == 0
        th.testing.assert_close(masked.kl[:4].sum(), th.tensor(1.0))

    def test_a_prompt_of_which_nothing_is_left(self, labeller):
        cut = th.arange(8) < 4
        weights = weigh_completions(REWARDS, cut, 4, labeller, "mask")
        for part in weights:
            assert (part[:4] == 0).all()
            assert part.isfinite().all()


def test_all_rejected_though_the_labeller_accepts_all():
    weights = weigh_completions(REWARDS, ~NONE, 4, threshold(-100.0), "reject")
    assert (weights.accept == 0).all()
    assert weights.reject.tolist() == [0.25] * 8


def test_a_labeller_that_returns_nonsense_is_named():
    def nonsense(candidates):
        return Preference(-candidates.scores, candidates.scores)

    with pytest.raises(ValueError, match="finite weights >= 0"):
        weigh_completions(REWARDS, NONE, 4, nonsense)


class TestSeveralRewards:
    """Two judges of two prompts with four completions, one in units of a hundred."""

    REWARDS = th.stack([REWARDS, 100.0 * REWARDS.flip(0)], 1)
    WEIGHTS = th.tensor([2.0, 1.0])

    def test_sums(self):
        total = combine_rewards(self.REWARDS, self.WEIGHTS, 4, "sum_then_normalize")
        th.testing.assert_close(total, 2.0 * REWARDS + 100.0 * REWARDS.flip(0))

    def test_normalised_first_no_unit_counts(self):
        total = combine_rewards(self.REWARDS, self.WEIGHTS, 4, "normalize_then_sum")
        same_unit = self.REWARDS / th.tensor([1.0, 100.0])
        other = combine_rewards(same_unit, self.WEIGHTS, 4, "normalize_then_sum")
        th.testing.assert_close(total, other, atol=1e-3, rtol=1e-3)
        groups = total.view(2, 4)
        th.testing.assert_close(groups.mean(1), th.zeros(2), atol=1e-5, rtol=0.0)
        spread = (REWARDS[:4] - REWARDS[:4].mean()) / REWARDS[:4].std()
        flipped = REWARDS.flip(0)[:4]
        both = 2.0 * spread + (flipped - flipped.mean()) / flipped.std()
        th.testing.assert_close(groups[0], both, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
    def test_a_judge_that_could_not_say(self, aggregation):
        rewards = self.REWARDS.clone()
        rewards[0, 0] = math.nan
        rewards[1] = math.nan
        total = combine_rewards(rewards, self.WEIGHTS, 4, aggregation)
        assert total.isnan().tolist() == [False, True] + [False] * 6

    def test_the_only_completion_that_could_be_judged_is_average(self):
        rewards = th.full((4, 1), math.nan)
        rewards[2] = 7.0
        total = combine_rewards(rewards, th.ones(1), 4, "normalize_then_sum")
        assert total[2] == 0.0
