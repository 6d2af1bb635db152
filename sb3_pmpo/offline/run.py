"""The loop of learning from labels: minibatch, policy step, callbacks, log.

Axes: S rows of the minibatch.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pmpo.core.samples import Candidates
from sb3_pmpo.features import ObservationNormaliser
from sb3_pmpo.learner import policy_step
from sb3_pmpo.objectives import Objective
from sb3_pmpo.offline.columns import DatasetError
from sb3_pmpo.offline.dataset import Rows
from sb3_pmpo.offline.sampling import LabelSampler
from sb3_pmpo.offline.spaces import form
from sb3_pmpo.offline.tensors import channels_first_space, to_policy_actions, to_tensors
from sb3_pmpo.offline.weights import Labels

#: A source that grows is looked at anew after so many steps for each 10000 of its rows: the look
#: costs about 0.1 ms a step then.
ROWS_A_STEP = 10_000

#: Rows from which the statistics of a new policy's observation normaliser are taken.
STATISTICS_ROWS = 100_000


@runtime_checkable
class Labelled(Protocol):
    """What can be learned from: a data set, or a buffer that grows."""

    observation_space: spaces.Space
    action_space: spaces.Space

    def __len__(self) -> int:
        """Count the rows."""
        ...

    def rows(self, index: np.ndarray) -> Rows:
        """Copy a batch of rows."""
        ...

    def labels_and_weights(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the labels, and the rows' weights if there are any."""
        ...

    def label_totals(self) -> Labels:
        """Sum the rows' weights by label."""
        ...


