"""What actor and critics share: normalised observations, features, and the codes of actions.

Axes: B states, F features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_pmpo.networks import RunningMoments, has_absurd_readings
from sb3_pmpo.storage.models import SavesAlone


class ObservationNormaliser(nn.Module):
    """Normalise the vectors of an observation; images and one-hot codes pass unchanged.

    An image is a Box with three axes and bounds, of bytes or of floats. One of bytes may have no
    axis for channels; it is divided by 255 here, because SB3 knows no such images.

    The statistics are those of the observations handed to :meth:`update`, and are part of the
    policy's state: saved, loaded and moved with it. One instance serves all of a policy's parts.

    :param observation_space: a space that SB3 supports; a Dict is normalised key by key.
    :param normalize_images: divide by 255 the images that SB3 does not; it divides the others.
    """

    CLIP = 10.0

    def __init__(self, observation_space: spaces.Space, normalize_images: bool = True) -> None:
        super().__init__()
        self.is_dict = isinstance(observation_space, spaces.Dict)
        parts: dict[str, spaces.Space]
        if isinstance(observation_space, spaces.Dict):
            parts = observation_space.spaces
        else:
            parts = {"": observation_space}
        self.keys = [key for key, space in parts.items() if self._is_vector(space)]
        self.greys = {key for key, space in parts.items() if normalize_images and _is_grey(space)}
        self.moments = nn.ModuleList(RunningMoments(parts[key].shape or ()) for key in self.keys)

    def _by_key(self) -> Iterator[tuple[str, RunningMoments]]:
        return zip(self.keys, cast(Iterable[RunningMoments], self.moments), strict=True)

    @staticmethod
    def _is_vector(space: spaces.Space) -> bool:
        return (
            isinstance(space, spaces.Box)
            and not (_is_image(space) or _is_grey(space))
            and space.shape != ()
        )

    def update(self, observations: Any) -> None:
        """Take in a batch of raw observations: arrays ``[B, ...]``, or a dict of them."""
        for key, moments in self._by_key():
            batch = observations[key] if self.is_dict else observations
            moments.update(th.as_tensor(batch))

    def begin_anew(self, observations: Any) -> None:
        """Forget what was seen and take the statistics of these ``[T, ...]``, or a dict of them."""
        for key, moments in self._by_key():
            moments.begin_anew(th.as_tensor(observations[key] if self.is_dict else observations))

    def sees_absurd_readings(self, observations: Any) -> bool:
        """Say whether some of these ``[T, ...]``, or of a dict of them, cannot be true."""
        return any(
            has_absurd_readings(th.as_tensor(observations[key] if self.is_dict else observations))
            for key, _ in self._by_key()
        )

    @property
    def count(self) -> float:
        """How many observations were seen; infinite where nothing is normalised."""
        return min((float(moments.count) for _, moments in self._by_key()), default=math.inf)

    def forward(self, observations: Any) -> Any:
        """Normalise preprocessed observations."""
        if not self.is_dict:
            if self.greys:
                return observations / 255.0
            for _, moments in self._by_key():  # one, or none
                observations = moments.normalise(observations, clip=self.CLIP)
            return observations
        normalised = dict(observations)
        for key in self.greys:
            normalised[key] = observations[key] / 255.0
        for key, moments in self._by_key():
            normalised[key] = moments.normalise(observations[key], clip=self.CLIP)
        return normalised


def _is_image(space: spaces.Box) -> bool:
    """Say whether it is an image: of bytes, or of numbers between bounds, as SB3 passes them on.

    Normalised pixel by pixel, one that was constant so far would be clipped as soon as it changes.
    """
    return len(space.shape) == 3 and (is_image_space(space) or space.is_bounded("both"))


def _is_grey(space: spaces.Space) -> bool:
    """Say whether it is an image of bytes without an axis for channels."""
    return (
        isinstance(space, spaces.Box)
        and len(space.shape) == 2
        and is_image_space(spaces.Box(space.low[None], space.high[None], dtype=space.dtype))
    )


class NormalisedFeatures(SavesAlone):
    """A model that normalises what it sees before it extracts features."""

    normaliser: nn.Module
    features_extractor: BaseFeaturesExtractor

    def features(self, observations: PyTorchObs) -> th.Tensor:
        """Preprocess, normalise and extract: ``[B, F]``."""
        preprocessed = preprocess_obs(
            count_from_zero(observations, self.observation_space),
            self.observation_space,
            normalize_images=self.normalize_images,
        )
        return self.features_extractor(self.normaliser(preprocessed))


def count_from_zero(observations: PyTorchObs, space: spaces.Space) -> Any:
    """Count choices from 0, as one-hot codes do; a space may have them start anywhere."""
    if isinstance(space, spaces.Dict):
        return {key: count_from_zero(observations[key], part) for key, part in space.spaces.items()}  # type: ignore[index]  # a dict then
    if isinstance(space, spaces.Discrete) and space.start != 0:
        return cast(th.Tensor, observations).long() - int(space.start)
    if isinstance(space, spaces.MultiDiscrete) and np.any(space.start != 0):
        # Numbers, no tensor: a CUDA graph may not copy from the host.
        columns = cast(th.Tensor, observations).long().unbind(-1)
        pairs = zip(columns, space.start.tolist(), strict=True)
        return th.stack([column - start for column, start in pairs], dim=-1)
    return observations


def n_choices(action_space: spaces.Space) -> tuple[int, ...] | None:
    """Return the number of choices in each dimension of a discrete space; None for a Box."""
    if isinstance(action_space, spaces.Discrete):
        return (int(action_space.n),)
    if isinstance(action_space, spaces.MultiDiscrete):
        return tuple(int(n) for n in action_space.nvec)
    return None
