"""The Zoo's hyperparameter search, over seeds, workers and machines: what a worker does."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import optuna
import rl_zoo3
from optuna.samplers import BaseSampler, TPESampler
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import get_callback_list
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_pmpo.envs import action_repeat_of
from sb3_pmpo.tools.evaluation import Evaluation
from sb3_pmpo.tools.settings import merge
from sb3_pmpo.tools.zoo.manager import Manager
from sb3_pmpo.tools.zoo.report import report
from sb3_pmpo.tools.zoo.resuming import NotBegunError
from sb3_pmpo.tools.zoo.spaces import default_params, setting_of
from sb3_pmpo.tools.zoo.stopping import INTERRUPTED, sigterm_interrupts
from sb3_pmpo.tools.zoo.study import DEFAULT, Watch, open_storage, run_trials, study_name

#: What bad hyperparameters cause: NaN and impossible arguments (ValueError), physics that diverge
#: (dm_control's PhysicsError is a RuntimeError), memory. An error of ours is none of these.
BAD_TRIAL = (ValueError, AssertionError, ArithmeticError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Options:
    """What ``sb3-pmpo tune`` adds to the Zoo's arguments."""

    trial_seeds: int = 1
    objective: str = "mean"
    workers: int = 1
    beat: float = 10.0
    grace: float = 120.0
    quiet: bool = False
    only_report: bool = False


