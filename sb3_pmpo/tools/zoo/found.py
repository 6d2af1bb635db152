"""Which of the Zoo's runs is the latest that can be used; what is torn or empty is left out."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_model_path, get_saved_hyperparams

from sb3_pmpo.storage.strangers import RUN_SETTINGS, are_own, check_settings
from sb3_pmpo.tools.checkpoints import UNIT
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.zoo.writing import statistics_of


class NotSavedError(ValueError):
    """The run is there and does not hold the model; the message says what it holds."""


def find_model(
    exp_id: int, folder: str, algo: str, env_name: EnvironmentName, *which: Any, **options: Any
) -> tuple[str, str, str]:
    """Find a model as the Zoo's ``get_model_path`` does; the latest run is one that has it whole.

    :param exp_id: number of the run; 0 for the latest, -1 for no number.
    :param folder: that ``train`` wrote.
    :param algo: the Zoo's name.
    :param env_name: of the environment.
    :param which: of the models, as the Zoo has it.
    :param options: the same by name.
    :return: label, path of the model, folder of the run.
    :raises ValueError: if there is none; of a run that was named, if it is torn.
    """
    if exp_id != 0:
        try:
            found = get_model_path(exp_id, folder, algo, env_name, *which, **options)
        except ValueError as error:
            if not (instead := _instead(error)):
                raise
            raise NotSavedError(f"{error}{instead}") from error
        check_whole(found[1], found[2], env_name)
        return found
    errors: dict[int, ValueError] = {}
    for number in _numbers(Path(folder, algo), env_name):
        try:
            found = find_model(number, folder, algo, env_name, *which, **options)
        except ValueError as error:
            errors[number] = error
            continue
        for left_out, reason in errors.items():
            warnings.warn(f"run {left_out} is left out: {reason}", stacklevel=2)
        print(f"The latest run is {number}: {found[2]}")
        return found
    if errors:
        are_whole = all(isinstance(error, NotSavedError) for error in errors.values())
        kind = NotSavedError if are_whole else ValueError
        raise kind("; ".join(f"run {number} is left out: {e}" for number, e in errors.items()))
    of_sweep = next(Path(folder, algo).glob(f"*/{RUN_SETTINGS}"), None)
    if of_sweep is not None:
        run = of_sweep.parent
        raise NotSavedError(
            f"the runs in {run.parent} are a sweep's: sb3-pmpo evaluate {run} measures one, and "
            f"{algo.upper()}.load('{run}/model.zip') loads its model"
        )
    return get_model_path(exp_id, folder, algo, env_name, *which, **options)  # which says so


def _instead(error: ValueError) -> str:
    """Say what a run without the model that was asked for has instead.

    :param error: of the Zoo, which ends with the path of the model, or of the run.
    """
    path = Path(str(error).rpartition("path: ")[2])
    if path.name == "best_model.zip":
        return ": train writes the best model with --eval-freq; without --load-best it is the last"
    if re.fullmatch(r"rl_model_.*_steps\.zip", path.name) or path.is_dir():
        folder = path if path.is_dir() else path.parent
        found = re.findall(r"rl_model_(\d+)_steps", " ".join(map(str, folder.glob("*.zip"))))
        there = ", ".join(sorted(found, key=int)) or "none: train writes them with --save-freq"
        return f"; its checkpoints: {there}"
    return ""


def _numbers(folder: Path, env_name: str) -> list[int]:
    """Return the numbers of an environment's runs, the latest first."""
    ends = [path.name.removeprefix(f"{env_name}_") for path in folder.glob("*") if path.is_dir()]
    return sorted((int(end) for end in ends if end.isdigit()), reverse=True)


def check_whole(model: str, folder: str, env_name: str) -> None:
    """Check what is read of a run to use its model.

    :raises ValueError: naming a file that is torn or empty.
    """
    if not is_archive(Path(model)):
        raise ValueError(f"{model} is empty or torn{_remedy(Path(folder))}")
    settings = Path(folder, env_name)
    for statistics in (settings / "vecnormalize.pkl", statistics_of(Path(model), settings)):
        if statistics.is_file() and not (is_archive(statistics) or is_pickle(statistics)):
            raise ValueError(f"{statistics} is empty or torn{_remedy(Path(folder))}")
    for name in ("config.yml", "args.yml"):
        if (settings / name).exists():
            try:
                read(settings / name)
            except ValueError as error:
                raise ValueError(f"its settings cannot be read: {error}") from error


def _remedy(folder: Path) -> str:
    unit = folder / UNIT
    return f"; sb3-pmpo train -i {folder} goes on from its checkpoint" if unit.is_dir() else ""


def is_archive(path: Path) -> bool:
    """Say whether a model or evaluations are a whole archive.

    What is left of a torn model may end with its weights, which are an archive within it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            begin = min((entry.header_offset for entry in archive.infolist()), default=-1)
            return begin == 0 and archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError):
        return False


def is_pickle(path: Path) -> bool:
    """Say whether a file is a whole pickle, without running it."""
    try:
        for _ in pickletools.genops(path.read_bytes()):
            pass
    except ValueError:
        return False
    return True


def saved_settings(folder: str, **options: Any) -> tuple[dict[str, Any], str | None]:
    """Read a run's settings as the Zoo does; a stranger's call nothing but what is listed.

    :param folder: with ``config.yml``.
    :param options: of the Zoo's ``get_saved_hyperparams``.
    :raises UntrustedFileError: for a wrapper that is not known to be harmless.
    """
    found = get_saved_hyperparams(folder, **options)
    if not are_own(Path(folder)):
        check_settings(found[0], str(Path(folder, "config.yml")))
    return found


def find_whole(*modules: ModuleType) -> None:
    """Let programs of the Zoo find models by :func:`find_model`, settings by the above."""
    for module in modules:
        vars(module)["get_model_path"] = find_model
        vars(module)["get_saved_hyperparams"] = saved_settings
