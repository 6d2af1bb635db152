"""A study that several processes and machines share, and that outlives any of them.

Optuna's own heartbeat serves SQL databases alone, and not its journal files; this one uses what
every storage has, a trial's user attributes.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError, TrialPruned, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from sb3_pmpo.tools.zoo.journal import Journal

#: The attribute of the trial that is the setting that ships.
DEFAULT = "default"

#: How often a trial is taken up again whose worker died: a third death is the trial's own doing.
MAX_RETRIES = 2


def study_name(algorithm: str, env_id: str) -> str:
    """Name a study that the user has not named: each algorithm has one for each environment."""
    return re.sub(r"[^\w.-]+", "-", f"{algorithm}-{env_id}").strip("-")


def open_storage(name: str | None) -> str | BaseStorage | None:
    """Open a storage: a journal file (``*.log``), a database's URL, or None for memory."""
    if name is None:
        return None
    if not name.endswith(".log"):
        return _open_database(name)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(Journal(name))


def _open_database(url: str) -> BaseStorage:
    """Open a database. Of workers that start at once, one makes its tables, and the rest wait."""
    import sqlalchemy.exc

    for wait in (0.2, 1.0, 5.0):
        try:
            return optuna.storages.get_storage(url)
        except (sqlalchemy.exc.DBAPIError, StorageInternalError) as error:
            taken = ("already exists", "IntegrityError", "UNIQUE", "is locked")
            if not any(word in f"{error!r} {error}" for word in taken):
                raise
        time.sleep(wait)
    return optuna.storages.get_storage(url)


class Watch:
    """Finds trials whose worker has died, by a beat that stands still.

    Only this process's clock is read, so machines whose clocks differ may share a study.

    :param study: the study.
    :param interval: seconds between two beats.
    :param grace: seconds without a beat after which a trial's worker counts as dead.
    """

    def __init__(self, study: optuna.Study, interval: float, grace: float) -> None:
        self._study, self.interval, self._grace = study, interval, grace
        self._seen: dict[int, tuple[int, float]] = {}

    @contextmanager
    def beating(self, trial: optuna.Trial) -> Iterator[None]:
        """Beat for a trial of this process while it runs."""
        stop = threading.Event()

        def beat() -> None:
            count = 0
            while not stop.wait(self.interval):
                count += 1
                # One that is missed, while the database restarts say, is no death.
                with suppress(UpdateFinishedTrialError, StorageInternalError, OSError):
                    trial.set_user_attr("beat", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def retry_dead(self) -> None:
        """Fail the trials whose beat has stood still, and put their parameters in the queue."""
        now = time.monotonic()
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        seen = {trial.number: trial.user_attrs.get("beat", 0) for trial in running}
        self._seen = {
            number: self._seen[number] if self._seen.get(number, (-1,))[0] == beat else (beat, now)
            for number, beat in seen.items()
        }
        for trial in running:
            if now - self._seen[trial.number][1] > self._grace:
                fail_and_retry(self._study, trial)


def fail_and_retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Mark a running trial as failed and enqueue its parameters; once, whoever is first."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # another worker was first
        return
    retries = trial.user_attrs.get("retries", 0)
    if trial.params and retries < MAX_RETRIES:
        attributes = {"retried_from": trial.number, "retries": retries + 1}
        attributes |= {key: trial.user_attrs[key] for key in (DEFAULT,) if key in trial.user_attrs}
        study.enqueue_trial(trial.params, attributes)
        print(f"Trial {trial.number} lost its worker; another trial will take up its parameters.")


def run_trials(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    watch: Watch,
    n_trials: int,
    max_total_trials: int | None,
) -> None:
    """Run trials until this worker has done its share, or the study as a whole is done.

    :param study: possibly shared.
    :param objective: returns a trial's value, or raises ``TrialPruned``; what else it raises ends
        this worker, and the trial is taken up by another.
    :param watch: of the study.
    :param n_trials: of this worker, if ``max_total_trials`` is None.
    :param max_total_trials: that complete or are pruned, of all the workers; a trial whose worker
        died does not count, the one that takes it up does.
    """
    done = 0
    while True:
        watch.retry_dead()
        if max_total_trials is None:
            if done == n_trials:
                return
        elif not _has_room(study, max_total_trials):
            if not study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                return
            time.sleep(watch.interval)  # a running trial's worker may yet die
            continue
        trial = study.ask()
        if max_total_trials is not None and _is_surplus(study, trial, max_total_trials):
            study.tell(trial, state=TrialState.FAIL)
            continue
        _run(study, trial, objective, watch)
        done += 1


_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


def _has_room(study: optuna.Study, max_total_trials: int) -> bool:
    return len(study.get_trials(deepcopy=False, states=_COUNTED)) < max_total_trials


def _is_surplus(study: optuna.Study, trial: optuna.Trial, max_total_trials: int) -> bool:
    """Say whether two workers asked for the last trial at once, and this one was second."""
    counted = study.get_trials(deepcopy=False, states=_COUNTED)
    # A trial from the queue has a low number, and is never one too many.
    is_queued = "retried_from" in trial.user_attrs
    return not is_queued and sum(t.number < trial.number for t in counted) >= max_total_trials


def _run(
    study: optuna.Study,
    trial: optuna.Trial,
    objective: Callable[[optuna.Trial], float],
    watch: Watch,
) -> None:
    state, value = TrialState.COMPLETE, None
    try:
        with watch.beating(trial):
            value = objective(trial)
    except TrialPruned:
        state = TrialState.PRUNED
    except BaseException:
        fail_and_retry(study, study.trials[trial.number])
        raise
    try:
        frozen = study.tell(trial, values=value, state=state)
    except (ValueError, UpdateFinishedTrialError):
        print(f"Trial {trial.number} was given up by another worker; its result is dropped.")
        return
    said = f"value {frozen.value:.1f}" if state is TrialState.COMPLETE else "pruned"
    print(f"Trial {trial.number}: {said}, {frozen.params}", flush=True)
