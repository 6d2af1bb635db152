"""The seam to Stable-Baselines3: it collects, stores, logs and saves around the learner."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.actor import Actor
from sb3_pmpo.core.e_step import Duals
from sb3_pmpo.feedback.buffer import FeedbackBuffer
from sb3_pmpo.feedback.learn import FeedbackSteps
from sb3_pmpo.heap import keep_freed_memory
from sb3_pmpo.learner import Learner, Networks, Plan, plan_updates
from sb3_pmpo.objectives import Objective
from sb3_pmpo.online.argument_checks import (
    check_arguments,
    check_first,
    check_learn,
    check_policy_fits,
    check_rate,
    warn_of_empty_buffer,
)
from sb3_pmpo.online.arguments import OWN, chosen_by_space, with_defaults
from sb3_pmpo.online.checks import check_choices, check_finite, check_finite_actions
from sb3_pmpo.online.collecting import WatchedCollecting
from sb3_pmpo.online.description import describe_model
from sb3_pmpo.online.env_checks import KeptStatistics, check_vec_normalize, checked_env
from sb3_pmpo.online.exploration import (
    ExplorationNoise,
    NoiseFactory,
    draw,
    make_noise,
    seed_of,
)
from sb3_pmpo.online.metrics import MeanMetrics
from sb3_pmpo.online.noise_checks import for_environments
from sb3_pmpo.online.written import as_object
from sb3_pmpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, PMPOPolicy
from sb3_pmpo.replay import Replay, close_open_episodes, make_replay_buffer


class OffPolicyMPO(WatchedCollecting):
    """Actor, lagged reference, critics: what PMPO, MPO and DPO share. Not for direct use.

    :param policy: the policy, see :class:`sb3_pmpo.PMPO`.
    :param env: the environment.
    :param learning_rate: of critics and actor.
    :param n_samples: S, actions the reference proposes per state.
    :param shared: see :class:`sb3_pmpo.online.arguments.SharedArguments`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: PMPOPolicy
    actor: Actor
    replay_buffer: ReplayBuffer
    pessimism: float
    actor_learning_rate: float | Schedule | None
    policy_delay: int
    reference_tau: float
    reference_update_interval: int
    exploration_noise: NoiseFactory | None
    compile: bool

    def __init__(
        self,
        policy: str | type[PMPOPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule,
        n_samples: int,
        **shared: Any,
    ) -> None:
        arguments = with_defaults(shared, type(self))
        check_first(policy, arguments, self.policy_aliases)
        checked = checked_env(env, arguments["verbose"])
        check_policy_fits(policy, checked)
        if checked is not None:  # load() chooses by the space in the file
            arguments |= chosen_by_space(arguments, checked.action_space)
        own = {name: arguments.pop(name) for name in OWN}
        super().__init__(
            policy,
            cast(GymEnv, checked),  # None for load()
            learning_rate,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete),
            support_multi_env=True,
            **arguments,
        )
        self.n_samples = n_samples
        vars(self).update(own)
        # Here, not in _setup_model: a loaded model keeps its own.
        self._reference_age = 0.0
        self.stored_steps = 0  # as num_timesteps, of which the last may not be stored yet
        self.policy_held_until = 0  # steps in which the critics alone learn
        self.has_given_weights = False  # of a policy that was learned elsewhere

    @abstractmethod
    def _make_objective(self) -> Objective:
        """Check the final class's own arguments and build its objective from them."""

    def _setup_model(self) -> None:
        # Not SB3's: that one reassigns replay_buffer_class, adds to the user's
        # replay_buffer_kwargs (so that load(gamma=...) keeps the old gamma) and refuses n-step
        # returns with Dict observations.
        check_arguments(self)
        keep_freed_memory()
        self.noise: ExplorationNoise | None = None  # made below, after what draws before it
        self.label_rng: np.random.Generator | None = None
        self.label_log_probs: np.ndarray | None = None  # of sb3_pmpo.offline.heeded
        self.label_check: list[int] = []
        self._setup_lr_schedule()
        self.actor_lr_schedule = (
            None if self.actor_learning_rate is None else FloatSchedule(self.actor_learning_rate)
        )
        self.set_random_seed(seed_of(self.seed, self.num_timesteps))
        policy_class = cast(type[PMPOPolicy], self.policy_class)
        self.policy = policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)
        self.actor, self.critic = self.policy.actor, self.policy.critic
        self.reference_actor = self.policy.reference_actor
        self.critic_target = self.policy.critic_target
        self.objective = self._make_objective()
        self.duals: Duals | None = None
        if self.objective.duals is not None:
            self.duals = self.objective.duals.to(self.device)
        networks = Networks(self.actor, self.reference_actor, self.critic, self.critic_target)
        self.learner = Learner(networks, self.objective, self.device, capture=self.compile)
        if self.compile and self.learner.graphs is None:  # within a graph it would gain nothing
            self.policy.compile_networks()
        # After the policy, which takes the memory that was freed before: the buffer's zeros then
        # lie in fresh pages, which cost nothing until they are filled.
        if self.replay_buffer is None:
            self.replay_buffer = make_replay_buffer(self)
        self._convert_train_freq()
        self.noise = self._make_noise()
        self.discounted_returns = np.zeros(self.n_envs)
        self.metrics = MeanMetrics()
        self._kept, self._left_at = KeptStatistics(None), None
        self._awaits_step, self._given = False, ()
        self.statistics_due = True
        self._feedback: FeedbackSteps | None = None
        self.given_labels: FeedbackBuffer | None = None  # those of the last learn()

    n_updates = property(lambda self: self._n_updates, doc="Updates of the critics so far.")

    def _make_noise(self) -> ExplorationNoise | None:
        # From NumPy's global generator, which set_random_seed has just seeded.
        factory = as_object("exploration_noise", self.exploration_noise)
        return make_noise(factory, self.n_envs, self.action_space)

    def __str__(self) -> str:
        return describe_model(self)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed as SB3 does, also the exploration noise and what draws labelled rows."""
        super().set_random_seed(seed)
        if seed is not None:
            self.noise = None if self.noise is None else self._make_noise()
            self.label_rng = None  # made anew from NumPy's generator, once there are labels

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Set as SB3 does; the open episodes end, and a HER buffer computes rewards by this one."""
        before = self.env
        super().set_env(cast(GymEnv, checked_env(env, self.verbose)), force_reset)
        buffer = self.replay_buffer
        if buffer is not None and (force_reset or self.env is not before):
            close_open_episodes(buffer)
            self.forget_episodes()
        if isinstance(buffer, HerReplayBuffer):
            buffer.env = cast(VecEnv, self.env)

    # ------------------------------------------------------------------ the update

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Do ``gradient_steps`` updates of critics and policy on batches from the buffer."""
        if self.statistics_due:  # a buffer may have been filled by hand, or from a file
            self.complete_statistics()
            self.statistics_due = False
        self.policy.set_training_mode(True)
        self.set_learning_rates()
        # Made anew: buffer, n_steps and gamma may have been changed.
        replay = Replay(self.replay_buffer, self.n_steps, self.gamma)
        while gradient_steps > 0:
            together = min(gradient_steps, self.policy_delay)
            normalize, remaining = self._vec_normalize_env, self._current_progress_remaining
            batch = replay.sample(together * batch_size, normalize, remaining, together)
            plan = self._plan(together)
            metrics, errors = self.learner(batch, plan)
            replay.update_priorities(batch.indices, errors)
            for values in metrics:
                self.metrics.add(values)
            if self._feedback is not None and any(moves.policy for moves in plan.updates):
                self.metrics.add(self._feedback())
            self._count(plan)
            gradient_steps -= together
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in self.metrics.means().items():
            self.logger.record(f"train/{name}", value)

    def _plan(self, number: int) -> Plan:
        """Say what each of the next updates moves."""
        return plan_updates(
            range(self._n_updates, self._n_updates + number),
            policy_delay=self.policy_delay,
            tau=self.tau,
            reference_tau=self.reference_tau,
            reference_update_interval=self.reference_update_interval,
            n_samples=self.n_samples,
            pessimism=self.pessimism,
            policy_held=self.num_timesteps < self.policy_held_until,
        )

    def _count(self, plan: Plan) -> None:
        """Count the updates that were done."""
        for moves in plan.updates:
            self._n_updates += 1
            self._reference_age = (self._reference_age + 1.0) * (1.0 - moves.reference_tau)
            self.metrics.add_number("reference_age", self._reference_age)

    def set_learning_rates(self) -> None:
        """Give the optimisers the rates of the remaining progress, and log them."""
        # Below 0 where several environments overshoot the last step: a linear schedule would climb.
        progress = max(self._current_progress_remaining, 0.0)
        critic_rate = self.lr_schedule(progress)
        actor_rate = self.actor_lr_schedule(progress) if self.actor_lr_schedule else critic_rate
        check_rate(f"learning_rate at progress {progress}", critic_rate)
        check_rate(f"actor_learning_rate at progress {progress}", actor_rate)
        self.learner.set_learning_rates(critic_rate, actor_rate)
        self.logger.record("train/learning_rate", critic_rate)
        self.logger.record("train/actor_learning_rate", actor_rate)

    # ------------------------------------------------------------------ collecting

    def _sample_action(
        self,
        learning_starts: int,
        action_noise: ActionNoise | None = None,
        n_envs: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw actions as SB3 does, with the policy's own noise correlated in time."""
        self.before_step()
        if self.noise is None or self.num_timesteps < learning_starts:
            drawn = super()._sample_action(learning_starts, action_noise, n_envs)
        else:
            drawn = draw(self.policy, self._last_obs, self.noise, action_noise)
        check_finite_actions(drawn[0], self.num_timesteps, self.policy)
        self.expect_step()
        return drawn

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
        with self.refusing():
            raw_obs = new_obs if normalize is None else normalize.get_original_obs()
            raw_reward = reward if normalize is None else normalize.get_original_reward()
            check_finite(raw_obs, raw_reward, infos, self.num_timesteps)
            check_choices(new_obs, self.observation_space, self.num_timesteps)
            self.policy.update_statistics(new_obs, self._advance_returns(reward, dones))
        if self.noise is not None:
            for env in np.flatnonzero(dones):
                self.noise.reset(int(env))
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self.stored_steps = self.num_timesteps

    def _advance_returns(self, reward: np.ndarray, dones: np.ndarray) -> np.ndarray:
        """Add the rewards to each environment's discounted return so far; ``[n_envs]``."""
        returns = self.gamma * self.discounted_returns + reward
        self.discounted_returns = np.where(dones, 0.0, returns)
        return returns

    # ------------------------------------------------------------------ SB3's interface

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        check_learn(self.env, total_timesteps, callback)
        name = type(self).__name__ if tb_log_name == "run" else tb_log_name  # SB3's default
        if not reset_num_timesteps:
            warn_of_empty_buffer(self)
        if self.num_timesteps >= self.policy_held_until:  # released, also where steps count anew
            self.policy_held_until = 0
        # A callback that stopped it, or an error, left a step that is not stored.
        goes_on = not reset_num_timesteps and self._last_obs is not None and self.is_between_steps
        if not goes_on:  # the environment will be reset
            self.begin_new_episodes()
        else:
            self.end_other_episodes()
        noise = for_environments(self.action_noise, self.n_envs)
        check_vec_normalize(self._vec_normalize_env)
        kept = KeptStatistics(self._vec_normalize_env)
        self.action_noise = None if goes_on else noise
        try:  # not OffPolicyAlgorithm's: it makes a termination of the end of a cut episode
            total_timesteps, callback = super(OffPolicyAlgorithm, self)._setup_learn(
                total_timesteps, callback, reset_num_timesteps, name, progress_bar
            )
        finally:
            self.action_noise = noise  # SB3 has reset it, but not within an episode
        self.stored_steps = self.num_timesteps
        self.metrics.follow(self.logger)
        self.learner.forget_graphs()  # arguments may have been changed since
        self.check_first_observations(kept)
        return total_timesteps, callback
