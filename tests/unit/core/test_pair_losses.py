"""DPO and IPO on pairs: gradients by hand, and the link of IPO to PMPO (App. E).

Axes: S samples, B batch.
"""

from __future__ import annotations

import pytest
import torch as th

from sb3_pmpo.core.labels import best_worst
from sb3_pmpo.core.losses import dpo_loss, ipo_loss
from sb3_pmpo.core.samples import Candidates, from_labels

LOSSES = [dpo_loss, ipo_loss]


def problem(seed: int = 0) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Draw log-probs of policy and reference and scores, each ``[S = 4, B = 5]``."""
    draws = th.randn(3, 4, 5, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    return draws[0].requires_grad_(), draws[1].requires_grad_(), draws[2]


@pytest.mark.parametrize("loss_of", LOSSES)
def test_gradient_by_hand(loss_of) -> None:
    """Of DPO ``-beta * sigmoid(-beta * m)``, of IPO ``-1 + 2 * beta * m``, on the pair's margin."""
    beta = 0.7
    log_prob, reference, scores = problem()
    pairs = best_worst()(Candidates(scores))
    result = loss_of(log_prob, reference, pairs, beta=beta)
    (gradient,) = th.autograd.grad(result.loss.sum(), log_prob)
    ratio = (log_prob - reference).detach()
    best, worst = scores.argmax(0), scores.argmin(0)
    columns = th.arange(5)
    margin = ratio[best, columns] - ratio[worst, columns]
    slope = -beta * th.sigmoid(-beta * margin) if loss_of is dpo_loss else -1 + 2 * beta * margin
    expected = th.zeros_like(ratio)
    expected[best, columns] = slope
    expected[worst, columns] = -slope
    th.testing.assert_close(gradient, expected)
    th.testing.assert_close(result.margin, margin)
    log_sigmoid = -th.log1p(th.exp(-beta * margin))
    loss = -log_sigmoid if loss_of is dpo_loss else -margin + beta * margin.square()
    th.testing.assert_close(result.loss, loss)
    assert result.paired.all()


@pytest.mark.parametrize("loss_of", LOSSES)
def test_no_gradient_reaches_the_reference(loss_of) -> None:
    log_prob, reference, scores = problem()
    loss_of(log_prob, reference, best_worst()(Candidates(scores)), beta=1.0).loss.sum().backward()
    assert log_prob.grad is not None
    assert reference.grad is None


@pytest.mark.parametrize("loss_of", LOSSES)
@pytest.mark.parametrize("labels", [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 0]])
def test_half_a_pair_contributes_nothing(loss_of, labels: list[int]) -> None:
    log_prob, reference, _ = problem()
    pair = th.tensor([0, 1, 0, -1])
    pairs = from_labels(th.stack([th.tensor(labels), pair], dim=1))
    result = loss_of(log_prob[:, :2], reference[:, :2], pairs, beta=1.0)
    alone = loss_of(log_prob[:, 1], reference[:, 1], from_labels(pair), beta=1.0)
    assert result.paired.tolist() == [False, True]
    assert result.loss[0] == result.margin[0] == 0.0
    th.testing.assert_close(result.loss[1], alone.loss)
    th.testing.assert_close(result.margin[1], alone.margin)
    (gradient,) = th.autograd.grad(result.loss.sum(), log_prob)
    assert (gradient[:, 0] == 0).all()
    assert (gradient[[1, 3], 1] != 0).all()


def test_ipo_stops_at_its_margin_and_dpo_does_not() -> None:
    """On one pair IPO's optimum is a margin of ``1 / (2 beta)``; DPO's gradient never ends."""
    beta = 0.25
    pair = from_labels(th.tensor([1, -1]))
    for loss_of, final in ((ipo_loss, 2.0), (dpo_loss, 10.0)):
        log_prob = th.zeros(2, requires_grad=True)
        optimiser = th.optim.SGD([log_prob], lr=0.5)
        for _ in range(400):
            optimiser.zero_grad()
            result = loss_of(log_prob, th.zeros(2), pair, beta=beta)
            result.loss.backward()
            optimiser.step()
        if loss_of is ipo_loss:
            assert float(result.margin) == pytest.approx(final, rel=1e-4)
        else:
            assert float(result.margin) > final


def test_ipo_regularises_the_variance_where_pmpo_does_the_mean() -> None:
    """App. E: pairs of the reference make IPO's term ``2 Var[log ratio]``, on a finite set."""
    generator = th.Generator().manual_seed(1)
    log_ref, log_pi = th.log_softmax(th.randn(2, 6, generator=generator, dtype=th.float64), dim=-1)
    reference = log_ref.exp()
    ratio = log_ref - log_pi
    mean = (reference * ratio).sum()
    variance = (reference * (ratio - mean).square()).sum()
    kl = th.nn.functional.kl_div(log_pi, log_ref, log_target=True, reduction="sum")
    th.testing.assert_close(mean, kl)  # PMPO's regulariser is the mean

    # Every pair (a, r), weighted by its probability: exact, no sampling.
    expected = th.zeros((), dtype=th.float64)
    for a in range(6):
        for r in range(6):
            if a == r:
                continue  # a margin of 0
            labels = th.zeros(6)
            labels[a], labels[r] = 1.0, -1.0
            pair = from_labels(labels)
            both = ipo_loss(log_pi, log_ref, pair, beta=1.0)
            regulariser = both.loss + both.margin  # at beta 1: the loss is -margin + margin^2
            expected = expected + reference[a] * reference[r] * regulariser
    th.testing.assert_close(expected, 2 * variance)


@pytest.mark.parametrize("loss_of", LOSSES)
@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf"), float("nan")])
def test_beta_must_regularise(loss_of, beta: float) -> None:
    log_prob, reference, scores = problem()
    with pytest.raises(ValueError, match=r"beta must be (a number >= 0.0|> 0), got"):
        loss_of(log_prob, reference, best_worst()(Candidates(scores)), beta=beta)
