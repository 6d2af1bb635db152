"""From tokens to log-probabilities and KLs of whole sequences, in little memory (App. B).

A logits tensor of a language model is the largest tensor of its update: 1024 tokens of a vocabulary
of 128k are 512 MiB in float32. So nothing here makes a second one of that size in the forward pass.
The backward pass makes one, the gradient, and both terms share it.

Axes: ``*B`` batch (completions, prompts), L positions, V vocabulary, N positions that count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch as th
from torch.autograd.function import once_differentiable

#: Numbers of a block, by device. On a CPU a few rows fit into a core's cache, and their memory
#: is used again; a GPU wants to be kept busy.
BLOCK = {"cpu": 2**18}
LARGE_BLOCK = 2**24

#: Positions that are computed together: an index of the axes ``*B, L``.
Positions = tuple[Any, ...]


class SequenceTerms(NamedTuple):
    """What the PMPO loss needs of each sequence, ``[*B]`` each, in nats.

    :param log_prob: of the tokens.
    :param kl: of the reference to the policy, in closed form at each position.
    """

    log_prob: th.Tensor
    kl: th.Tensor


def sequence_log_prob(
    logits: th.Tensor, tokens: th.Tensor, mask: th.Tensor, *, per_token: bool = False
) -> th.Tensor:
    """Compute the log-probability of sequences, ``sum_t log pi(y_t | x, y_<t)``.

    :param logits: ``[*B, L, V]``, where position t predicts token t; the gradient flows. Half
        precision is computed in float32. A slice such as ``logits[:, :-1]`` costs a second gradient
        of this size: pass the model's logits whole, and mask the last position.
    :param tokens: ``[*B, L]`` integers in [0, V); any integer where masked.
    :param mask: ``[*B, L]`` boolean, true where a token counts. What is masked has no influence and
        no gradient, whatever its logits are.
    :param per_token: divide by the number of tokens that count. The sum is the paper's (Eq. 17);
        with the mean a long sequence weighs as much as a short one.
    :return: ``[*B]`` in nats, in float32 or wider; 0 for a sequence without a token that counts.
    :raises ValueError: if the shapes do not fit, the mask is not boolean, or a token that counts is
        outside the vocabulary.
    """
    _check(logits, mask, tokens=tokens)
    log_prob, _ = _token_terms(logits, None, tokens, mask)
    return _over_tokens(log_prob, mask, per_token)


def sequence_kl(
    logits: th.Tensor, reference_logits: th.Tensor, mask: th.Tensor, *, per_token: bool = False
) -> th.Tensor:
    """Estimate ``KL(pi_ref || pi)`` of sequences that the reference drew (Eq. 16, 17).

    At each position the KL is the closed form over the vocabulary; the positions are summed. Its
    mean over completions of the reference is the KL of the sequences. Completions of anything else
    than the reference make another estimate, with another gradient.

    :param logits: ``[*B, L, V]`` of the policy, as of :func:`sequence_log_prob`; the gradient flows
        to them alone.
    :param reference_logits: ``[*B, L, V]`` of the reference, at the same positions; no gradient.
    :param mask: ``[*B, L]`` boolean, true where a token counts.
    :param per_token: divide by the number of tokens that count.
    :return: ``[*B]`` in nats, in float32 or wider; infinite only where the policy excludes (logit
        ``-inf``) what the reference does not.
    :raises ValueError: if the shapes do not fit or the mask is not boolean.
    """
    _check(logits, mask, reference_logits=reference_logits)
    _, kl = _token_terms(logits, reference_logits, None, mask)
    return _over_tokens(kl, mask, per_token)


def sequence_terms(
    logits: th.Tensor,
    reference_logits: th.Tensor,
    tokens: th.Tensor,
    mask: th.Tensor,
    *,
    per_token: bool = False,
) -> SequenceTerms:
    """Compute :func:`sequence_log_prob` and :func:`sequence_kl` at once.

    Both share one pass over the logits, and one gradient in the backward pass. Arguments and errors
    are theirs.
    """
    _check(logits, mask, tokens=tokens, reference_logits=reference_logits)
    log_prob, kl = _token_terms(logits, reference_logits, tokens, mask)
    return SequenceTerms(_over_tokens(log_prob, mask, per_token), _over_tokens(kl, mask, per_token))


def _over_tokens(values: th.Tensor, mask: th.Tensor, per_token: bool) -> th.Tensor:
    total = values.sum(-1)  # 0 where masked
    return total / mask.sum(-1).clamp(min=1) if per_token else total


class _TokenTerms(th.autograd.Function):
    """Log-probability and KL at each position, ``[*B, L]`` each, 0 where masked."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: th.Tensor,
        reference: th.Tensor | None,
        tokens: th.Tensor | None,
        mask: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        wide = th.promote_types(logits.dtype, th.float32)
        outputs = [logits.new_zeros(mask.shape, dtype=wide) for _ in range(4)]
        log_prob, kl, normaliser, reference_normaliser = outputs
        for at in _positions(mask, logits.shape[-1]):
            z = normaliser[at] = _logsumexp(logits, at)
            if tokens is not None:
                chosen = logits[at].gather(-1, tokens[at].unsqueeze(-1)).squeeze(-1)
                log_prob[at] = chosen.to(wide) - z
            if reference is not None:
                z_reference = reference_normaliser[at] = _logsumexp(reference, at)
                kl[at] = _kl(logits, reference, at, z, z_reference)
        ctx.save_for_backward(logits, reference, tokens, mask, normaliser, reference_normaliser)
        return log_prob, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_prob: th.Tensor, d_kl: th.Tensor) -> tuple[th.Tensor | None, ...]:
        """``dL/dlogits = d_log_prob * (onehot - pi) + d_kl * (pi - pi_ref)`` at each position."""
        logits, reference, tokens, mask, normaliser, reference_normaliser = ctx.saved_tensors
        gradient = th.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
        weight = d_kl - d_log_prob  # 0 from an output that nobody used
        for at in _positions(mask, logits.shape[-1]):
            for columns in _columns(logits):
                part = _probabilities(logits, at, columns, normaliser)
                part.mul_(weight[at].unsqueeze(-1))
                if reference is not None:
                    prior = _probabilities(reference, at, columns, reference_normaliser)
                    part.addcmul_(prior, d_kl[at].unsqueeze(-1), value=-1.0)
                if tokens is not None:
                    _add_at_tokens(part, tokens[at], d_log_prob[at], columns)
                gradient[(*at, columns)] = part.to(gradient.dtype)
        return gradient, None, None, None


