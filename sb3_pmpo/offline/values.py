"""A state-value function fitted on logged episodes, and the advantages that it gives.

Axes: B rows, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.utils import get_device
from torch import nn

from sb3_pmpo.core.checks import written
from sb3_pmpo.features import ObservationNormaliser, count_from_zero
from sb3_pmpo.learn_checks import check_count
from sb3_pmpo.offline.columns import Columns, DatasetError, take
from sb3_pmpo.offline.dataset import LabelledDataset
from sb3_pmpo.offline.tensors import channels_first_space, to_tensors

#: Lines and columns that the kernels of NatureCNN need.
SMALLEST_PICTURE = 36

#: Rows that are evaluated together at most, and the numbers that their observations may be.
EVALUATED, NUMBERS = 8192, 2**23


@dataclass(frozen=True)
class Episodes:
    """What the targets are computed from; ``[N]`` each, in order of time within an episode.

    :param rewards: in units of the environment.
    :param ends: True at the last row of an episode.
    :param terminal: True where the state after the row is worth nothing.
    :param gamma: discount factor, in [0, 1].
    """

    rewards: np.ndarray
    ends: np.ndarray
    terminal: np.ndarray
    gamma: float

    def one_step(self, following: np.ndarray) -> np.ndarray:
        """Add to each reward the discounted value of the state that came next."""
        return self.rewards + self.gamma * np.where(self.terminal, 0.0, following)

    def lambda_returns(self, following: np.ndarray, lam: float) -> np.ndarray:
        """Mix the n-step returns of all n by ``lam``; 1 is Monte Carlo, 0 is one step.

        Where an episode was cut, the value of the state after it stands for the rest.
        """
        steps = self.one_step(following).astype(np.float64)
        last = np.flatnonzero(self.ends)
        lengths = np.diff(np.concatenate(([-1], last)))
        returns = steps.copy()  # right where nothing follows: at the last rows
        for back in range(1, int(lengths.max())):
            row = last[lengths > back] - back  # of all episodes at once
            beyond = lam * returns[row + 1] + (1.0 - lam) * following[row]
            returns[row] = self.rewards[row] + self.gamma * beyond
        return returns.astype(np.float32)


#: From the episodes and the values ``[N]`` of what followed to targets ``[N]``.
Targets = Callable[[Episodes, np.ndarray], np.ndarray]


def monte_carlo() -> Targets:
    """Regress to the discounted sum of the rewards that came: no bias, and much variance."""
    return gae(1.0)


def td() -> Targets:
    """Regress to one reward and the value of the next state: little variance, more bias."""
    return gae(0.0)


def gae(lam: float = 0.95) -> Targets:
    """Regress to lambda-returns, whose advantages are GAE's (Schulman et al., 2016).

    :param lam: in [0, 1].
    :raises ValueError: if it is not.
    """
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lam must be in [0, 1], got {lam}: 0.95 is usual")
    return lambda episodes, following: episodes.lambda_returns(following, lam)


class ValueNetwork(nn.Module):
    """V(s): an ensemble-free network over normalised observations.

    :param space: of the observations.
    :param widths: of the hidden layers.
    """

    def __init__(self, space: spaces.Space, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.space = space
        self.normaliser = ObservationNormaliser(space)
        self.extractor = _make_extractor(space)
        layers: list[nn.Module] = []
        width = self.extractor.features_dim
        for following in widths:
            layers += [nn.Linear(width, following), nn.LayerNorm(following), nn.ReLU()]
            width = following
        self.body = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, observations: Any) -> th.Tensor:
        """Compute the value ``[B]``, in units of the targets' spread."""
        seen = preprocess_obs(count_from_zero(observations, self.space), self.space)
        return self.body(self.extractor(self.normaliser(seen))).squeeze(-1)


def _make_extractor(space: spaces.Space) -> BaseFeaturesExtractor:
    if isinstance(space, spaces.Dict):
        return CombinedExtractor(space)
    is_picture = isinstance(space, spaces.Box) and is_image_space(space)
    if is_picture and min(cast(spaces.Box, space).shape[1:]) >= SMALLEST_PICTURE:
        return NatureCNN(space)
    return FlattenExtractor(space)


