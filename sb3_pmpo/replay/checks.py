"""Refuse wrong arguments of replay buffers, and saved buffers of other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.her.goal_selection_strategy import (
    KEY_TO_GOAL_STRATEGY,
    GoalSelectionStrategy,
)
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.core.checks import INFINITY, LARGEST, check_flag, check_number
from sb3_pmpo.replay.prioritized import prioritized_class

_GOALS = {"observation", "achieved_goal", "desired_goal"}

#: A HER buffer makes a dictionary for each transition at once.
_MOST_GOALS = 100_000_000

_KWARGS = "replay_buffer_kwargs"


def buffer_class_of(model: OffPolicyAlgorithm) -> type[ReplayBuffer]:
    """Return the class that the arguments of a model ask for."""
    is_dict = isinstance(model.observation_space, spaces.Dict)
    return prioritized_class(
        model.replay_buffer_class or (DictReplayBuffer if is_dict else ReplayBuffer),
        model.observation_space,
    )


def check_buffer_kwargs(kwargs: Any) -> None:
    """Check that these are arguments by name, before SB3 asks whether there are any.

    :raises ValueError: naming the value and what to do.
    """
    if not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
        raise ValueError(
            f"{_KWARGS} must be a dict of keyword arguments or None, got {kwargs!r}: leave it out "
            "for none"
        )


def check_buffer_arguments(model: OffPolicyAlgorithm) -> None:
    """Check the class of the buffer and what it is given.

    :param model: with its spaces known.
    :raises ValueError: naming the argument, its value and what to do.
    """
    given, kwargs = model.replay_buffer_class, model.replay_buffer_kwargs
    if given is not None and not (isinstance(given, type) and issubclass(given, ReplayBuffer)):
        raise ValueError(
            f"replay_buffer_class must be a subclass of SB3's ReplayBuffer or None, got {given!r}: "
            "give the class itself, such as HerReplayBuffer, not its name or an object of it"
        )
    check_buffer_kwargs(kwargs)
    chosen = buffer_class_of(model)
    is_dict = isinstance(model.observation_space, spaces.Dict)
    if issubclass(chosen, HerReplayBuffer):
        _check_goals(model, kwargs)
    if issubclass(chosen, DictReplayBuffer) != is_dict:
        raise ValueError(
            f"replay_buffer_class={chosen.__name__} does not store observations of the observation "
            f"space {model.observation_space}: leave replay_buffer_class at None, or give a "
            f"{'DictReplayBuffer' if is_dict else 'ReplayBuffer'}"
        )
    name = f"{_KWARGS}['handle_timeout_termination']"
    limits = kwargs.get("handle_timeout_termination", True)
    limits = check_flag(name, limits, "True bootstraps from the end of a time limit")
    _check_memory_use(model, is_dict, limits)


def _check_memory_use(model: OffPolicyAlgorithm, is_dict: bool, limits: bool) -> None:
    if not model.optimize_memory_usage:
        return
    if is_dict:
        raise ValueError(
            "optimize_memory_usage must be False for a Dict of observations, got True with the "
            f"observation space {model.observation_space}: SB3's buffers of them cannot; choose a "
            "smaller buffer_size"
        )
    if limits:
        raise ValueError(
            "optimize_memory_usage=True and handle_timeout_termination=True exclude one another: "
            f"add {_KWARGS}=dict(handle_timeout_termination=False), or leave out the former"
        )


def _check_goals(model: OffPolicyAlgorithm, kwargs: Mapping[str, Any]) -> None:
    """Check what hindsight needs: goals, and an environment that computes rewards for them."""
    space, name = model.observation_space, "replay_buffer_class"
    if not isinstance(space, spaces.Dict) or not space.spaces.keys() >= _GOALS:
        raise ValueError(
            f"{name}=HerReplayBuffer needs a Dict with {', '.join(sorted(_GOALS))}, but the "
            f"observation space is {space}: leave {name} out, or take a task with goals"
        )
    if model.env is not None and not model.env.has_attr("compute_reward"):
        raise ValueError(
            f"{name}=HerReplayBuffer needs an environment with compute_reward(achieved_goal, "
            f"desired_goal, info), got {model.env}: add the method, or leave {name} out"
        )
    check_number("buffer_size", model.buffer_size, 1, _MOST_GOALS, int, "of a HerReplayBuffer")
    check_number(
        f"{_KWARGS}['n_sampled_goal']", kwargs.get("n_sampled_goal", 4), 0, INFINITY, int,
        "it counts relabelled transitions for each true one; 4 is usual",
    )  # fmt: skip
    strategy = kwargs.get("goal_selection_strategy", "future")
    known = strategy.lower() if isinstance(strategy, str) else strategy
    if not isinstance(known, GoalSelectionStrategy) and known not in list(KEY_TO_GOAL_STRATEGY):
        raise ValueError(
            f"{_KWARGS}['goal_selection_strategy'] must be one of "
            f"{', '.join(map(repr, KEY_TO_GOAL_STRATEGY))}, got {strategy!r}: 'future' is usual"
        )
    copies = kwargs.get("copy_info_dict", False)
    check_flag(f"{_KWARGS}['copy_info_dict']", copies, "True hands infos to compute_reward")


def check_loaded_buffer(model: OffPolicyAlgorithm, buffer: object) -> None:
    """Check that a loaded buffer belongs to tasks like the model's.

    :param model: that is to learn from it.
    :param buffer: what was loaded.
    :raises ValueError: if it is no buffer, or of other spaces or another number of environments.
    """
    if not isinstance(buffer, ReplayBuffer):
        raise ValueError(
            f"the file must hold a ReplayBuffer, got {type(buffer).__name__}: load what "
            "save_replay_buffer() has written"
        )
    for name in ("observation_space", "action_space"):
        of_buffer, of_model = vars(buffer)[name], vars(model)[name]
        if of_buffer != of_model:
            raise ValueError(
                f"the buffer's {name} must be the model's, {of_model}, got {of_buffer}: it was "
                "saved for another task; load one that was saved by a model like this"
            )
    if buffer.n_envs != model.n_envs:
        raise ValueError(
            f"the buffer's n_envs must be the model's, {model.n_envs}, got {buffer.n_envs}: give "
            f"the model {buffer.n_envs} environments (set_env) before loading the buffer"
        )
    check_stored_values(buffer)


def check_stored_values(buffer: ReplayBuffer) -> None:
    """Check what a buffer holds that was filled elsewhere: nothing else has looked at it.

    :raises ValueError: naming the values, the first row and what to do, for some that are not
        finite, or whose squares are not.
    """
    size = buffer.size()
    columns: dict[str, Any] = {}
    for name in ("observations", "next_observations", "actions", "rewards"):
        stored = vars(buffer).get(name)
        parts = stored if isinstance(stored, Mapping) else {"": stored}
        columns |= {f"{name} {key!r}" if key else name: part for key, part in parts.items()}
    for name, column in columns.items():
        if column is None or not np.issubdtype(column.dtype, np.floating):
            continue
        if column[:size].size == 0 or _is_held(column[:size]):
            continue
        row = next(row for row in range(size) if not _is_held(column[row]))
        raise ValueError(
            f"the buffer's {name} must be finite and no larger than {LARGEST:g}, got "
            f"{column[row].tolist()} in row {row}: take the row out, or fill the buffer anew"
        )


def _is_held(values: np.ndarray) -> bool:
    """Say whether all values are finite and can be squared, without a copy of them."""
    return bool(float(values.max()) <= LARGEST and float(values.min()) >= -LARGEST)