def _token_terms(
    logits: th.Tensor,
    reference: th.Tensor | None,
    tokens: th.Tensor | None,
    mask: th.Tensor,
) -> SequenceTerms:
    applied: Any = _TokenTerms.apply
    return SequenceTerms(*applied(logits, reference, tokens, mask))


def _add_at_tokens(part: th.Tensor, tokens: th.Tensor, values: th.Tensor, columns: slice) -> None:
    """Add values ``[N]`` where the tokens ``[N]`` are in a block ``[N, columns]``."""
    inside = (tokens >= columns.start) & (tokens < columns.stop)
    index = (tokens - columns.start).clamp(0, columns.stop - columns.start - 1)
    part.scatter_add_(-1, index.unsqueeze(-1), (values * inside).unsqueeze(-1))


def _probabilities(
    logits: th.Tensor, at: Positions, columns: slice, normaliser: th.Tensor
) -> th.Tensor:
    part: th.Tensor = logits[(*at, columns)].to(normaliser.dtype) - normaliser[at].unsqueeze(-1)
    return part.exp_()


def _kl(
    logits: th.Tensor,
    reference: th.Tensor,
    at: Positions,
    z: th.Tensor,
    z_reference: th.Tensor,
) -> th.Tensor:
    """Compute the KL at positions, ``[N]``, from the normalisers ``[N]`` of both."""
    # What the reference excludes would contribute 0 * inf = NaN and shall contribute 0. A NaN among
    # the logits is in the normalisers too, and stays in the result.
    total = 0.0 * (z + z_reference)
    for columns in _columns(logits):
        log_prior = reference[(*at, columns)].to(z.dtype) - z_reference.unsqueeze(-1)
        log_ratio = log_prior - (logits[(*at, columns)].to(z.dtype) - z.unsqueeze(-1))
        terms = log_ratio.mul_(log_prior.exp_())
        total += terms.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf).sum(-1)
    return total


def _logsumexp(logits: th.Tensor, at: Positions) -> th.Tensor:
    """Normalise over the vocabulary at positions; ``[N]`` in float32 or wider."""
    wide = th.promote_types(logits.dtype, th.float32)
    if logits.shape[-1] <= BLOCK.get(logits.device.type, LARGE_BLOCK):
        rows = logits[at].to(wide)
        # torch's log_softmax is a third faster than its logsumexp.
        return rows.amax(-1) - rows.log_softmax(-1).amax(-1)
    parts = [logits[(*at, columns)].to(wide).logsumexp(-1) for columns in _columns(logits)]
    return th.stack(parts).logsumexp(0)


def _positions(mask: th.Tensor, vocabulary: int) -> Iterator[Positions]:
    """Go through the positions that count in blocks.

    Few of them are gathered at once. Many are visited by sequence in runs, which need no copy.
    """
    size = max(1, BLOCK.get(mask.device.type, LARGE_BLOCK) // vocabulary)
    index = mask.nonzero()
    if len(index) <= size:
        yield tuple(index.unbind(-1))
        return
    run: list[int] = []  # the first position of the run, its end appended
    for *sequence, position in index.tolist():
        if run and (run[:-2] != sequence or run[-1] != position or run[-1] - run[-2] == size):
            yield (*run[:-2], slice(*run[-2:]))
            run = []
        run = [*(run[:-1] or [*sequence, position]), position + 1]
    yield (*run[:-2], slice(*run[-2:]))


def _columns(logits: th.Tensor) -> Iterator[slice]:
    """Go through the vocabulary in blocks; only a huge one has several."""
    vocabulary = logits.shape[-1]
    size = BLOCK.get(logits.device.type, LARGE_BLOCK)
    for start in range(0, vocabulary, size):
        yield slice(start, min(start + size, vocabulary))


def _check(
    logits: th.Tensor,
    mask: th.Tensor,
    *,
    tokens: th.Tensor | None = None,
    reference_logits: th.Tensor | None = None,
) -> None:
    if mask.dtype != th.bool:
        raise ValueError(f"mask must be boolean, true where a token counts, got {mask.dtype}")
    for name, given in (("mask", mask), ("tokens", tokens)):
        if given is not None and given.shape != logits.shape[:-1]:
            raise ValueError(
                f"{name} must have the shape {tuple(logits.shape[:-1])} of logits [*B, L, V] "
                f"without V, got {tuple(given.shape)}"
            )
    if reference_logits is not None and reference_logits.shape != logits.shape:
        raise ValueError(
            f"reference_logits must have the shape {tuple(logits.shape)} of logits, got "
            f"{tuple(reference_logits.shape)}: both models need one vocabulary"
        )
    if tokens is not None:
        counted = tokens[mask]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < logits.shape[-1]:
            raise ValueError(
                f"tokens that count must be in [0, {logits.shape[-1]}), got {int(counted.min())} "
                f"to {int(counted.max())}: mask what is not a token, such as -100"
            )
