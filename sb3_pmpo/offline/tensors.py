"""Observations and actions of a data set as the policy takes them.

Axes: B rows, A action dimensions.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first


def to_tensors(values: Any, space: spaces.Space, device: th.device) -> Any:
    """Move observations to the device, images with their channels first, as SB3's extractors want.

    :param values: ``[B, ...]`` as the data set has them, or a dictionary of such.
    """
    if isinstance(space, spaces.Dict):
        return {key: to_tensors(values[key], part, device) for key, part in space.spaces.items()}
    if channels_last(space):
        values = np.moveaxis(values, -1, 1)
    dtype = np.float32 if values.dtype == np.float64 else values.dtype
    return th.as_tensor(np.ascontiguousarray(values, dtype=dtype), device=device)


def channels_last(space: spaces.Space) -> bool:
    """Say whether a space is one of images that end with their channels."""
    if not (isinstance(space, spaces.Box) and is_image_space(space)):
        return False
    return not is_image_space_channels_first(space)


def channels_first_space(space: spaces.Space) -> spaces.Space:
    """Return the space of what :func:`to_tensors` gives."""
    if isinstance(space, spaces.Dict):
        parts = {key: channels_first_space(part) for key, part in space.spaces.items()}
        return spaces.Dict(OrderedDict(parts))
    if isinstance(space, spaces.Box) and channels_last(space):
        low, high = np.moveaxis(space.low, -1, 0), np.moveaxis(space.high, -1, 0)
        return spaces.Box(low, high, dtype=space.dtype.type)
    return space


def to_policy_actions(actions: np.ndarray, space: spaces.Space, device: th.device) -> th.Tensor:
    """Bring actions to ``[B, A]`` as the policy has them: a Box's in [-1, 1], numbers else."""
    flat = actions.reshape(len(actions), -1)
    if isinstance(space, spaces.Box):
        low, high = space.low.ravel(), space.high.ravel()
        flat = 2.0 * (flat - low) / (high - low) - 1.0
        flat = np.clip(flat, -1.0, 1.0)
    return th.as_tensor(np.asarray(flat, np.float32), device=device)
