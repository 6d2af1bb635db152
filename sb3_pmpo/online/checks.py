"""Refuse bad data before it is stored: what environments return and what the policy answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import nn

from sb3_pmpo.core.checks import LARGEST
from sb3_pmpo.space_checks import wrong_choice


def check_finite(
    observations: np.ndarray | dict[str, np.ndarray],
    rewards: np.ndarray,
    infos: list[dict[str, Any]],
    step: int,
) -> None:
    """Refuse NaN and infinite rewards and observations, before they reach the replay buffer.

    :param observations: ``[n_envs, ...]`` arrays, or a dict of them, as the environments gave
        them; those of ended episodes are in ``infos``.
    :param rewards: ``[n_envs]``.
    :param infos: one a environment, or none.
    :param step: the number of steps taken, for the message.
    :raises ValueError: naming the environment, the step and the value.
    """
    _refuse("reward", rewards, step)
    _refuse_observation("observation", observations, step)
    check_terminals(infos, step)


def check_terminals(infos: Sequence[dict[str, Any]], step: int) -> None:
    """Refuse NaN and infinite observations at the ends of episodes.

    :param infos: one a environment, or none.
    :param step: the number of steps taken, for the message.
    :raises ValueError: naming the environment, the step and the value.
    """
    for env, info in enumerate(infos):
        terminal = info.get("terminal_observation")
        if terminal is not None:
            _refuse_observation("terminal observation", terminal, step, env)


def _refuse_observation(what: str, value: Any, step: int, env: int | None = None) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _refuse(f"{what} ({key!r})", part, step, env)
    else:
        _refuse(what, value, step, env)


def _refuse(what: str, value: Any, step: int, env: int | None = None) -> None:
    array = np.asarray(value)
    if array.dtype == np.float16:  # in which LARGEST would be infinite
        array = array.astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating) or (np.abs(array) <= LARGEST).all():
        return
    if env is None:
        held = (np.abs(array) <= LARGEST).reshape(len(array), -1).all(1)
        env = int(np.flatnonzero(~held)[0])
        array = array[env]
    fault = "not finite" if not np.isfinite(array).all() else f"larger than {LARGEST:g}"
    raise ValueError(
        f"environment {env} returned a {what} that is {fault} at step {step}: {array}. The "
        "transition was not stored and the model is intact, so it can be saved; mend the "
        "environment (VecCheckNan finds the cause), then resume"
    )


def check_choices(observations: Any, space: spaces.Space, step: int) -> None:
    """Refuse choices that their space does not have, before a one-hot code is made of one.

    :param observations: ``[n_envs, ...]`` arrays, or a dict of them.
    :param space: of the observations; a Box is not looked at.
    :param step: the number of steps taken, for the message.
    :raises ValueError: naming the step and the space.
    """
    wrong = wrong_choice(observations, space)
    if wrong is not None:
        raise ValueError(
            f"an environment returned an observation that is not in {space} at step {step}: "
            f"{wrong}. The transition was not stored; mend the environment or its space"
        )


def check_finite_actions(actions: np.ndarray, step: int, policy: nn.Module) -> None:
    """Refuse actions that are not finite, before a simulator sees them.

    :param actions: of all the environments.
    :param step: steps so far.
    :param policy: that has drawn them.
    :raises ValueError: naming the step, the cause and what to do.
    """
    if np.isfinite(actions).all():
        return
    broken = [name for name, value in policy.named_parameters() if not value.isfinite().all()]
    broken += [name for name, value in policy.named_buffers() if not value.isfinite().all()]
    if broken:
        cause = (
            f"its parameters have diverged ({', '.join(broken[:3])}). Lower learning_rate, or look "
            "at train/actor_grad_norm and train/critic_grad_norm for when it began"
        )
    else:
        cause = (
            "its parameters are finite, so that an observation or the features extractor is the "
            "cause. Look at what the environment has returned last"
        )
    raise ValueError(f"the policy's action at step {step} is not finite ({actions}): {cause}")
