"""What a sweep runs: a YAML file, checked as a whole before anything starts."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from sb3_pmpo.envs import check_registered, make_env
from sb3_pmpo.storage.strangers import check_kinds
from sb3_pmpo.tools.runs.sweep import Run, algorithms
from sb3_pmpo.tools.settings import (
    ALGORITHMS,
    SETTINGS,
    load_borrowed,
    load_config,
    merge,
    to_arguments,
)

#: Arguments of the algorithms that the sweep gives itself.
RESERVED = ("env", "seed", "tensorboard_log", "verbose", "_init_setup_model")


@dataclass(frozen=True)
class Spec:
    """Algorithms x tasks x seeds; steps are decisions, of which each may repeat its action.

    :param algorithms: the RL Zoo's names, ours among them.
    :param tasks: Gymnasium ids; ``module:Name-v0`` imports the module that registers it.
    :param seeds: whole numbers >= 0.
    :param log_folder: a run's folder is ``<log_folder>/<algorithm>/<task>_seed<seed>``.
    :param n_timesteps: of each run; None for the configuration's.
    :param eval_freq: steps between evaluations; None for ten of them.
    :param save_freq: steps between checkpoints; None for ten of them.
    :param eval_episodes: of each evaluation.
    :param hyperparams: of all algorithms: arguments, ``policy``, ``env_wrapper``, ``n_timesteps``.
    :param algorithm_hyperparams: the same by algorithm; these are the last word.
    :raises ValueError: for what cannot be run, naming value, range and remedy.
    """

    algorithms: list[str]
    tasks: list[str]
    seeds: list[int]
    log_folder: str = "sweeps"
    n_timesteps: int | None = None
    eval_freq: int | None = None
    save_freq: int | None = None
    eval_episodes: int = 5
    hyperparams: dict[str, Any] = field(default_factory=dict)
    algorithm_hyperparams: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_list("algorithms", self.algorithms, str)
        _check_list("tasks", self.tasks, str)
        _check_list("seeds", self.seeds, int)
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must be >= 0, got {min(self.seeds)}")
        if not isinstance(self.log_folder, str) or not self.log_folder:
            raise ValueError(f"log_folder must be the path of a folder, got {self.log_folder!r}")
        for name in ("n_timesteps", "eval_freq", "save_freq"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        _check_positive("eval_episodes", self.eval_episodes)
        _check_mapping("hyperparams", self.hyperparams)
        _check_mapping("algorithm_hyperparams", self.algorithm_hyperparams)
        for name, value in self.algorithm_hyperparams.items():
            _check_choice("algorithm_hyperparams", name, self.algorithms)
            _check_mapping(f"algorithm_hyperparams of {name}", value)

    @classmethod
    def read(cls, path: Path, log_folder: Path | None = None) -> Spec:
        """Read and check a spec.

        :param path: of the YAML file.
        :param log_folder: in place of the spec's.
        :raises ValueError: if there is an unknown key or value, or one is missing.
        """
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        _check_mapping(str(path), content)
        known = [each.name for each in fields(cls)]
        for key in content:
            _check_choice("a key of the spec", key, known)
        missing = [key for key in ("algorithms", "tasks", "seeds") if key not in content]
        if missing:
            raise ValueError(f"the spec must have {', '.join(missing)}; add it to {path}")
        if log_folder is not None:
            content["log_folder"] = str(log_folder)
        spec = cls(**content)
        for settings in (spec.hyperparams, *spec.algorithm_hyperparams.values()):
            check_kinds(settings, str(path))
        return spec


def plan_runs(spec: Spec) -> list[Run]:
    """Make the runs of a spec, in the order algorithms, tasks, seeds.

    :raises ValueError: for an unknown algorithm, task or hyperparameter, with the known ones.
    """
    known = algorithms()
    for name in spec.algorithms:
        _check_choice("an algorithm", name, sorted(known))
    for task in spec.tasks:
        _check_task(task)
    root = Path(spec.log_folder).resolve()  # workers may have another working directory
    runs = []
    for name in spec.algorithms:
        for task in spec.tasks:
            settings = _settings(spec, name, task)
            _check_settings(name, known[name], settings)
            _check_values(name, known[name], task, settings)
            wrappers, steps = settings.pop("env_wrapper", []), settings.pop("n_timesteps")
            policy, short = settings.pop("policy"), task.replace("/", "-").replace(":", "-")
            runs += [
                Run(
                    algorithm=name,
                    env=task,
                    seed=seed,
                    folder=root / name / f"{short}_seed{seed}",
                    policy=policy,
                    env_wrapper=wrappers,
                    n_timesteps=steps,
                    eval_freq=spec.eval_freq or max(1, steps // 10),
                    save_freq=spec.save_freq or max(1, steps // 10),
                    eval_episodes=spec.eval_episodes,
                    hyperparameters=dict(settings),
                )
                for seed in spec.seeds
            ]
    folders = [run.folder for run in runs]
    _check_unique("tasks must differ in more than / - and :, so that each has a folder", folders)
    return runs


def _settings(spec: Spec, algorithm: str, task: str) -> dict[str, Any]:
    """Merge, the last word last: configuration, ``n_timesteps``, all's, the algorithm's own."""
    is_ours = algorithm in ALGORITHMS
    shipped = load_config(task) if is_ours else load_borrowed(task)
    steps = {} if spec.n_timesteps is None else {"n_timesteps": spec.n_timesteps}
    return merge(shipped, steps, spec.hyperparams, spec.algorithm_hyperparams.get(algorithm, {}))


# ---------------------------------------------------------------------- checks


def _check_settings(algorithm: str, made_by: Any, settings: dict[str, Any]) -> None:
    arguments = [name for name in signature(made_by).parameters if name not in RESERVED]
    for name, value in settings.items():
        if name in RESERVED:
            raise ValueError(f"hyperparams: {name} is given by the sweep itself; remove it")
        _check_choice(f"a hyperparameter of {algorithm}", name, [*arguments, *SETTINGS])
        if isinstance(value, str) and _is_number(value):
            raise ValueError(
                f"hyperparams: YAML reads {name}: {value} as text; write {float(value):.1e} with "
                "a point, as in 3.0e-4"
            )
    _check_positive("n_timesteps", settings["n_timesteps"])


def _check_values(algorithm: str, made_by: Any, task: str, settings: dict[str, Any]) -> None:
    """Make the algorithm once, for its own checks of its arguments; nothing is trained.

    :raises ValueError: with what it says.
    """
    arguments = {name: value for name, value in settings.items() if name not in SETTINGS}
    if "buffer_size" in signature(made_by).parameters:  # little memory, where the size is valid
        size = arguments.get("buffer_size", 1)
        arguments["buffer_size"] = min(size, 1) if isinstance(size, int) else size
    try:
        with closing(make_env(task, settings.get("env_wrapper", []))) as env:
            # Runs may have other devices than the machine that plans them.
            model = to_arguments(arguments) | {"device": "cpu"}
            made_by(settings["policy"], env, **model)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"hyperparams: {algorithm} on {task}: {error}") from error


def _check_task(task: str) -> None:
    module, _, name = task.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        check_registered(name)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"tasks: {task!r}: {error}. Those of another package are written module:Name-v0"
        ) from error


def _check_choice(what: str, value: Any, allowed: list[str]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {value!r}{hint}")


def _check_list(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, list) or not value or any(type(each) is not kind for each in value):
        what = "names" if kind is str else "whole numbers"
        raise ValueError(f"{name} must be a list of {what}, not empty, got {value!r}")
    _check_unique(f"{name} must not repeat any", value)


def _check_unique(rule: str, values: list[Any]) -> None:
    twice = sorted({str(each) for each in values if values.count(each) > 1})
    if twice:
        raise ValueError(f"{rule}; got {', '.join(twice)} more than once")


def _check_positive(name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping, key: value, got {value!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
