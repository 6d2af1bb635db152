"""Preferences: who is accepted, who rejected, with which weights (paper, Sec. 4 and 5.2).

Axes: S samples, *B batch.
"""

from __future__ import annotations

import re

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_pmpo.core.labels import ranking, top_k
from sb3_pmpo.core.samples import Candidates, from_masks, mean_over_samples, mean_per_set

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
BATCHES = st.lists(st.integers(1, 3), max_size=2).map(tuple)
DTYPES = st.sampled_from([th.float32, th.float64])
SEEDS = st.integers(0, 2**31 - 1)


def seeded(seed: int) -> th.Generator:
    """Make a generator of one's own, so that no test depends on another's draws."""
    return th.Generator().manual_seed(seed)


def distinct_scores(
    n_samples: int, batch: tuple[int, ...], dtype: th.dtype, seed: int
) -> th.Tensor:
    """Draw ``[S, *B]`` scores without ties: a permutation per state, scaled and shifted."""
    noise = th.rand(n_samples, *batch, generator=seeded(seed))
    return noise.argsort(dim=0).to(dtype) * 1.5 - 2.0


def brute_force_ranks(scores: list[float], outside: list[float] | None) -> list[int]:
    """Rank one state's samples by the lexicographic rule, written as a sort of Python keys."""
    outside = [0.0] * len(scores) if outside is None else outside
    best_first = sorted(range(len(scores)), key=lambda i: (-scores[i], outside[i], i))
    ranks = [0] * len(scores)
    for rank, sample in enumerate(best_first):
        ranks[sample] = rank
    return ranks


class TestRanking:
    @SETTINGS
    @given(n_samples=st.integers(1, 8), batch=BATCHES, dtype=DTYPES, seed=SEEDS, tied=st.booleans())
    def test_is_the_lexicographic_order(self, n_samples, batch, dtype, seed, tied):
        """Score first, then outside (smaller wins), then index: against a sort of keys.

        Both are drawn from three values, so that ties of scores, of distances and of both occur.
        """
        generator = seeded(seed)
        scores = th.randint(3, (n_samples, *batch), generator=generator).to(dtype)
        outside = th.randint(3, (n_samples, *batch), generator=generator).to(dtype)
        rank = ranking(Candidates(scores, outside=outside if tied else None))
        assert rank.shape == scores.shape
        columns = scores.reshape(n_samples, -1).T.tolist()
        ties = outside.reshape(n_samples, -1).T.tolist()
        for column, tie, got in zip(
            columns, ties, rank.reshape(n_samples, -1).T.tolist(), strict=True
        ):
            assert got == brute_force_ranks(column, tie if tied else None)

    @SETTINGS
    @given(n_samples=st.integers(1, 8), batch=BATCHES, dtype=DTYPES, seed=SEEDS)
    def test_is_a_permutation_in_each_state(self, n_samples, batch, dtype, seed):
        """The ranks of a state are 0 .. S - 1, each once, also when many scores are equal."""
        scores = th.randint(3, (n_samples, *batch), generator=seeded(seed)).to(dtype)
        rank = ranking(Candidates(scores))
        expected = th.arange(n_samples).view(-1, *[1] * len(batch)).expand_as(rank)
        assert th.equal(rank.sort(dim=0).values, expected)

    def test_best_first(self):
        assert ranking(Candidates(th.tensor([0.1, 3.0, -2.0]))).tolist() == [1, 0, 2]

    def test_equal_scores_go_to_the_nearer_to_the_box(self):
        scores = th.tensor([1.0, 1.0, 1.0, 1.0])
        outside = th.tensor([0.3, 0.0, 0.2, 0.1])
        assert ranking(Candidates(scores, outside=outside)).tolist() == [3, 0, 2, 1]

    def test_a_higher_score_wins_however_far_outside(self):
        scores = th.tensor([1.0, 1.0 + 1e-6])
        outside = th.tensor([0.0, 1e6])
        assert ranking(Candidates(scores, outside=outside)).tolist() == [1, 0]

    def test_states_are_ranked_apart(self):
        """The outside of one state decides nothing in another."""
        scores = th.tensor([[1.0, 1.0], [1.0, 1.0]])
        outside = th.tensor([[0.0, 5.0], [1.0, 4.0]])
        rank = ranking(Candidates(scores, outside=outside))
        assert rank.tolist() == [[0, 1], [1, 0]]

    @SETTINGS
    @given(n_samples=st.integers(1, 8), batch=BATCHES, dtype=DTYPES, seed=SEEDS)
    def test_is_equivariant_to_the_order_of_the_samples(self, n_samples, batch, dtype, seed):
        scores = distinct_scores(n_samples, batch, dtype, seed)
        order = th.randperm(n_samples, generator=seeded(seed + 1))
        assert th.equal(ranking(Candidates(scores[order])), ranking(Candidates(scores))[order])

    @SETTINGS
    @given(n_samples=st.integers(1, 8), batch=BATCHES, dtype=DTYPES, seed=SEEDS)
    def test_only_the_order_of_the_scores_counts(self, n_samples, batch, dtype, seed):
        """Any increasing transform of the scores leaves the ranks as they are."""
        scores = distinct_scores(n_samples, batch, dtype, seed)
        assert th.equal(ranking(Candidates(scores.exp() * 7 - 1)), ranking(Candidates(scores)))


