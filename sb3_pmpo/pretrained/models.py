"""From a model to the file of its policy, and back."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import get_actor_critic_arch

from sb3_pmpo.offline.run import SpacesOnly
from sb3_pmpo.online.dpo import DPO
from sb3_pmpo.online.mpo import MPO
from sb3_pmpo.online.off_policy import OffPolicyMPO
from sb3_pmpo.online.pmpo import PMPO
from sb3_pmpo.policies import CnnPolicy, MultiInputPolicy, PMPOPolicy
from sb3_pmpo.pretrained.files import PretrainedFile
from sb3_pmpo.pretrained.header import PretrainedError, check_tensors
from sb3_pmpo.storage.plain import NotPlainError, decode, encode

ALGORITHMS: dict[str, type[OffPolicyMPO]] = {"PMPO": PMPO, "MPO": MPO, "DPO": DPO}
POLICIES: dict[Any, str] = {
    PMPOPolicy: "MlpPolicy",
    CnnPolicy: "CnnPolicy",
    MultiInputPolicy: "MultiInputPolicy",
}


def describe(model: OffPolicyMPO, told: dict[str, Any], *, half: bool) -> PretrainedFile:
    """Take a policy out of its model.

    :raises PretrainedError: for a policy that only a pickle could hold, or one that needs
        statistics beside its own.
    """
    if model.get_vec_normalize_env() is not None:
        raise PretrainedError(
            "the policy was trained under VecNormalize, whose statistics have no place in this "
            "file: train without it (the policy normalises its observations itself), or use "
            "sb3-pmpo push"
        )
    policy = POLICIES.get(model.policy_class)
    if policy is None or type(model).__name__ not in ALGORITHMS:
        raise PretrainedError(
            f"only the package's own algorithms and policies can be saved alone, got "
            f"{type(model).__name__} with {model.policy_class.__name__}: use model.save()"
        )
    try:
        made = {
            "algorithm": type(model).__name__,
            "policy": policy,
            "policy_kwargs": encode(_actors(model.policy) | dict(model.policy_kwargs)),
            "observation_space": encode(_unseeded(model.observation_space)),
            "action_space": encode(_unseeded(model.action_space)),
        }
    except NotPlainError as error:
        raise PretrainedError(
            f"the policy holds what only a pickle can hold ({error}): use model.save()"
        ) from error
    rest = {"env_wrapper": [], "env_kwargs": {}} | told
    tensors = {f"actor.{name}": x for name, x in model.actor.state_dict().items()}
    tensors |= {
        f"returns.{name}": x for name, x in model.policy.return_moments.state_dict().items()
    }
    kept = {name: _kept(name, x, half) for name, x in tensors.items()}
    return PretrainedFile(rest | made, kept)


def _actors(policy: PMPOPolicy) -> dict[str, Any]:
    """Return the arguments that shape the actor, so that other defaults do not change it."""
    names = ("net_arch", "std_init", "std_min", "std_max", "n_bins", "normalize_observations")
    told = policy._get_constructor_parameters()
    return {name: told[name] for name in names}


def _unseeded(space: spaces.Space) -> spaces.Space:
    """Copy a space without its generator, whose state says nothing of the policy."""
    copied: Any = deepcopy(space)
    copied._np_random = None
    return copied


def _kept(name: str, tensor: th.Tensor, half: bool) -> th.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    weighs = name.startswith("actor.") and ".moments." not in name
    return tensor.half() if half and weighs and tensor.is_floating_point() else tensor.clone()


#: What decoding a header, or building a policy of it, can raise.
_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)

#: Arguments that shape what the actor computes. Most leave no trace in its tensors.
_SHAPING = (
    "activation_fn",
    "std_init",
    "std_min",
    "std_max",
    "n_bins",
    "normalize_observations",
    "features_extractor_class",
    "features_extractor_kwargs",
    "normalize_images",
)


def build(file: PretrainedFile, device: str) -> OffPolicyMPO:
    """Make a model of a file's spaces with its policy.

    :raises PretrainedError: if the header tells of no model, or the tensors are not its policy's.
    """
    told = file.about
    try:
        algorithm = ALGORITHMS[told["algorithm"]]
        env = SpacesOnly(decode(told["observation_space"]), decode(told["action_space"]))
        options: Any = {"buffer_size": 1, "policy_kwargs": decode(told["policy_kwargs"])}
        model = algorithm(told["policy"], env, device=device, **options)
    except _UNREADABLE as error:
        raise _unreadable(error) from error
    _put(model, file)
    return model


def fill(model: OffPolicyMPO, file: PretrainedFile) -> None:
    """Put a file's policy into a model: actor, reference and statistics.

    :raises PretrainedError: if the policy would act otherwise in the model; it is left as it was.
    """
    if model.get_vec_normalize_env() is not None:
        raise PretrainedError(
            "the policy takes observations as the environment gives them, but the model's "
            "environment is under VecNormalize: make it without (the policy normalises its "
            "observations itself)"
        )
    for name in ("observation_space", "action_space"):
        try:
            theirs = decode(file.about[name])
        except _UNREADABLE as error:
            raise _unreadable(error) from error
        ours = getattr(model, name)
        if theirs != ours:
            raise PretrainedError(f"the policy's {name} is {theirs}, the model's is {ours}")
    _check_alike(model.policy, file)
    _put(model, file)


def _unreadable(error: Exception) -> PretrainedError:
    return PretrainedError(f"the header of the policy cannot be read: {error!r}")


def _check_alike(policy: PMPOPolicy, file: PretrainedFile) -> None:
    """Refuse a model whose actor would compute something else with the same tensors."""
    try:
        classes = {name: kind for kind, name in POLICIES.items()}
        theirs = classes[file.about["policy"]](
            policy.observation_space,
            policy.action_space,
            lambda _: 0.0,
            **decode(file.about["policy_kwargs"]),
        )._get_constructor_parameters()
    except _UNREADABLE as error:
        raise _unreadable(error) from error
    ours = policy._get_constructor_parameters()
    pairs = {name: (theirs[name], ours[name]) for name in _SHAPING}
    arches = (get_actor_critic_arch(told["net_arch"])[0] for told in (theirs, ours))
    pairs["net_arch"] = (next(arches), next(arches))
    apart = [
        f"{name} is {_named(a)} of the policy and {_named(b)} of the model"
        for name, (a, b) in pairs.items()
        if (a or None) != (b or None)
    ]
    if apart:
        raise PretrainedError(
            f"the policy does not fit the model: {'; '.join(apart)}. Give the model the "
            f"policy_kwargs {file.about['policy_kwargs']}"
        )


def _named(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _put(model: OffPolicyMPO, file: PretrainedFile) -> None:
    """Load all the tensors, or none."""
    check_tensors(file.tensors)
    parts = {
        "actor.": (model.policy.actor, model.policy.reference_actor),
        "returns.": (model.policy.return_moments,),
    }
    states = {
        prefix: {
            name.removeprefix(prefix): tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in file.tensors.items()
            if name.startswith(prefix)
        }
        for prefix in parts
    }
    for prefix, modules in parts.items():
        found = {name: tuple(x.shape) for name, x in states[prefix].items()}
        wanted = {name: tuple(x.shape) for name, x in modules[0].state_dict().items()}
        if found != wanted:
            names = sorted(name for name, _ in found.items() ^ wanted.items())
            raise PretrainedError(
                "the policy does not fit the model: give the model the policy_kwargs "
                f"{file.about['policy_kwargs']} (other shapes: {', '.join(dict.fromkeys(names))})"
            )
    for prefix, modules in parts.items():
        for module in modules:
            module.load_state_dict(states[prefix])
    model.has_given_weights = True
