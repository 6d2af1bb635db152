"""The abstract off-policy algorithm of the MPO family, with the only online ``train()``.

Axes: N critics, K quantiles, S samples, B transitions, A action dimensions.
"""

from __future__ import annotations

import io
import pathlib
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.actor_critic import Actor, Critic
from sb3_pmpo.checks import check_arguments, check_finite, check_finite_actions
from sb3_pmpo.core.duals import Duals
from sb3_pmpo.core.preference import Candidates
from sb3_pmpo.core.td import quantile_critic_gradient, td_target
from sb3_pmpo.distributions import Distribution
from sb3_pmpo.exploration import ExplorationNoise
from sb3_pmpo.files import whole_file
from sb3_pmpo.graphs import (
    CudaGraphs,
    has_plain_rate,
    is_capturable,
    set_capturable,
    set_learning_rate,
)
from sb3_pmpo.memory import keep_freed_memory
from sb3_pmpo.metrics import MeanMetrics, grad_norm, sample_metrics
from sb3_pmpo.networks import LaggedCopy, fastest_dtype
from sb3_pmpo.objectives import Objective
from sb3_pmpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, PMPOPolicy
from sb3_pmpo.replay import (
    Batch,
    Replay,
    adopt_replay_buffer,
    close_open_episodes,
    make_replay_buffer,
)

SelfMPOFamily = TypeVar("SelfMPOFamily", bound="OffPolicyMPO")
NoiseFactory = Callable[[int, int, int], ExplorationNoise]

#: Samples that average the value of the next state. More cost time and only lower a variance that
#: is small beside that of the transitions: 1, 2 and 8 give equally good scores, as
#: benchmarks/trials.md has it.
BOOTSTRAP_SAMPLES = 1

#: Samples that average the value which a labeller may compare its candidates with.
BASELINE_SAMPLES = 2


class Moves(NamedTuple):
    """What an update moves besides the critics and their target."""

    policy: bool
    reference: bool


#: The moves of each of the updates that share a sampled batch.
Plan = tuple[Moves, ...]