class TestTopK:
    def test_the_papers_rule(self):
        """Sec. 5.2: of 4 samples the top 2 are accepted, the bottom 2 rejected, as means."""
        accept, reject = top_k(2)(Candidates(th.tensor([0.0, 3.0, 1.0, 2.0])))
        assert accept.tolist() == [0.0, 0.5, 0.0, 0.5]
        assert reject.tolist() == [0.5, 0.0, 0.5, 0.0]

    def test_best_against_worst(self):
        accept, reject = top_k(1)(Candidates(th.tensor([0.0, 3.0, 1.0, 2.0])))
        assert accept.tolist() == [0.0, 1.0, 0.0, 0.0]
        assert reject.tolist() == [1.0, 0.0, 0.0, 0.0]

    @SETTINGS
    @given(data=st.data(), n_samples=st.integers(2, 8), batch=BATCHES, dtype=DTYPES, seed=SEEDS)
    def test_weights(self, data, n_samples, batch, dtype, seed):
        """k members a side, weights 1/k, sum 1; the k best scores, the k worst, never both."""
        k = data.draw(st.integers(1, n_samples // 2))
        scores = th.randn(n_samples, *batch, generator=seeded(seed)).to(dtype)
        accept, reject = top_k(k)(Candidates(scores))
        for weights in (accept, reject):
            assert weights.shape == scores.shape
            assert weights.isfinite().all()
            assert ((weights > 0).sum(0) == k).all()
            th.testing.assert_close(weights.sum(0), th.ones(batch, dtype=dtype))
        assert not ((accept > 0) & (reject > 0)).any()
        best = scores.topk(k, dim=0).values.sort(dim=0).values
        worst = scores.topk(k, dim=0, largest=False).values.sort(dim=0).values
        inf = th.inf
        accepted = scores.masked_fill(accept == 0, inf).sort(dim=0).values[:k]
        rejected = scores.masked_fill(reject == 0, inf).sort(dim=0).values[:k]
        assert th.equal(accepted, best)
        assert th.equal(rejected, worst)

    @SETTINGS
    @given(data=st.data(), n_samples=st.integers(2, 8), batch=BATCHES, seed=SEEDS)
    def test_is_equivariant_to_the_order_of_the_samples(self, data, n_samples, batch, seed):
        k = data.draw(st.integers(1, n_samples // 2))
        scores = distinct_scores(n_samples, batch, th.float32, seed)
        order = th.randperm(n_samples, generator=seeded(seed + 1))
        before, after = top_k(k)(Candidates(scores)), top_k(k)(Candidates(scores[order]))
        assert th.equal(after.accept, before.accept[order])
        assert th.equal(after.reject, before.reject[order])

    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_an_even_split_averages_to_the_reference(self, k):
        """With k = S / 2 every sample is labelled: ``(E_acc + E_rej) / 2`` is the mean over S."""
        scores = th.randn(2 * k, 5, generator=seeded(0))
        accept, reject = top_k(k)(Candidates(scores))
        th.testing.assert_close((accept + reject) / 2, th.full_like(scores, 1 / (2 * k)))

    def test_ties_at_the_border_go_to_the_nearer_to_the_box(self):
        """Three actions clipped to one corner: the least far outside is accepted, not a random."""
        scores = th.tensor([5.0, 5.0, 5.0, 0.0])
        outside = th.tensor([0.9, 0.1, 0.5, 0.0])
        accept, reject = top_k(1)(Candidates(scores, outside=outside))
        assert accept.tolist() == [0.0, 1.0, 0.0, 0.0]
        assert reject.tolist() == [0.0, 0.0, 0.0, 1.0]

    def test_the_normalisation_is_the_callers_choice(self):
        scores = th.tensor([0.0, 3.0, 1.0, 2.0])
        accept, reject = top_k(1, normalise=mean_over_samples)(Candidates(scores))
        assert accept.tolist() == [0.0, 0.25, 0.0, 0.0]
        assert reject.tolist() == [0.25, 0.0, 0.0, 0.0]

    def test_no_gradient_reaches_the_scores(self):
        scores = th.randn(4, 3, generator=seeded(0), requires_grad=True)
        preference = top_k(2)(Candidates(scores))
        assert not preference.accept.requires_grad
        assert not preference.reject.requires_grad

    @pytest.mark.parametrize("k", [0, -1])
    def test_refuses_a_k_below_one(self, k):
        with pytest.raises(ValueError, match=re.escape(f"k must be a whole number >= 1, got {k}")):
            top_k(k)

    @pytest.mark.parametrize(("k", "n_samples"), [(1, 1), (2, 3), (3, 4)])
    def test_refuses_fewer_than_2k_samples(self, k, n_samples):
        """The message names k, the number of samples and the largest k that would do."""
        message = (
            f"at least 2 \\* k samples, got k={k} with {n_samples} sample.*k <= {n_samples // 2}"
        )
        with pytest.raises(ValueError, match=message):
            top_k(k)(Candidates(th.zeros(n_samples, 2)))

    def test_is_a_value(self):
        """Two labellers of one rule are equal, so that a saved and loaded one compares equal."""
        assert top_k(2) == top_k(2, normalise=mean_per_set)
        assert top_k(2) != top_k(1)


class TestMasks:
    @SETTINGS
    @given(n_samples=st.integers(1, 8), batch=BATCHES, seed=SEEDS)
    def test_normalisations(self, n_samples, batch, seed):
        """Per set: weights sum to 1, or to 0 for an empty set. Over samples: to ``|set| / S``."""
        labels = th.randint(-1, 2, (n_samples, *batch), generator=seeded(seed))
        for mask in (labels == 1, labels == -1):
            size, mass = mask.sum(0), mask / n_samples
            per_set, over_samples = (f(mass, n_samples) for f in (mean_per_set, mean_over_samples))
            assert per_set.shape == over_samples.shape == mask.shape
            assert ((per_set > 0) == mask).all()
            assert ((over_samples > 0) == mask).all()
            th.testing.assert_close(per_set.sum(0), (size > 0).float())
            th.testing.assert_close(over_samples.sum(0), size / n_samples)
            th.testing.assert_close(per_set * size / n_samples, over_samples)

    @pytest.mark.parametrize("normalise", [mean_per_set, mean_over_samples])
    def test_an_empty_set_weighs_exactly_nothing(self, normalise):
        assert normalise(th.zeros(4, 3), 4).tolist() == [[0.0] * 3] * 4

    @pytest.mark.parametrize("normalise", [mean_per_set, mean_over_samples])
    def test_from_masks_normalises_both_sets(self, normalise):
        accept = th.tensor([True, True, False, False])
        reject = th.tensor([False, False, False, True])
        preference = from_masks(accept, reject, normalise=normalise)
        assert th.equal(preference.accept, normalise(accept / 4, 4))
        assert th.equal(preference.reject, normalise(reject / 4, 4))

    def test_from_masks_takes_means_per_set_by_default(self):
        """Eq. 10 as written: three accepted against one rejected weigh 1/3 and 1."""
        accept = th.tensor([True, True, True, False])
        preference = from_masks(accept, ~accept)
        th.testing.assert_close(preference.accept, th.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]))
        th.testing.assert_close(preference.reject, th.tensor([0.0, 0.0, 0.0, 1.0]))

    def test_from_masks_agrees_with_top_k(self):
        scores = th.tensor([[0.0, 1.0], [3.0, 0.5], [1.0, 4.0], [2.0, -1.0]])
        rank = ranking(Candidates(scores))
        by_masks, by_k = from_masks(rank < 2, rank >= 2), top_k(2)(Candidates(scores))
        assert th.equal(by_masks.accept, by_k.accept)
        assert th.equal(by_masks.reject, by_k.reject)

    @pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 1)])
    def test_from_masks_refuses_two_shapes(self, shape):
        message = re.escape(f"one shape, got (4,) and {shape}")
        with pytest.raises(ValueError, match=message):
            from_masks(th.zeros(4, dtype=th.bool), th.zeros(shape, dtype=th.bool))

    def test_from_masks_refuses_a_sample_in_both_sets(self):
        mask = th.tensor([True, False, False])
        with pytest.raises(ValueError, match=r"both accepted and rejected.*disjoint"):
            from_masks(mask, mask)
