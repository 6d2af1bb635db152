"""PMPO: preference-based maximum a posteriori policy optimisation."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_pmpo.checks import check_number
from sb3_pmpo.core.losses import check_alpha_beta, instability
from sb3_pmpo.core.preference import Advantage, Candidates, Labeller, advantage, top_k
from sb3_pmpo.exploration import pink_or_white_noise
from sb3_pmpo.objectives import PMPOObjective
from sb3_pmpo.off_policy import NoiseFactory, OffPolicyMPO
from sb3_pmpo.policies import PMPOPolicy

#: The paper's S = 4, top 2 accepted, bottom 2 rejected, joint KL (Sec. 5.2), with its three pairs
#: of alpha and beta. The reference is refreshed every N updates; N = 100 is the bandits' (5.1).
PAPER: dict[str, Any] = {
    "n_samples": 4,
    "labeller": top_k(2),
    "decoupled": False,
    "edge_barrier": 0.0,
    "pessimism": 0.0,
    "reference_tau": 1.0,
    "reference_update_interval": 100,
}
PAPER_AR: dict[str, Any] = PAPER | {"alpha": 0.5, "beta": 0.5}
PAPER_A: dict[str, Any] = PAPER | {"alpha": 1.0, "beta": 0.0}
PAPER_R: dict[str, Any] = PAPER | {"alpha": 0.0, "beta": 2.0}

#: The measured best KL weights (benchmarks/trials.md): of mean and std with labels that weigh the
#: same in every state and with advantage(), and of logits.
GAUSSIAN_BETA = (1.0, 20.0)
ADVANTAGE_BETA = (0.2, 100.0)
CATEGORICAL_BETA = 5.0


class PMPO(OffPolicyMPO):
    """Learn from accepted and rejected actions, labelled by a TD-learned critic (Eq. 10).

    What SAC and TD3 also take has their names and meaning.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a policy class.
    :param env: the environment, or its registered name; actions in a bounded Box, Discrete or
        MultiDiscrete.
    :param learning_rate: of the critics, and of the actor unless it has its own; a number, or a
        function of the remaining progress (from 1 to 0).
    :param buffer_size: transitions kept for replay.
    :param learning_starts: steps of uniformly random actions before the first update.
    :param batch_size: B, transitions an update.
    :param tau: share by which the critic target moves at each update, in [0, 1].
    :param gamma: discount factor, in [0, 1].
    :param train_freq: collect this many steps between updates, or ``(n, "episode")``.
    :param gradient_steps: updates after each collection; -1 for as many as steps were collected.
    :param action_noise: added to the policy's own exploration.
    :param replay_buffer_class: e.g. ``HerReplayBuffer``; chosen by the observation space if None.
        Its ``sample`` is asked for the batches of up to ``policy_delay`` updates in one call. One
        for n-step returns (SB3's ``NStepReplayBuffer`` or a subclass) gets ``n_steps``, ``gamma``.
    :param replay_buffer_kwargs: its arguments.
    :param optimize_memory_usage: store each observation once.
    :param n_steps: n-step returns, also for Dict observations. More are faster to learn where the
        reward is sparse, and hold the policy to what older ones did: there is no correction.
    :param pessimism: what the TD target bootstraps from, in [0, 1]: from the mean of the target
        critics (0) to the lowest of them (1). Less explores more; more holds where the critics
        believe in what does not come.
    :param actor_learning_rate: the actor's, if not ``learning_rate``.
    :param alpha: weight of the accepted samples, in [0, 1]; the rejected weigh ``1 - alpha``.
    :param beta: weight of ``KL(reference || policy)``, >= 0: one number, or one for the mean and
        one for the std, of which a categorical policy takes the first; None for (0.2, 100) with
        ``advantage()``, for (1, 20) with other labels, and for 5 with a categorical policy, whose
        entropy runs down too fast at 1. With half the samples in each set the loss is safe iff
        ``beta >= 2 * (1 - alpha)``; below, a warning says so. For the mean alone
        ``beta > 1 - 2 * alpha`` is enough with ``advantage()``.
    :param labeller: who is accepted and who rejected, from the samples' scores, and with what
        weight; None for ``advantage()``, and for the better and the worse half where it has not
        been measured: a categorical policy, or one that is not decoupled.
    :param n_samples: S, actions the reference proposes per state.
    :param policy_delay: updates of the critics for each of the policy, which has the first of them.
    :param decoupled: fit the mean under the reference's std and the std around its mean, each
        with its own KL (False: the paper's joint KL, with ``beta`` for the mean).
    :param reference_tau: share by which the reference moves to the actor at a refresh, in (0, 1].
    :param reference_update_interval: updates between refreshes; with ``reference_tau=1`` a hard
        copy every N.
    :param exploration_noise: makes the noise, scaled by the policy's std, that is acted with
        while collecting: a function of (number of environments, action dimension, seed). None
        for independent draws.
    :param compile: on a GPU, capture the update as a CUDA graph, once in a :meth:`learn` for each
        shape of it, which was five times as fast on an H200. What a callback changes in this object
        reaches the update at the next :meth:`learn`, learning rates at once; numbers that a
        labeller or a features extractor keeps in Python stay as they were at the capture. On a CPU,
        compile the networks with ``torch.compile``, in place, which gains 6% of the ranking and
        nothing of the rest. A model saves and loads as without it.
    :param use_sde: refused; here so that a configuration written for SAC gets a clear answer.
    :param stats_window_size: episodes in the rolling means of return and length.
    :param tensorboard_log: where to log for TensorBoard.
    :param policy_kwargs: see :class:`sb3_pmpo.policies.PMPOPolicy`.
    :param verbose: 0 nothing, 1 information, 2 debugging.
    :param seed: of every generator; the same seed gives the same weights, bit for bit.
    :param device: where to run.
    :param _init_setup_model: build the networks now.
    :raises ValueError: for an argument out of its range, by name, value and range.
    """

    def __init__(
        self,
        policy: str | type[PMPOPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 128,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 4,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        pessimism: float = 0.5,
        actor_learning_rate: float | Schedule | None = None,
        alpha: float = 0.5,
        beta: float | tuple[float, float] | None = None,
        labeller: Labeller | None = None,
        n_samples: int = 6,
        policy_delay: int = 4,
        decoupled: bool = True,
        edge_barrier: float = 0.02,
        reference_tau: float = 0.005,
        reference_update_interval: int = 1,
        exploration_noise: NoiseFactory | None = pink_or_white_noise,
        compile: bool = False,
        use_sde: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            pessimism=pessimism,
            actor_learning_rate=actor_learning_rate,
            n_samples=n_samples,
            policy_delay=policy_delay,
            reference_tau=reference_tau,
            reference_update_interval=reference_update_interval,
            exploration_noise=exploration_noise,
            compile=compile,
            use_sde=use_sde,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        self.alpha = alpha
        self.beta = beta
        self.labeller = labeller
        self.decoupled = decoupled
        self.edge_barrier = edge_barrier
        if _init_setup_model:
            self._setup_model()

    def _make_objective(self) -> PMPOObjective:
        """Check ``alpha``, ``beta`` and ``labeller``; warn once if the loss can run away."""
        decoupled = self.decoupled and self._is_gaussian()
        labeller = self.labeller
        if labeller is None:
            labeller = advantage() if decoupled else top_k(self.n_samples // 2)
        # With advantage() accepted and rejected weigh the same in each state.
        balanced = decoupled and isinstance(labeller, Advantage)
        given = self.beta
        if given is None:
            gaussian = ADVANTAGE_BETA if balanced else GAUSSIAN_BETA
            given = gaussian if self._is_gaussian() else CATEGORICAL_BETA
        betas = given if isinstance(given, (tuple, list)) else (given, given)
        if len(betas) != 2:
            raise ValueError(f"beta must be a number or a pair (mean, std), got {self.beta}")
        check_number("alpha", self.alpha, 0.0, 1.0, float, "the weight of the accepted samples")
        check_number(
            "edge_barrier", self.edge_barrier, 0.0, math.inf, float, "the weight of the barrier"
        )
        if not callable(labeller):
            raise ValueError(f"labeller must be callable, such as top_k(2), got {labeller!r}")
        for beta in betas:
            check_number("beta", beta, 0.0, math.inf, float, "the weight of the KL")
            check_alpha_beta(self.alpha, beta)
        reason = instability(self.alpha, betas[0], fixed_variance=balanced)
        if self.decoupled and reason is None:
            reason = instability(self.alpha, betas[1])
        if reason is not None:
            warnings.warn(reason, stacklevel=2)
        # A labeller that cannot work with this many samples says so now, not in training.
        scores = th.arange(float(self.n_samples)).unsqueeze(-1)
        actions = th.zeros(self.n_samples, 1, get_action_dim(self.action_space))
        value = partial(th.zeros, 1)
        labeller(Candidates(scores, actions, th.zeros_like(scores), value))
        return PMPOObjective(
            self.alpha, betas[0], betas[1], labeller, self.decoupled, self.edge_barrier
        )
