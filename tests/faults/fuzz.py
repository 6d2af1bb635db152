"""Random calls of the constructors: each runs, or is refused by name, at construction.

``python -m tests.faults.fuzz --calls 10000 --seed 0`` from the root of the repository. Call number
i is the same whatever the number of calls; ``--only i`` repeats it and shows its traceback.
"""

from __future__ import annotations

import argparse
import inspect
import io
import random
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pmpo import DPO, MPO, PMPO

from . import draws

#: Seconds that a call may take.
LIMIT = 60
STEPS = 30


class AnyEnv(gym.Env):
    """An environment of given spaces, whose observations and rewards are random and finite."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.step_in_episode = 0

    def _observe(self) -> Any:
        return _bounded(self.observation_space.sample(), self.observation_space)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.step_in_episode = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        if isinstance(self.action_space, spaces.Box):
            assert np.isfinite(action).all(), action
            assert (action >= self.action_space.low).all(), action
            assert (action <= self.action_space.high).all(), action
            assert np.shape(action) == self.action_space.shape, action
        else:
            assert self.action_space.contains(action), action
        self.step_in_episode += 1
        ended = self.step_in_episode >= 5
        return self._observe(), float(self.np_random.normal()), ended, False, {}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> Any:
        return -np.abs(achieved - desired).sum(-1)


def _bounded(value: Any, space: spaces.Space) -> Any:
    """Bring a sample of a space with huge bounds to what a sensor may give."""
    if isinstance(space, spaces.Dict):
        return {key: _bounded(value[key], part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return np.clip(value, -100, 100).astype(space.dtype)
    return value


@dataclass
class Call:
    """A constructor's call, and which of its arguments were drawn at random."""

    algorithm: type
    observation_space: spaces.Space
    action_space: spaces.Space
    n_envs: int
    normalised: bool
    kwargs: dict[str, Any]
    drawn: set[str] = field(default_factory=set)

    def make_env(self) -> Any:
        if self.n_envs == 1 and not self.normalised:
            return AnyEnv(self.observation_space, self.action_space)
        env: Any = DummyVecEnv(
            [lambda: AnyEnv(self.observation_space, self.action_space)] * self.n_envs
        )
        return VecNormalize(env) if self.normalised else env

    def __str__(self) -> str:
        drawn = {name: self.kwargs[name] for name in sorted(self.drawn & self.kwargs.keys())}
        return (
            f"{self.algorithm.__name__}({drawn!r}, observations={self.observation_space}, "
            f"actions={self.action_space}, n_envs={self.n_envs}, normalised={self.normalised})"
        )


def draw_call(seed: int, number: int) -> Call:
    """Draw the call of that number: small and right, but for a few arguments or a space."""
    rng = random.Random(f"{seed}-{number}")
    algorithm = rng.choice([PMPO, PMPO, MPO, DPO])
    observations: spaces.Space = draws.box(-1, 1, (3,))
    actions: spaces.Space = draws.box(-1, 1, (2,))
    drawn = set()
    if rng.random() < 0.4:
        observations = draws.observation_space(rng)
        drawn.add("observation space")
    if rng.random() < 0.3:
        actions = draws.action_space(rng)
        drawn.add("action space")
    kwargs: dict[str, Any] = {
        "policy": _policy_for(observations, rng),
        "buffer_size": 64,
        "learning_starts": 7,
        "batch_size": 4,
        "n_samples": 4,
        "train_freq": 4,
        "gradient_steps": 1,
        "policy_delay": 2,
        "seed": 1,
        "device": "cpu",
        "policy_kwargs": {"net_arch": [8], "n_quantiles": 2},
    }
    names = [name for name in inspect.signature(algorithm).parameters if name[0] != "_"]
    names = [name for name in names if name != "env"]
    for name in rng.sample(names, rng.choice([0, 1, 1, 1, 2, 2, 3])):
        value = draws.argument(name, rng)
        if name == "policy_kwargs" and type(value) is dict:
            drawn |= {str(key) for key in value}
            value = kwargs[name] | value
        elif name == "replay_buffer_kwargs" and type(value) is dict:
            drawn |= {str(key) for key in value}
        kwargs[name] = value
        drawn.add(name)
    normalised = rng.random() < 0.15
    if normalised:
        drawn.add("VecNormalize")
    return Call(algorithm, observations, actions, rng.choice([1, 1, 2]), normalised, kwargs, drawn)


def _policy_for(space: spaces.Space, rng: random.Random) -> str:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and rng.random() < 0.7:
        return "CnnPolicy"
    return "MlpPolicy"


@dataclass
class Outcome:
    """What became of a call: it ran, was refused, was refused unclearly, failed later."""

    kind: str
    error: str = ""
    trace: str = ""


class TooLongError(BaseException):  # not to be caught as what a user's function raises
    """A call has not ended in time."""


def _too_long(*_: Any) -> None:
    raise TooLongError(f"more than {LIMIT} s")


