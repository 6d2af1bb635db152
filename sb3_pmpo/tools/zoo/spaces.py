"""What tuning searches: a sampler and a converter for each algorithm, as the Zoo has them.

A sampler suggests plain numbers and words, which the study stores; :func:`as_setting` turns them
into what a YAML entry says, and a converter into the constructor's arguments. The ranges lie around
the defaults, about a factor of ten wide for rates and half as much for what multiplies the cost.
Every default can be drawn; :func:`default_params` is what a study begins with.

What made no difference in benchmarks/trials.md and results/levers.md is not searched: the batch
(128 or 256), how fast the reference moves (twice as fast), accepted samples alone or both kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from typing import Any

import optuna
import torch as th
from gymnasium import spaces
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, sample_her_params

from sb3_pmpo.offline.run import SpacesOnly
from sb3_pmpo.online.arguments import chosen_by_space
from sb3_pmpo.online.pmpo import ADVANTAGE_BETA, CATEGORICAL_BETA, PMPO
from sb3_pmpo.tools.settings import ALGORITHMS, to_arguments

#: Share of the samples accepted, and as many rejected, by the word for it.
_SHARES = {"half": 0.5, "quarter": 0.25}
NET_ARCH = {"small": [128, 128], "medium": [256, 256], "large": [512, 512]}


def _suggest_shared(trial: optuna.Trial) -> None:
    # Adam at 1e-3 is the default; 3e-3 already diverges on some tasks, 1e-4 learns nothing in 50k.
    trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True)
    # Horizons of 20 to 300 decisions: the suite's episodes have 500 with an action repeat of 2.
    trial.suggest_float("one_minus_gamma", 0.003, 0.05, log=True)
    # Half-lives of 17 to 170 updates of the critic target; with a Box 0.02 is the default.
    trial.suggest_float("tau", 0.004, 0.04, log=True)
    # Longer returns are faster to learn and more off-policy; 1 is best on dense rewards.
    trial.suggest_int("n_steps", 1, 5)
    # TD targets from the critics' mean to the lowest: the tasks differ in what they want.
    trial.suggest_float("pessimism", 0.0, 1.0)
    # Updates a decision: more is better and slower. One of them is of the policy, too; with one
    # update a decision, every second.
    trial.suggest_int("gradient_steps", 1, 8)
    trial.suggest_categorical("net_arch", list(NET_ARCH))


def _suggest_pmpo(trial: optuna.Trial, n_actions: int) -> None:
    _suggest_shared(trial)
    trial.suggest_int("n_samples", 4, 32, log=True)  # 4 is the paper's, 6 the default
    # The share accepted, and as many rejected, the rest between them left out; or all by weight.
    trial.suggest_categorical("labels", [*_SHARES, _by_weight(n_actions)])
    # beta above that at which the loss gets unsafe. The std's is the stiffer, or exploration is
    # over too soon: 100 is the default.
    trial.suggest_float("beta_margin", 0.1, 8.0, log=True)
    trial.suggest_float("beta_std_margin", 2.0, 200.0, log=True)


def _by_weight(n_actions: int) -> str:
    """Return the word for labels by weight: with discrete actions the text of the default."""
    return "advantage" if n_actions else repr(_shipped_objective().labeller)


@cache
def _shipped_objective() -> Any:
    """Return what PMPO's arguments that are None stand for with discrete actions."""
    spaces_only = SpacesOnly(spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2))
    small: Any = {"buffer_size": 1, "device": "cpu", "policy_kwargs": {"net_arch": [1]}}
    with th.random.fork_rng(devices=[]):
        return PMPO("MlpPolicy", spaces_only, **small).objective


def _suggest_mpo(trial: optuna.Trial, n_actions: int) -> None:
    _suggest_shared(trial)
    trial.suggest_int("n_samples", 8, 32, log=True)  # the E-step weighs a distribution
    trial.suggest_float("epsilon", 0.03, 0.3, log=True)  # 0.1 in the literature
    if n_actions:
        # From Acme's 0.0025 and 1e-6, made for millions of updates, to ten times the defaults.
        trial.suggest_float("epsilon_mean", 0.0025, 0.1, log=True)
        trial.suggest_float("epsilon_std", 1e-6, 1e-3, log=True)
    else:
        trial.suggest_float("epsilon_policy", 3e-4, 3e-2, log=True)


def _suggest_dpo(trial: optuna.Trial, n_actions: int) -> None:
    _suggest_shared(trial)
    # More samples make the pair's best better and its worst worse.
    trial.suggest_int("n_samples", 2, 16, log=True)
    trial.suggest_float("beta", 2.0, 80.0, log=True)  # 20 in the paper


_SUGGEST: dict[str, Callable[[optuna.Trial, int], None]] = {
    "pmpo": _suggest_pmpo,
    "mpo": _suggest_mpo,
    "dpo": _suggest_dpo,
}


