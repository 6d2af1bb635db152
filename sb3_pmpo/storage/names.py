"""The classes and functions that a file may name without its reader's word.

A name in a file is looked up here and nowhere else: nothing is imported because a file says so.
None of what is listed runs code, opens a file or reaches another object that its arguments name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from sb3_pmpo._moved import new_name

T = TypeVar("T", bound=Callable[..., Any])

_SPACES = "stable_baselines3.common"

#: What is used by its name: classes of networks and buffers, functions. Module: names.
_NAMED = {
    "torch.nn.modules.activation": (
        "CELU ELU GELU Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish ReLU ReLU6 SELU "
        "SiLU Sigmoid Softplus Softsign Tanh"
    ),
    "torch.nn.modules.linear": "Identity",
    "torch.optim.adadelta": "Adadelta",
    "torch.optim.adagrad": "Adagrad",
    "torch.optim.adam": "Adam",
    "torch.optim.adamax": "Adamax",
    "torch.optim.adamw": "AdamW",
    "torch.optim.nadam": "NAdam",
    "torch.optim.radam": "RAdam",
    "torch.optim.rmsprop": "RMSprop",
    "torch.optim.sgd": "SGD",
    f"{_SPACES}.sb2_compat.rmsprop_tf_like": "RMSpropTFLike",
    f"{_SPACES}.torch_layers": "CombinedExtractor FlattenExtractor NatureCNN",
    f"{_SPACES}.policies": (
        "ActorCriticCnnPolicy ActorCriticPolicy BasePolicy._dummy_schedule "
        "MultiInputActorCriticPolicy"
    ),
    "stable_baselines3.dqn.policies": "CnnPolicy DQNPolicy MultiInputPolicy",
    "stable_baselines3.sac.policies": "CnnPolicy MultiInputPolicy SACPolicy",
    "stable_baselines3.td3.policies": "CnnPolicy MultiInputPolicy TD3Policy",
    "sb3_contrib.ars.policies": "ARSLinearPolicy ARSPolicy",
    "sb3_contrib.crossq.policies": "CrossQPolicy",
    "sb3_contrib.qrdqn.policies": "CnnPolicy MultiInputPolicy QRDQNPolicy",
    "sb3_contrib.tqc.policies": "CnnPolicy MultiInputPolicy TQCPolicy",
    "sb3_pmpo.policies": "CnnPolicy MultiInputPolicy PMPOPolicy",
    "sb3_pmpo.critics": "QuantileCritic",
    "sb3_pmpo.embeddings": "EmbeddingCritic",
    "sb3_pmpo.core.losses": "dpo_loss ipo_loss",
    "sb3_pmpo.core.samples": "mean_over_samples mean_per_set",
    "sb3_pmpo.core.labels": "mean_score state_value",
    "sb3_pmpo.core.preference": (  # of 0.1
        "Advantage Boltzmann Quantile Threshold TopK mean_over_samples mean_per_set mean_score "
        "state_value"
    ),
    "sb3_pmpo.online.exploration": "pink_noise pink_or_white_noise",
    "numpy": (
        "bool float16 float32 float64 int16 int32 int64 int8 uint16 uint32 uint64 uint8 dtype "
        "ndarray"
    ),
}

#: Classes whose instances are told by their attributes.
_STATEFUL = {
    "collections": "deque OrderedDict",
    "gymnasium.spaces.box": "Box",
    "gymnasium.spaces.dict": "Dict",
    "gymnasium.spaces.discrete": "Discrete",
    "gymnasium.spaces.multi_binary": "MultiBinary",
    "gymnasium.spaces.multi_discrete": "MultiDiscrete",
    "gymnasium.spaces.tuple": "Tuple",
    f"{_SPACES}.buffers": (
        "DictReplayBuffer DictRolloutBuffer NStepReplayBuffer ReplayBuffer RolloutBuffer"
    ),
    f"{_SPACES}.noise": "NormalActionNoise OrnsteinUhlenbeckActionNoise VectorizedActionNoise",
    f"{_SPACES}.running_mean_std": "RunningMeanStd",
    f"{_SPACES}.type_aliases": "TrainFreq TrainFrequencyUnit",
    f"{_SPACES}.utils": "ConstantSchedule FloatSchedule LinearSchedule",
    f"{_SPACES}.vec_env.vec_normalize": "VecNormalize",
    "stable_baselines3.her.goal_selection_strategy": "GoalSelectionStrategy",
    "stable_baselines3.her.her_replay_buffer": "HerReplayBuffer",
    "sb3_pmpo.core.labels": "advantage boltzmann quantile threshold top_k",
    "sb3_pmpo.online.exploration": "ColouredNoise",
    "sb3_pmpo.replay.legacy": "MemoryEfficientNStepReplayBuffer NStepDictReplayBuffer",
    "sb3_pmpo.replay.prioritized": (
        "PrioritizedDictReplayBuffer PrioritizedHerReplayBuffer PrioritizedReplayBuffer"
    ),
    "sb3_pmpo.replay.sum_tree": "SumTree",
}

#: What a pickle of the above calls to make it, besides the classes' ``__new__``. Not one of them
#: calls what it is given.
_MAKERS = {
    "collections": "deque OrderedDict",
    "numpy": "dtype",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64",
    "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
    "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    f"{_SPACES}.type_aliases": "TrainFrequencyUnit",
    "stable_baselines3.her.goal_selection_strategy": "GoalSelectionStrategy",
    "torch": "device",
}


def _names(*tables: dict[str, str]) -> frozenset[str]:
    return frozenset(
        f"{module}:{name}"
        for table in tables
        for module, names in table.items()
        for name in names.split()
    )


_KNOWN = _names(_NAMED, _STATEFUL, _MAKERS)
_KNOWN_STATEFUL = _names(_STATEFUL)
_KNOWN_MAKERS = _names(_MAKERS)

#: What the user has added, by name.
_REGISTERED: dict[str, Any] = {}


def register(thing: T) -> T:
    """Let files name a class or a function of your own; also as a decorator.

    Models that use it are then saved without a pickle, and load without trust where it is
    registered. Of a registered class, instances too are saved by their attributes. Whoever makes a
    file chooses the arguments and the attributes: register nothing that could do harm with them.

    :param thing: a class, or a function that has a name.
    :return: what was given.
    """
    _REGISTERED[name_of(thing)] = thing
    return thing


def is_registered(name: str) -> bool:
    """Say whether the user has registered what is called ``module:name``."""
    return name in _REGISTERED


def name_of(thing: Any) -> str:
    """Return ``module:name`` of a class or a function."""
    return f"{thing.__module__}:{thing.__qualname__}"


def is_known(thing: Any) -> bool:
    """Say whether files may name this class or function."""
    name = name_of(thing)
    return name in _REGISTERED or name in _KNOWN


def is_stateful(kind: type) -> bool:
    """Say whether instances of this class may be told by their attributes."""
    name = name_of(kind)
    return name in _REGISTERED or name in _KNOWN_STATEFUL


def resolve(name: str) -> Any:
    """Return what a file may name.

    :param name: ``module:name``; a module of an earlier version by its old name.
    :raises KeyError: if it is not listed.
    """
    name = _today(name)
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _KNOWN:
        raise KeyError(name)
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@cache
def makers() -> tuple[Any, ...]:
    """Return what a pickle of something listed may call."""
    return tuple(map(resolve, sorted(_KNOWN_MAKERS)))


def _today(name: str) -> str:
    module, _, path = name.partition(":")
    if module.startswith("numpy.core."):  # until NumPy 2
        module = module.replace("numpy.core.", "numpy._core.")
    return f"{new_name(module) or module}:{path}"