class ValueFunction:
    """V(s) in units of the reward, fitted on all the episodes of a data set.

    :param dataset: with rewards; with ``next_observations`` the state after a cut is valued. Each
        row counts by its weight.
    :param gamma: discount factor, in [0, 1].
    :param targets: what V regresses to: :func:`monte_carlo`, :func:`td`, :func:`gae`.
    :param gradient_steps: of the fit, >= 1.
    :param batch_size: rows a step.
    :param rounds: how often the targets are computed anew from V, >= 1.
    :param learning_rate: of Adam.
    :param widths: of the hidden layers.
    :param seed: of weights and batches.
    :param device: where to fit.
    :raises DatasetError: if there are no rewards.
    """

    def __init__(
        self,
        dataset: LabelledDataset,
        gamma: float,
        targets: Targets,
        *,
        gradient_steps: int = 4000,
        batch_size: int = 512,
        rounds: int = 20,
        learning_rate: float = 1e-3,
        widths: tuple[int, ...] = (128, 128),
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        counts = {"gradient_steps": gradient_steps, "rounds": rounds, "batch_size": batch_size}
        for name, value in counts.items():
            check_count(name, value, 1)
        if not callable(targets) or targets in (monte_carlo, td, gae):
            raise ValueError(
                "targets must be what monte_carlo(), td() or gae() returns, got "
                f"{written(targets)}: write td(), with the parentheses"
            )
        self.dataset, self.targets, self.device = dataset, targets, get_device(device)
        self.episodes = _episodes(dataset, gamma)
        self._rng = np.random.default_rng(seed)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)
            self.network = ValueNetwork(channels_first_space(dataset.observation_space), widths).to(
                self.device
            )
        self.offset, self.scale = 0.0, 1.0
        self._fit_normaliser()
        self._fit(gradient_steps, batch_size, min(rounds, gradient_steps), learning_rate)

    def values(self, columns: Columns) -> np.ndarray:
        """Evaluate every row; ``[N]`` in units of the reward."""
        parts = []
        with th.no_grad():
            for index in self._batches(len(self.dataset)):
                parts.append(self.network(self._tensors(columns, index)).cpu().numpy())
        return self.offset + self.scale * np.concatenate(parts)

    def advantages(self) -> np.ndarray:
        """Compute ``target - V(s)`` of every row; ``[N]`` in units of the reward."""
        values = self.values(self.dataset.observations)
        return self.targets(self.episodes, self._following(values)) - values

    # ------------------------------------------------------------------ the fit

    def _fit(self, steps: int, batch_size: int, rounds: int, learning_rate: float) -> None:
        optimizer = th.optim.Adam(self.network.parameters(), lr=learning_rate)
        bounds = np.linspace(0, steps, rounds + 1).astype(int)
        for number, (start, stop) in enumerate(pairwise(bounds)):
            goals = self._goals(first=number == 0)
            for step in range(start, stop):
                for group in optimizer.param_groups:  # a cosine: the last rounds average
                    group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                index = self._rng.integers(0, len(goals), batch_size)
                wanted = th.as_tensor(goals[index], dtype=th.float32, device=self.device)
                predicted = self.network(self._tensors(self.dataset.observations, index))
                loss = (self._weights(index) * (predicted - wanted).square()).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _goals(self, *, first: bool) -> np.ndarray:
        """Compute the targets, in units of the spread that the first of them had."""
        if first:  # no value is known yet
            goals = self.episodes.lambda_returns(np.zeros(len(self.dataset), np.float32), 1.0)
            self.offset, self.scale = float(goals.mean()), float(goals.std()) or 1.0
        else:
            goals = self.targets(
                self.episodes, self._following(self.values(self.dataset.observations))
            )
        return (goals - self.offset) / self.scale

    def _following(self, values: np.ndarray) -> np.ndarray:
        """Value what followed each row: the next row, or the state after the last of an episode."""
        following = np.append(values[1:], 0.0).astype(np.float32)
        following[self.episodes.ends] = 0.0
        last = np.flatnonzero(self.episodes.ends & ~self.episodes.terminal)
        columns = self.dataset.next_observations
        if columns is None or not len(last):
            # Without the state after a cut, its last state has to stand for it.
            following[last] = values[last]
            return following
        with th.no_grad():
            for index in self._batches(len(last)):
                found = self.network(self._tensors(columns, last[index])).cpu().numpy()
                following[last[index]] = self.offset + self.scale * found
        return following

    def _batches(self, n: int) -> Iterator[np.ndarray]:
        """Yield the numbers below n, so many at a time as the memory is to hold."""
        size = NUMBERS // max(spaces.flatdim(self.dataset.observation_space), 1)
        size = min(max(size, 1), EVALUATED)
        for start in range(0, n, size):
            yield np.arange(start, min(start + size, n))

    def _weights(self, index: np.ndarray) -> th.Tensor:
        """Return how much each row counts, 1 on average over the data."""
        weights = self.dataset.weights
        counts = np.ones(len(index)) if weights is None else weights[index] / weights.mean()
        return th.as_tensor(counts, dtype=th.float32, device=self.device)

    def _fit_normaliser(self) -> None:
        if self.network.normaliser.count > 0:
            return  # infinite: there is nothing to normalise
        for index in self._batches(min(len(self.dataset), 200_000)):
            rows = self._rng.integers(0, len(self.dataset), len(index))
            self.network.normaliser.update(self._tensors(self.dataset.observations, rows))

    def _tensors(self, columns: Columns, index: np.ndarray) -> Any:
        return to_tensors(take(columns, index), self.dataset.observation_space, self.device)


def _episodes(dataset: LabelledDataset, gamma: float) -> Episodes:
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}: 0.99 is usual")
    rewards = dataset.required("rewards")
    ends = np.zeros(len(dataset), bool)
    ends[[rows.stop - 1 for rows in dataset.episodes()]] = True
    done = np.zeros(len(dataset), bool) if dataset.dones is None else dataset.dones > 0
    known = dataset.episode_ids is not None or done[-1]
    if dataset.n_episodes == 1 and len(dataset) > 1 and not known:
        raise DatasetError(
            "the data set does not say where its episodes end, so that returns would run from one "
            "into the next: give episode_ids"
        )
    return Episodes(rewards, ends, done, gamma)
