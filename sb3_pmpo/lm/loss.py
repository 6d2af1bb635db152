"""The PMPO loss of completions, from a causal model's logits.

Axes: N completions, P prompt tokens, C completion tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch as th

from sb3_pmpo.core.losses import PMPOLoss, pmpo_loss
from sb3_pmpo.core.samples import Preference
from sb3_pmpo.core.sequence import SequenceTerms, sequence_log_prob, sequence_terms
from sb3_pmpo.lm.labelling import CompletionWeights


class Sequences(NamedTuple):
    """Prompts and completions, padded: the prompts on the left, the completions on the right.

    :param prompt_ids: ``[N, P]`` tokens.
    :param prompt_mask: ``[N, P]`` 1 where a token is no padding.
    :param completion_ids: ``[N, C]`` tokens.
    :param completion_mask: ``[N, C]`` 1 where a token is no padding.
    :param counts: ``[N, C]`` boolean, the tokens that the policy chose itself.
    """

    prompt_ids: th.Tensor
    prompt_mask: th.Tensor
    completion_ids: th.Tensor
    completion_mask: th.Tensor
    counts: th.Tensor


def completion_logits(model: Any, architecture: Any, sequences: Sequences) -> th.Tensor:
    """Compute ``[N, C + 1, V]`` logits, where position t predicts token t; the last is unused.

    :param model: what is called; it may be wrapped.
    :param architecture: the causal model inside, whose ``forward`` says what it takes.
    :param sequences: the tokens.
    """
    attention = th.cat([sequences.prompt_mask, sequences.completion_mask], dim=1)
    keep = sequences.completion_ids.shape[1] + 1
    possible: dict[str, Any] = {
        "logits_to_keep": keep,  # of the others no logits are made
        # Models with absolute positions would count the padding.
        "position_ids": (attention.cumsum(1) - 1).clamp(min=0),
        "use_cache": False,
    }
    taken = inspect.signature(architecture.forward).parameters
    logits: th.Tensor = model(
        input_ids=th.cat([sequences.prompt_ids, sequences.completion_ids], dim=1),
        attention_mask=attention,
        **{name: value for name, value in possible.items() if name in taken},
    ).logits
    return logits[:, -keep:]


def completion_terms(
    logits: th.Tensor,
    reference_logits: th.Tensor | None,
    sequences: Sequences,
    *,
    temperature: float = 1.0,
    per_token: bool = False,
) -> SequenceTerms:
    """Compute log-probability and KL of each completion, ``[N]`` both.

    :param logits: ``[N, C + 1, V]`` of the policy, with gradient.
    :param reference_logits: the reference's; None for no KL.
    :param sequences: the tokens.
    :param temperature: > 0, at which the completions were drawn; policy and reference are those at
        this temperature.
    :param per_token: divide by the number of tokens.
    """
    # Tokens and mask get one position more: a slice of the logits would cost a second gradient.
    tokens = th.nn.functional.pad(sequences.completion_ids, (0, 1))
    counts = th.nn.functional.pad(sequences.counts, (0, 1))
    if temperature != 1.0:
        logits = logits / temperature
        reference_logits = None if reference_logits is None else reference_logits / temperature
    if reference_logits is None:
        log_prob = sequence_log_prob(logits, tokens, counts, per_token=per_token)
        return SequenceTerms(log_prob, th.zeros_like(log_prob))
    return sequence_terms(logits, reference_logits, tokens, counts, per_token=per_token)


def completion_loss(
    terms: SequenceTerms, weights: CompletionWeights, *, alpha: float, beta: float
) -> PMPOLoss:
    """Compute the PMPO loss of completions, a scalar: S is the minibatch and B is empty.

    A sum over completions does not care which of them belong together. So the completions of a
    prompt may lie in several minibatches and processes.

    :param terms: of each completion, ``[N]``.
    :param weights: of each completion, ``[N]``, scaled by whoever cut the minibatches.
    :param alpha: in [0, 1].
    :param beta: >= 0.
    """
    kl = (weights.kl * terms.kl).sum()
    preference = Preference(weights.accept, weights.reject)
    return pmpo_loss(terms.log_prob, preference, kl, alpha=alpha, beta=beta)
