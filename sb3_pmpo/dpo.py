"""DPO and IPO, online: the baselines of the paper, on pairs that the critic makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_pmpo.checks import check_positive
from sb3_pmpo.core.losses import PairLoss, dpo_loss
from sb3_pmpo.exploration import pink_or_white_noise
from sb3_pmpo.objectives import DPOObjective
from sb3_pmpo.off_policy import NoiseFactory, OffPolicyMPO
from sb3_pmpo.policies import PMPOPolicy

PairwiseLoss = Callable[..., PairLoss]


class DPO(OffPolicyMPO):
    """Learn from the best and the worst of the actions that the reference proposes.

    Direct preference optimisation (Rafailov et al., 2023) with the critic as the judge, as the
    paper compares against (Sec. 5.2). The arguments are those of :class:`sb3_pmpo.PMPO`, but for
    its labels and its KL, which are a pair and implicit here.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a policy class.
    :param env: the environment, or its registered name.
    :param beta: > 0, weight of the implicit KL; the paper needed 20 for a Gaussian policy.
    :param loss: :func:`sb3_pmpo.dpo_loss` or :func:`sb3_pmpo.ipo_loss`.
    :param n_samples: S, actions the reference proposes per state, of which two are used.
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
        beta: float = 20.0,
        loss: PairwiseLoss = dpo_loss,
        n_samples: int = 4,
        policy_delay: int = 4,
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
        self.beta = beta
        self.loss = loss
        if _init_setup_model:
            self._setup_model()

    def _make_objective(self) -> DPOObjective:
        """Check ``beta`` and ``loss``."""
        hint = "it is the weight of the implicit KL, and nothing else holds the policy"
        check_positive("beta", self.beta, hint)
        if not callable(self.loss):
            raise ValueError(f"loss must be callable, such as dpo_loss, got {self.loss!r}")
        return DPOObjective(self.beta, self.loss)
