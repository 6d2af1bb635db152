"""When the reference becomes the policy, and how it gets into a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sb3_pmpo.lm.reference import Reference


class Refresh(TrainerCallback):
    """Refresh a reference every ``reference_steps`` optimizer steps.

    :param reference: what is refreshed.
    :param policy: returns the model that is trained, unwrapped.
    """

    def __init__(self, reference: Reference, policy: Callable[[], Any]) -> None:
        self.reference, self.policy = reference, policy

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refresh before a checkpoint is written, and before new completions are drawn."""
        if state.global_step % args.reference_steps == 0:
            self.reference.refresh(self.policy())


def save_reference(reference: Reference, folder: Path, accelerator: Any) -> None:
    """Write the reference beside the policy's checkpoint, from the main process."""
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        reference.save(folder)
    accelerator.wait_for_everyone()


def load_reference(reference: Reference, folder: Path) -> None:
    """Read what :func:`save_reference` wrote."""
    reference.load(folder)
