"""What the fuzzer draws: spaces of every kind, and values of every type and range."""

from __future__ import annotations

import fractions
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.noise import (
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.sac.policies import SACPolicy

from sb3_pmpo import advantage, best_worst, boltzmann, dpo_loss, ipo_loss, threshold, top_k
from sb3_pmpo.core.samples import Preference
from sb3_pmpo.critics import QuantileCritic
from sb3_pmpo.online.exploration import ColouredNoise, pink_noise, pink_or_white_noise
from sb3_pmpo.policies import CnnPolicy, MultiInputPolicy, PMPOPolicy
from sb3_pmpo.replay import PrioritizedReplayBuffer

Draw = Callable[[random.Random], Any]
NAN, INF = float("nan"), float("inf")


def one_of(*values: Any) -> Draw:
    """Draw one of these; a function of the generator is called."""
    return lambda rng: rng.choice(values)


#: For any argument; each is wrong for nearly all of them.
ANYTHING = one_of(
    None, True, False, "auto", "3", "no", b"1", "", -1, 0, -3.5, 0.5, 2, 1.5, NAN, INF, -INF, 1e308,
    10**18, 10**30, 1 + 1j, [], [1], [8, 8], (1, 2), (1.0, 2.0, 3.0), {}, {"a": 1}, {1: 2}, {3},
    object(), np.array([1, 2]), np.array(3), np.float32(0.5), np.float64("nan"), np.int64(2),
    np.bool_(True), th.tensor(1.0), fractions.Fraction(1, 2), int, dict, th.nn.ReLU, th.nn.ReLU(),
    print, max, lambda: 1, lambda x: "x", lambda *args, **kwargs: None, range(3), ...,
)  # fmt: skip

# ---------------------------------------------------------------------- spaces


def box(low: Any, high: Any, shape: Any = None, dtype: Any = np.float32) -> spaces.Box:
    """Make a Box of that dtype."""
    if shape is None:
        low, high = np.array(low, dtype), np.array(high, dtype)
    return spaces.Box(low, high, shape, dtype)


def _odd(rng: random.Random) -> spaces.Space:
    return rng.choice(
        [
            spaces.Text(5),
            spaces.Sequence(box(0, 1, (2,))),
            spaces.Graph(box(0, 1, (2,)), spaces.Discrete(2)),
            spaces.Tuple((spaces.Discrete(2), box(0, 1, (2,)))),
            spaces.OneOf((spaces.Discrete(2), box(0, 1, (2,)))),
            spaces.Dict(),
            spaces.Tuple(()),
            spaces.MultiBinary(3),
            spaces.MultiBinary((2, 2)),
            spaces.MultiDiscrete([[2, 3], [2, 2]]),
            spaces.Discrete(10**9),
            spaces.MultiDiscrete([2, 10**9]),
            box(0, 1, ()),
            box(0, 1, (0,)),
            box(0, 1, (2, 0)),
        ]
    )


def action_space(rng: random.Random) -> spaces.Space:
    """Draw an action space of any kind."""
    if rng.random() < 0.3:
        return _odd(rng)
    return rng.choice(
        [
            box(-1, 1, (1,)),
            box(-2, 5, (2,)),
            box([-1.0, 0.0], [1.1, 1e10]),
            box(-1e10, 1e10, (2,)),
            box(-1, 1, (2, 2)),
            box(-1, 1, (2,), np.float64),
            box(-1, 1, (2,), np.float16),
            box(-6e4, 6e4, (2,), np.float16),
            box([0.0, -1.0], [0.0, 1.0]),
            box(-3e38, 3e38, (2,)),
            box(-1e308, 1e308, (1,), np.float64),
            box(-1e-40, 1e-40, (1,)),
            box(-INF, INF, (2,)),
            box([-1.0, -INF], [1.0, 1.0]),
            box(0, 5, (2,), np.int64),
            box(-128, 127, (2,), np.int8),
            box(0, 1, (2,), np.bool_),
            spaces.Discrete(3),
            spaces.Discrete(1),
            spaces.Discrete(3, start=1),
            spaces.Discrete(np.int64(4), start=-2),
            spaces.MultiDiscrete([2, 3]),
            spaces.MultiDiscrete([1, 1]),
            spaces.MultiDiscrete([2, 3], start=[0, 1]),
        ]
    )


def _image(rng: random.Random) -> spaces.Box:
    """Draw an image: channels first or last, of bytes or floats, of any size."""
    side, channels = rng.choice([4, 36, 40]), rng.choice([1, 3, 5])
    shape = (channels, side, side) if rng.random() < 0.5 else (side, side, channels)
    low, high, dtype = rng.choice(
        [(0, 255, np.uint8), (0, 1, np.float32), (0, 255, np.float32), (-1, 1, np.float64)]
    )
    return box(low, high, shape, dtype)


def _flat(rng: random.Random) -> spaces.Space:
    return rng.choice(
        [
            box(-1, 1, (3,)),
            box(-INF, INF, (3,)),
            box(-3e38, 3e38, (2,)),
            box(0, 0, (2,)),
            box(-1, 1, (2, 3), np.float64),
            box(-1, 1, (2,), np.float16),
            box(-INF, INF, (2, 3, 4)),
            box(-1, 1, (2, 2, 2, 2)),
            box(0, 10, (3,), np.int64),
            box(0, 255, (3,), np.uint8),
            box(0, 1, (3,), np.bool_),
            spaces.Discrete(3),
            spaces.Discrete(3, start=2),
            spaces.Discrete(3, start=-5),
            spaces.MultiDiscrete([2, 3]),
            spaces.MultiDiscrete([2, 3], start=[1, -4]),
            spaces.MultiBinary(3),
            spaces.MultiBinary((2, 2)),
        ]
    )


def _part(rng: random.Random) -> spaces.Space:
    kind = rng.random()
    return _flat(rng) if kind < 0.75 else _image(rng) if kind < 0.9 else _odd(rng)


def _dict(rng: random.Random) -> spaces.Space:
    if rng.random() < 0.25:
        goal = box(-1, 1, (2,))
        return spaces.Dict(observation=_flat(rng), achieved_goal=goal, desired_goal=goal)
    names = rng.sample(["a", "b", "with.dot", "keys", "", "training", "c d"], rng.choice([1, 2, 3]))
    if rng.random() < 0.7:
        names = [name for name in names if len(name) == 1] or ["a"]
    parts = {name: _part(rng) for name in names}
    if rng.random() < 0.1:
        parts["nested"] = spaces.Dict(x=box(0, 1, (2,)))
    return spaces.Dict(parts)


def observation_space(rng: random.Random) -> spaces.Space:
    """Draw an observation space of any kind."""
    kinds: list[Draw] = [_flat, _image, _dict, _odd]
    return rng.choices(kinds, [0.4, 0.2, 0.25, 0.15])[0](rng)


# ---------------------------------------------------------------------- arguments


def _whole(*values: int) -> Draw:
    """Draw one of these whole numbers, in any type that holds one."""
    kinds = (int, int, float, np.int64, np.uint8, np.float32)

    def draw(rng: random.Random) -> Any:
        kind, value = rng.choice(kinds), rng.choice(values)
        try:
            return kind(value)
        except OverflowError:
            return value

    return draw


def _number(*values: float) -> Draw:
    kinds = (float, float, np.float64, np.float32)
    return lambda rng: rng.choice(kinds)(rng.choice(values))


def _linear(progress: float) -> float:
    return 1e-3 * progress


def _rate(rng: random.Random) -> Any:
    schedules = (_linear, lambda p: "x", lambda p: NAN, lambda p: -p, lambda: 1.0)
    return rng.choice((_number(0.0, 1e-4, 1e-2, 1.0, 1e3, 1e30)(rng), rng.choice(schedules)))


class BadNoise:
    """Noise of the wrong shape, or of values that are no numbers."""

    def __init__(self, shape: Any, value: Any) -> None:
        self.shape, self.value = shape, value

    def __call__(self) -> Any:
        return np.full(self.shape, self.value)

    def reset(self, env: int) -> None:
        pass


def _bad_noise(value: Any, extra: int, n_envs: int, action_dim: int, seed: int) -> Any:
    return BadNoise((n_envs, action_dim + extra), value)


def _weights(accept: Any, reject: Any, candidates: Any) -> Any:
    scores = candidates.scores
    return Preference(scores * 0 + accept, scores * 0 + reject)


def _action_noise(rng: random.Random) -> Any:
    size = rng.choice([1, 2, 3])
    sigma = np.full(size, rng.choice([0.0, 0.1, 1e30, NAN]))
    kind = rng.choice([NormalActionNoise, OrnsteinUhlenbeckActionNoise])
    noise = kind(np.zeros(size), sigma)
    return VectorizedActionNoise(noise, rng.choice([1, 2])) if rng.random() < 0.2 else noise


def _buffer_kwargs(rng: random.Random) -> Any:
    known = {
        "handle_timeout_termination": one_of(True, False, "no", 3),
        "n_steps": one_of(1, 3, 0, "x"),
        "gamma": one_of(0.9, 2.0, None),
        "n_sampled_goal": one_of(1, 4, 0, -1, "x", 1.5),
        "goal_selection_strategy": one_of("future", "final", "episode", "foo", 3),
        "copy_info_dict": one_of(True, False),
        "alpha": one_of(0.6, 0, 2.0, NAN, "x"),
        "beta": one_of(0.4, 1.0, -1.0, None),
        "epsilon": one_of(1e-6, 0.0, INF),
        "buffer_size": one_of(10),
        "n_envs": one_of(1, 2),
        "foo": one_of(1),
    }
    chosen = rng.sample(list(known), rng.choice([0, 1, 1, 2]))
    return {name: known[name](rng) for name in chosen}


def _anything_or(valid: Draw, share: float = 0.5) -> Draw:
    return lambda rng: valid(rng) if rng.random() < share else ANYTHING(rng)


ARCHITECTURES = one_of(
    [8], [8, 8], [], (8,), [np.int64(8)], [8.0], dict(pi=[8], qf=[4]), dict(pi=[], qf=[]),
    dict(pi=[8]), dict(qf=[8]), dict(pi=8, qf=8), dict(pi=[8], vf=[8]), [8.5], [0], [-8], ["8"],
    [[8], [8]], [None], [10**9], 8, "8", np.array([8, 8]), [True], [{"pi": [8], "qf": [8]}],
)  # fmt: skip

POLICY_KWARGS: dict[str, Draw] = {
    "net_arch": ARCHITECTURES,
    "activation_fn": one_of(
        th.nn.Tanh, th.nn.ReLU, th.nn.ELU, partial(th.nn.LeakyReLU, 0.1), th.nn.Linear, th.nn.GLU,
        th.nn.Flatten, "relu", th.nn.ReLU(), th.relu, None, th.nn.Module, int,
    ),
    "features_extractor_class": one_of(
        FlattenExtractor, NatureCNN, CombinedExtractor, "FlattenExtractor", th.nn.Flatten,
        th.nn.Flatten(), None,
    ),
    "features_extractor_kwargs": one_of(
        None, {}, {"features_dim": 8}, {"features_dim": 0}, {"features_dim": "x"}, {"foo": 1},
        {"cnn_output_dim": 8}, {"normalized_image": True}, [1], "x",
    ),
    "normalize_images": one_of(True, False, "no", 1),
    "optimizer_class": one_of(
        th.optim.Adam, th.optim.SGD, th.optim.RMSprop, th.optim.AdamW, "adam", th.optim.LBFGS,
        th.optim.Optimizer, th.nn.ReLU, int, None, th.optim.SparseAdam,
    ),
    "optimizer_kwargs": one_of(
        None, {}, {"weight_decay": 0.1}, {"weight_decay": -1}, {"lr": 1e-3}, {"foo": 1},
        {"eps": "x"}, {"betas": (2, 3)}, {"fused": False}, [1], "x", {"eps": NAN},
    ),
    "n_critics": _whole(1, 2, 3, 0, -1, 10**9),
    "n_quantiles": _whole(1, 4, 0, 10**9),
    "share_features_extractor": one_of(True, False, "no", None),
    "normalize_observations": one_of(True, False, "no", 2),
    "layer_norm": one_of(True, False, None, "x"),
    "std_init": _number(0.6, 0.5, 0.0, -1.0, 2.0, NAN),
    "std_min": _number(0.1, 0.01, 0.0, 0.7, 1e-30),
    "std_max": _number(1.0, 2.0, 0.1, INF, 1e38),
    "n_bins": _whole(2, 5, 11, 1, 0, -3, 10**9),
    "critic_class": one_of(QuantileCritic, "QuantileCritic", th.nn.Linear, None, int),
    "critic_kwargs": one_of(
        None, {}, {"n_critics": 3}, {"foo": 1}, {"auxiliary_class": th.nn.ReLU}, [1], "x",
        {"net_arch": [8]}, {"n_critics": 0},
    ),
    "use_sde": one_of(False, True, "no"),
    "foo": ANYTHING,
    "net_arc": one_of([8]),
}  # fmt: skip


def _policy_kwargs(rng: random.Random) -> Any:
    names = rng.sample(list(POLICY_KWARGS), rng.choice([1, 1, 2]))
    return {name: _anything_or(POLICY_KWARGS[name], 0.85)(rng) for name in names}


#: By argument of the constructors; what is not listed gets any value.
ARGUMENTS: dict[str, Draw] = {
    "policy": one_of(
        "MlpPolicy", "CnnPolicy", "MultiInputPolicy", PMPOPolicy, CnnPolicy, MultiInputPolicy,
        "mlp", "SACPolicy", SACPolicy, ActorCriticPolicy, int, "",
    ),
    "learning_rate": _rate,
    "actor_learning_rate": _rate,
    "buffer_size": _whole(1, 2, 30, 64, 0, 10**15),
    "learning_starts": _whole(0, 1, 10, 10**9, -1),
    "batch_size": _whole(1, 3, 8, 0, 10**9),
    "tau": _number(0.0, 0.1, 1.0, 1.1),
    "gamma": _number(0.0, 0.9, 1.0, -0.1),
    "train_freq": one_of(
        1, 4, 3.0, np.int64(2), (1, "episode"), (2, "step"), (np.int64(1), "episode"), (1, "foo"),
        [1, "episode"], (0, "step"), (1.5, "step"), (1,), (1, 2, 3), 10**9, (10**9, "episode"),
    ),
    "gradient_steps": _whole(-1, 0, 1, 3, -2, 10**9),
    "action_noise": _action_noise,
    "replay_buffer_class": one_of(
        None, ReplayBuffer, DictReplayBuffer, HerReplayBuffer, PrioritizedReplayBuffer,
        RolloutBuffer, "ReplayBuffer", "HerReplayBuffer", int,
    ),
    "replay_buffer_kwargs": _buffer_kwargs,
    "optimize_memory_usage": one_of(True, False),
    "n_steps": _whole(1, 3, 5, 0, 10**6),
    "pessimism": _number(0.0, 0.5, 1.0, 2.0),
    "policy_delay": _whole(1, 2, 4, 0, 10**9),
    "reference_tau": _number(0.0, 0.01, 1.0, 1.5),
    "reference_update_interval": _whole(1, 10, 100, 0, 10**9),
    "exploration_noise": one_of(
        None, pink_noise, pink_or_white_noise, partial(_bad_noise, NAN, 0), "pink",
        partial(_bad_noise, 0.0, 1), partial(_bad_noise, "x", 0), partial(_bad_noise, 0.0, -1),
        ColouredNoise, pink_noise(1, 1, 0), lambda n, a, s: None, lambda n, a, s: np.zeros((n, a)),
    ),
    "compile": one_of(False, "no", 1, None),
    "use_sde": one_of(False, True, "no"),
    "stats_window_size": _whole(1, 100, 0, 10**9),
    "tensorboard_log": one_of(None, 3, b"x", ["x"]),
    "policy_kwargs": _policy_kwargs,
    "verbose": one_of(0, False, -1, "x", None, 10, 0.0, np.int64(0)),
    "seed": _whole(0, 3, -1, 2**31 - 1, 2**32 - 1, 2**32, 2**63),
    "device": one_of("cpu", th.device("cpu"), "auto", "foo", "meta", "cuda:99", 3.5, ""),
    "alpha": _number(0.0, 0.5, 1.0, 1.5),
    "beta": one_of(
        1.0, (1.0, 20.0), [1, 2], np.array([1.0, 2.0]), (1.0,), (1.0, NAN), -1.0, "x", 20,
        np.float32(5), ("a", "b"), 1e30, (np.float64(2), 3),
    ),
    "labeller": one_of(
        advantage(), top_k(1), top_k(2), top_k(5), best_worst(), boltzmann(1.0), threshold(0.0),
        advantage, top_k, "top_k", partial(_weights, 1.0, -1.0), partial(_weights, NAN, 1.0),
        lambda c: None, lambda c: (c.scores, c.scores[:1]), lambda c: (c.scores > 0, c.scores > 1),
        lambda c: 1 / 0, lambda: None,
    ),
    "n_samples": _whole(2, 4, 6, 1, 10**9),
    "decoupled": one_of(True, False, "no", 1, np.bool_(True)),
    "edge_barrier": _number(0.0, 0.1, -1.0, NAN),
    "loss": one_of(dpo_loss, ipo_loss, "dpo", lambda *a, **k: None, th.nn.MSELoss()),
    "epsilon": _number(0.1, 1.0, 0.0, NAN, 1e30),
    "epsilon_mean": _number(0.01, 0.0, -1.0, 1e30),
    "epsilon_std": _number(1e-4, 0.0, 1e30),
    "epsilon_policy": _number(0.01, 0.0, 1e30),
    "epsilon_penalty": _anything_or(one_of(None, 0.001, 0.0, np.float32(0.1)), 0.8),
    "dual_learning_rate": _number(1e-2, 0.0, 1.0, 1e30),
}  # fmt: skip


def argument(name: str, rng: random.Random) -> Any:
    """Draw a value for an argument: mostly of its kind, else of any."""
    return _anything_or(ARGUMENTS.get(name, ANYTHING), 0.75)(rng)
