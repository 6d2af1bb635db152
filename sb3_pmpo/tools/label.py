"""``sb3-pmpo label``: show clips of a policy, or of a data set, and ask a person about each."""

from __future__ import annotations

import argparse
import itertools
import secrets
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pmpo.command_line import count
from sb3_pmpo.feedback.clips import (
    INDEX,
    ClipSet,
    Segment,
    read_clips,
    segments_of,
    write_clips,
)
from sb3_pmpo.feedback.server import is_loopback, make_app
from sb3_pmpo.offline.dataset import LabelledDataset
from sb3_pmpo.online.exploration import explore, make_noise, pink_noise, pink_or_white_noise
from sb3_pmpo.online.off_policy import OffPolicyMPO
from sb3_pmpo.tools.checkpoints import lock
from sb3_pmpo.tools.settings import as_words


def _zoo(module: str) -> Any:
    """Import what finds agents and films them; it needs the extra ``[train]``."""
    return import_module(f"sb3_pmpo.tools.zoo.{module}")


def main(arguments: Sequence[str]) -> int:
    """Record clips unless the folder has them, ask about them, print what learns from them."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        folder = args.labels or _unanswered(Path("labels") / args.env)
    except ValueError as error:
        parser.error(str(error))
    try:  # before anything is recorded
        bound = _bind(args.host, args.port)
    except (OSError, OverflowError) as error:
        parser.error(f"--host {args.host} --port {args.port} cannot be listened on: {error}")
    with ExitStack() as held:
        if not held.enter_context(lock(folder)):
            bound.close()
            parser.error(f"another sb3-pmpo label asks about {folder}: use its page, or stop it")
        try:
            clips = _find_or_make_clips(args, folder)
            clips.answers()  # says what is wrong with them before a page is made
        except ValueError as error:
            bound.close()
            parser.error(str(error))
        return _ask(args, clips, folder, bound)


def _ask(args: argparse.Namespace, clips: ClipSet, folder: Path, bound: socket.socket) -> int:
    command = learning_command(clips)
    server, bound, address = _make_server(clips, args.host, args.port, command, bound)
    answered = len(clips.answers().answers)
    source = _from_here(clips.about.get("model") or clips.about.get("dataset", "unknown origin"))
    print(f"{len(clips.names)} clips of {source} in {folder}, {answered} of them answered")
    print(
        f"Open {address}\nCtrl-C ends the program; every answer is saved as it is given.",
        flush=True,
    )
    with suppress(KeyboardInterrupt), bound:  # the server raises it again, once it is done
        server.run(sockets=[bound])
    counts = clips.answers().counts()
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"Learn from the answers with:\n  {command}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _zoo("agents").make_parser(
        "label",
        "Ask a person which clips of a policy are good; one page in the browser.",
        noisy=True,
    )
    add = parser.add_argument
    add("--labels", type=Path, help="folder of clips and answers; one that has clips is continued "
        "(default: labels/<env>; once all is answered there labels/<env>_2, ...)")  # fmt: skip
    add("--clips", type=count, default=40, help="how many to record (default: 40)")
    add("--length", type=count, default=50, help="decisions of a clip (default: 50)")
    add("--dataset", type=Path, help="folder of a data set with pictures, to take the clips from")
    add("--fps", type=float, default=20.0, help="of a data set's clips (default: 20)")
    add("--host", default="127.0.0.1", help="where to listen (default: this machine alone); on any "
        "other address a token guards the page")  # fmt: skip
    add("--port", type=int, default=0, help="default: a free one")
    return parser


def learning_command(clips: ClipSet) -> str:
    """Return the command that learns from the answers to these clips."""
    words = ["sb3-pmpo", "offline", "--env", clips.about["env"], "--labels", str(clips.folder)]
    for option in ("algo", "model", "dataset"):
        if option in clips.about:
            words += [f"--{option}", _from_here(clips.about[option])]
    modules = [name for name in clips.about.get("gym_packages", "").split() if name[0] != "-"]
    if modules:
        words += ["--gym-packages", *modules]
    pairs = shlex.split(clips.about.get("env_kwargs", ""))
    if pairs and all(pair.partition(":")[0].isidentifier() for pair in pairs):  # and no options
        words += ["--env-kwargs", *pairs]
    if "model" in clips.about:  # a few clips change a policy, they do not make one
        words += ["--gradient-steps", "300"]
    return shlex.join(words)


def _written(env_kwargs: Mapping[str, Any]) -> str:
    """Write arguments of an environment as words of a command line."""
    return shlex.join(as_words(env_kwargs))


def _from_here(name: str) -> str:
    """Shorten the whole path of a file below the working directory; leave any other word."""
    here = Path.cwd()
    return str(Path(name).relative_to(here)) if Path(name).is_relative_to(here) else name


# ---------------------------------------------------------------------- clips


def _unanswered(first: Path) -> Path:
    """Return the first of ``first``, ``first_2``, ... in which there is something to be asked."""
    later = (first.with_name(f"{first.name}_{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([first], later) if not _is_answered(folder))


def _is_answered(folder: Path) -> bool:
    """Say whether there are clips, each with an answer."""
    if not (folder / INDEX).exists():
        return False
    clips = read_clips(folder)
    return len(clips.answers().answers) >= len(clips.names)


def _find_or_make_clips(args: argparse.Namespace, folder: Path) -> ClipSet:
    if (folder / INDEX).exists():
        clips = read_clips(folder)
        theirs = clips.about.get("dataset")
        if args.dataset is not None and theirs != str(args.dataset.resolve()):
            raise ValueError(
                f"--dataset {args.dataset}: the clips in {folder} are of "
                f"{theirs or clips.about.get('model', 'something else')}; give another folder with "
                "--labels"
            )
        return clips
    if args.dataset is not None:
        return _clips_of_dataset(args, folder)
    return _clips_of_policy(args, folder)


def _clips_of_dataset(args: argparse.Namespace, folder: Path) -> ClipSet:
    dataset = LabelledDataset.load(args.dataset)
    return write_clips(
        folder,
        segments_of(dataset, args.clips, args.length),
        observation_space=dataset.observation_space,
        action_space=dataset.action_space,
        fps=args.fps,
        about={
            "env": args.env.gym_id,
            "algo": args.algo,
            "dataset": str(args.dataset.resolve()),
            "gym_packages": " ".join(args.gym_packages),
            "env_kwargs": _written(args.env_kwargs or {}),
        },
    )


def _clips_of_policy(args: argparse.Namespace, folder: Path) -> ClipSet:
    agent = _zoo("agents").find_agent(args)
    env = agent.make_env(n_envs=1, seed=args.seed, render=True)
    video = _zoo("video")
    video.check_rendering(env)
    print(f"Recording {args.clips} clips of {agent.model_path}")
    model = agent.load(env, seed=args.seed, device=args.device)
    env.seed(args.seed)
    try:
        return write_clips(
            folder,
            record_segments(model, env, args.clips, args.length, deterministic=args.deterministic),
            observation_space=env.observation_space,
            action_space=env.action_space,
            fps=video.decisions_per_second(env),
            about={
                "env": agent.env_name.gym_id,
                "algo": agent.algorithm,
                "model": str(agent.model_path.resolve()),
                "gym_packages": " ".join(agent.modules),
                "env_kwargs": _written(agent.env_kwargs),
            },
        )
    finally:
        env.close()


def record_segments(
    model: BaseAlgorithm, env: VecEnv, n_clips: int, length: int, *, deterministic: bool
) -> Iterator[Segment]:
    """Let a model act and cut what is seen into segments, none across an episode's end.

    :param env: one environment with ``render_mode="rgb_array"``.
    :param n_clips: how many.
    :param length: decisions of a segment, fewer where the episode ends before.
    :param deterministic: whether to act without noise. With it the clips differ more, and that of
        :func:`~sb3_pmpo.online.exploration.explore` gives the steps of one something in common.
        The default is pink here: in a white half the draws would have nothing in common.
    """
    if isinstance(model, OffPolicyMPO) and model.exploration_noise is pink_or_white_noise:
        model.noise = make_noise(pink_noise, model.n_envs, model.action_space)
    observations: Any = env.reset()
    state: Any = None
    starts = np.ones(1, bool)
    made = 0
    seen, done, frames = [], [], []
    while made < n_clips:
        seen.append(_raw(env, observations))
        frames.append(np.array(env.render()))  # copies: the environment may go on writing there
        if deterministic or not isinstance(model, OffPolicyMPO):
            actions, state = model.predict(observations, state, starts, deterministic)
        else:
            actions = explore(model, observations, starts)
        done.append(np.array(actions[0]))
        observations, _, starts, _ = env.step(actions)
        if starts[0] or len(done) == length:
            yield Segment(_join(seen), np.array(done), np.array(frames))
            made += 1
            seen, done, frames = [], [], []


def _raw(env: VecEnv, observations: Any) -> Any:
    """Return what the environment showed, before VecNormalize."""
    if isinstance(env, VecNormalize):
        return env.get_original_obs()
    return observations


def _join(seen: list[Any]) -> Any:
    if isinstance(seen[0], dict):
        return {key: np.concatenate([part[key] for part in seen]) for key in seen[0]}
    return np.concatenate(seen)


# ---------------------------------------------------------------------- server


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _make_server(
    clips: ClipSet, host: str, port: int, command: str, bound: socket.socket | None = None
) -> tuple[uvicorn.Server, socket.socket, str]:
    """Return the server, its socket, made unless it is given, and the address to open."""
    bound = bound or _bind(host, port)
    token = None if is_loopback(host) else secrets.token_urlsafe(16)
    stop: list[Any] = []

    def finish() -> None:
        stop[0].should_exit = True

    app = make_app(clips, clips.answers(), command=command, finish=finish, token=token)
    # Its own configuration of logs would close the handlers that others have set up.
    config = uvicorn.Config(app, log_level="warning", log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    stop.append(server)
    name = socket.gethostname() if host in {"0.0.0.0", "::"} else host
    shown = f"[{name}]" if ":" in name else name
    number = bound.getsockname()[1]
    return server, bound, f"http://{shown}:{number}/" + (f"?token={token}" if token else "")
