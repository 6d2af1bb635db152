"""What a minibatch's loss says of the policy, under the names that TRL's trainers use."""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_pmpo.core.losses import PMPOLoss
from sb3_pmpo.core.sequence import SequenceTerms


def describe(
    accelerator: Any, loss: PMPOLoss, terms: SequenceTerms, counts: th.Tensor, args: Any
) -> dict[str, float]:
    """Average over the processes.

    :param accelerator: of the trainer.
    :param loss: of the minibatch.
    :param terms: of its completions, ``[N]``.
    :param counts: ``[N, C]`` boolean, the tokens that count.
    :param args: of the trainer.
    :return: ``logps/chosen`` and ``logps/rejected``, the means over the accepted and the rejected;
        with a KL also ``kl``, by token as in GRPO, and ``kl/sequence``, which is in the loss.
    """
    lengths = counts.sum(1)
    kl = terms.kl.detach() * (lengths if args.per_token else 1)
    means = th.stack([loss.accept, loss.reject, loss.kl])
    sums = th.stack([kl.sum(), lengths.sum().to(kl.dtype)])
    chosen, rejected, sequence = accelerator.reduce(means, "mean").tolist()
    total, tokens = accelerator.reduce(sums, "sum").tolist()
    found = {"logps/chosen": chosen, "logps/rejected": rejected}
    return found | ({"kl": total / max(tokens, 1.0), "kl/sequence": sequence} if args.beta else {})
