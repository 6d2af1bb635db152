"""The arguments that PMPO, MPO and DPO share: their types, their defaults, their documentation.

A final class takes them as ``**shared`` and so shows what is its own. Its signature and its
documentation list all the arguments, as :func:`lists_all` completes them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping
from typing import Any, TypedDict, TypeVar, get_type_hints

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import Schedule

from sb3_pmpo.online.exploration import NoiseFactory, pink_or_white_noise
from sb3_pmpo.policy_checks import NO_SDE

C = TypeVar("C", bound=type)


class SharedArguments(TypedDict, total=False):
    """What is shared, beside ``policy``, ``env`` and ``learning_rate``.

    :param buffer_size: transitions kept for replay.
    :param learning_starts: steps of uniformly random actions before the first update.
    :param batch_size: B, transitions an update.
    :param tau: share by which the critic target moves at each update, in [0, 1]; None for 0.02 with
        a Box and 0.005 with discrete actions.
    :param gamma: discount factor, in [0, 1].
    :param train_freq: collect this many steps between updates, or ``(n, "episode")``; None for the
        measured best, 1 with a Box and 8 with discrete actions.
    :param gradient_steps: updates of the critics after each collection; -1 for as many as steps
        were collected; None for 1 with a Box and 4 with discrete actions.
    :param action_noise: added to the policy's own exploration.
    :param replay_buffer_class: such as ``HerReplayBuffer`` or
        :class:`sb3_pmpo.replay.PrioritizedReplayBuffer`; None for SB3's, by the observation space.
        A class with a ``sample`` of its own is asked for the batches of up to ``policy_delay``
        updates in one call.
    :param replay_buffer_kwargs: its arguments.
    :param optimize_memory_usage: store each observation once.
    :param n_steps: rewards that the TD target sums before it bootstraps. A larger number spreads a
        sparse reward faster. But older policies chose the actions in between, and nothing corrects
        for that, so the critic then learns the value of a mixture of policies. None for the
        measured best, 1 with a Box and 5 with discrete actions.
    :param pessimism: how much of ``mean - min`` over the target critics the TD target subtracts, in
        [0, 1]. 0 is their mean, 1 their minimum, as SAC's. Raise it if ``train/q_value`` is far
        above the returns. Lower it if the policy stops exploring. None for 1 with a Box and 0.5
        with discrete actions.
    :param actor_learning_rate: the actor's; None for ``learning_rate``.
    :param policy_delay: updates of the critics for each of the policy; None for 2 with a Box and 4
        with discrete actions. With ``gradient_steps=1`` the policy moves at every
        ``policy_delay``-th step.
    :param reference_tau: share by which the reference moves to the actor at a refresh, in (0, 1];
        None for 0.02 with a Box and 0.005 with discrete actions.
    :param reference_update_interval: updates between refreshes; with ``reference_tau=1`` the
        reference is a hard copy, made anew every so many updates.
    :param exploration_noise: makes the noise that collecting acts with, scaled by the policy's
        std: a function of (number of environments, action dimension, seed). None for independent
        draws.
    :param compile: on a GPU, replay the update as one CUDA graph, five times as fast on an H200. On
        a CPU, compile the networks with ``torch.compile``. Saved models are the same either way.
        The graph is captured once per :meth:`learn`. Learning rates may change during it; other
        arguments take effect at the next :meth:`learn`. A plain Python number inside a labeller or
        an extractor is frozen at capture: hold it in a tensor if it must change.
    :param use_sde: refused; here so that a configuration written for SAC gets a clear answer.
    :param stats_window_size: episodes in the rolling means of return and length.
    :param tensorboard_log: folder of the TensorBoard logs.
    :param policy_kwargs: see :class:`sb3_pmpo.policies.PMPOPolicy`.
    :param verbose: 0 nothing, 1 information, 2 debugging.
    :param seed: of every generator; the same seed gives the same weights, bit for bit.
    :param device: where to run.
    """

    buffer_size: int
    learning_starts: int
    batch_size: int
    tau: float | None
    gamma: float
    train_freq: int | tuple[int, str] | None
    gradient_steps: int | None
    action_noise: ActionNoise | None
    replay_buffer_class: type[ReplayBuffer] | None
    replay_buffer_kwargs: dict[str, Any] | None
    optimize_memory_usage: bool
    n_steps: int | None
    pessimism: float | None
    actor_learning_rate: float | Schedule | None
    policy_delay: int | None
    reference_tau: float | None
    reference_update_interval: int
    exploration_noise: NoiseFactory | None
    compile: bool
    use_sde: bool
    stats_window_size: int
    tensorboard_log: str | None
    policy_kwargs: dict[str, Any] | None
    verbose: int
    seed: int | None
    device: th.device | str


#: One value each; a final class that wants another one takes the argument itself.
DEFAULTS: SharedArguments = {
    "buffer_size": 1_000_000,
    "learning_starts": 100,
    "batch_size": 128,
    "tau": None,
    "gamma": 0.99,
    "train_freq": None,
    "gradient_steps": None,
    "action_noise": None,
    "replay_buffer_class": None,
    "replay_buffer_kwargs": None,
    "optimize_memory_usage": False,
    "n_steps": None,
    "pessimism": None,
    "actor_learning_rate": None,
    "policy_delay": None,
    "reference_tau": None,
    "reference_update_interval": 1,
    "exploration_noise": pink_or_white_noise,
    "compile": False,
    "use_sde": False,
    "stats_window_size": 100,
    "tensorboard_log": None,
    "policy_kwargs": None,
    "verbose": 0,
    "seed": None,
    "device": "auto",
}

#: What None stands for, with a Box (benchmarks/trials.md, "Embeddings of states and actions" and
#: "One update, quadruped-walk, and values above the returns") and with discrete actions ("Discrete
#: actions").
WITH_A_BOX = {
    "train_freq": 1,
    "n_steps": 1,
    "gradient_steps": 1,
    "policy_delay": 2,
    "tau": 0.02,
    "reference_tau": 0.02,
    "pessimism": 1.0,
}
WITH_CHOICES = {
    "train_freq": 8,
    "n_steps": 5,
    "gradient_steps": 4,
    "policy_delay": 4,
    "tau": 0.005,
    "reference_tau": 0.005,
    "pessimism": 0.5,
}

#: Arguments of the family that SB3's base class does not take.
OWN = (
    "pessimism",
    "actor_learning_rate",
    "policy_delay",
    "reference_tau",
    "reference_update_interval",
    "exploration_noise",
    "compile",
)

#: Every final class documents these alike.
_FIRST = """
    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a policy class.
    :param env: the environment, or its registered name; actions in a bounded Box, Discrete or
        MultiDiscrete.
    :param learning_rate: of the critics, and of the actor unless it has its own; a number, or a
        function of the remaining progress (from 1 to 0)."""


def lists_all(final_class: C) -> C:
    """Complete the signature and the documentation of a final class by the shared arguments."""
    constructor: Any = vars(final_class)["__init__"]
    own = inspect.signature(constructor)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    types = get_type_hints(SharedArguments)
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name]
        )
        for name, default in DEFAULTS.items()
        if name not in own.parameters
    ]
    constructor.__signature__ = own.replace(parameters=_last_is_private([*parameters, *shared]))
    documented = _parameters(SharedArguments.__doc__ or "")
    text = "".join(documented[parameter.name] for parameter in shared)
    before, mark, after = (final_class.__doc__ or "").partition("\n    :param ")
    middle, raises, end = (mark + after).partition("\n    :raises ")
    final_class.__doc__ = before + _FIRST + middle + text + raises + end
    return final_class


def _last_is_private(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Put ``_init_setup_model`` at the end, where SB3 has it."""
    return sorted(parameters, key=lambda parameter: parameter.name.startswith("_"))


