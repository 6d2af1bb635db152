"""PMPO offline: completions that somebody has labelled, in pairs, alone, or of one kind only.

Axes: N completions of a minibatch.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch as th
from transformers import AutoTokenizer, Trainer
from trl.trainer.utils import create_model_from_path, disable_dropout_in_model

from sb3_pmpo.lm.checks import check_common
from sb3_pmpo.lm.config import PMPOOfflineConfig
from sb3_pmpo.lm.data import Collator, Labelled, tokenize, unpair
from sb3_pmpo.lm.labelling import CompletionWeights
from sb3_pmpo.lm.loss import Sequences, completion_logits, completion_loss, completion_terms
from sb3_pmpo.lm.metrics import describe
from sb3_pmpo.lm.reference import AdapterReference, CopiedReference, architecture, is_adapted
from sb3_pmpo.lm.refresh import Refresh, load_reference, save_reference


def shares(rows: list[Labelled]) -> tuple[float, float]:
    """Return which shares of the completions are accepted and rejected.

    :raises ValueError: if there are no completions, or none with a label.
    """
    accepted, rejected = (sum(row.label == label for row in rows) for label in (1, -1))
    if not accepted + rejected:
        raise ValueError(
            f"none of the {len(rows)} completions has a label that counts: give some true or false"
        )
    return accepted / len(rows), rejected / len(rows)


def natural_alpha(accepted: float, rejected: float) -> float:
    """Return 0.5 if there are labels of both kinds, else 1 or 0, which the data determines."""
    return 0.5 if accepted and rejected else float(bool(accepted))


def _settle(settings: PMPOOfflineConfig, accepted: float, rejected: float) -> None:
    """Fill in what the labels determine, in settings that are nobody else's, and check it."""
    if settings.alpha is None:
        settings.alpha = natural_alpha(accepted, rejected)
    if settings.beta is None:
        settings.beta = 2.0 * (1.0 - settings.alpha)
    check_common(settings, settings.alpha, settings.beta, rejected)


def _tokenizer(given: Any, model: Any) -> Any:
    """Return a tokenizer that can pad: the one that is given, or the one beside the model."""
    path = model if isinstance(model, str) else model.config._name_or_path
    tokenizer = given or AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class PMPOOfflineTrainer(Trainer):
    """Train a language model on labelled completions (Eq. 10, with the KL of Eq. 17).

    The accepted are averaged over all the accepted of the data set, and the rejected likewise: a
    minibatch without either does not change what either weighs. The KL to the initial model is
    averaged over all the completions, labelled or not. It is the paper's where the completions
    came from that model. With rejected completions only, many of them a prompt, or new ones, keep
    the loss bounded: one that is seen again and again loses its probability without end.

    Here the Trainer moves the policy, see :class:`~sb3_pmpo.lm.PMPOTrainer`.

    :param model: a path, a causal model, or a PEFT model.
    :param args: :class:`~sb3_pmpo.lm.PMPOOfflineConfig`.
    :param train_dataset: rows ``{prompt, completion, label}``, a label being true, false, a number
        by its sign, or None; or pairs ``{prompt, chosen, rejected}``, which count as both.
    :param eval_dataset: the same, to be evaluated by the loss.
    :param processing_class: a tokenizer; None loads the one beside the model.
    :param peft_config: adapters to put on the model, whose base is then the reference.
    :param arguments: as of ``transformers.Trainer``.
    :raises ValueError: for data without labels, or settings that cannot work together.
    """

    def __init__(
        self,
        model: Any,
        args: PMPOOfflineConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        peft_config: Any = None,
        **arguments: Any,
    ) -> None:
        settings = copy.copy(PMPOOfflineConfig("pmpo") if args is None else args)
        tokenizer = _tokenizer(processing_class, model)

        def read(rows: Any) -> list[Labelled]:
            length, truncated = settings.max_length, settings.truncated
            return tokenize(unpair(rows), tokenizer, max_length=length, truncated=truncated)

        rows = read(train_dataset)
        held_out = None if eval_dataset is None else read(eval_dataset)
        self.shares = shares(rows)
        _settle(settings, *self.shares)
        if isinstance(model, str):
            model = create_model_from_path(model, **settings.init_kwargs())
        adapted = is_adapted(model) or peft_config is not None
        copied = None if adapted else CopiedReference(model)
        bare = peft_config is not None and settings.reference_steps == 0
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        if settings.disable_dropout:
            disable_dropout_in_model(model)
        super().__init__(
            model=model,
            args=settings,
            data_collator=Collator(tokenizer.pad_token_id),
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
            **arguments,
        )
        self.model_accepts_loss_kwargs = False  # the mean over accumulated minibatches is Trainer's
        if copied is not None:
            copied.prepare(self.accelerator)
        self.reference = copied or AdapterReference(self._policy, bare=bare)
        if settings.reference_steps:
            self.add_callback(Refresh(self.reference, lambda: self._policy))
        self._metrics: dict[str, dict[str, list[float]]] = {
            mode: defaultdict(list) for mode in ("train", "eval")
        }

    @property
    def _policy(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def compute_loss(
        self, model: Any, inputs: dict[str, th.Tensor], return_outputs: bool = False, **_: Any
    ) -> th.Tensor:
        """Compute the loss of a minibatch; over those of an optimizer step it is averaged."""
        if return_outputs:
            raise ValueError("PMPOOfflineTrainer returns no outputs: evaluate by the loss")
        counts = inputs["completion_mask"].bool()
        sequences = Sequences(
            inputs["prompt_ids"],
            inputs["prompt_mask"],
            inputs["completion_ids"],
            inputs["completion_mask"],
            counts,
        )
        policy, args = self._policy, self.args
        reference_logits = None
        if args.beta:
            with th.no_grad(), self.reference.model(policy) as reference:
                reference_logits = completion_logits(reference, architecture(policy), sequences)
        logits = completion_logits(model, architecture(policy), sequences)
        terms = completion_terms(logits, reference_logits, sequences, per_token=args.per_token)
        weights = self._weights(inputs["label"], terms.kl)
        loss = completion_loss(terms, weights, alpha=args.alpha, beta=args.beta)
        for name, value in describe(self.accelerator, loss, terms, counts, args).items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)
        return loss.loss

    def _weights(self, labels: th.Tensor, like: th.Tensor) -> CompletionWeights:
        """Weigh by the shares of the data set, so that minibatches average to its means."""
        accepted, rejected = (max(share, 1e-12) * len(labels) for share in self.shares)
        return CompletionWeights(
            (labels > 0).to(like.dtype) / accepted,
            (labels < 0).to(like.dtype) / rejected,
            th.full_like(like, 1.0 / len(labels)),
        )

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[th.Tensor, None, None]:
        """Evaluate the loss."""
        inputs = self._prepare_inputs(inputs)
        with th.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means since the last time, those of an evaluation under ``eval_``."""
        mode = "train" if self.model.training else "eval"
        prefix = "eval_" if mode == "eval" else ""
        # In place, as in TRL: `evaluate` returns the same dict.
        logs.update({f"{prefix}{k}": sum(v) / len(v) for k, v in self._metrics[mode].items()})
        self._metrics[mode].clear()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer writes its state last, so a checkpoint with that file is a whole one.
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        save_reference(self.reference, folder, self.accelerator)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_reference(self.reference, Path(checkpoint))