class OffPolicyMPO(OffPolicyAlgorithm):
    """Actor, lagged reference, critics: what PMPO, MPO and DPO share. Not for direct use.

    An update: the critics regress to an n-step TD target; the reference proposes S actions a
    state, the critics' mean scores them in one call without gradient, and the policy steps on
    the objective of the final class. See :class:`sb3_pmpo.PMPO` for the arguments.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: PMPOPolicy
    actor: Actor
    reference_actor: Actor
    critic: Critic
    critic_target: Critic
    duals: Duals | None
    replay_buffer: ReplayBuffer

    def __init__(
        self,
        policy: str | type[PMPOPolicy],
        env: GymEnv | str,
        *,
        learning_rate: float | Schedule,
        buffer_size: int,
        learning_starts: int,
        batch_size: int,
        tau: float,
        gamma: float,
        train_freq: int | tuple[int, str],
        gradient_steps: int,
        action_noise: ActionNoise | None,
        replay_buffer_class: type[ReplayBuffer] | None,
        replay_buffer_kwargs: dict[str, Any] | None,
        optimize_memory_usage: bool,
        n_steps: int,
        pessimism: float,
        actor_learning_rate: float | Schedule | None,
        n_samples: int,
        policy_delay: int,
        reference_tau: float,
        reference_update_interval: int,
        exploration_noise: NoiseFactory | None,
        compile: bool,
        use_sde: bool,
        stats_window_size: int,
        tensorboard_log: str | None,
        policy_kwargs: dict[str, Any] | None,
        verbose: int,
        seed: int | None,
        device: th.device | str,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            use_sde=use_sde,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete),
            support_multi_env=True,
        )
        self.actor_learning_rate = actor_learning_rate
        self.pessimism = pessimism
        self.n_samples = n_samples
        self.policy_delay = policy_delay
        self.reference_tau = reference_tau
        self.reference_update_interval = reference_update_interval
        self.exploration_noise = exploration_noise
        self.compile = compile
        self._reference_age = 0.0  # here, not in _setup_model: a loaded model keeps its own

    @abstractmethod
    def _make_objective(self) -> Objective:
        """Check the final class's own arguments and build its objective from them."""

    def _is_gaussian(self) -> bool:
        """Say whether the policy is Gaussian: the actions' space is a Box, not discretised."""
        is_box = isinstance(self.action_space, spaces.Box)
        return is_box and self.policy_kwargs.get("n_bins") is None

    def _setup_model(self) -> None:
        # Not SB3's: that one reassigns replay_buffer_class, adds to the user's
        # replay_buffer_kwargs (so that load(gamma=...) keeps the old gamma) and refuses n-step
        # returns with Dict observations.
        check_arguments(self)
        keep_freed_memory()
        self._noise: ExplorationNoise | None = None  # made below, after what draws before it
        self._setup_lr_schedule()
        self.actor_lr_schedule = (
            None if self.actor_learning_rate is None else FloatSchedule(self.actor_learning_rate)
        )
        self.set_random_seed(self.seed)
        self.objective = self._make_objective()
        self.duals = None if self.objective.duals is None else self.objective.duals.to(self.device)
        policy_class = cast(type[PMPOPolicy], self.policy_class)
        self.policy = policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)
        self.actor = self.policy.actor
        self.reference_actor = self.policy.reference_actor
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target
        self._graphs = self._make_graphs()
        if self.compile and self._graphs is None:  # within a graph it would gain nothing
            self.policy.compile_networks()
        self._prepare_optimizers()
        for optimizer in self._optimizers():
            optimizer.register_load_state_dict_post_hook(lambda _: self._prepare_optimizers())
        # After the policy, which takes the memory that was freed before: the buffer's zeros then
        # lie in fresh pages, which cost nothing until they are filled.
        if self.replay_buffer is None:
            self.replay_buffer = make_replay_buffer(self)
        self._convert_train_freq()
        self._critic_lag = LaggedCopy(self.critic, self.critic_target)
        self._reference_lag = LaggedCopy(self.actor, self.reference_actor)
        self._noise = self._make_noise()
        self._discounted_returns = np.zeros(self.n_envs)
        self._metrics = MeanMetrics()
        self._fast_dtype = fastest_dtype(self.device)

    def _make_graphs(self) -> CudaGraphs[Batch, Plan, list[dict[str, th.Tensor]]] | None:
        if not self.compile or self.device.type != "cuda":
            return None
        if not all(map(is_capturable, self._optimizers())):
            warnings.warn(
                f"compile=True runs without CUDA graphs with {type(self.actor.optimizer).__name__}:"
                " torch's Adam, AdamW or RMSprop can be captured",
                stacklevel=2,
            )
            return None
        return CudaGraphs(self._do_updates, self.device)

    def _optimizers(self) -> list[th.optim.Optimizer]:
        duals = [] if self.duals is None else [self.duals.optimizer]
        return [self.actor.optimizer, self.critic.optimizer, *duals]

    def _prepare_optimizers(self) -> None:
        """Bring the optimisers, new or loaded, to the way in which the update runs."""
        for optimizer in self._optimizers():
            set_capturable(optimizer, None if self._graphs is None else self.device)
        if self._graphs is not None:
            self._graphs.clear()

    def _make_noise(self) -> ExplorationNoise | None:
        # Discrete actions have no order in which a draw could resemble the one before.
        if self.exploration_noise is None or not isinstance(self.action_space, spaces.Box):
            return None
        # From NumPy's global generator, which set_random_seed has just seeded.
        seed = np.random.randint(2**31)
        return self.exploration_noise(self.n_envs, get_action_dim(self.action_space), seed)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed as SB3 does, and the exploration noise."""
        super().set_random_seed(seed)
        if seed is not None and self._noise is not None:
            self._noise = self._make_noise()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Set as SB3 does; a HER buffer that was made without an environment takes this one."""
        before = self.env
        super().set_env(env, force_reset)
        buffer = self.replay_buffer
        if buffer is not None and (force_reset or self.env is not before):
            close_open_episodes(buffer)
        if isinstance(buffer, HerReplayBuffer) and buffer.env is None:
            buffer.set_env(cast(VecEnv, self.env))

    # ------------------------------------------------------------------ the update

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Do ``gradient_steps`` updates of critics and policy on batches from the buffer."""
        if "train/n_updates" not in self.logger.name_to_value:  # the log was written: a new mean
            self._metrics.clear()
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        while gradient_steps > 0:
            together = min(gradient_steps, self.policy_delay)
            batch = self._sample_batch(together * batch_size)
            plan = self._plan(together)
            for values in (self._graphs or self._do_updates)(batch, plan):
                self._metrics.add(values)
            self._count(plan)
            gradient_steps -= together
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in self._metrics.means().items():
            self.logger.record(f"train/{name}", value)

    def _plan(self, number: int) -> Plan:
        """Say what each of the next updates moves besides the critics; the first moves it all."""
        updates = range(self._n_updates, self._n_updates + number)
        return tuple(
            Moves(
                policy=update % self.policy_delay == 0,
                reference=(update + 1) % self.reference_update_interval == 0,
            )
            for update in updates
        )

    def _count(self, plan: Plan) -> None:
        """Count the updates that were done."""
        for moves in plan:
            self._n_updates += 1
            self._reference_age += 1.0
            if moves.reference:
                self._reference_age *= 1.0 - self.reference_tau
            self._metrics.add_number("reference_age", self._reference_age)

    def _do_updates(self, batch: Batch, plan: Plan) -> list[dict[str, th.Tensor]]:
        """Update critics and policy as planned, each time on the next part of the batch.

        TD targets are computed for the whole batch: it serves as many updates as share a policy
        update, the lagged networks hardly move meanwhile, and one call costs about half of what
        four do.

        :return: what to log.
        """
        self._scale_output_rate()
        targets = self._td_target(batch)
        size = len(targets) // len(plan)
        metrics = []
        for start, moves in zip(range(0, len(targets), size), plan, strict=True):
            rows = slice(start, start + size)
            part = batch.map(itemgetter(rows))
            metrics.append(self._critic_step(part, targets[rows]))
            if moves.policy:
                metrics.append(self._policy_step(part.observations))
            self._critic_lag.move(self.tau)
            if moves.reference:
                self._reference_lag.move(self.reference_tau)
        return metrics

    def _set_learning_rates(self) -> None:
        if self._graphs is not None and any(map(has_plain_rate, self._optimizers())):
            self._prepare_optimizers()  # somebody has put a number there, which no graph reads
        progress = self._current_progress_remaining
        critic_rate = self.lr_schedule(progress)
        actor_rate = self.actor_lr_schedule(progress) if self.actor_lr_schedule else critic_rate
        set_learning_rate(self.critic.optimizer.param_groups[0], critic_rate)
        for group in self.actor.optimizer.param_groups:
            set_learning_rate(group, actor_rate)
        self.logger.record("train/learning_rate", critic_rate)
        self.logger.record("train/actor_learning_rate", actor_rate)

    def _scale_output_rate(self) -> None:
        """Give the critics' output layer its learning rate, in units of the returns.

        Values are in units of the reward, and Adam's steps have no unit: without this, large
        returns are learned slowly and small ones drown in noise.
        """
        body, output = self.critic.optimizer.param_groups
        scale = float(self.critic.scale) if self._graphs is None else self.critic.scale
        set_learning_rate(output, body["lr"] * scale)

    def _sample_batch(self, batch_size: int) -> Batch:
        replay = Replay(self.replay_buffer, self.n_steps, self.gamma)  # what is current of each
        progress = self._current_progress_remaining
        return replay.sample(batch_size, self._vec_normalize_env, progress)

    def _candidates(self, observations: PyTorchObs) -> tuple[Distribution, Candidates]:
        """Let the reference propose what the policy step labels, by the critics' mean."""
        reference, scored = self._score(observations, self.n_samples, th.float32)
        return reference, scored._replace(
            # Actions that clip to one point tie in Q; the one nearer to the box is the better.
            tie_break=reference.overshoot(cast(th.Tensor, scored.actions)),
            value=partial(self._value, observations),
        )

    def _value(self, observations: PyTorchObs) -> th.Tensor:
        """Compute the reference's expected value ``[B]``, by the critics' mean."""
        return self._score(observations, BASELINE_SAMPLES, self._fast_dtype)[1].mean_score()

    @th.no_grad()
    def _score(
        self, observations: PyTorchObs, n_samples: int, actor_dtype: th.dtype
    ) -> tuple[Distribution, Candidates]:
        """Let the reference propose actions, or list all there are, and the critics score them.

        In a Box the scores are those of the actions clipped to it, which the environment applies.

        :param actor_dtype: of the reference's body; float32 where a KL to it follows.
        """
        reference = self.reference_actor.distribution(observations, actor_dtype)
        actions, counts = reference.propose(n_samples)
        q_values = self.critic_target.q_values(observations, actions, self._fast_dtype)
        return reference, Candidates(q_values.mean(0), actions, counts=counts)

    @th.no_grad()
    def _td_target(self, batch: Batch) -> th.Tensor:
        """Bootstrap from the reference's return, ``[B, K]``, less where the critics disagree.

        What the critics overestimate, the policy goes for, and a target hands it on from state to
        state. Halfway from the critics' mean to the lowest one is, with two of them, the soft
        clipped double Q of BCQ (Fujimoto et al., 2019, lambda of 0.75).
        """
        observations = batch.next_observations
        reference = self.reference_actor.distribution(observations, self._fast_dtype)
        actions, counts = reference.propose(BOOTSTRAP_SAMPLES)
        quantiles = self.critic_target.quantiles(observations, actions, self._fast_dtype)
        q_values = quantiles.mean(-1)
        penalty = self.pessimism * (q_values.mean(0) - q_values.amin(0))
        lowered = quantiles.mean(0) - penalty.unsqueeze(-1)  # [S, B, K]
        counts = None if counts is None else counts.unsqueeze(-1)
        following = Candidates(lowered, counts=counts).mean_score()
        return td_target(batch.rewards, batch.dones, batch.discounts, following)

    def _critic_step(self, batch: Batch, target: th.Tensor) -> dict[str, th.Tensor]:
        quantiles = self.critic.quantiles(
            batch.observations, batch.actions.unsqueeze(0), self._fast_dtype
        )[:, 0]
        scale = self.critic.scale
        self.critic.optimizer.zero_grad()
        quantiles.backward(quantile_critic_gradient(quantiles, target, scale))
        norm = grad_norm(self.critic.optimizer)
        self.critic.optimizer.step()
        q_values = quantiles.detach().mean(-1)
        errors = (q_values - target.mean(-1)) / scale
        return {
            "critic_loss": 0.5 * errors.square().mean(-1).sum(),
            "critic_grad_norm": norm,
            "q_value": q_values.mean(),
            "return_scale": scale.mean(),
        }

    def _policy_step(self, observations: PyTorchObs) -> dict[str, th.Tensor]:
        reference, candidates = self._candidates(observations)
        loss, terms = self.objective(self.actor.distribution(observations), reference, candidates)
        optimizers = [self.actor.optimizer]
        if self.duals is not None:
            optimizers.append(self.duals.optimizer)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        norm = grad_norm(self.actor.optimizer)
        for optimizer in optimizers:
            optimizer.step()
        if self.duals is not None:
            self.duals.clamp_()
        return {
            **terms,
            "actor_loss": loss.detach(),
            "actor_grad_norm": norm,
            **sample_metrics(reference, candidates),
        }

    # ------------------------------------------------------------------ collecting

    def _sample_action(
        self,
        learning_starts: int,
        action_noise: ActionNoise | None = None,
        n_envs: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw actions as SB3 does, with the policy's own noise correlated in time."""
        if self._noise is None or self.num_timesteps < learning_starts:
            drawn = super()._sample_action(learning_starts, action_noise, n_envs)
        else:
            drawn = self._draw_correlated(self._noise, action_noise)
        check_finite_actions(drawn[0], self.num_timesteps)
        return drawn

    def _draw_correlated(
        self, source: ExplorationNoise, action_noise: ActionNoise | None
    ) -> tuple[np.ndarray, np.ndarray]:
        observations, _ = self.policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]  # set in _setup_learn
        with th.no_grad():
            noise = th.as_tensor(source(), device=self.device)
            actions = self.actor.distribution(observations).at_quantile(noise)
            scaled = actions.cpu().numpy().reshape(-1, *self.action_space.shape)  # type: ignore[misc]  # a Box has a shape
        if action_noise is not None:
            scaled = scaled + action_noise()
        scaled = np.clip(scaled, -1.0, 1.0).astype(np.float32)
        return self.policy.unscale_action(scaled), scaled

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Refuse what is not finite, gather the policy's statistics, then store as SB3 does."""
        normalize = self._vec_normalize_env
        raw_obs = new_obs if normalize is None else normalize.get_original_obs()
        raw_reward = reward if normalize is None else normalize.get_original_reward()
        check_finite(raw_obs, raw_reward, infos, self.num_timesteps)
        self.policy.update_statistics(new_obs, self._advance_returns(reward, dones))
        if self._noise is not None:
            for env in np.flatnonzero(dones):
                self._noise.reset(int(env))
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _advance_returns(self, reward: np.ndarray, dones: np.ndarray) -> np.ndarray:
        """Add the rewards to each environment's discounted return so far; ``[n_envs]``."""
        returns = self.gamma * self._discounted_returns + reward
        self._discounted_returns = np.where(dones, 0.0, returns)
        return returns

    # ------------------------------------------------------------------ SB3's interface

    def learn(
        self: SelfMPOFamily,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMPOFamily:
        """Collect and train, as SB3's algorithms do; ``tb_log_name`` is the class's name."""
        return super().learn(
            total_timesteps,
            callback,
            log_interval,
            tb_log_name or type(self).__name__,
            reset_num_timesteps,
            progress_bar,
        )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        resumed = not reset_num_timesteps and self.num_timesteps > self.learning_starts
        if resumed and self.replay_buffer.size() == 0:
            warnings.warn(
                f"Training resumes at step {self.num_timesteps} with an empty replay buffer: the "
                "first updates see almost no data. Call load_replay_buffer() first, or collect "
                "anew with reset_num_timesteps=True.",
                stacklevel=3,
            )
        if self.env is None:
            raise ValueError("learn() needs an environment: call set_env(env) first")
        if reset_num_timesteps or self._last_obs is None:  # the environment will be reset
            close_open_episodes(self.replay_buffer)
        noise = self.action_noise
        if noise is not None and self.n_envs > 1 and not isinstance(noise, VectorizedActionNoise):
            self.action_noise = VectorizedActionNoise(noise, self.n_envs)
        # Not OffPolicyAlgorithm's: it makes a termination of the end of a cut episode.
        total_timesteps, callback = super(OffPolicyAlgorithm, self)._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if self._graphs is not None:  # arguments may have been changed since
            self._graphs.clear()
        # VecNormalize has clipped what was infinite and spread what was NaN by now.
        raw_obs = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
        check_finite(raw_obs, np.zeros(self.n_envs), [], self.num_timesteps)  # type: ignore[arg-type]  # set by super()
        return total_timesteps, callback

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save as SB3 does, in one atomic step: a crash leaves the file that was there."""
        with whole_file(path, "zip") as file:
            super().save(file, exclude, include)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Save as SB3 does, in one atomic step: a crash leaves the file that was there."""
        with whole_file(path, "pkl") as file:
            super().save_replay_buffer(file)

    def load_replay_buffer(
        self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True
    ) -> None:
        """Load a saved buffer; its n-step returns then use this model's ``gamma``, ``n_steps``."""
        super().load_replay_buffer(path, truncate_last_traj=False)
        if truncate_last_traj:
            close_open_episodes(self.replay_buffer)
        adopt_replay_buffer(self)

    def _excluded_save_params(self) -> list[str]:
        derived = ["actor", "reference_actor", "critic", "critic_target", "objective", "duals"]
        made = ["_critic_lag", "_reference_lag", "_noise", "_metrics", "_fast_dtype", "_graphs"]
        return [*super()._excluded_save_params(), *derived, *made]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        duals = [] if self.duals is None else ["duals", "duals.optimizer"]
        return ["policy", "actor.optimizer", "critic.optimizer", *duals], []
