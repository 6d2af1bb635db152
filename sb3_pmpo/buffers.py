"""n-step replay where SB3 has none: Dict observations, and the memory-efficient variant.

Axes: B transitions, n steps.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer


class NStepWindow(NamedTuple):
    """n-step returns of sampled transitions.

    :param returns: ``[B, 1]`` discounted sum of the rewards up to the window's end.
    :param discounts: ``[B, 1]`` gamma to the power of the steps summed.
    :param dones: ``[B, 1]`` 1 where the window ended in a termination.
    :param last: ``[B]`` index of the window's last transition.
    """

    returns: np.ndarray
    discounts: np.ndarray
    dones: np.ndarray
    last: np.ndarray


def n_step_window(
    buffer: ReplayBuffer,
    batch_inds: np.ndarray,
    env_inds: np.ndarray,
    env: VecNormalize | None,
    *,
    n_steps: int,
    gamma: float,
) -> NStepWindow:
    """Sum rewards over up to ``n_steps``, stopping at an episode's end and at the newest entry.

    A window that a time limit or the newest entry cuts short bootstraps from where it stops.

    :param buffer: holds rewards, dones and timeouts ``[size, n_envs]``.
    :param batch_inds: ``[B]`` first transition of each window.
    :param env_inds: ``[B]`` environment of each window.
    :param env: normalises the rewards, if given.
    :param n_steps: n, at least 1.
    :param gamma: discount of one step.
    """
    index = (batch_inds[:, None] + np.arange(n_steps)) % buffer.buffer_size  # [B, n]
    column = env_inds[:, None]
    ended = buffer.dones[index, column] > 0
    stops = ended | (index == (buffer.pos - 1) % buffer.buffer_size)
    # Index of the first stop; the last step of the window where there is none.
    length = np.where(stops.any(1), stops.argmax(1), n_steps - 1) + 1  # [B]
    inside = np.arange(n_steps) < length[:, None]
    rewards = buffer._normalize_reward(buffer.rewards[index, column], env)
    weights = inside * gamma ** np.arange(n_steps, dtype=np.float32)
    last = (batch_inds + length - 1) % buffer.buffer_size
    dones = buffer.dones[last, env_inds] * (1.0 - buffer.timeouts[last, env_inds])
    return NStepWindow(
        returns=(rewards * weights).sum(1, keepdims=True).astype(np.float32),
        discounts=(gamma ** length[:, None].astype(np.float32)).astype(np.float32),
        dones=dones[:, None].astype(np.float32),
        last=last,
    )


class NStepDictReplayBuffer(DictReplayBuffer):
    """SB3's DictReplayBuffer that samples n-step transitions.

    :param n_steps: how many rewards to sum.
    :param gamma: discount of one step.
    """

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_steps = n_steps
        self.gamma = gamma

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        env_inds = np.random.randint(0, self.n_envs, size=batch_inds.shape)
        window = n_step_window(
            self, batch_inds, env_inds, env, n_steps=self.n_steps, gamma=self.gamma
        )

        def gather(source: dict[str, np.ndarray], index: np.ndarray) -> dict[str, Any]:
            picked = self._normalize_obs(
                {key: value[index, env_inds] for key, value in source.items()}, env
            )
            assert isinstance(picked, dict)  # a dict goes in
            return {key: self.to_torch(value) for key, value in picked.items()}

        return DictReplayBufferSamples(
            observations=gather(self.observations, batch_inds),
            actions=self.to_torch(self.actions[batch_inds, env_inds]),
            next_observations=gather(self.next_observations, window.last),
            dones=self.to_torch(window.dones),
            rewards=self.to_torch(window.returns),
            discounts=self.to_torch(window.discounts),
        )


class MemoryEfficientNStepReplayBuffer(NStepReplayBuffer):
    """SB3's NStepReplayBuffer with ``optimize_memory_usage=True``, which SB3's refuses.

    The next observation is the following entry's observation.
    """

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        # SB3's NStepReplayBuffer.__init__ only adds the refusal and these two attributes.
        ReplayBuffer.__init__(self, *args, **kwargs)
        self.n_steps = n_steps
        self.gamma = gamma

    def _get_samples(
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        env_inds = np.random.randint(0, self.n_envs, size=batch_inds.shape)
        window = n_step_window(
            self, batch_inds, env_inds, env, n_steps=self.n_steps, gamma=self.gamma
        )
        following = (window.last + 1) % self.buffer_size
        data = (
            self._normalize_obs(self.observations[batch_inds, env_inds], env),
            self.actions[batch_inds, env_inds],
            self._normalize_obs(self.observations[following, env_inds], env),
            window.dones,
            window.returns,
            window.discounts,
        )
        return ReplayBufferSamples(*map(self.to_torch, data))


_N_STEP_BUFFERS = (NStepReplayBuffer, NStepDictReplayBuffer)


def make_replay_buffer(model: OffPolicyAlgorithm) -> ReplayBuffer:
    """Make the buffer that the arguments of a model ask for, changing none of them.

    :param model: an algorithm with its environment's spaces known.
    """
    kwargs = dict(model.replay_buffer_kwargs)
    settings = _n_step_settings(model)
    buffer_class = model.replay_buffer_class or _default_class(model, settings["n_steps"])
    if issubclass(buffer_class, _N_STEP_BUFFERS):
        kwargs |= settings
    elif model.n_steps > 1:
        warnings.warn(
            f"`n_steps={model.n_steps}` is ignored because a custom `replay_buffer_class` "
            f"(`{buffer_class.__name__}`) was passed: give it what it needs in "
            "`replay_buffer_kwargs`, or leave `replay_buffer_class` at None",
            stacklevel=2,
        )
    if issubclass(buffer_class, HerReplayBuffer):
        kwargs["env"] = model.env
    return buffer_class(
        model.buffer_size,
        model.observation_space,
        model.action_space,
        device=model.device,
        n_envs=model.n_envs,
        optimize_memory_usage=model.optimize_memory_usage,
        **kwargs,
    )


def _default_class(model: OffPolicyAlgorithm, n_steps: int) -> type[ReplayBuffer]:
    if isinstance(model.observation_space, spaces.Dict):
        return NStepDictReplayBuffer if n_steps > 1 else DictReplayBuffer
    if n_steps == 1:
        return ReplayBuffer
    return MemoryEfficientNStepReplayBuffer if model.optimize_memory_usage else NStepReplayBuffer


def sync_n_step(model: OffPolicyAlgorithm) -> None:
    """Give a model's loaded buffer the n-step settings of its arguments, where it has any."""
    buffer = model.replay_buffer
    if isinstance(buffer, _N_STEP_BUFFERS):
        for name, value in _n_step_settings(model).items():
            setattr(buffer, name, value)
    elif model.n_steps > 1:
        warnings.warn(
            f"`n_steps={model.n_steps}` is ignored: the loaded replay buffer is a "
            f"{type(buffer).__name__}, which samples single steps; collect anew, or load the "
            "buffer of a model with n_steps > 1",
            stacklevel=3,
        )


def _n_step_settings(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """Take ``n_steps`` and ``gamma`` from ``replay_buffer_kwargs``, else from the model.

    A class that the user brings keeps its own ``n_steps`` if nobody asks for more than one.
    """
    settings: dict[str, Any] = {"gamma": model.gamma}
    if model.replay_buffer_class is None or model.n_steps > 1:
        settings["n_steps"] = model.n_steps
    given = model.replay_buffer_kwargs
    return settings | {key: given[key] for key in ("n_steps", "gamma") if key in given}