def as_setting(params: dict[str, Any]) -> dict[str, Any]:
    """Turn a trial's parameters into what an entry of ``zoo_configs`` says.

    :param params: a trial's ``params``.
    :return: numbers, strings, lists and dictionaries only.
    """
    setting = dict(params)
    setting["gamma"] = 1.0 - setting.pop("one_minus_gamma")
    setting["policy_delay"] = max(2, setting["gradient_steps"])
    setting["policy_kwargs"] = {"net_arch": list(NET_ARCH[setting.pop("net_arch")])}
    for name in ("batch_size", "n_samples"):  # of studies of earlier versions
        if f"{name}_pow" in setting:
            setting[name] = 2 ** setting.pop(f"{name}_pow")
    if "labels" in setting:
        alpha = {"both": 0.5, "accept": 1.0, "reject": 0.0}[setting.pop("feedback", "both")]
        labels, safe = setting.pop("labels"), 2.0 * (1.0 - alpha)
        if labels == "advantage":
            setting["labeller"], safe_mean = "advantage()", max(0.0, 1.0 - 2.0 * alpha)
        elif labels in _SHARES:
            n_accepted = max(1, int(_SHARES[labels] * setting["n_samples"]))
            safe = safe_mean = (1.0 - alpha) * setting["n_samples"] / n_accepted
            setting["labeller"] = f"top_k({n_accepted})"
        else:
            setting["labeller"], safe_mean = labels, safe
        setting["alpha"] = alpha
        margins = (setting.pop("beta_margin"), setting.pop("beta_std_margin"))
        setting["beta"] = [safe_mean + margins[0], safe + margins[1]]
    her = {key: setting.pop(key) for key in _HER if key in setting}
    if her:
        setting["replay_buffer_kwargs"] = her
    return setting


def default_params(
    algorithm: str, n_actions: int, setting: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the parameters that are the setting itself: what the search is compared with.

    :param algorithm: what the Zoo calls it.
    :param n_actions: the Box's number of dimensions, 0 for discrete actions.
    :param setting: of the environment, as constructor's arguments; the rest are the defaults.
    :return: None where the search has no such parameters: for the Zoo's own algorithms, and for a
        setting with labels, weights or widths of its own.
    """
    if algorithm not in ALGORITHMS:
        return None
    its_own = ("labeller", "alpha", "beta", "policy_delay") if algorithm == "pmpo" else ()
    if any(setting.get(name) is not None for name in its_own):
        return None
    defaults = signature(ALGORITHMS[algorithm]).parameters
    value = {name: parameter.default for name, parameter in defaults.items()} | dict(setting)
    value |= chosen_by_space(
        value, spaces.Box(-1.0, 1.0, (1,)) if n_actions else spaces.Discrete(2)
    )
    widths = (value["policy_kwargs"] or {}).get("net_arch", NET_ARCH["small"])
    shared = ("learning_rate", "tau", "n_steps", "pessimism", "gradient_steps", "n_samples")
    params = {name: value[name] for name in shared if isinstance(value[name], int | float)}
    params["one_minus_gamma"] = 1.0 - value["gamma"]
    if widths not in NET_ARCH.values():
        return None
    params["net_arch"] = next(name for name, known in NET_ARCH.items() if known == widths)
    if algorithm == "pmpo":
        # What None stands for in the constructor.
        beta = ADVANTAGE_BETA if n_actions else (CATEGORICAL_BETA,) * 2
        safe_mean = 0.0 if n_actions else 1.0
        params |= {"labels": _by_weight(n_actions), "beta_margin": beta[0] - safe_mean}
        params["beta_std_margin"] = beta[1] - 1.0
    elif algorithm == "mpo":
        parts = ("epsilon_mean", "epsilon_std") if n_actions else ("epsilon_policy",)
        params |= {name: value[name] for name in ("epsilon", *parts)}
    else:
        params["beta"] = value["beta"]
    return params


_HER = ("n_sampled_goal", "goal_selection_strategy")


def setting_of(algorithm: str, params: dict[str, Any]) -> dict[str, Any]:
    """Turn a trial's parameters into a setting, of any of the Zoo's algorithms.

    :param algorithm: what the Zoo calls it.
    :param params: a trial's ``params``.
    """
    if algorithm in _SUGGEST:
        return as_setting(params)
    return HYPERPARAMS_CONVERTER[algorithm](params)


def convert(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Turn a trial's parameters into the constructor's arguments."""
    return to_arguments(as_setting(sampled_params))


class Sampler:
    """Suggests an algorithm's arguments, in the shape that the Zoo calls samplers.

    :param algorithm: ``"pmpo"``, ``"mpo"`` or ``"dpo"``.
    """

    def __init__(self, algorithm: str) -> None:
        self._suggest = _SUGGEST[algorithm]

    def __call__(
        self, trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
    ) -> dict[str, Any]:
        """Suggest; ``n_actions`` is the Box's number of dimensions, 0 for discrete actions."""
        self._suggest(trial, n_actions)
        if additional_args.get("using_her_replay_buffer"):
            sample_her_params(trial, {}, {})
        arguments = convert(trial.params)
        if "replay_buffer_kwargs" in arguments:
            arguments["replay_buffer_kwargs"] = {
                **additional_args["her_kwargs"],
                **arguments["replay_buffer_kwargs"],
            }
        return arguments
