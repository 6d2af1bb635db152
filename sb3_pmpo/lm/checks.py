"""Refuse settings of a trainer that cannot work, by name."""

from __future__ import annotations

import warnings
from typing import Any

from sb3_pmpo.core.checks import INFINITY, check_number
from sb3_pmpo.core.labels import Labeller, rejected_share
from sb3_pmpo.core.losses import check_alpha_beta, instability
from sb3_pmpo.lm.labelling import AGGREGATIONS, TRUNCATED

#: Options of GRPO that change the loss, and the value that leaves it alone.
WITHOUT_EFFECT = {
    "cast_lm_head_to_fp32": False,
    "entropy_coef": 0.0,
    "mask_truncated_completions": False,
    "off_policy_mask_threshold": None,
    "sync_ref_model": False,
    "top_entropy_quantile": 1.0,
    "use_adaptive_entropy": False,
}
INSTEAD = {
    "mask_truncated_completions": 'use truncated="mask"',
    "sync_ref_model": "use reference_steps",
}

#: Options that make the completions come from another distribution than the model's.
DISTORTING = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}


def check_common(args: Any, alpha: float, beta: float, rejected: float = 0.5) -> None:
    """Check what both trainers have.

    :param rejected: the share of the completions that is rejected, where the data or the labeller
        says it. Data of rejected completions alone does not, for nobody knows what was left out.
    :raises ValueError: for a number out of its range, and for learning from rejected completions
        only with a KL that does not hold the policy.
    :warns UserWarning: if the KL does not outweigh the push away from rejected completions.
    """
    check_alpha_beta(alpha, beta)
    hint = "optimizer steps from one refresh of the reference to the next, 0 for none"
    check_number("reference_steps", args.reference_steps, 0, INFINITY, int, hint)
    if args.truncated not in TRUNCATED:
        raise ValueError(f"truncated must be one of {TRUNCATED}, got {args.truncated!r}")
    if alpha == 0.0 and args.reference_steps == 1:
        raise ValueError(
            "reference_steps=1 with alpha=0: a reference that is refreshed at every update has a "
            "KL without a gradient, and nothing holds a policy that learns from rejected "
            "completions only; refresh it every 2 steps or more"
        )
    share = rejected if 0.0 < rejected < 1.0 else 0.5
    refused = instability(alpha, beta, rejected=max(share, 0.5))
    if refused is not None and alpha == 0.0:
        raise ValueError(f"Learning from rejected completions only: {refused}")
    if (reason := instability(alpha, beta, rejected=share)) is not None:
        few = "; or train for few epochs and watch kl/sequence" if share < 0.5 else ""
        warnings.warn(reason + few, stacklevel=4)
    if not args.disable_dropout:
        warnings.warn(
            "disable_dropout=False: the KL to an equal reference is then not 0, and the loss is "
            "noisy; set it to True",
            stacklevel=4,
        )


def steps_between_generations(args: Any) -> int:
    """Return after how many optimizer steps new completions are drawn.

    :raises ValueError: if that is no whole number.
    """
    micro_steps = args.steps_per_generation * args.num_iterations
    accumulation = args.gradient_accumulation_steps
    if micro_steps % accumulation and accumulation % micro_steps:
        raise ValueError(
            f"steps_per_generation * num_iterations = {micro_steps} and "
            f"gradient_accumulation_steps = {accumulation} must be multiples of one another: "
            "otherwise one optimizer step uses completions of two references"
        )
    return max(1, micro_steps // accumulation)


def check_online(args: Any, labeller: Labeller) -> None:
    """Check the settings of the online trainer.

    :raises ValueError: naming the settings that do not go together.
    :warns UserWarning: where completions will not be those of the reference.
    """
    rejected = rejected_share(labeller, args.num_generations)
    check_common(args, args.alpha, args.beta, rejected)
    period = steps_between_generations(args)
    if args.reference_steps % period:
        raise ValueError(
            f"reference_steps must be a multiple of the {period} optimizer steps between "
            f"generations (steps_per_generation={args.steps_per_generation}, "
            f"num_iterations={args.num_iterations}, gradient_accumulation_steps="
            f"{args.gradient_accumulation_steps}), got {args.reference_steps}: completions must "
            "come from the reference that the KL is measured to"
        )
    if args.use_vllm and args.reference_steps != period:
        raise ValueError(
            f"use_vllm=True needs reference_steps={period}, got {args.reference_steps}: vLLM draws "
            "from the policy, which is the reference only where it is refreshed at each generation"
        )
    for name, neutral in WITHOUT_EFFECT.items():
        if (given := getattr(args, name)) != neutral:
            remedy = INSTEAD.get(name, "it belongs to GRPO's loss")
            raise ValueError(f"{name}={given!r} is not supported by PMPO, leave it out: {remedy}")
    if args.multi_objective_aggregation not in AGGREGATIONS:
        raise ValueError(
            f"multi_objective_aggregation must be one of {AGGREGATIONS}, got "
            f"{args.multi_objective_aggregation!r}"
        )
    distorted = {k: getattr(args, k) for k, v in DISTORTING.items() if getattr(args, k) != v}
    if distorted:
        warnings.warn(
            f"{distorted}: completions are then not drawn from the reference itself, and the loss "
            "is biased; leave them at their defaults while training",
            stacklevel=3,
        )