class SpacesOnly(gym.Env):
    """What stands for the environment of a model that has none: it cannot be stepped."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, **kwargs: Any) -> Any:
        """Refuse.

        :raises ValueError: always.
        """
        raise ValueError(
            "this model was made from spaces and has no environment: learn from data, or give it "
            "one with set_env()"
        )

    def step(self, action: Any) -> Any:
        """Refuse, as :meth:`reset` does."""
        self.reset()


class Batch(NamedTuple):
    """A minibatch as the policy takes it.

    :param observations: of S states.
    :param candidates: actions ``[S, A]``, labels as scores ``[S]``, weights ``[S]``.
    :param rows: ``[S]`` which of the source's they are.
    """

    observations: Any
    candidates: Candidates
    rows: np.ndarray


# ---------------------------------------------------------------------- one step


class LabelSteps:
    """Steps of a model's policy on labelled rows.

    :param model: an algorithm of this package.
    :param source: the rows, which may grow.
    :param batch_size: S.
    :param sampler: made of the labels and weights, anew when the rows have grown.
    :param rng: what draws the rows.
    :param weigh: from the reference at the rows' states and a minibatch to what the labels count
        for, which is their size; None for 1 each.
    :raises DatasetError: if the spaces are not the model's.
    """

    def __init__(
        self,
        model: Any,
        source: Labelled,
        batch_size: int,
        sampler: Callable[[np.ndarray, np.ndarray | None], LabelSampler],
        rng: np.random.Generator,
        weigh: Callable[[Any, Batch], Candidates] | None = None,
    ) -> None:
        check_spaces(model, source)
        self.weigh = weigh or (lambda reference, batch: batch.candidates)
        self.model, self.source, self.batch_size, self.rng = model, source, batch_size, rng
        self._make_sampler = sampler
        self._sampler: LabelSampler | None = None
        self._age = 0  # steps since the sampler was made

    def batch(self) -> Batch:
        """Draw a minibatch and bring it to the device."""
        n = 0 if self._sampler is None else self._sampler.n
        if n < len(self.source) and self._age >= n // ROWS_A_STEP:
            self._sampler, self._age = self._make_sampler(*self.source.labels_and_weights()), 0
        assert self._sampler is not None  # there are rows
        self._age += 1
        drawn = self._sampler.draw(self.batch_size, self.rng)
        rows, device = self.source.rows(drawn.rows), self.model.device
        candidates = Candidates(
            th.as_tensor(rows.labels, dtype=th.float32, device=device),
            to_policy_actions(rows.actions, self.source.action_space, device),
            th.as_tensor(drawn.weights, device=device),
            n_samples=self._sampler.n_samples,
        )
        return Batch(observe(self.model, self.source, rows), candidates, drawn.rows)

    def step(self, objective: Objective) -> dict[str, th.Tensor]:
        """Take one step of the policy; return what to log."""
        batch, model = self.batch(), self.model
        with th.no_grad():
            reference = model.policy.reference_actor.distribution(batch.observations)
        online = model.policy.actor.distribution(batch.observations)
        optimizers = [model.policy.actor.optimizer]
        candidates = self.weigh(reference, batch)
        metrics = policy_step(objective, optimizers, online, reference, candidates)
        return metrics | online.describe()

    def fit_normaliser(self) -> None:
        """Take the statistics of a new policy's observations from the data; old ones stay.

        Those of a VecNormalize that has seen nothing come first: the policy sees what it leaves.
        """
        self._fit_vec_normalize()
        normaliser = self.model.policy.normaliser
        if not isinstance(normaliser, ObservationNormaliser) or normaliser.count > 0:
            return  # infinite where there is nothing to normalise: no row is drawn for it
        for rows in self._some_rows():
            normaliser.update(observe(self.model, self.source, rows))

    def _fit_vec_normalize(self) -> None:
        """Take the statistics of a VecNormalize from the data, unless it has some or is given."""
        normalize = self.model.get_vec_normalize_env()
        if normalize is None or not normalize.norm_obs:
            return
        moments = normalize.obs_rms
        of_key = moments if isinstance(moments, dict) else {"": moments}
        if any(each.count >= 1.0 for each in of_key.values()):
            return
        if not normalize.training:
            warnings.warn(
                "the VecNormalize has training=False and no statistics, so the policy sees raw "
                f"observations, clipped to {normalize.clip_obs:g}: load its statistics with "
                "VecNormalize.load(), or set training=True, which takes them from the data",
                stacklevel=5,
            )
            return
        for rows in self._some_rows():
            for key, each in of_key.items():
                each.update(rows.observations[key] if key else rows.observations)

    def _some_rows(self) -> Iterator[Rows]:
        """Draw as many rows as statistics are taken from, in batches."""
        left = min(len(self.source), STATISTICS_ROWS)
        while left > 0:
            index = self.rng.integers(0, len(self.source), min(left, 8192))
            yield self.source.rows(index)
            left -= len(index)


def observe(model: Any, source: Labelled, rows: Rows) -> Any:
    """Bring a source's observations to the device, as the policy sees them."""
    observations = rows.observations
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        observations = normalize.normalize_obs(observations)
    return to_tensors(observations, source.observation_space, model.device)


def check_spaces(model: Any, source: Labelled) -> None:
    """Check that a policy can be fitted to these rows.

    :raises DatasetError: naming the spaces that differ.
    """
    theirs = channels_first_space(source.observation_space)
    if form(theirs) != form(channels_first_space(model.observation_space)):
        raise DatasetError(
            f"the observations must be in the model's space {model.observation_space}, got "
            f"{source.observation_space}: make the model with PMPO.from_spaces(policy, "
            "dataset.observation_space, dataset.action_space)"
        )
    mine, other = model.action_space, source.action_space
    same = form(mine) == form(other)
    if same and isinstance(mine, spaces.Box):
        same = np.allclose(mine.low, other.low) and np.allclose(mine.high, other.high)  # type: ignore[attr-defined]  # of one form
    if not same:
        raise DatasetError(
            f"the actions must be in the model's space {mine}, got {other}: give the data set the "
            "action_space that they were taken in"
        )


# ---------------------------------------------------------------------- the loop


class Loop(NamedTuple):
    """How long to learn, and who watches.

    :param gradient_steps: of the policy; each counts as one of SB3's timesteps.
    :param callback: SB3's, such as ``EvalCallback``; it is called after each step.
    :param log_interval: gradient steps between two lines of the log; None for no log.
    :param progress_bar: show one.
    :param reset_num_timesteps: begin to count at 0.
    :param name: of the run in TensorBoard's folder.
    """

    gradient_steps: int
    callback: MaybeCallback
    log_interval: int | None
    progress_bar: bool
    reset_num_timesteps: bool
    name: str


