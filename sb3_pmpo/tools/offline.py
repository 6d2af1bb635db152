"""``sb3-pmpo offline``: learn from labelled data; folders, evaluation and plots are ``train``'s."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_pmpo.command_line import Parser, count, reason
from sb3_pmpo.core.samples import mean_over_samples, mean_per_set
from sb3_pmpo.feedback.buffer import FeedbackBuffer
from sb3_pmpo.feedback.clips import INDEX, read_clips
from sb3_pmpo.offline.columns import DatasetError, make_columns
from sb3_pmpo.offline.dataset import LabelledDataset, concatenate
from sb3_pmpo.offline.formats import NAMES
from sb3_pmpo.offline.labelling import label_by_advantage, label_by_return
from sb3_pmpo.offline.spaces import fit_columns
from sb3_pmpo.tools.settings import KeyValues

NORMALISATIONS = {"batch": mean_over_samples, "set": mean_per_set}


def main(arguments: Sequence[str]) -> int:
    """Read data and labels, learn, save as ``train`` does; other arguments are ``train``'s.

    The command of a run with ``-i FOLDER`` besides goes on from its checkpoint.
    """
    from sb3_pmpo.tools.zoo.launch import run_train
    from sb3_pmpo.tools.zoo.manager import Manager
    from sb3_pmpo.tools.zoo.resuming import check_kind, filled_in, find_unit

    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    steps = args.gradient_steps
    try:
        if args.folder is not None:
            if not args.folder.is_dir():
                raise ValueError(f"-i {args.folder} is no folder: --model begins with a .zip file")
            check_kind(args.folder, offline=True)
            steps -= find_unit(args.folder).step
        elif args.model is not None and not args.model.is_file():
            raise ValueError(f"--model {args.model}: there is no such file; train writes one")
        dataset = read_data(
            args.dataset, args.labels, gamma=args.gamma, seed=args.seed, env=args.env, more=rest
        )
    except (ValueError, OSError) as error:
        parser.error(reason(error))
    print(dataset)
    if steps <= 0:
        print(f"The run in {args.folder} has done its steps; a larger --gradient-steps does more.")
        return 0
    zoo = ["--algo", args.algo, "--env", args.env, "-n", str(steps), "--seed", str(args.seed)]
    zoo += ["--eval-freq", str(args.eval_freq or max(args.gradient_steps // 10, 1))]
    # A buffer of one transition: nothing is collected. One environment: the Zoo divides what it
    # counts in decisions, such as the steps between evaluations, by their number.
    zoo += ["--hyperparams", "buffer_size:1", *args.hyperparams, "n_envs:1"]
    begin_with = args.folder or args.model
    if begin_with is not None:
        zoo += ["-i", str(begin_with)]
    learn = partial(_learn, args, dataset)
    manager = partial(Manager, learn=learn, offline=_as_new(arguments))
    run_train("offline", filled_in([*zoo, *rest]), manager)
    return 0


def _as_new(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that a new run of the same would have: without ``-i FOLDER``."""
    parser = Parser(add_help=False)
    parser.add_argument("-i", "--trained-agent")
    return parser.parse_known_args(arguments)[1]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="sb3-pmpo offline",
        description="Learn from accepted and rejected actions without acting. Other arguments are "
        "those of sb3-pmpo train: -f, --eval-episodes, --device, -tb, ...",
    )
    add = parser.add_argument
    add("--env", required=True, help="environment id, for settings and evaluation")
    add("--algo", choices=["pmpo"], default="pmpo", help="only pmpo learns from labels")
    add("--dataset", help="folder of a data set, id of a local Minari data set, or an .npz of "
        "arrays with D4RL's names")  # fmt: skip
    add("--labels", help="folder of sb3-pmpo label, .npz of a FeedbackBuffer, .npy of -1, 0 and 1, "
        "'advantage[:margin]' or 'return[:top]' (default: those of the data set)")  # fmt: skip
    add("-i", "--trained-agent", type=Path, dest="folder", help="go on from the checkpoint that "
        "--save-freq wrote in a run's folder; give its other arguments again")  # fmt: skip
    add("--model", type=Path, help="start from this .zip, which is then the reference")
    add("--gradient-steps", type=count, default=20_000, help="default: 20000")
    add("--kl", choices=("data", "reference"), help="where the KL comes from (default: data; with "
        "--model, reference)")  # fmt: skip
    add("--alpha", type=float, help="weight of the accepted (default: by the labels there are)")
    add("--beta", type=float, help="weight of the KL (default: 2 * (1 - alpha); from rejections "
        "alone with '--normalise set' more, the rarer they are)")  # fmt: skip
    add("--normalise", choices=list(NORMALISATIONS), default="batch", help="'batch' averages over "
        "all rows (default); 'set' over the accepted and over the rejected apart, so that rare "
        "labels have their full weight")  # fmt: skip
    add("--gamma", type=float, default=0.99, help="discount of 'advantage' (default: 0.99)")
    add("--eval-freq", type=int, help="steps between evaluations (default: a tenth of all)")
    add("--hyperparams", "-params", nargs="+", default=[], help="the model's, "
        "key:value, as train takes them")  # fmt: skip
    add("--seed", type=int, default=0, help="default: 0")
    return parser


def _learn(
    args: argparse.Namespace,
    dataset: LabelledDataset,
    model: Any,
    n_timesteps: int,
    *,
    callback: Any,
    log_interval: int | None = 1000,
    **_: Any,
) -> None:
    """Do what ``train`` does with ``model.learn``; steps on a ``--model`` count from 0."""
    model.learn_offline(
        dataset,
        n_timesteps,
        kl=args.kl or ("data" if args.model is None else "reference"),
        alpha=args.alpha,
        beta=args.beta,
        normalise=NORMALISATIONS[args.normalise],
        clone_steps=None if args.model is None else 0,  # it is the reference as it is
        callback=callback,
        log_interval=log_interval,
        reset_num_timesteps=args.folder is None,
    )