class TuningManager(Manager):
    """Searches hyperparameters; see :class:`Manager` for the rest.

    - A trial's ``policy_kwargs`` and ``replay_buffer_kwargs`` are merged into the setting's.
    - A bad trial is pruned, with the error as its attribute ``error``.
    - A trial may be several seeds: its value is their mean, or a lower confidence bound,
      mean - std / sqrt(seeds). Seeds run one after another; what the pruner compares is the mean
      over the seeds done and the one that runs.
    - A trial whose worker dies is taken up by another (:mod:`sb3_pmpo.tools.zoo.study`).
    """

    def __init__(self, *args: Any, options: Options, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options = options

    def create_log_folder(self) -> None:
        """Make none: trials leave rows in the study, not folders."""

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = True) -> VecEnv:
        """Make environments that write no files."""
        return super().create_envs(n_envs, eval_env, no_log=True)

    def _create_sampler(self, sampler_method: str) -> BaseSampler:
        """Give workers that share a study different draws, and none the others' running ones."""
        if sampler_method != "tpe" or self.storage is None:
            return super()._create_sampler(sampler_method)
        seed = np.random.SeedSequence([self.seed, uuid4().int]).generate_state(1)[0]
        return TPESampler(
            n_startup_trials=self.n_startup_trials,
            seed=int(seed),
            multivariate=True,
            constant_liar=True,
        )

    def hyperparameters_optimization(self) -> None:
        """Search, then say what was found; :func:`report` has the rest."""
        study = optuna.create_study(
            sampler=self._create_sampler(self.sampler),
            pruner=self._create_pruner(self.pruner),
            storage=open_storage(self.storage),
            study_name=self.study_name or study_name(self.algo, self.env_name.gym_id),
            load_if_exists=True,
            direction="maximize",
        )
        self._check_experiment(study)
        self._begin_with_default(study)
        watch = Watch(study, self._options.beat, self._options.grace)
        interrupted = False
        try:
            with sigterm_interrupts():
                if not self._options.only_report:
                    run_trials(study, self.objective, watch, self.n_trials, self.max_total_trials)
        except KeyboardInterrupt:
            interrupted = True
        if not self._options.quiet:
            folder = Path(self.log_folder, self.algo)
            report(
                study,
                self.env_name.gym_id,
                self.setting_of,
                folder,
                self.storage,
                budget=self._budget(),
                with_plots=not self.no_optim_plots,
            )
        if interrupted:
            raise SystemExit(INTERRUPTED)

    def _check_experiment(self, study: optuna.Study) -> None:
        """Let a study know what it is of.

        :raises NotBegunError: if it is of another algorithm or environment, whose trials say
            nothing about this one.
        """
        mine = {"algo": self.algo, "env": self.env_name.gym_id}
        known = study.user_attrs.get("experiment", mine)
        if known != mine:
            raise NotBegunError(
                f"the study {self.study_name!r} is of {known['algo']} on {known['env']}: choose "
                "another --study-name"
            )
        study.set_user_attr("experiment", mine)

    def _begin_with_default(self, study: optuna.Study) -> None:
        """Let trial 0 of a new study be the setting that ships, with which the best is compared."""
        params = default_params(self.algo, self.n_actions, self._hyperparams)
        if params is None or self._options.only_report or study.get_trials(deepcopy=False):
            return
        study.enqueue_trial(params, {DEFAULT: True}, skip_if_exists=True)

    def _budget(self) -> str:
        """Say what each trial was trained for."""
        repeat = action_repeat_of(self._setting().get("env_wrapper"))
        seeds = self._options.trial_seeds
        return (
            f"{self.n_timesteps} decisions ({self.n_timesteps * repeat} environment steps) "
            f"a trial, {seeds} {'seed' if seeds == 1 else 'seeds'}"
        )

    def _setting(self) -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            _, setting = self.read_hyperparameters()
        return dict(setting)

    def setting_of(self, params: dict[str, Any]) -> dict[str, Any]:
        """Put a trial's parameters into the environment's setting, as YAML holds it."""
        return merge(self._setting(), setting_of(self.algo, params))

    # ------------------------------------------------------------------ one trial

    def objective(self, trial: optuna.Trial) -> float:
        """Train and evaluate a trial's seeds; return its value.

        :raises optuna.TrialPruned: if the pruner says so, or the trial is bad.
        """
        additional = {
            "using_her_replay_buffer": self._hyperparams.get("replay_buffer_class")
            is HerReplayBuffer,
            "her_kwargs": self._hyperparams.get("replay_buffer_kwargs", {}),
        }
        trial.set_user_attr("budget", self._budget())
        sampler = HYPERPARAMS_SAMPLER[self.algo]
        sampled = sampler(trial, self.n_actions, self.n_envs, additional)
        arguments = merge(self._hyperparams, sampled)
        values: list[float] = []
        for number in range(self._options.trial_seeds):
            try:
                returns = self._train_and_evaluate(trial, arguments, number, values)
                values.append(float(np.mean(returns)))
            except BAD_TRIAL as error:
                text = f"{type(error).__name__}: {error}"
                trial.set_user_attr("error", text)
                print(f"Trial {trial.number} is bad: {text}")
                raise optuna.TrialPruned(text) from error
        trial.set_user_attr("values", values)
        trial.set_user_attr("returns", returns)
        return lower_bound(values) if self._options.objective == "lcb" else float(np.mean(values))

    def _train_and_evaluate(
        self, trial: optuna.Trial, arguments: dict[str, Any], number: int, before: list[float]
    ) -> list[float]:
        """Train one seed; return the returns of its last evaluation's episodes."""
        seed = int(
            np.random.SeedSequence([self.seed, trial.number, number]).generate_state(1)[0] >> 1
        )
        try:
            env = self.create_envs(self.n_envs)
            eval_env = self.create_envs(self.n_eval_envs, eval_env=True)
            model = rl_zoo3.ALGOS[self.algo](
                env=env, seed=seed, verbose=0, device=self.device, **arguments
            )
            path = self._log_path(trial.number, number)
            evaluation = TrialEvaluation(
                trial,
                before,
                self.n_evaluations,
                eval_env,
                best_model_save_path=path,
                log_path=path,
                n_eval_episodes=self.n_eval_episodes,
                eval_freq=max(self.n_timesteps // self.n_evaluations // self.n_envs, 1),
                deterministic=self.deterministic_eval,
                verbose=0,
            )
            more = get_callback_list({"callback": self.specified_callbacks})
            model.learn(self.n_timesteps, callback=[*more, evaluation])
        finally:
            self._leave()
        if evaluation.is_pruned:
            raise optuna.TrialPruned
        return [float(value) for value in evaluation.last_returns]

    def _log_path(self, trial: int, seed: int) -> str | None:
        """Return where a seed's evaluations and best model go, as the Zoo has it for a trial."""
        if self.optimization_log_path is None:
            return None
        path = Path(self.optimization_log_path, f"trial_{trial}")
        return str(path if self._options.trial_seeds == 1 else path / f"seed_{seed}")


class TrialEvaluation(Evaluation):
    """Reports a seed's evaluations to the trial, and stops where the pruner says so.

    :param trial: the trial.
    :param before: values of the trial's seeds that are done.
    :param n_evaluations: of each seed.
    """

    def __init__(
        self,
        trial: optuna.Trial,
        before: list[float],
        n_evaluations: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._trial, self._before, self._n_evaluations = trial, before, n_evaluations
        self._done = 0
        self.is_pruned = False

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq != 0 or self._done == self._n_evaluations:
            return True
        super()._on_step()
        if not math.isfinite(self.last_mean_reward):
            raise ValueError(f"an evaluation's mean return is {self.last_mean_reward}")
        self._done += 1
        step = len(self._before) * self._n_evaluations + self._done
        self._trial.report(float(np.mean([*self._before, self.last_mean_reward])), step)
        self.is_pruned = self._trial.should_prune()
        return not self.is_pruned


def lower_bound(values: Sequence[float]) -> float:
    """Return mean - std / sqrt(n), std with n - 1; the value itself if there is one."""
    if len(values) == 1:
        return float(values[0])
    return float(np.mean(values) - np.std(values, ddof=1) / math.sqrt(len(values)))
