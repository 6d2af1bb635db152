"""Refuse bad arguments of the algorithms before training, each by name, range, value and remedy."""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import get_device

from sb3_pmpo.core.checks import INFINITY, blaming, check_flag, check_number, written
from sb3_pmpo.learn_checks import check_callback, check_count
from sb3_pmpo.online.noise_checks import check_action_noise, check_noise_factory
from sb3_pmpo.online.written import as_object
from sb3_pmpo.policies import PMPOPolicy
from sb3_pmpo.policy_checks import refuse_sde
from sb3_pmpo.replay.checks import check_buffer_arguments, check_buffer_kwargs
from sb3_pmpo.space_checks import check_action_space, check_observation_space

#: The largest step that Adam or SGD takes with anything left to learn; 1e-3 is usual.
_HIGHEST_RATE = 10.0

#: Numbers that an update evaluates at once: beyond, no machine holds them.
_LARGEST_UPDATE = 2**27

_MANY = 1_000_000

#: Name, lowest and highest value, kind, remedy.
_RANGES: tuple[tuple[str, float, float, type, str], ...] = (
    ("buffer_size", 1, 2**48, int, "it counts transitions; 1_000_000 is usual"),
    ("learning_starts", 0, INFINITY, int, "it counts environment steps before the first update"),
    ("batch_size", 1, INFINITY, int, "it counts transitions; 128 is usual"),
    ("tau", 0.0, 1.0, float, "it is the share by which the critic target moves; 0.01 is usual"),
    ("gamma", 0.0, 1.0, float, "it is the discount factor; 0.99 is usual"),
    ("n_steps", 1, 10_000, int, "it counts the rewards summed before the critic takes over"),
    ("pessimism", 0.0, 1.0, float, "0 takes the critics' mean, 1 the lowest, as SAC does"),
    ("gradient_steps", -1, _MANY, int, "-1 means as many as environment steps were collected"),
    ("_stats_window_size", 1, 2**31 - 1, int, "it counts episodes; 100 is usual"),
    ("n_samples", 2, 100_000, int, "it counts actions drawn per state; the paper uses 4"),
    ("policy_delay", 1, INFINITY, int, "it counts critic updates for each policy update"),
    (
        "reference_update_interval",
        1,
        INFINITY,
        int,
        "it counts updates; the paper's bandits use 100",
    ),
    ("reference_tau", 0.0, 1.0, float, "1 copies the actor, 0.01 averages"),
)

_FLAGS = {
    "optimize_memory_usage": "True stores each observation once",
    "compile": "True compiles the update",
}


# ---------------------------------------------------------------------- before SB3's constructor


def check_first(policy: Any, arguments: dict[str, Any], aliases: dict[str, type]) -> None:
    """Check the arguments that SB3's own constructor uses, and would not name.

    :param policy: the argument of that name.
    :param arguments: by name, of all that are not the algorithm's own.
    :param aliases: policies by name.
    :raises ValueError: naming the argument, its value, its range and what to do.
    """
    _check_policy(policy, aliases)
    refuse_sde(arguments["use_sde"])
    verbose = arguments["verbose"]
    if not isinstance(verbose, bool):
        check_number("verbose", verbose, 0, INFINITY, int, "0 nothing, 1 information, 2 debugging")
    if arguments["replay_buffer_kwargs"] is not None:
        check_buffer_kwargs(arguments["replay_buffer_kwargs"])
    log = arguments["tensorboard_log"]
    if not (log is None or isinstance(log, (str, os.PathLike))):
        raise ValueError(
            f"tensorboard_log must be a folder or None, got {log!r}: give its path; None logs "
            "nothing there"
        )
    remedy = "'auto', 'cpu' and 'cuda' are usual"
    with blaming(f"device={arguments['device']!r}", remedy):
        th.zeros(1, device=get_device(arguments["device"])).item()


def check_policy_fits(policy: Any, env: GymEnv | None) -> None:
    """Check that a policy of that name takes observations of the environment's space.

    :raises ValueError: naming the policy, the space and the policy to take.
    """
    is_dict = env is not None and isinstance(env.observation_space, spaces.Dict)
    if is_dict and policy in ("MlpPolicy", "CnnPolicy"):
        raise ValueError(
            f"policy must be 'MultiInputPolicy' for a Dict of observations, got {policy!r} with "
            f"the observation space {env.observation_space}: change the one or the other"  # type: ignore[union-attr]  # is_dict
        )


