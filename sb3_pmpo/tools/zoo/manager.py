"""The Zoo's experiment manager, with what is surprising at the seam set right."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from inspect import signature
from pathlib import Path
from pprint import pprint
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import rl_zoo3
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import get_latest_run_id
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pmpo.files import WRITING, copy_whole, interrupts_pass, put_back, set_aside
from sb3_pmpo.online.persistence import Persistent
from sb3_pmpo.storage.strangers import are_own, check_kinds, check_settings, sign_settings
from sb3_pmpo.tools.checkpoints import UNIT, Checkpoints, clean, load, lock
from sb3_pmpo.tools.evaluation import Evaluation
from sb3_pmpo.tools.loading import Loader, buffers_as_data
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.saving import save_each, save_model, save_replay_buffer, save_vec_normalize
from sb3_pmpo.tools.settings import (
    ALGORITHMS,
    complete_length,
    config_path,
    load_borrowed,
    merge,
    suite_ids,
    to_arguments,
)
from sb3_pmpo.tools.tensorboard import TensorBoardLayout, log_where_it_logged
from sb3_pmpo.tools.zoo.resuming import (
    OFFLINE,
    CannotResumeError,
    NotBegunError,
    NothingLeftError,
    begin_to_act,
    check_kind,
    go_on_with_clock,
    learned_offline,
    origin,
    run_of,
    unit_of,
)
from sb3_pmpo.tools.zoo.spaces import setting_of
from sb3_pmpo.tools.zoo.stopping import (
    INTERRUPTED,
    close_in_time,
    say_what_next,
    sigterm_interrupts,
    uninterrupted,
)
from sb3_pmpo.tools.zoo.writing import NewFolder


class Manager(ExperimentManager):
    """What ``rl_zoo3.train`` runs, with these differences.

    - Without ``--conf-file``, our algorithms' settings are those that ship with this package. The
      Zoo's own algorithms, which have none for the Control Suite, take its wrappers and length
      from there, and are at their defaults otherwise.
    - ``--trial-id 0`` loads trial 0; a trial's ``policy_kwargs`` are merged into the setting's.
    - ``env_kwargs`` of a setting reach the evaluation environment too.
    - ``-i`` goes on counting steps, and does not repeat the random warm-up.
    - ``--save-freq`` also writes a checkpoint that ``-i FOLDER`` goes on from: our algorithms bit
      for bit. The run goes on in its own folder.
    - TensorBoard's *Custom Scalars* tab groups our algorithms' diagnostics.
    - SIGTERM stops a run as Ctrl-C does; whatever stops it, the model so far is saved.
    - Each file is written in one atomic step; programs that start at once take two folders.

    :param learn: what trains the model, with the arguments of SB3's ``learn``; None for that.
    :param offline: arguments of ``sb3-pmpo offline``, which mark a run of gradient steps.
    """

    def __init__(
        self,
        *args: Any,
        learn: Callable[..., Any] | None = None,
        offline: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._learn, self._offline = learn, bool(offline)
        self._held, self._not_begun = ExitStack(), ExitStack()
        self._unit = "gradient step" if offline else "decision"
        vars(self.args).update({OFFLINE: [*offline]} if offline else {})
        self._borrowed = self._interrupted = self._came_to_end = False
        if kwargs.get("config") is None:
            is_ours, is_suite = self.algo in ALGORITHMS, self.env_name.gym_id in suite_ids()
            self._borrowed = is_suite and not is_ours
            if is_ours or self._borrowed:
                self.config = str(config_path())
        self._checkpoints: Checkpoints | None = None
        self._normaliser: VecNormalize | None = None
        #: Where the results are until it is known that the run can go on.
        self._aside: Path | None = None
        self._found = unit_of(self.trained_agent) if self.trained_agent else None
        #: The folder of the run that goes on; None for a new one.
        self._run = None if self._found is None else run_of(self._found, self.env_name)
        self._told_length = self.n_timesteps > 0
        if self._run is not None:
            check_kind(self._run, offline=self._offline)
            self.save_path, self.params_path = str(self._run), str(self._run / self.env_name)
            vars(self.args).update(origin(Path(self.params_path)))

    # ------------------------------------------------------------------ settings

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Merge the setting of the environment, the study's trial and the command line."""
        if self._run is None:
            hyperparams, saved = self._read_setting()
        else:
            path = Path(self.params_path, "config.yml")
            theirs = read(path)
            if not are_own(path.parent):
                check_settings(theirs, str(path))
            hyperparams = merge(theirs, self.custom_hyperparams or {})
            saved = OrderedDict(sorted(deepcopy(hyperparams).items()))
        if self._eval_env_kwargs_args is None and not self.env_kwargs:
            self.eval_env_kwargs = hyperparams.get("env_kwargs", {})
        return hyperparams, saved

    def _read_setting(self) -> tuple[dict[str, Any], dict[str, Any]]:
        # The Zoo takes trial 0 for None, and what is given for the whole of a dictionary.
        trial_id, self.trial_id = self.trial_id, None
        given, self.custom_hyperparams = self.custom_hyperparams, None
        hyperparams, saved = map(deepcopy, super().read_hyperparameters())
        if self.config.endswith((".yml", ".yaml")):  # one in Python runs what it likes
            check_kinds(hyperparams, self.config)
        self.trial_id, self.custom_hyperparams = trial_id, given
        if self._borrowed:
            kept = load_borrowed(self.env_name.gym_id)
            dropped = sorted(hyperparams.keys() - kept)
            for settings in (hyperparams, saved):
                for key in dropped:
                    del settings[key]
            print(f"{self.algo} takes its own defaults for PMPO's {', '.join(dropped)}")
        from_study = self.storage and self.study_name and not self.optimize_hyperparameters
        trial = self._load_trial(trial_id) if from_study or trial_id is not None else {}
        for settings in (hyperparams, saved):
            settings.update(merge(settings, trial, given or {}))
            complete_length(settings, self.n_timesteps, f"{self.config}, {self.env_name.gym_id}")
        if trial or given:
            which = "the best trial" if trial_id is None else f"trial {trial_id}"
            chosen = f"{which} of {self.study_name!r} and " if trial else ""
            print(f"With {chosen}the command line:")
            pprint(dict(saved))
        return hyperparams, saved

    def _load_trial(self, trial_id: int | None) -> dict[str, Any]:
        if not (self.storage and self.study_name):
            raise ValueError(f"--trial-id {trial_id} needs --storage and --study-name too")
        try:
            params = self.load_trial(self.storage, self.study_name, trial_id, convert=False)
        except KeyError as error:  # of Optuna, with a text of its own
            raise ValueError(f"there is no study {self.study_name!r} in {self.storage}") from error
        except IndexError as error:
            message = f"--trial-id {trial_id}: the study {self.study_name!r} has no such trial"
            raise ValueError(f"{message}; trials are counted from 0") from error
        except ValueError as error:  # of the best one, where none is complete
            raise ValueError(
                f"the study {self.study_name!r} has no complete trial yet ({error}): name one by "
                "--trial-id, or leave out --study-name"
            ) from error
        return setting_of(self.algo, params)

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        arguments = to_arguments(hyperparams)  # no text to evaluate
        if "learning_rate" in hyperparams:  # the Zoo reads this one itself, and only as text
            arguments["learning_rate"] = hyperparams["learning_rate"]
        found = super()._preprocess_hyperparams(arguments)
        off_policy = issubclass(rl_zoo3.ALGOS[self.algo], OffPolicyAlgorithm)
        if off_policy and self.normalize and self.frame_stack is not None:
            raise ValueError(
                f"normalize with frame_stack: {self.frame_stack} is refused: the Zoo stacks what "
                "is normalised, and the replay buffer stores what is not, one frame; leave "
                "normalize out, or stack by env_wrapper: gymnasium.wrappers.FrameStackObservation"
            )
        return found

    # ------------------------------------------------------------------ training

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """Make the model as the Zoo does; a run that cannot begin leaves all as it was."""
        try:
            return super().setup_experiment()
        except BaseException:  # Ctrl-C, too
            try:
                if self._aside is not None:
                    with uninterrupted():
                        put_back(self._aside, Path(self.save_path))
            finally:
                self._leave()
                self._not_begun.close()
            raise
        finally:
            if self._aside is not None:
                shutil.rmtree(self._aside, ignore_errors=True)

    def create_log_folder(self) -> None:
        """Make the run's folder, or take the one that goes on, and hold it."""
        if self._run is None:
            self._take_a_number()
        super().create_log_folder()
        if self._run is None and self.save_freq <= 0:
            return
        if not self._held.enter_context(lock(Path(self.save_path))):
            raise CannotResumeError(f"another process trains {self.save_path}: stop it first")
        if self._run is not None:
            clean(self._run)
            self._aside = set_aside(self._run, self._files_of_results())

    def _take_a_number(self) -> None:
        """Make the folder; programs that start at once found the same number, and one has it."""
        while True:
            try:
                self._not_begun.callback(NewFolder(Path(self.save_path)).remove)
            except FileExistsError:
                number = get_latest_run_id(self.log_path, self.env_name) + 1
                self.save_path = f"{self.log_path}{self.env_name}_{number}"
                self.params_path = f"{self.save_path}/{self.env_name}"
            else:
                return

    def create_callbacks(self) -> None:
        """Add the layout of TensorBoard, and checkpoints; take results of one that is resumed."""
        save_freq = self.save_freq  # which the Zoo turns from steps into calls
        super().create_callbacks()
        self.callbacks.append(TensorBoardLayout(Path(self.save_path), offline=self._offline))
        if save_freq > 0 or self._run is not None:
            evaluations = (each for each in self.callbacks if isinstance(each, Evaluation))
            self._checkpoints = Checkpoints(
                Path(self.save_path), save_freq, next(evaluations, None), self._files_of_results()
            )
            if self._run is not None:
                self._checkpoints.restore(self._found)
            if save_freq > 0:
                self.callbacks.append(self._checkpoints)

    def _files_of_results(self) -> list[str]:
        monitors = [f"{number}.monitor.csv" for number in range(self.n_envs)]
        return ["evaluations.npz", "best_model.zip", f"{self.env_name}/vecnormalize.pkl", *monitors]

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Make environments; those of a run that goes on add to its files of episodes."""
        goes_on = self._run is not None and not (eval_env or no_log)
        if goes_on:
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
        env = super().create_envs(n_envs, eval_env, no_log)
        self._held.callback(close_in_time, env)
        if goes_on:
            go_on_with_clock(env, Path(self.save_path, "0.monitor.csv"))
        return env

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        """Load a model as the Zoo does, or a checkpoint with what the command line changes."""
        if self._found is None:
            theirs = rl_zoo3.ALGOS[self.algo]
            begins_to_act = not self._offline and learned_offline(Path(self.trained_agent).parent)
            if begins_to_act:  # its buffer held nothing
                size = signature(theirs).parameters["buffer_size"].default
                hyperparams = {"buffer_size": size, **hyperparams}
            loader: Any = Loader(theirs)  # all that the Zoo uses here is load
            with buffers_as_data(), patch.dict(rl_zoo3.ALGOS, {self.algo: loader}):
                model = super()._load_pretrained_agent(hyperparams, env)
            self._normaliser = model.get_vec_normalize_env()
            if begins_to_act:
                begin_to_act(model)
            return model
        print(f"Going on from {self._unit} {self._found.step}, from {self._found.folder}")
        fixed = {"policy", "policy_kwargs"}
        given = self.custom_hyperparams or {}
        changed = {key: hyperparams[key] for key in given if key in {*hyperparams} - fixed}
        model = load(
            rl_zoo3.ALGOS[self.algo],
            self._found,
            env,
            self.seed,
            tensorboard_log=self.tensorboard_log,
            verbose=self.verbose,
            device=self.device,
            **changed,
        )
        if not self._told_length:
            self.n_timesteps = model._total_timesteps - model.num_timesteps
            if self.n_timesteps <= 0:
                raise NothingLeftError(
                    f"The run in {self._found.folder.parent} has done its {model.num_timesteps} "
                    f"{self._unit}s; -n says how many more."
                )
        log_where_it_logged(model, self._run)
        return model

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        folder, normaliser = Path(self.params_path), self._normaliser
        if normaliser is not None:  # its statistics lay beside the model that the run began with
            names = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma")
            found = {name: getattr(normaliser, name) for name in names}
            saved_hyperparams.setdefault("normalize", found)
        with TemporaryDirectory(dir=self.save_path, prefix=WRITING) as writing:
            self.params_path = writing
            try:
                super()._save_config(saved_hyperparams)
            finally:
                self.params_path = str(folder)
            sign_settings(Path(writing))
            # args.yml last, by which others know a run.
            for path in sorted(Path(writing).iterdir(), key=lambda path: path.name == "args.yml"):
                copy_whole(path, folder / path.name)

    def learn(self, model: BaseAlgorithm) -> None:
        """Train; if an error stops it, save the model so far, then raise it."""
        if self.algo == "ars":  # with an evaluation of its own
            super().learn(model)
            return
        log: dict[str, Any] = (
            {} if self.log_interval == -1 else {"log_interval": max(self.log_interval, 0) or None}
        )
        before = model.num_timesteps
        try:
            with sigterm_interrupts(), interrupts_pass():
                learn = model.learn if self._learn is None else partial(self._learn, model)
                learn(
                    self.n_timesteps,
                    callback=self.callbacks or None,
                    reset_num_timesteps=not self.continue_training,
                    **log,
                )
            self._came_to_end = True
        except KeyboardInterrupt:
            self._interrupted = True
        except (Exception, SystemExit) as error:
            if model.num_timesteps in (before, 0):
                self._leave()  # there is nothing to save
                self._not_begun.close()
                if self._learn is not None and isinstance(error, ValueError):
                    raise NotBegunError(str(error)) from error
                raise
            try:
                self.save_trained_model(model)
            except (Exception, SystemExit) as another:
                # The first one is the cause, and the one to show.
                error.add_note(f"The model could not be saved either: {another!r}")
            raise
        finally:
            for callback in self.callbacks:
                if isinstance(callback, ProgressBarCallback) and callback.n_calls:
                    callback.on_training_end()

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Save all that the Zoo does, then close; end an interrupted run with its exit status."""
        try:
            with uninterrupted() as signals:
                self._save_all(model)
        finally:
            self._leave()
        self._interrupted |= bool(signals)
        how = "Stopped" if self._interrupted else "Finished"
        print(f"{how} after {model.num_timesteps} {self._unit}s.")
        say_what_next(Path(self.save_path), self.algo, self.env_name)
        if self._interrupted:
            raise SystemExit(INTERRUPTED)

    def _save_all(self, model: BaseAlgorithm) -> None:
        """Save the model first and what is large last."""
        folder, env = Path(self.save_path), model.get_vec_normalize_env()
        print(f"Saving to {folder}")
        saving: dict[Path, Callable[[Path], Any]] = {
            folder / f"{self.env_name}.zip": partial(save_model, model)
        }
        if env is not None:
            saving[folder / self.env_name / "vecnormalize.pkl"] = partial(save_vec_normalize, env)
        if self.save_replay_buffer and isinstance(model, OffPolicyAlgorithm):
            saving[folder / "replay_buffer.pkl"] = partial(save_replay_buffer, model)
        checkpoints = self._checkpoints
        if checkpoints is not None and self.save_freq > 0 and self._is_whole(model):
            saving[folder / UNIT] = lambda _: checkpoints.save()
        save_each(saving)

    def _leave(self) -> None:
        """Close the environments, and leave the folder to others."""
        self._held.close()

    def _is_whole(self, model: BaseAlgorithm) -> bool:
        """Say whether training came to its end, where a checkpoint goes on exactly."""
        return self._came_to_end and (not isinstance(model, Persistent) or model.is_between_steps)
