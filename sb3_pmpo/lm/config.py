"""The trainers' settings, in TRL's form: dataclasses that a command line can fill."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from trl import GRPOConfig

_HELP_ALPHA = "Weight of the accepted completions in [0, 1]; the rejected weigh 1 - alpha."
_HELP_BETA = "Weight of KL(reference || policy), >= 0. Safe from 2 * (1 - alpha) on."
_HELP_TOKEN = "Divide log-probabilities and KLs by the number of tokens. The paper sums (Eq. 17)."
_HELP_CUT = (
    "What becomes of a completion that was cut off by the length limit: 'keep' labels it like any "
    "other, 'reject' rejects it whatever its score, 'mask' leaves it out."
)


@dataclass
class PMPOConfig(GRPOConfig):
    """Settings of :class:`~sb3_pmpo.lm.PMPOTrainer`: those of TRL's ``GRPOConfig``, and these.

    What belongs to GRPO's own loss (clipping, importance sampling, scaling of rewards) has no
    effect. ``beta`` is PMPO's.
    """

    alpha: float = field(default=0.5, metadata={"help": _HELP_ALPHA})
    beta: float = field(default=1.0, metadata={"help": _HELP_BETA})
    reference_steps: int = field(
        default=16,
        metadata={
            "help": "Optimizer steps from one refresh of the reference, which draws the "
            "completions, to the next. 0 keeps the initial model."
        },
    )
    per_token: bool = field(default=False, metadata={"help": _HELP_TOKEN})
    truncated: str = field(default="keep", metadata={"help": _HELP_CUT})
    stop_strings: list[str] | None = field(
        default=None,
        metadata={"help": "Texts that end a completion, which then counts as complete."},
    )
    num_generations: int = field(
        default=4, metadata={"help": "Completions of a prompt, which are labelled together."}
    )
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "With dropout the KL to an equal reference would not be 0."},
    )


@dataclass
class PMPOOfflineConfig(TrainingArguments):
    """Settings of :class:`~sb3_pmpo.lm.PMPOOfflineTrainer`: those of every Trainer, and these."""

    alpha: float | None = field(
        default=None,
        metadata={"help": _HELP_ALPHA + " None: 0.5, or 1 or 0 if the data has one kind only."},
    )
    beta: float | None = field(
        default=None, metadata={"help": _HELP_BETA + " None: 2 * (1 - alpha)."}
    )
    reference_steps: int = field(
        default=0,
        metadata={
            "help": "Optimizer steps between refreshes of the reference. 0: the initial one."
        },
    )
    per_token: bool = field(default=False, metadata={"help": _HELP_TOKEN})
    truncated: str = field(default="keep", metadata={"help": _HELP_CUT})
    max_length: int | None = field(
        default=1024, metadata={"help": "Tokens of prompt and completion; None for no limit."}
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "For from_pretrained, where the model is given as a path."}
    )
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "With dropout the KL to an equal reference would not be 0."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "The collator needs the trainer's own columns."}
    )

    def init_kwargs(self) -> dict[str, Any]:
        """Return ``model_init_kwargs``; a command line gives it as JSON."""
        given = self.model_init_kwargs or {}
        return json.loads(given) if isinstance(given, str) else dict(given)
