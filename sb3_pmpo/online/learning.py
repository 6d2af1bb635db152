"""The arguments of ``learn``, checked before anything is trained."""

from __future__ import annotations

from typing import Self

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_pmpo.learn_checks import check_callback, check_count


class CheckedLearn(OffPolicyAlgorithm):
    """Refuses by name what SB3 answers by an error from within, or by no training at all."""

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learn in the environment, as SB3's algorithms do; their documentation has the arguments.

        :raises TypeError: for an argument of the wrong kind.
        :raises ValueError: for a number that is out of range, or if there is no environment.
        """
        check_count("total_timesteps", total_timesteps, 0)
        if self.env is None:
            raise ValueError(
                "the model has no environment to learn in: call set_env(env), or load it with "
                "load(path, env=env)"
            )
        check_callback(callback)
        if log_interval is not None:
            check_count("log_interval", log_interval, 1)
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
