"""Refuse bad arguments before training, and bad data before it is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from sb3_pmpo.core.checks import INFINITY, check_number
from sb3_pmpo.policies import NO_SDE

#: Name, lowest and highest value, kind, remedy.
_RANGES: tuple[tuple[str, float, float, type, str], ...] = (
    ("buffer_size", 1, INFINITY, int, "it counts transitions; 1_000_000 is usual"),
    ("learning_starts", 0, INFINITY, int, "it counts environment steps before the first update"),
    ("batch_size", 1, INFINITY, int, "it counts transitions; 128 is usual"),
    ("tau", 0.0, 1.0, float, "it is the share by which the critic target moves; 0.005 is usual"),
    ("gamma", 0.0, 1.0, float, "it is the discount factor; 0.99 is usual"),
    ("n_steps", 1, INFINITY, int, "it counts the rewards summed before the critic takes over"),
    ("pessimism", 0.0, 1.0, float, "0 takes the critics' mean, 1 the lowest; 0.5 is usual"),
    ("gradient_steps", -1, INFINITY, int, "-1 means as many as environment steps were collected"),
    ("_stats_window_size", 1, INFINITY, int, "it counts episodes; 100 is usual"),
    ("n_samples", 2, INFINITY, int, "it counts actions drawn per state; the paper uses 4"),
    ("policy_delay", 1, INFINITY, int, "it counts critic updates for each policy update"),
    (
        "reference_update_interval",
        1,
        INFINITY,
        int,
        "it counts updates; the paper's bandits use 100",
    ),
)


def check_arguments(model: OffPolicyAlgorithm) -> None:
    """Check what the algorithms of the family share, after construction and after ``load``.

    :param model: its arguments as the user gave them.
    :raises ValueError: naming the argument, its value, its range and what to do.
    """
    for name, low, high, kind, hint in _RANGES:
        check_number(name.lstrip("_"), getattr(model, name), low, high, kind, hint)
    for name in ("learning_rate", "actor_learning_rate"):
        rate = getattr(model, name)
        given = rate is not None or name == "learning_rate"
        if given and not callable(rate):
            check_number(name, rate, 0.0, INFINITY, float, "a number, or a schedule of progress")
    _check_train_freq(model.train_freq)
    if not isinstance(model.action_noise, (ActionNoise, type(None))):
        raise ValueError(f"action_noise must be an ActionNoise or None, got {model.action_noise!r}")
    _check_action_space(model)
    noise = model.exploration_noise  # type: ignore[attr-defined]  # of OffPolicyMPO
    if not (noise is None or callable(noise)):
        raise ValueError(
            f"exploration_noise must be a function of (n_envs, action_dim, seed) or None, got "
            f"{noise!r}: sb3_pmpo.online.exploration.pink_noise is one"
        )
    _check_reference(model.reference_tau, model.reference_update_interval, model.policy_delay)  # type: ignore[attr-defined]  # of OffPolicyMPO
    if model.use_sde:
        raise ValueError(NO_SDE)


def _check_action_space(model: OffPolicyAlgorithm) -> None:
    space = model.action_space
    if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return
    if np.any(np.asarray(space.start) != 0):
        raise ValueError(
            f"the action space must start at 0, got {space}: Stable-Baselines3 stores and predicts "
            "actions from 0; shift them in a wrapper (gymnasium.wrappers.TransformAction)"
        )
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        raise ValueError(
            f"a MultiDiscrete action space must have one axis, got {space}: flatten it"
        )
    if model.action_noise is not None:
        raise ValueError(
            f"action_noise is added to the actions of a Box, but the action space is {space}: "
            "leave it out; the policy explores by sampling"
        )


def _check_train_freq(value: Any) -> None:
    hint = 'give a number of steps, or a pair such as (1, "episode")'
    count, unit = value if isinstance(value, tuple) and len(value) == 2 else (value, "step")
    check_number("train_freq", count, 1, INFINITY, int, hint)
    if unit not in {"step", "episode", *TrainFrequencyUnit}:
        raise ValueError(f"the unit of train_freq must be 'step' or 'episode', got {unit!r}")


def _check_reference(tau: Any, interval: int, policy_delay: int) -> None:
    check_number("reference_tau", tau, 0.0, 1.0, float, "1 copies the actor, 0.005 averages")
    if tau == 0.0:
        raise ValueError("reference_tau must be > 0, got 0.0: the policy would never move away")
    if tau == 1.0 and interval <= policy_delay:
        raise ValueError(
            f"reference_tau=1.0 with reference_update_interval={interval} is refused: a reference "
            f"refreshed at every policy update (policy_delay={policy_delay}) equals the policy, "
            "so its KL has no gradient and nothing holds the policy; use reference_tau=0.005, or "
            "an interval such as 100"
        )


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
    if not np.issubdtype(array.dtype, np.floating) or np.isfinite(array).all():
        return
    if env is None:
        flat = np.isfinite(array.reshape(len(array), -1)).all(1)
        env = int(np.flatnonzero(~flat)[0])
        array = array[env]
    raise ValueError(
        f"environment {env} returned a {what} that is not finite at step {step}: {array}. The "
        "transition was not stored and the model is intact, so it can be saved; mend the "
        "environment (VecCheckNan finds the cause), then resume"
    )


def check_finite_actions(actions: np.ndarray, step: int) -> None:
    """Refuse actions that are not finite, before a simulator sees them.

    :param actions: of all the environments.
    :param step: steps so far.
    :raises ValueError: naming the step and what to do.
    """
    if not np.isfinite(actions).all():
        raise ValueError(
            f"the policy's action at step {step} is not finite ({actions}): its parameters have "
            "diverged. Lower learning_rate, or look at train/actor_grad_norm and "
            "train/critic_grad_norm for when it began"
        )