def _check_policy(policy: Any, aliases: dict[str, type]) -> None:
    if isinstance(policy, str):
        if policy not in aliases:
            close = difflib.get_close_matches(policy, aliases, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else "or give a policy class"
            raise ValueError(f"policy must be one of {', '.join(aliases)}, got {policy!r}: {hint}")
    elif not (isinstance(policy, type) and issubclass(policy, PMPOPolicy)):
        raise ValueError(
            f"policy must be a name or a subclass of sb3_pmpo.policies.PMPOPolicy, got {policy!r}: "
            f"{', '.join(aliases)} are names"
        )


# ---------------------------------------------------------------------- all the arguments


def check_arguments(model: OffPolicyAlgorithm) -> None:
    """Check what the algorithms of the family share, after construction and after ``load``.

    A whole number may come as ``64.0`` or from NumPy. It becomes the equal ``int``, because SB3
    counts and slices with it; likewise fractions become ``float``.

    :param model: its arguments as the user gave them.
    :raises ValueError: naming the argument, its value, its range and what to do.
    """
    given = vars(model)
    if "observation_space" not in given:
        raise ValueError("env must be an environment or a registered name, got None: give one")
    refuse_sde(given["use_sde"])  # load() may ask for it
    _check_numbers(given)
    _check_rates(given)
    given["train_freq"] = _checked_train_freq(model.train_freq, model.n_envs)
    check_observation_space(model.observation_space)
    check_action_space(model.action_space)
    check_action_noise(model.action_noise, model.action_space)
    noise = as_object("exploration_noise", given["exploration_noise"])
    check_noise_factory(noise, model.n_envs, model.action_space)
    _check_reference(
        given["reference_tau"], given["reference_update_interval"], given["policy_delay"]
    )
    _check_size_of_update(model)
    _check_policy_kwargs(model)
    check_buffer_arguments(model)


def _check_numbers(given: dict[str, Any]) -> None:
    for name, low, high, kind, hint in _RANGES:
        check_number(name.lstrip("_"), given[name], low, high, kind, hint)
        given[name] = kind(given[name])
    for name, hint in _FLAGS.items():
        given[name] = check_flag(name, given[name], hint)
    if given["seed"] is not None:
        hint = "it starts all the generators; None starts them at random"
        check_number("seed", given["seed"], 0, 2**32 - 1, int, hint)
        given["seed"] = int(given["seed"])


def _check_rates(given: dict[str, Any]) -> None:
    for name in ("learning_rate", "actor_learning_rate"):
        if given[name] is not None or name == "learning_rate":
            check_rate(name, given[name])
            given[name] = given[name] if callable(given[name]) else float(given[name])


def check_rate(name: str, rate: Any) -> None:
    """Check a learning rate, or what a schedule says of the start of training.

    :raises ValueError: naming the argument, its value, its range and what to do.
    """
    hint = "a number, or a schedule of progress; 1e-3 is usual"
    if callable(rate):
        with blaming(
            f"{name}={written(rate)}", "a schedule is a function of the remaining progress"
        ):
            value = rate(1.0)
        check_number(
            f"{name}={written(rate)} at progress 1.0", value, 0.0, _HIGHEST_RATE, float, hint
        )
    else:
        check_number(name, rate, 0.0, _HIGHEST_RATE, float, hint)


def _check_size_of_update(model: Any) -> None:
    """Refuse batches that no memory holds, of which torch or NumPy would not name the reason."""
    together = model.policy_delay
    if model.gradient_steps >= 0:
        together = min(model.gradient_steps, together)
    elif model.train_freq.unit is TrainFrequencyUnit.STEP:
        together = min(model.train_freq.frequency * model.n_envs, together)
    rows = max(together, 1) * model.batch_size
    if rows * max(model.n_samples, model.n_steps) > _LARGEST_UPDATE:
        raise ValueError(
            f"batch_size={model.batch_size} with n_samples={model.n_samples}, n_steps="
            f"{model.n_steps} and policy_delay={model.policy_delay} must be at most "
            f"{_LARGEST_UPDATE} numbers at once, got {rows} rows: 128, 6, 1 and 2 are usual"
        )


def _check_policy_kwargs(model: OffPolicyAlgorithm) -> None:
    given = model.policy_kwargs
    if not (isinstance(given, dict) and all(isinstance(name, str) for name in given)):
        raise ValueError(
            f"policy_kwargs must be a dict of the policy's arguments, got {given!r}: such as "
            "dict(net_arch=[128, 128])"
        )
    known: list[str] = []
    for ancestor in model.policy_class.__mro__:
        if "__init__" in vars(ancestor):
            parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
            named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            known += [p.name for p in parameters if p.kind in named and p.name != "self"]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    own = set(known) - {"observation_space", "action_space", "lr_schedule"}
    for name, value in given.items():
        if name not in own:
            close = difflib.get_close_matches(name, own, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(own))}"
            policy = model.policy_class.__name__
            raise TypeError(f"policy_kwargs has {name}={value!r}, which {policy} lacks: {hint}")