# ---------------------------------------------------------------------- data


def read_data(
    dataset: str | None,
    labels: str | None,
    *,
    gamma: float,
    seed: int,
    env: str | None = None,
    more: Sequence[str] = (),
) -> LabelledDataset:
    """Read a data set and give it the labels that are asked for.

    :param dataset: a folder, a Minari id, an ``.npz``; None where the labels bring their steps.
    :param labels: see ``sb3-pmpo offline --help``.
    :param gamma: discount of ``advantage``.
    :param seed: of its value function.
    :param env: id of the environment whose spaces an ``.npz`` is of; None guesses them.
    :param more: arguments of ``train``, of which ``--env-kwargs`` and ``--gym-packages`` count.
    :raises DatasetError: if something cannot be read, or does not fit.
    """
    data = None if dataset is None else _read_dataset(dataset, env, more)
    if labels is None:
        if data is None:
            raise DatasetError("give --dataset, or --labels with a folder of sb3-pmpo label")
        return data
    path = Path(labels)
    if (path / INDEX).is_file():
        clips = read_clips(path)
        labelled = None if data is None else clips.labels_of(data)
        if labelled is not None:
            return labelled  # the rows are there already
        answered = clips.dataset()
    elif path.suffix == ".npz" and path.is_file():
        answered = FeedbackBuffer.load(path).to_dataset()
    else:
        return _labelled(data, labels, gamma=gamma, seed=seed)
    return answered if data is None else concatenate([data, answered])


def _read_dataset(name: str, env: str | None, more: Sequence[str]) -> LabelledDataset:
    path = Path(name)
    if path.is_dir():
        return _in_known_spaces(LabelledDataset.load(path), env, more)
    if path.suffix == ".npz":
        with reading(path) as file, np.load(file, allow_pickle=False) as found:
            # The others are named where one is missing, and never read: they may be of any kind.
            arrays = {key: found[key] if key in NAMES else None for key in found.files}
        return LabelledDataset.from_d4rl_like(arrays, **_spaces(env, more, arrays))
    if path.is_file():
        raise DatasetError(
            f"--dataset {name} is a file of another kind than .npz. Of a replay buffer make a "
            "folder, in Python: "
            "LabelledDataset.from_replay_buffer(model.replay_buffer).save('FOLDER')"
        )
    try:
        import minari
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"--dataset {name}: there is no such folder, and Minari is not installed, which could "
            "know it: pip install 'sb3_pmpo[offline]'"
        ) from error
    if name not in minari.list_local_datasets():
        raise DatasetError(f"--dataset {name}: there is no such folder or local Minari data set")
    return LabelledDataset.from_minari(minari.load_dataset(name))


def _in_known_spaces(
    data: LabelledDataset, env: str | None, more: Sequence[str]
) -> LabelledDataset:
    """Put rows whose spaces were inferred into those of the environment, where they fit."""
    found = _spaces(env, more, {}) if data.inferred else {}
    for name in sorted(data.inferred & found.keys()):
        with suppress(DatasetError):  # a wrapper of the settings may show something else
            data = data.with_space(name, found[name])
    return data


def _spaces(
    env: str | None, more: Sequence[str], arrays: Mapping[str, Any]
) -> dict[str, spaces.Space]:
    """Take the spaces from the environment: of its actions, and of what was seen if it fits."""
    if env is None:
        return {}
    from sb3_pmpo.envs import make_env

    parser = Parser(prog="sb3-pmpo offline", add_help=False)
    parser.add_argument("--env-kwargs", nargs="+", action=KeyValues)
    parser.add_argument("--gym-packages", nargs="+", action="extend", default=[])
    given, _ = parser.parse_known_args(more)
    try:
        for module in given.gym_packages:
            import_module(module)
        made = make_env(env, **(given.env_kwargs or {}))
    except (gym.error.Error, ImportError, ValueError, TypeError):
        return {}  # what is wrong with the id is said where it is trained for
    made.close()
    try:
        for name in {"observations", "next_observations"} & arrays.keys():
            fit_columns(make_columns(arrays[name], name), made.observation_space, name)
    except DatasetError:  # a wrapper of the settings may show something else
        return {"action_space": made.action_space}
    return {"action_space": made.action_space, "observation_space": made.observation_space}


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file, and say which it is if it cannot be read, however it is broken.

    :raises DatasetError: naming it.
    """
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise
    except Exception as error:  # a header, a zip or what is packed in it
        raise DatasetError(f"{path} cannot be read, or is torn: {error}") from error


def _labelled(
    data: LabelledDataset | None, labels: str, *, gamma: float, seed: int
) -> LabelledDataset:
    if data is None:
        raise DatasetError(f"--labels {labels} needs the rows that it labels: give --dataset")
    path = Path(labels)
    if path.suffix == ".npy":
        with reading(path) as file:
            read = np.load(file, allow_pickle=False)
        return data.with_labels(read)
    kind, _, number = labels.partition(":")
    try:
        given = float(number) if number else None
    except ValueError as error:
        raise DatasetError(
            f"--labels {labels}: behind '{kind}:' there must be a number, got {number!r}"
        ) from error
    if kind == "advantage":
        found = label_by_advantage(data, given or 0.0, gamma, seed=seed)
    elif kind == "return":
        found = label_by_return(data, 0.25 if given is None else given)
    else:
        raise DatasetError(
            f"--labels {labels}: neither a folder of sb3-pmpo label, a file, 'advantage[:margin]' "
            "nor 'return[:top]'"
        )
    print(f"Labels by {labels}: {found.report}")
    return found.dataset
