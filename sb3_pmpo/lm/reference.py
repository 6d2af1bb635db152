"""The reference policy of a language model: a frozen copy, or an adapter beside the policy's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch as th
from transformers.utils import is_peft_available
from trl.trainer.utils import disable_dropout_in_model

#: The name of the adapter that is the reference, and of the file of a full one in a checkpoint.
NAME = "reference"


def is_adapted(model: Any) -> bool:
    """Say whether a model is wrapped by PEFT."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def architecture(model: Any) -> Any:
    """Return the causal model inside, whatever adapters are on it."""
    return model.get_base_model() if is_adapted(model) else model


class Reference(Protocol):
    """What draws the completions and what the KL is measured to."""

    def model(self, policy: Any) -> Any:
        """Manage a context in which what it yields is the reference.

        :param policy: the model that is trained, unwrapped.
        """
        ...

    def refresh(self, policy: Any) -> None:
        """Become the policy as it is now."""
        ...

    def save(self, folder: Path) -> None:
        """Write what the checkpoint of the policy does not hold."""
        ...

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote, if it wrote something."""
        ...


class CopiedReference:
    """A second model. It is copied, not loaded again: a model made in memory has no path.

    :param policy: the model before a trainer has patched its methods, for the copy's would still
        call the original's.
    """

    def __init__(self, policy: Any) -> None:
        self.copy = copy.deepcopy(policy).eval().requires_grad_(False)
        disable_dropout_in_model(self.copy)  # whoever draws from it may put it into training mode
        self.refreshed = False

    def prepare(self, accelerator: Any) -> None:
        """Move to the device and the precision of the policy.

        :raises ValueError: if the processes hold shards of the policy, which a copy is not made of.
        """
        check_whole(accelerator)
        self.copy = accelerator.prepare_model(self.copy, evaluation_mode=True)

    @contextmanager
    def model(self, policy: Any) -> Iterator[Any]:
        """Yield the copy."""
        yield self.copy

    @th.no_grad()
    def refresh(self, policy: Any) -> None:
        """Copy parameters and buffers."""
        target = self.copy.state_dict()
        for name, value in policy.state_dict().items():
            target[name].copy_(value)
        self.refreshed = True

    def save(self, folder: Path) -> None:
        """Write the weights, unless they are the initial ones, which whoever resumes has."""
        if self.refreshed:
            th.save(self.copy.state_dict(), folder / f"{NAME}.pt")

    def load(self, folder: Path) -> None:
        """Read the weights; nothing but tensors is unpickled."""
        if (path := folder / f"{NAME}.pt").exists():
            self.copy.load_state_dict(th.load(path, map_location="cpu", weights_only=True))
            self.refreshed = True


def check_whole(accelerator: Any) -> None:
    """Refuse models that are sharded over the processes.

    :raises ValueError: for FSDP and DeepSpeed's stage 3.
    """
    plugin = accelerator.state.deepspeed_plugin
    sharded = "FSDP" if accelerator.distributed_type.value == "FSDP" else None
    if plugin is not None and plugin.zero_stage == 3:
        sharded = "DeepSpeed's ZeRO stage 3"
    if sharded:
        raise ValueError(
            f"{sharded} gives each process a part of the model, and the reference is a copy of the "
            "whole: use data parallelism (DDP, ZeRO 1 or 2), or LoRA, which needs no copy"
        )


class AdapterReference:
    """The same model with other adapters: without any, or with a copy of the policy's.

    :param policy: a PEFT model.
    :param bare: the base without adapters is the reference, which cannot be refreshed.
    """

    def __init__(self, policy: Any, *, bare: bool) -> None:
        self.name = None if bare else NAME
        if not bare and NAME not in policy.peft_config:
            policy.add_adapter(NAME, policy.peft_config[policy.active_adapter])
            self.refresh(policy)

    @contextmanager
    def model(self, policy: Any) -> Iterator[Any]:
        """Switch the adapters, and switch back."""
        if self.name is None:
            with policy.disable_adapter():
                yield policy
            return
        active = policy.active_adapter
        policy.set_adapter(self.name)
        try:
            yield policy
        finally:
            policy.set_adapter(active)

    @th.no_grad()
    def refresh(self, policy: Any) -> None:
        """Copy the policy's adapter."""
        parameters = dict(policy.named_parameters())
        for name, value in parameters.items():
            if f".{NAME}." in name:
                source = name.replace(f".{NAME}.", f".{policy.active_adapter}.")
                value.copy_(parameters[source])

    def save(self, folder: Path) -> None:
        """Do nothing: PEFT saves every adapter of a model."""

    def load(self, folder: Path) -> None:
        """Do nothing: Trainer loads every adapter of a checkpoint."""
