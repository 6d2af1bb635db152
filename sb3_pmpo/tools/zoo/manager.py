"""The Zoo's experiment manager, with what is surprising at the seam set right."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from pprint import pprint
from typing import Any, NoReturn

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_pmpo.tools.settings import (
    ALGORITHMS,
    config_path,
    load_borrowed,
    merge,
    suite_ids,
    to_arguments,
)
from sb3_pmpo.tools.tensorboard import TensorBoardLayout
from sb3_pmpo.tools.zoo.spaces import setting_of

#: The exit status of a run that Ctrl-C or SIGTERM stopped.
INTERRUPTED = 130


class Manager(ExperimentManager):
    """What ``rl_zoo3.train`` runs, with these differences.

    - Without ``--conf-file``, our algorithms' settings are those that ship with this package. The
      Zoo's own algorithms, which have none for the Control Suite, take its wrappers and length
      from there, and are at their defaults otherwise.
    - ``--trial-id 0`` loads trial 0; a trial's ``policy_kwargs`` are merged into the setting's.
    - ``env_kwargs`` of a setting reach the evaluation environment too.
    - ``-i`` goes on counting steps, and does not repeat the random warm-up.
    - TensorBoard's *Custom Scalars* tab groups our algorithms' diagnostics.
    - With ``--save-freq`` and ``--save-replay-buffer``, checkpoints save the buffer too.
    - SIGTERM stops a run as Ctrl-C does; whatever stops it, the model so far is saved.

    :param learn: what trains the model, with the arguments of SB3's ``learn``; None for that.
    """

    def __init__(self, *args: Any, learn: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._learn = learn
        self._borrowed = False
        if kwargs.get("config") is None:
            is_ours, is_suite = self.algo in ALGORITHMS, self.env_name.gym_id in suite_ids()
            self._borrowed = is_suite and not is_ours
            if is_ours or self._borrowed:
                self.config = str(config_path())
        self._interrupted = False

    # ------------------------------------------------------------------ settings

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Merge the setting of the environment, the study's trial and the command line."""
        # The Zoo takes trial 0 for None, and what is given for the whole of a dictionary.
        trial_id, self.trial_id = self.trial_id, None
        given, self.custom_hyperparams = self.custom_hyperparams, None
        hyperparams, saved = super().read_hyperparameters()
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
        if trial or given:
            which = "the best trial" if trial_id is None else f"trial {trial_id}"
            chosen = f"{which} of {self.study_name!r} and " if trial else ""
            print(f"With {chosen}the command line:")
            pprint(dict(saved))
        if self._eval_env_kwargs_args is None and not self.env_kwargs:
            self.eval_env_kwargs = hyperparams.get("env_kwargs", {})
        return hyperparams, saved

    def _load_trial(self, trial_id: int | None) -> dict[str, Any]:
        if not (self.storage and self.study_name):
            raise ValueError(f"--trial-id {trial_id} needs --storage and --study-name too")
        try:
            params = self.load_trial(self.storage, self.study_name, trial_id, convert=False)
        except IndexError as error:
            raise ValueError(
                f"--trial-id {trial_id}: the study {self.study_name!r} has no such trial; trials "
                "are counted from 0"
            ) from error
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
        return super()._preprocess_hyperparams(arguments)

    # ------------------------------------------------------------------ training

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """Make the model as the Zoo does; a run that cannot begin leaves no empty folder."""
        folder = Path(self.save_path)
        is_new = not folder.exists()
        try:
            return super().setup_experiment()
        except Exception:
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def create_callbacks(self) -> None:
        """Add the layout of TensorBoard, and what lets training resume from a checkpoint."""
        super().create_callbacks()
        if self.algo in ALGORITHMS:
            self.callbacks.append(TensorBoardLayout())
        if self.save_freq > 0 and self.save_replay_buffer:
            self.callbacks.append(SaveReplayBuffer(self.save_freq, self.save_path))

    def learn(self, model: BaseAlgorithm) -> None:
        """Train; if an error stops it, save the model so far, then raise it."""
        if self.algo == "ars":  # with an evaluation of its own
            super().learn(model)
            return
        log: dict[str, Any] = (
            {} if self.log_interval == -1 else {"log_interval": max(self.log_interval, 0) or None}
        )
        try:
            with sigterm_interrupts():
                learn = model.learn if self._learn is None else partial(self._learn, model)
                learn(
                    self.n_timesteps,
                    callback=self.callbacks or None,
                    reset_num_timesteps=not self.continue_training,
                    **log,
                )
        except KeyboardInterrupt:
            self._interrupted = True
        except (Exception, SystemExit) as error:
            try:
                self.save_trained_model(model)
            except Exception as another:  # the first one is the cause, and the one to show
                error.add_note(f"The model could not be saved either: {another!r}")
            raise
        finally:
            for callback in self.callbacks:
                if isinstance(callback, ProgressBarCallback) and callback.n_calls:
                    callback.on_training_end()

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Save as the Zoo does, then close; end an interrupted run with its own exit status."""
        try:
            super().save_trained_model(model)
        finally:
            if model.env is not None:
                close_in_time(model.env)
        these = f"--algo {self.algo} --env {self.env_name.gym_id} -f {self.log_folder}"
        print(
            f"{'Stopped' if self._interrupted else 'Finished'} after {model.num_timesteps} steps."
        )
        print(f"Its returns:    sb3-pmpo enjoy {these} --no-render")
        print(f"Its video:      MUJOCO_GL=egl sb3-pmpo record {these}")
        print(f"Its curve:      sb3-pmpo plot {these}")
        if self._interrupted:
            raise SystemExit(INTERRUPTED)


#: Seconds that environments have for closing.
PATIENCE = 10.0


def close_in_time(env: VecEnv, seconds: float = PATIENCE) -> None:
    """Close an environment; end the processes of one that does not answer, or died before."""

    def close() -> None:
        with suppress(EOFError, OSError):  # a worker that Ctrl-C reached as well
            env.close()

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(seconds)
    inner = env.unwrapped
    if isinstance(inner, SubprocVecEnv):
        for process in inner.processes:
            process.kill()  # no harm to one that has ended


class SaveReplayBuffer(BaseCallback):
    """Write the replay buffer where ``-i`` looks for it, each time a checkpoint is written.

    :param save_freq: calls between two writes.
    :param folder: the run's.
    """

    def __init__(self, save_freq: int, folder: str) -> None:
        super().__init__()
        self._save_freq = save_freq
        self._path = f"{folder}/replay_buffer.pkl"

    def _on_step(self) -> bool:
        if self.n_calls % self._save_freq == 0 and isinstance(self.model, OffPolicyAlgorithm):
            self.model.save_replay_buffer(self._path)
        return True


class Terminated(KeyboardInterrupt):
    """SIGTERM came.

    A class of its own, because CPython ends ``python -m`` by SIGINT, whatever status it was to
    exit with, once a plain KeyboardInterrupt has left a string that was being exec'd (as imports
    and dataclasses do).
    """


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(signum: int, frame: Any) -> NoReturn:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
