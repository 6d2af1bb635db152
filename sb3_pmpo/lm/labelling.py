"""From rewards of completions to the weights that the loss needs. Torch only.

Axes: S completions of a prompt, B prompts, N = S * B completions, those of a prompt in a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as th

from sb3_pmpo.core.labels import Labeller
from sb3_pmpo.core.samples import Candidates, check_preference, uniform_weights

#: What may become of a completion that the length limit has cut off.
TRUNCATED = ("keep", "reject", "mask")
#: How several rewards become one; the names are TRL's.
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


class CompletionWeights(NamedTuple):
    """Weights of completions in the terms of Eq. 10, ``[N]`` each, no gradient.

    Over the completions of a prompt they sum to 1, or to 0 where a set is empty.

    :param accept: in the mean over the accepted.
    :param reject: in the mean over the rejected.
    :param kl: in the mean of the KL over the reference's completions.
    """

    accept: th.Tensor
    reject: th.Tensor
    kl: th.Tensor


def combine_rewards(
    rewards: th.Tensor, weights: th.Tensor, n_generations: int, aggregation: str
) -> th.Tensor:
    """Make one score of a completion's rewards.

    :param rewards: ``[N, K]`` of K judges; NaN where one could not judge.
    :param weights: ``[K]``.
    :param n_generations: S.
    :param aggregation: ``"sum_then_normalize"`` sums the rewards, each times its weight. Labels
        need no normalisation after that, so the scores keep the judges' level.
        ``"normalize_then_sum"`` first measures each reward from its mean over the prompt's
        completions, in units of its spread there, as in GDPO: judges of different scales then count
        by their weights alone. A threshold of 0 is the average completion.
    :return: ``[N]``; NaN where nobody could judge.
    """
    if aggregation == "normalize_then_sum":
        groups = rewards.view(-1, n_generations, rewards.shape[-1])
        centred = groups - groups.nanmean(1, keepdim=True)
        others = ((~groups.isnan()).sum(1, keepdim=True) - 1).clamp(min=1)
        spread = (centred.square().nansum(1, keepdim=True) / others).sqrt()
        rewards_used = (centred / (spread + 1e-4)).view_as(rewards)
    else:
        rewards_used = rewards
    total = (rewards_used * weights).nansum(1)
    return total.where(~rewards.isnan().all(1), float("nan"))


def weigh_completions(
    rewards: th.Tensor,
    unfinished: th.Tensor,
    n_generations: int,
    labeller: Labeller,
    truncated: str = "keep",
) -> CompletionWeights:
    """Label the completions of each prompt by their rewards.

    :param rewards: ``[N]``; NaN where nobody could judge, which leaves a completion out.
    :param unfinished: ``[N]`` boolean, what the length limit has cut off.
    :param n_generations: S.
    :param labeller: sees ``Candidates`` with scores ``[S, B]``, and weights of 0 for what is left
        out.
    :param truncated: ``"keep"`` labels the unfinished like any other, ``"reject"`` rejects them
        whatever their reward, ``"mask"`` leaves them out.
    :return: the weights, ``[N]`` each.
    :raises ValueError: if the labeller returns no valid preference.
    """

    def by_prompt(values: th.Tensor) -> th.Tensor:
        return values.view(-1, n_generations).T  # [S, B]

    counted = ~rewards.isnan()
    if truncated == "mask":
        counted = counted & ~unfinished
    scores, counts = by_prompt(rewards.nan_to_num(0.0)), by_prompt(counted)
    cut = by_prompt(unfinished) & (truncated == "reject")
    if bool(cut.any()):
        scores = scores.where(~cut, scores.amin(0) - 1.0)  # they rank last
    total = counts.sum(0)
    weights = th.where(total > 0, counts / total.clamp(min=1), uniform_weights(scores))
    candidates = Candidates(scores, weights=weights)
    preference = labeller(candidates)
    check_preference(preference, scores)
    moved = preference.accept.where(cut, 0.0)  # where even the last of a prompt is accepted
    return CompletionWeights(
        *(
            (part * counts).T.reshape(-1)
            for part in (preference.accept - moved, preference.reject + moved, weights)
        )
    )
