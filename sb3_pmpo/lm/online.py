"""PMPO online: prompts, reward functions, and completions that the reference draws.

Axes: S completions of a prompt, B prompts, N completions of a minibatch, of any prompts.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import create_model_from_path

from sb3_pmpo.core.labels import Labeller, top_k, try_labeller
from sb3_pmpo.lm.checks import check_online
from sb3_pmpo.lm.config import PMPOConfig
from sb3_pmpo.lm.labelling import CompletionWeights, combine_rewards, weigh_completions
from sb3_pmpo.lm.loss import Sequences, completion_logits, completion_loss, completion_terms
from sb3_pmpo.lm.metrics import describe
from sb3_pmpo.lm.reference import AdapterReference, CopiedReference, architecture, is_adapted
from sb3_pmpo.lm.refresh import Refresh, load_reference, save_reference

Rewards = str | Callable[..., Any] | th.nn.Module


class PMPOTrainer(GRPOTrainer):
    """Train a language model on completions that are accepted or rejected by their rewards.

    It is TRL's ``GRPOTrainer`` with another loss (Eq. 10, with the closed-form KL of Eq. 17): the
    arguments, the data sets, the reward functions, the logging and the checkpoints are those of
    TRL. Three things differ. Labels are given by the labellers of :mod:`sb3_pmpo.core.labels`, on
    scores ``[S, B]``. Completions are drawn from the reference, which becomes the policy every
    ``reference_steps`` optimizer steps. And a checkpoint holds the reference, so that a resumed run
    goes on as if it had never stopped.

    Everywhere else in the package :func:`~sb3_pmpo.learner.policy_step` alone moves a policy. Here
    the Trainer does: gradient accumulation, scaling and several processes are its business.

    :param model: a path, a causal model, or a PEFT model.
    :param reward_funcs: one or several, as in TRL: Python functions, reward models, or paths.
    :param args: :class:`~sb3_pmpo.lm.PMPOConfig`.
    :param labeller: who is accepted; None for ``top_k(num_generations // 2)``, the paper's rule.
        With a judge that says yes or no use ``threshold(0.5)``, for ranks would break ties.
    :param arguments: as of ``GRPOTrainer``. With ``peft_config`` and ``reference_steps=0`` the base
        model is the reference, with PEFT otherwise a frozen copy of the adapter.
    :raises ValueError: for settings that cannot work together.
    """

    _tag_names = ("trl", "pmpo")
    _name = "PMPO"

    def __init__(
        self,
        model: Any,
        reward_funcs: Rewards | list[Rewards] | None = None,
        args: PMPOConfig | None = None,
        *,
        labeller: Labeller | None = None,
        **arguments: Any,
    ) -> None:
        settings = PMPOConfig("pmpo") if args is None else args
        self.labeller = top_k(settings.num_generations // 2) if labeller is None else labeller
        check_online(settings, self.labeller)
        try_labeller(self.labeller, settings.num_generations, 1)
        if isinstance(model, str):
            model = create_model_from_path(model, **dict(settings.model_init_kwargs or {}))
        adapted = is_adapted(model) or arguments.get("peft_config") is not None
        copied = None if adapted else CopiedReference(model)
        bare = adapted and not is_adapted(model) and settings.reference_steps == 0
        # With beta=0 TRL neither loads a reference of its own nor computes log-probs under it.
        plain = copy.copy(settings)
        plain.beta = 0.0
        super().__init__(model, reward_funcs, plain, **arguments)
        self.args.beta = settings.beta
        if copied is not None:
            copied.prepare(self.accelerator)
        policy = self._policy
        self.reference = copied or AdapterReference(policy, bare=bare)
        self.add_callback(_RestoreSteps(self))
        if settings.reference_steps:
            self.add_callback(Refresh(self.reference, lambda: self._policy))

    @property
    def _policy(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    # ------------------------------------------------------------------ completions

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Draw completions from the reference, or, for an evaluation, from the policy."""
        if self.use_vllm or not self.model.training:
            ids, log_probs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        else:
            trainer: Any = self
            wrapped = trainer.model_wrapped
            with self.reference.model(self._policy) as drawing:
                trainer.model_wrapped = wrapped if drawing is self._policy else drawing
                try:
                    ids, log_probs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
                finally:
                    trainer.model_wrapped = wrapped
        lengths = [self._stop(tokens) or len(tokens) for tokens in ids]
        ids = [tokens[:n] for tokens, n in zip(ids, lengths, strict=True)]
        if log_probs is not None:
            log_probs = [values[:n] for values, n in zip(log_probs, lengths, strict=True)]
        return ids, log_probs

    def _stop(self, tokens: list[int]) -> int | None:
        """Return after how many tokens a completion contains a stop string; None if it never does.

        TRL hands no tokenizer to ``generate``, which therefore cannot stop by itself.
        """
        stops = self.args.stop_strings or ()

        def contains(n: int) -> bool:
            text = self._tokenizer.decode(tokens[:n])
            return any(stop in text for stop in stops)

        if not stops or not contains(len(tokens)):
            return None
        return 1 + bisect_left(range(1, len(tokens)), True, key=contains)

    def _unfinished(self, completion_ids: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """Say which completions the length limit has cut off, ``[N]``."""
        rows = [row[keep].tolist() for row, keep in zip(completion_ids, mask.bool(), strict=True)]
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        cut = [not row or (row[-1] not in ends and self._stop(row) is None) for row in rows]
        return th.tensor(cut, device=completion_ids.device)

    # ------------------------------------------------------------------ labels

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> th.Tensor:
        # TRL hands on the advantages only, which have lost the level that a threshold needs.
        self._rewards: th.Tensor = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if "pixel_values" in output:
            raise ValueError("PMPO trains on text: leave the images out of the data set")
        weights = self._label(output["completion_ids"], output["completion_mask"])
        names = ("accept_weight", "reject_weight", "kl_weight")
        return {**output, **dict(zip(names, weights, strict=True))}

    def _label(self, completion_ids: th.Tensor, mask: th.Tensor) -> CompletionWeights:
        """Label this process's completions beside those of the same prompts on other processes."""
        training = self.model.training
        unfinished = self.accelerator.gather(self._unfinished(completion_ids, mask))
        self._metrics["train" if training else "eval"]["completions/clipped_ratio"][-1] = (
            unfinished.float().mean().item()
        )
        n = self.num_generations if training else self.num_generations_eval
        rewards = combine_rewards(
            self._rewards,
            self.reward_weights.to(self._rewards.device),
            n,
            self.args.multi_objective_aggregation,
        )
        if n != self.num_generations:  # an evaluation that cannot be labelled, only judged
            zeros = rewards.new_zeros(len(completion_ids))
            return CompletionWeights(zeros, zeros, zeros)
        weights = weigh_completions(rewards, unfinished, n, self.labeller, self.args.truncated)
        for name, part in (("accepted", weights.accept), ("rejected", weights.reject)):
            share = (part > 0).float().mean().item()
            self._metrics["train" if training else "eval"][f"labels/{name}"].append(share)
        start = self.accelerator.process_index * len(completion_ids)
        return CompletionWeights(*(w[start : start + len(completion_ids)] for w in weights))

    # ------------------------------------------------------------------ the loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> th.Tensor:
        """Compute the loss of a minibatch; over those of an optimizer step it is averaged."""
        mask, tool_mask = inputs["completion_mask"], inputs.get("tool_mask")
        counts = mask.bool() if tool_mask is None else (mask * tool_mask).bool()
        sequences = Sequences(
            inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], mask, counts
        )
        policy, args = self._policy, self.args
        reference_logits = None
        if args.beta:
            with th.no_grad(), self.reference.model(policy) as reference:
                reference_logits = completion_logits(reference, architecture(policy), sequences)
        logits = completion_logits(model, architecture(policy), sequences)
        terms = completion_terms(
            logits,
            reference_logits,
            sequences,
            temperature=self.temperature,
            per_token=args.per_token,
        )
        # The weights of a prompt's completions sum to 1, and these are N / S prompts' worth.
        scale = self.num_generations / len(mask)
        weights = CompletionWeights(
            *(inputs[f"{name}_weight"] * scale for name in CompletionWeights._fields)
        )
        loss = completion_loss(terms, weights, alpha=args.alpha, beta=args.beta)
        found = describe(self.accelerator, loss, terms, counts, args)
        for name, value in found.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)
        accumulation = self.current_gradient_accumulation_steps if self.model.training else 1
        return loss.loss / accumulation

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer writes its state last, so a checkpoint with that file is a whole one.
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        save_reference(self.reference, folder, self.accelerator)
        if self._step % (self.args.steps_per_generation * self.num_iterations):
            th.save(self._buffered_inputs, folder / self._buffer_name)
        super()._save_checkpoint(model, trial)

    @property
    def _buffer_name(self) -> str:
        return f"completions_{self.accelerator.process_index}.pt"

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        load_reference(self.reference, Path(checkpoint))
        if (path := Path(checkpoint, self._buffer_name)).exists():
            device = self.accelerator.device
            self._buffered_inputs = th.load(path, map_location=device, weights_only=True)


class _RestoreSteps(TrainerCallback):
    """Count micro-steps on from a checkpoint, for generations are due by their number."""

    def __init__(self, trainer: PMPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set TRL's counter."""
        self.trainer._step = state.global_step * args.gradient_accumulation_steps