def run(model: Any, loop: Loop, step: Callable[[], dict[str, th.Tensor]]) -> None:
    """Take the steps, with SB3's callbacks and log.

    :param model: an algorithm of this package.
    :param step: moves the policy and returns what to log.
    """
    total_timesteps, callback = _set_up(model, loop)  # a name that SB3's progress bar looks up
    callback.on_training_start(locals(), globals())
    model.policy.set_training_mode(True)
    for number in range(1, loop.gradient_steps + 1):
        callback.on_rollout_start()  # where checkpoints are saved; nothing is collected here
        callback.on_rollout_end()
        model._update_current_progress_remaining(model.num_timesteps, total_timesteps)
        model.set_learning_rates()
        model.metrics.add(step())
        model._n_updates += 1
        model.num_timesteps += 1
        model.stored_steps = model.num_timesteps  # there is nothing to store
        if loop.log_interval is not None and (
            number % loop.log_interval == 0 or number == loop.gradient_steps
        ):
            _log(model)
        callback.update_locals(locals())
        if not callback.on_step():
            break
        model.policy.set_training_mode(True)  # an evaluation has switched it off
    model.policy.set_training_mode(False)
    callback.on_training_end()


def _set_up(model: Any, loop: Loop) -> tuple[int, BaseCallback]:
    """Do what SB3 does at the start of ``learn``, but for the environment, which stays as it is."""
    if model.env is None:  # callbacks ask for one
        model.env = spaces_only(model.observation_space, model.action_space)
    model.start_time = time.time_ns()
    if model.ep_info_buffer is None or loop.reset_num_timesteps:
        model.ep_info_buffer = deque(maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    if loop.reset_num_timesteps:
        model.num_timesteps = model.stored_steps = model._episode_num = 0
    total = model.num_timesteps + loop.gradient_steps
    model._total_timesteps = total
    model._num_timesteps_at_start = model.num_timesteps
    if not model._custom_logger:
        model._logger = configure_logger(
            model.verbose, model.tensorboard_log, loop.name, loop.reset_num_timesteps
        )
    model.metrics.clear()
    model.metrics.follow(model.logger)
    model.learner.forget_graphs()
    callback = loop.callback
    if loop.progress_bar:
        callback = [*_listed(callback), StepBar()]
    return total, cast(BaseCallback, model._init_callback(callback))


def _listed(callback: MaybeCallback) -> list[BaseCallback]:
    if callback is None or isinstance(callback, list):
        return callback or []
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]


class StepBar(ProgressBarCallback):
    """SB3's progress bar, for steps that no environment takes."""

    def _on_step(self) -> bool:
        self.pbar.update(1)
        return True


def spaces_only(observation_space: spaces.Space, action_space: spaces.Space) -> DummyVecEnv:
    """Make a vectorised environment that has these spaces and cannot be stepped."""
    return DummyVecEnv([lambda: SpacesOnly(observation_space, action_space)])


def stands_in(env: Any) -> bool:
    """Say whether a vectorised environment is one that cannot be stepped."""
    return isinstance(env, DummyVecEnv) and isinstance(env.envs[0].unwrapped, SpacesOnly)


def _log(model: Any) -> None:
    seconds = max((time.time_ns() - model.start_time) / 1e9, sys.float_info.epsilon)
    logger = model.logger
    done = model.num_timesteps - model._num_timesteps_at_start
    logger.record("time/fps", int(done / seconds))
    logger.record("time/time_elapsed", int(seconds), exclude="tensorboard")
    logger.record("time/total_timesteps", model.num_timesteps, exclude="tensorboard")
    logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
    for name, value in model.metrics.means().items():
        logger.record(f"train/{name}", value)
    logger.dump(step=model.num_timesteps)