def run_call(call: Call) -> Outcome:
    """Construct, learn, save and load."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        return _run_call(call)
    except TooLongError as error:
        return Outcome("failed", repr(error), traceback.format_exc())
    finally:
        signal.alarm(0)


def _run_call(call: Call) -> Outcome:
    try:
        env = call.make_env()
    except Exception as error:  # Gymnasium or SB3 refuse it before we see it
        return Outcome("not made", _shown(error))
    try:
        model = call.algorithm(env=env, **call.kwargs)
    except Exception as error:
        return _judge(call, error)
    try:
        model.learn(STEPS)
        _save_and_load(call, model)
    except Exception as error:
        return Outcome("failed", _shown(error), traceback.format_exc())
    return Outcome("ran")


def _save_and_load(call: Call, model: Any) -> None:
    observation = model.env.reset()
    before, _ = model.predict(observation, deterministic=True)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = call.algorithm.load(file, env=call.make_env(), device="cpu")
    after, _ = loaded.predict(observation, deterministic=True)
    np.testing.assert_array_equal(before, after)
    with tempfile.TemporaryDirectory() as folder:
        model.save_replay_buffer(Path(folder) / "buffer")
        loaded.load_replay_buffer(Path(folder) / "buffer")
    loaded.learn(3, reset_num_timesteps=False)


def _judge(call: Call, error: Exception) -> Outcome:
    """Say whether a refusal is clear: it names what was drawn, its value, and the remedy."""
    message = str(error)
    names = {*call.drawn, *(["space"] if any("space" in name for name in call.drawn) else [])}
    named = [name for name in names if name in message]
    values = [call.observation_space, call.action_space, *_flat(call.kwargs)]
    shown = any(part in message for value in values for part in _shapes(value))
    # Of a function that was tried, what it answered is the value.
    shown |= "got " in message and any(callable(value) for value in call.kwargs.values())
    clear = isinstance(error, (ValueError, TypeError)) and named and shown and ": " in message
    kind = "refused" if clear else "unclear"
    return Outcome(kind, _shown(error), traceback.format_exc())


def _flat(kwargs: dict[str, Any]) -> list[Any]:
    values = list(kwargs.values())
    for value in kwargs.values():
        if isinstance(value, dict):
            values += value.values()
    return values


def _shapes(value: Any) -> list[str]:
    """List how a message may show a value."""
    shapes = [repr(value), str(value), re.sub(" at 0x[0-9a-f]+", "", repr(value))]
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        shapes.append(value.__name__)
    if isinstance(value, (tuple, list)):
        shapes += [part for entry in value for part in _shapes(entry)]
    if isinstance(value, spaces.Dict):
        shapes += [part for inner in value.spaces.values() for part in _shapes(inner)]
    return shapes


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def fuzz(calls: range, seed: int) -> Iterator[tuple[int, Call, Outcome]]:
    """Run the calls of these numbers, one after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _warm_up()
        for number in calls:
            call = draw_call(seed, number)
            yield number, call, run_call(call)


def _warm_up() -> None:
    """Let torch import what it imports late, which a time limit must not interrupt."""
    box = draws.box(-1, 1, (2,))
    _run_call(Call(PMPO, box, box, 1, False, {"policy": "MlpPolicy", "buffer_size": 64}))


@dataclass
class Figures:
    """What became of the calls: how many of each kind, and what the refusals are about."""

    kinds: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Whether every call ran or was refused clearly."""
        return not (self.kinds["unclear"] or self.kinds["failed"])

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.kinds.most_common())
        refused = ", ".join(f"{name} {number}" for name, number in self.refused.most_common())
        return f"{self.kinds.total()} calls: {kinds}\nrefused by subject: {refused}"


def report(outcomes: Iterable[tuple[int, Call, Outcome]], every: int = 100) -> Figures:
    """Print what was neither run nor refused clearly, the figures now and then, and return them."""
    figures = Figures()
    for number, call, outcome in outcomes:
        figures.kinds[outcome.kind] += 1
        if outcome.kind in ("unclear", "failed"):
            print(f"--- {number} {outcome.kind}: {outcome.error[:600]}\n    {str(call)[:600]}")
        if outcome.kind == "refused":
            figures.refused[_subject(call, outcome.error)] += 1
        if figures.kinds.total() % every == 0:
            print(figures, flush=True)
    return figures


def _subject(call: Call, error: str) -> str:
    """Name what a refusal is about: the drawn argument that it names first."""
    found = {name: error.find(name) for name in call.drawn}
    found = {name: place for name, place in found.items() if place >= 0}
    return min(found, key=lambda name: (found[name], -len(name))) if found else "space"


def main() -> int:
    """Run the fuzzer from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one call, shown with its traceback")
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.only is not None:
        ((_, call, outcome),) = fuzz(range(args.only, args.only + 1), args.seed)
        print(call, outcome.kind, outcome.error, outcome.trace, sep="\n")
        return 0
    figures = report(fuzz(range(args.start, args.start + args.calls), args.seed))
    print(figures)
    return 0 if figures.clean else 1


if __name__ == "__main__":
    sys.exit(main())