def _parameters(text: str) -> dict[str, str]:
    """Return what a docstring says of each parameter, each with its line break before."""
    parts = text.rstrip().split("\n    :param ")[1:]
    return {part.partition(":")[0]: f"\n    :param {part}" for part in parts}


def chosen_by_space(
    arguments: Mapping[str, Any], action_space: spaces.Space | None
) -> dict[str, Any]:
    """Return what the arguments that are None stand for with these actions.

    To be asked before SB3 makes attributes of them: its own code reads ``train_freq``, and a saved
    model goes on with what it learned by.
    """
    discrete = isinstance(action_space, (spaces.Discrete, spaces.MultiDiscrete))
    best = WITH_CHOICES if discrete else WITH_A_BOX
    return {name: value for name, value in best.items() if arguments.get(name) is None}


_NO_ENTROPY = (
    "there is no entropy bonus; the std's beta and std_min keep a Gaussian wide, beta and PMPO's "
    "edge_barrier a categorical policy"
)
#: What SAC has and this family has not, and what does its work.
_OF_SAC = {
    "ent_coef": _NO_ENTROPY,
    "target_entropy": _NO_ENTROPY,
    "target_update_interval": "the critic target moves by tau at each update",
    "sde_sample_freq": NO_SDE,
    "use_sde_at_warmup": NO_SDE,
    "target_policy_noise": "the target bootstraps from the reference policy's own actions",
    "target_noise_clip": "the target bootstraps from the reference policy's own actions",
}


def with_defaults(given: Mapping[str, Any], algorithm: type) -> dict[str, Any]:
    """Return the shared arguments of a call, the defaults where nothing is given.

    :raises TypeError: for a name that is none of the algorithm's arguments, with the closest one.
    """
    check_names(given, algorithm, known=DEFAULTS)
    return {**DEFAULTS, **given}


def check_names(given: Collection[str], algorithm: type, *, known: Collection[str]) -> None:
    """Refuse names that are no arguments of an algorithm.

    :param given: the names.
    :param algorithm: of whose constructor they are.
    :param known: names that are taken in any case.
    :raises TypeError: naming it and the closest argument.
    """
    parameters = inspect.signature(algorithm).parameters
    takes_more = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    arguments = [name for name in parameters if name[0] != "_"]
    for name in given:
        if not (takes_more or name in known or name in parameters):
            close = difflib.get_close_matches(name, arguments, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(arguments)}"
            hint = _OF_SAC.get(name, hint)
            raise TypeError(f"{algorithm.__name__} has no argument {name!r}: {hint}")
