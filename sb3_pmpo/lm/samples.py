"""Show what the policy says, every so many steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from transformers import TrainerCallback


class ShowSamples(TrainerCallback):
    """Print a completion of each prompt.

    :param tokenizer: of the model.
    :param prompts: texts or lists of messages.
    :param every: steps from one time to the next.
    :param max_new_tokens: of a completion.
    """

    def __init__(
        self, tokenizer: Any, prompts: Sequence[Any], every: int, max_new_tokens: int
    ) -> None:
        self.tokenizer, self.prompts = tokenizer, list(prompts)
        self.every, self.max_new_tokens = every, max_new_tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show them when it is time, from the main process."""
        if state.global_step % self.every or not state.is_world_process_zero:
            return
        # The draws of training go on as if nothing had been shown.
        with th.random.fork_rng():
            texts = self.complete(kwargs["model"])
        print(f"\nstep {state.global_step}")
        for prompt, text in zip(self.prompts, texts, strict=True):
            print(f"  {prompt!r} -> {text!r}")

    @th.no_grad()
    def complete(self, model: Any) -> list[str]:
        """Draw a completion of each prompt; the model's mode stays as it was."""
        if isinstance(self.prompts[0], str):
            rows = self.tokenizer(self.prompts, padding=True, return_tensors="pt")
        else:
            rows = self.tokenizer.apply_chat_template(
                self.prompts, add_generation_prompt=True, padding=True, return_dict=True,
                return_tensors="pt",
            )  # fmt: skip
        rows = {name: rows[name].to(model.device) for name in ("input_ids", "attention_mask")}
        training = model.training
        model.eval()
        try:
            ids = model.generate(
                **rows,
                do_sample=True,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        finally:
            model.train(training)
        answers = ids[:, rows["input_ids"].shape[1] :]
        found: list[str] = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return found
