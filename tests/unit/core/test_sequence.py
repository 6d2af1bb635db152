"""Log-probabilities and KLs of sequences: Eq. 16 and 17, masks, precision, memory.

Axes: *B batch, L positions, V vocabulary.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch as th

from sb3_pmpo.core import sequence
from sb3_pmpo.core.sequence import sequence_kl, sequence_log_prob, sequence_terms


@pytest.fixture(params=[2**18, 15, 3], ids=["one block", "runs", "blocks of the vocabulary"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(sequence.BLOCK, "cpu", request.param)
    return request.param


def problem(*batch: int, length: int = 5, vocabulary: int = 7, dtype: th.dtype = th.float64):
    generator = th.Generator().manual_seed(0)
    shape = (*batch, length)
    logits = 2 * th.randn(*shape, vocabulary, generator=generator, dtype=th.float64)
    reference = 2 * th.randn(*shape, vocabulary, generator=generator, dtype=th.float64)
    tokens = th.randint(vocabulary, shape, generator=generator)
    mask = th.rand(shape, generator=generator) < 0.6
    return logits.to(dtype).requires_grad_(), reference.to(dtype), tokens, mask


def plain(logits, reference, tokens, mask):
    """The obvious way, in several tensors of the logits' size."""
    log_pi, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    log_prob = log_pi.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    kl = (log_ref.exp() * (log_ref - log_pi)).sum(-1)
    return (log_prob * mask).sum(-1), (kl * mask).sum(-1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_values_and_gradients_are_those_of_the_plain_way(block, batch):
    logits, reference, tokens, mask = problem(*batch)
    expected = plain(logits, reference, tokens, mask)
    got = sequence_terms(logits, reference, tokens, mask)
    th.testing.assert_close(tuple(got), expected)
    th.testing.assert_close(sequence_log_prob(logits, tokens, mask), expected[0])
    th.testing.assert_close(sequence_kl(logits, reference, mask), expected[1])
    weights = th.randn(2, *batch, dtype=th.float64)
    of = [(weights[0] * log_prob + weights[1] * kl).sum() for log_prob, kl in (got, expected)]
    th.testing.assert_close(*(th.autograd.grad(total, logits)[0] for total in of))


def test_gradients_in_closed_form():
    """``d log pi(y) / dz = onehot - pi``, ``d KL(ref || pi) / dz = pi - ref``; 0 where masked."""
    logits, reference, tokens, mask = problem(3)
    pi, prior = logits.softmax(-1).detach(), reference.softmax(-1)
    onehot = th.nn.functional.one_hot(tokens, logits.shape[-1])
    (grad,) = th.autograd.grad(sequence_log_prob(logits, tokens, mask).sum(), logits)
    th.testing.assert_close(grad, (onehot - pi) * mask.unsqueeze(-1))
    (grad,) = th.autograd.grad(sequence_kl(logits, reference, mask).sum(), logits)
    th.testing.assert_close(grad, (pi - prior) * mask.unsqueeze(-1))


def test_gradcheck(block):
    logits, reference, tokens, mask = problem(2, length=3, vocabulary=4)
    assert th.autograd.gradcheck(
        lambda z: tuple(sequence_terms(z, reference, tokens, mask)), logits
    )


def test_no_gradient_to_the_reference():
    logits, reference, _, mask = problem(3)
    reference.requires_grad_()
    sequence_kl(logits, reference, mask).sum().backward()
    assert reference.grad is None


class TableModel:
    """An autoregressive policy over a tiny vocabulary: logits by the whole prefix."""

    END = 0

    def __init__(self, vocabulary: int, length: int, seed: int) -> None:
        generator = th.Generator().manual_seed(seed)
        self.vocabulary, self.length = vocabulary, length
        prefixes = [
            p for n in range(length) for p in itertools.product(range(vocabulary), repeat=n)
        ]
        self.logits = {
            p: th.randn(vocabulary, generator=generator, dtype=th.float64) for p in prefixes
        }

    def sequences(self):
        """Every sequence, ended by END or by the length."""
        for tokens in itertools.product(range(self.vocabulary), repeat=self.length):
            end = tokens.index(self.END) + 1 if self.END in tokens else self.length
            if all(token == self.END for token in tokens[end:]):  # each one once
                yield tokens, end

    def tensors(self):
        rows, mask, logits = [], [], []
        for tokens, end in self.sequences():
            rows.append(tokens)
            mask.append([t < end for t in range(self.length)])
            logits.append(th.stack([self.logits[tokens[:t]] for t in range(self.length)]))
        return th.tensor(rows), th.tensor(mask), th.stack(logits)


class TestEverySequence:
    """All sequences of three tokens, up to a length of four, enumerated."""

    def setup_method(self):
        self.tokens, self.mask, self.reference = TableModel(3, 4, seed=1).tensors()
        _, _, self.policy = TableModel(3, 4, seed=2).tensors()
        self.p_ref = sequence_log_prob(self.reference, self.tokens, self.mask).exp()
        self.p = sequence_log_prob(self.policy, self.tokens, self.mask).exp()
        self.kl = (self.p_ref * (self.p_ref / self.p).log()).sum()

    def test_the_probabilities_sum_to_one(self):
        th.testing.assert_close(self.p_ref.sum(), self.p_ref.new_ones(()))
        th.testing.assert_close(self.p.sum(), self.p.new_ones(()))

    def test_the_kl_is_unbiased_under_the_reference(self):
        """Eq. 17: ``E_ref[sum_t KL_t] = KL(pi_ref || pi)`` of the whole sequences."""
        estimates = sequence_kl(self.policy, self.reference, self.mask)
        th.testing.assert_close((self.p_ref * estimates).sum(), self.kl)

    def test_averaged_over_drawn_samples_it_is_the_kl(self):
        drawn = th.multinomial(self.p_ref, 20_000, True, generator=th.Generator().manual_seed(0))
        estimates = sequence_kl(self.policy, self.reference, self.mask)[drawn]
        error = float(estimates.std()) / math.sqrt(len(drawn))
        assert abs(float(estimates.mean() - self.kl)) < 4 * error
        # It varies less than the log-ratio of the samples does.
        assert estimates.std() < (self.p_ref / self.p).log()[drawn].std()

    def test_with_samples_of_the_policy_it_is_something_else(self):
        estimates = sequence_kl(self.policy, self.reference, self.mask)
        assert abs(float((self.p * estimates).sum() - self.kl)) > 0.04


@pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan])
def test_what_is_masked_has_no_influence_and_no_gradient(block, garbage):
    logits, reference, tokens, mask = problem(3)
    expected = sequence_terms(logits, reference, tokens, mask)
    (clean,) = th.autograd.grad(sum(x.sum() for x in expected), logits)
    with th.no_grad():
        logits[~mask] = garbage
        reference[~mask] = garbage
        tokens[~mask] = -100
    got = sequence_terms(logits, reference, tokens, mask)
    th.testing.assert_close(got, expected)
    (grad,) = th.autograd.grad(sum(x.sum() for x in got), logits)
    th.testing.assert_close(grad, clean)
    assert (grad[~mask] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_prompts(block, side):
    """A completion of three tokens after a prompt of two, padded, is what it is alone."""
    logits, reference, tokens, _ = problem(1, length=8)
    # Padding, prompt, completion; or prompt, completion, padding.
    start = 5 if side == "left" else 2
    mask = th.zeros(1, 8, dtype=th.bool)
    mask[:, start : start + 3] = True
    alone = slice(start, start + 3)
    expected = sequence_terms(
        logits[:, alone], reference[:, alone], tokens[:, alone], th.ones(1, 3, dtype=th.bool)
    )
    th.testing.assert_close(sequence_terms(logits, reference, tokens, mask), expected)


def test_nothing_counts(block):
    """An empty completion: 0, with a gradient of 0, by sum and by mean."""
    logits, reference, tokens, mask = problem(2)
    for per_token in (False, True):
        terms = sequence_terms(logits, reference, tokens, mask & False, per_token=per_token)
        assert [x.tolist() for x in terms] == [[0.0, 0.0]] * 2
        (grad,) = th.autograd.grad(terms.kl.sum() + terms.log_prob.sum(), logits)
        assert (grad == 0).all()


def test_length_normalisation_is_a_choice():
    logits, reference, tokens, mask = problem(3)
    for call in (
        lambda **k: sequence_log_prob(logits, tokens, mask, **k),
        lambda **k: sequence_kl(logits, reference, mask, **k),
    ):
        th.testing.assert_close(call(per_token=True) * mask.sum(-1), call())


def test_bfloat16_is_summed_in_float32(block):
    """The result is that of the rounded logits in full precision; the gradient is rounded once."""
    logits, reference, tokens, mask = problem(2, length=40, vocabulary=50, dtype=th.bfloat16)
    wide = logits.detach().float().requires_grad_()
    got = sequence_terms(logits, reference, tokens, mask)
    expected = plain(wide, reference.float(), tokens, mask)
    assert got.log_prob.dtype == got.kl.dtype == th.float32
    th.testing.assert_close(tuple(got), expected)
    (grad,) = th.autograd.grad(got.kl.sum() - got.log_prob.sum(), logits)
    (exact,) = th.autograd.grad(expected[1].sum() - expected[0].sum(), wide)
    assert grad.dtype == th.bfloat16
    th.testing.assert_close(grad, exact.bfloat16())


class TestUnderflow:
    ONE = th.ones(1, 1, dtype=th.bool)

    def test_a_probability_of_zero_in_float32_gives_a_finite_kl(self, block):
        logits = th.tensor([[[0.0, -500.0, -1e4, 3.0]]], requires_grad=True)
        reference = th.tensor([[[-1e4, 0.0, -500.0, -200.0]]])
        kl = sequence_kl(logits, reference, self.ONE)
        assert kl.item() == pytest.approx(503.05, abs=0.01)
        kl.sum().backward()
        assert logits.grad.isfinite().all()

    def test_what_both_exclude_contributes_nothing(self, block):
        logits = th.tensor([[[0.0, -math.inf, 1.0, 2.0]]], requires_grad=True)
        reference = th.tensor([[[0.0, -math.inf, 2.0, 1.0]]])
        kl = sequence_kl(logits, reference, self.ONE)
        keep = [0, 2, 3]
        th.testing.assert_close(kl, sequence_kl(logits[..., keep], reference[..., keep], self.ONE))
        kl.sum().backward()
        assert logits.grad.isfinite().all()
        assert logits.grad[0, 0, 1] == 0

    def test_what_the_policy_alone_excludes_is_infinite(self, block):
        logits = th.tensor([[[0.0, -math.inf, 1.0, 2.0]]])
        assert sequence_kl(logits, th.zeros(1, 1, 4), self.ONE).item() == math.inf

    def test_nan_is_not_hidden(self, block):
        logits = th.tensor([[[0.0, math.nan, 1.0, 2.0]]])
        assert sequence_kl(logits, th.zeros(1, 1, 4), self.ONE).isnan().all()
        assert sequence_log_prob(logits, th.zeros(1, 1, dtype=th.long), self.ONE).isnan().all()


def test_equal_policies_have_a_kl_of_exactly_zero(block):
    logits, _, _, mask = problem(3, dtype=th.float32)
    assert (sequence_kl(logits, logits.detach().clone(), mask) == 0).all()


def test_no_block_is_larger_than_asked_for(monkeypatch):
    monkeypatch.setitem(sequence.BLOCK, "cpu", 21)
    mask = th.rand(4, 9, generator=th.Generator().manual_seed(3)) < 0.7
    seen = th.zeros(4, 9)
    for at in sequence._positions(mask, 7):
        assert seen[at].numel() <= 3
        seen[at] += 1
    assert (seen == mask).all()


def test_a_slice_of_the_logits_needs_no_copy():
    """``logits[:, :-1]`` is not contiguous, which must change nothing."""
    logits, reference, tokens, mask = problem(3)
    sliced = sequence_terms(logits[:, :-1], reference[:, :-1], tokens[:, 1:], mask[:, 1:])
    shifted = th.zeros_like(mask)
    shifted[:, :-1] = mask[:, 1:]
    whole = sequence_terms(logits, reference, tokens.roll(-1, 1), shifted)
    th.testing.assert_close(sliced, whole)


class TestErrors:
    def test_mask_of_numbers(self):
        logits, reference, _, mask = problem(2)
        with pytest.raises(ValueError, match="mask must be boolean"):
            sequence_kl(logits, reference, mask.long())

    def test_shapes(self):
        logits, reference, tokens, mask = problem(2)
        with pytest.raises(ValueError, match=r"tokens must have the shape \(2, 5\)"):
            sequence_log_prob(logits, tokens[:, 1:], mask)
        with pytest.raises(ValueError, match="mask must have the shape"):
            sequence_log_prob(logits, tokens, mask[:, 1:])
        with pytest.raises(ValueError, match="one vocabulary"):
            sequence_kl(logits, reference[..., 1:], mask)

    def test_a_token_outside_the_vocabulary(self):
        logits, _, tokens, mask = problem(2)
        with pytest.raises(ValueError, match=r"in \[0, 7\), got -100"):
            sequence_log_prob(logits, tokens * 0 - 100, mask | True)
