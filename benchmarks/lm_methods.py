"""What is compared on language models: losses of completions that one loop draws and judges.

Axes: S completions of a prompt, B prompts, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch as th

from sb3_pmpo.core.labels import Labeller, best_worst, threshold, top_k
from sb3_pmpo.core.losses import dpo_loss, pmpo_loss
from sb3_pmpo.core.samples import Candidates


class Drawn(NamedTuple):
    """Completions of a step.

    :param log_prob: ``[S, B]`` under the policy, with gradient.
    :param reference_log_prob: ``[S, B]``.
    :param kl: ``[S, B]`` of the reference to the policy, with gradient.
    :param lengths: ``[S, B]`` tokens.
    :param rewards: ``[S, B]``.
    """

    log_prob: th.Tensor
    reference_log_prob: th.Tensor
    kl: th.Tensor
    lengths: th.Tensor
    rewards: th.Tensor


Loss = Callable[[Drawn], th.Tensor]


class Method(NamedTuple):
    """A loss, and how the completions come to it.

    :param on_policy: draw from the policy at each step, not from the reference.
    :param pooled: draw the completions of a whole round at its start.
    :param fixed: the reference stays the base model, and is not refreshed.
    :param rate: Adam's learning rate.
    """

    loss: Loss
    on_policy: bool = False
    pooled: bool = False
    fixed: bool = False
    rate: float = 3e-4


def pmpo(alpha: float, beta: float, labeller: Labeller) -> Loss:
    """Make Eq. 10."""

    def loss(drawn: Drawn) -> th.Tensor:
        preference = labeller(Candidates(drawn.rewards))
        kl = drawn.kl.mean(0)
        return pmpo_loss(drawn.log_prob, preference, kl, alpha=alpha, beta=beta).loss.mean()

    return loss


def dpo(drawn: Drawn, beta: float = 0.1) -> th.Tensor:
    """Compute DPO's loss on the best and the worst; equal rewards are no pair."""
    pairs = best_worst()(Candidates(drawn.rewards))
    tied = drawn.rewards.amax(0) == drawn.rewards.amin(0)
    terms = dpo_loss(drawn.log_prob, drawn.reference_log_prob, pairs, beta=beta)
    return terms.loss.where(~tied, 0.0).mean()


def grpo(drawn: Drawn) -> th.Tensor:
    """Compute GRPO's loss: advantages over the group's spread, averaged over all the tokens."""
    centred = drawn.rewards - drawn.rewards.mean(0)
    advantage = centred / (drawn.rewards.std(0) + 1e-4)
    return -(advantage * drawn.log_prob).sum() / drawn.lengths.sum()


def kto(drawn: Drawn, beta: float = 0.1) -> th.Tensor:
    """Compute KTO's loss (Ethayarajh et al., 2024, Eq. 7), both kinds weighing the same.

    Its reference point is the KL of policy and reference. The mean log-ratio estimates it where
    the policy drew the completions. TRL's trainer has completions of others, and pairs each with
    another prompt.
    """
    log_ratio = drawn.log_prob - drawn.reference_log_prob
    point = log_ratio.detach().mean().clamp(min=0.0)
    yes = drawn.rewards >= (0.5 if _is_binary(drawn.rewards) else drawn.rewards.median())
    above, below = th.sigmoid(beta * (log_ratio - point)), th.sigmoid(beta * (point - log_ratio))
    accepted = (1 - above).where(yes, 0.0).sum() / yes.sum().clamp(1)
    return accepted + (1 - below).where(~yes, 0.0).sum() / (~yes).sum().clamp(1)


def filtered(drawn: Drawn) -> th.Tensor:
    """Compute the likelihood of what was accepted, each completion weighing the same (ReST)."""
    yes = drawn.rewards >= (0.5 if _is_binary(drawn.rewards) else drawn.rewards.median())
    return -drawn.log_prob.where(yes, 0.0).sum() / yes.sum().clamp(1)


def _is_binary(rewards: th.Tensor) -> bool:
    return bool(((rewards == 0) | (rewards == 1)).all())


#: What was tried on seed 100 (suite "tuning"), which no other suite has.
RATES = (1e-4, 3e-4, 1e-3)


def methods(binary: bool, n_samples: int) -> dict[str, Method]:
    """List what is compared; the judge's kind decides about the labels.

    Rates, and beta of DPO and KTO, are the best of the suite "tuning".
    """
    labeller: Labeller = threshold(0.5) if binary else top_k(n_samples // 2)
    found = {
        "AR": Method(pmpo(0.5, 1.0, labeller)),
        "A": Method(pmpo(1.0, 0.0, labeller), rate=1e-3),
        "R": Method(pmpo(0.0, 2.0, labeller)),
        "best/worst": Method(pmpo(0.5, 1.0, best_worst())),
        "GRPO": Method(grpo, on_policy=True),
        "DPO": Method(dpo, on_policy=True, fixed=True),
        "KTO": Method(kto, on_policy=True, fixed=True),
        "filtered": Method(filtered, pooled=True, rate=1e-3),
    }
    for name, alpha in (("AR", 0.5), ("A", 1.0), ("R", 0.0)):
        for beta in (0.0, 0.5, 1.0, 1.5, 2.0):
            found[f"{name} beta={beta}"] = Method(pmpo(alpha, beta, labeller))
    tried = {name: found[name] for name in ("AR", "A", "R", "GRPO", "filtered")}
    for name, loss in (("DPO", dpo), ("KTO", kto)):
        tried[f"{name}, refreshed"] = Method(loss)
        for beta in (0.1, 1.0):
            tried[f"{name} beta={beta}"] = found[name]._replace(loss=partial(loss, beta=beta))
    return found | {f"{n} rate={r:g}": m._replace(rate=r) for n, m in tried.items() for r in RATES}