def _checked_train_freq(value: Any, n_envs: int) -> TrainFreq:
    hint = 'give a number of steps, or a pair such as (1, "episode")'
    count, unit = value if isinstance(value, tuple) and len(value) == 2 else (value, "step")
    check_number("train_freq", count, 1, _MANY, int, hint)
    if not isinstance(unit, TrainFrequencyUnit) and unit not in ("step", "episode"):
        raise ValueError(
            f"the unit of train_freq must be 'step' or 'episode', got {unit!r}: {hint}"
        )
    checked = TrainFreq(int(count), TrainFrequencyUnit(unit))
    if checked.unit is TrainFrequencyUnit.EPISODE and n_envs > 1:
        raise ValueError(
            f"train_freq must count steps where there are several environments, got "
            f"{tuple(checked)} with {n_envs}: their episodes end at different times; give a number "
            "of steps"
        )
    return checked


def _check_reference(tau: Any, interval: int, policy_delay: int) -> None:
    if tau == 0.0:
        raise ValueError("reference_tau must be > 0, got 0.0: the policy would never move away")
    if tau == 1.0 and interval <= policy_delay:
        raise ValueError(
            f"reference_tau=1.0 with reference_update_interval={interval} is refused: a reference "
            f"refreshed at every policy update (policy_delay={policy_delay}) equals the policy, "
            "so its KL has no gradient and nothing holds the policy; use reference_tau=0.01, or "
            "an interval such as 100"
        )
    if tau == 1.0 and interval < 2 * policy_delay:
        warnings.warn(
            f"with reference_tau=1.0, reference_update_interval={interval} and "
            f"policy_delay={policy_delay} the reference equals the policy at "
            f"{policy_delay / interval:.0%} of the policy's updates, where the KL has no gradient: "
            f"an interval of {10 * policy_delay} or more holds the policy better",
            stacklevel=2,
        )


def check_learn(env: Any, total_timesteps: Any, callback: Any) -> None:
    """Refuse by name what SB3 answers by an error from within, or by no training at all.

    :param env: of the model.
    :param total_timesteps: of ``learn``, as ``callback``.
    :raises TypeError: for an argument of the wrong kind.
    :raises ValueError: for a number that is out of range, or if there is no environment.
    """
    check_count("total_timesteps", total_timesteps, 0)
    if env is None:
        raise ValueError(
            "the model has no environment to learn in: call set_env(env), or load it with "
            "load(path, env=env)"
        )
    check_callback(callback)


def warn_of_empty_buffer(model: Any) -> None:
    """Warn of training that goes on after its warm-up and has nothing to learn from."""
    if model.num_timesteps > model.learning_starts and model.replay_buffer.size() == 0:
        warnings.warn(
            f"Training resumes at step {model.num_timesteps} with an empty replay buffer: the "
            "first updates see almost no data. Call load_replay_buffer() first, or collect anew "
            "with reset_num_timesteps=True.",
            stacklevel=4,
        )
