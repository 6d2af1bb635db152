"""Refuse wrong ``policy_kwargs`` by their name, before a network is built from them.

Axes: F features.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from torch import nn

from sb3_pmpo.core.checks import INFINITY, blaming, check_flag, check_number
from sb3_pmpo.space_checks import check_action_space, check_observation_space

NO_SDE = (
    "use_sde=True is not supported: generalised state-dependent exploration needs a policy of its "
    "own; for exploration that is correlated in time use exploration_noise"
)

#: Name, lowest and highest value, kind, remedy.
_RANGES: tuple[tuple[str, float, float, type, str], ...] = (
    ("n_critics", 1, INFINITY, int, "it counts the critics; 2 is usual"),
    ("n_quantiles", 1, INFINITY, int, "it counts the quantiles of a critic; 8 is usual"),
    ("std_init", 0.0, 100.0, float, "in units of half the action range; 0.6 is usual"),
    ("std_min", 0.0, 100.0, float, "in units of half the action range; 0.1 is usual"),
    ("std_max", 0.0, 100.0, float, "in units of half the action range; 1.0 is usual"),
)

_FLAGS = {
    "normalize_images": "True divides images of bytes by 255",
    "share_features_extractor": "True gives the critics the actor's extractor",
    "normalize_observations": "True keeps running statistics of the observations",
    "layer_norm": "True normalises the critics' hidden layers",
}

#: The smallest side of an image that NatureCNN's three convolutions leave something of.
SMALLEST_IMAGE = 36

#: The narrowest std whose square and inverse float32 holds with digits to spare.
_NARROWEST = 1e-4

_WIDEST = 65_536

_MOST_OUTPUTS = 10_000


def refuse_sde(use_sde: Any) -> None:
    """Refuse gSDE.

    :raises ValueError: naming what there is in its place.
    """
    if check_flag("use_sde", use_sde, NO_SDE):
        raise ValueError(NO_SDE)


def checked_arguments(
    given: Mapping[str, Any], observation_space: spaces.Space, action_space: spaces.Space
) -> dict[str, Any]:
    """Check the arguments of a policy, and that they fit its spaces.

    :param given: all of them by name.
    :param observation_space: of the environment, images with their channels first.
    :param action_space: of the environment.
    :return: the same, whole numbers as ``int`` and flags as ``bool``.
    :raises ValueError: naming the argument, its value, its range and what to do.
    """
    check_observation_space(observation_space)
    check_action_space(action_space)
    arguments = dict(given)
    for name, low, high, kind, hint in _RANGES:
        check_number(name, given[name], low, high, kind, hint)
        arguments[name] = kind(given[name])
    for name, hint in _FLAGS.items():
        arguments[name] = check_flag(name, given[name], hint)
    n_critics, n_quantiles = arguments["n_critics"], arguments["n_quantiles"]
    if n_critics * n_quantiles > _MOST_OUTPUTS:
        raise ValueError(
            f"n_critics * n_quantiles must be at most {_MOST_OUTPUTS}, got n_critics={n_critics}, "
            f"n_quantiles={n_quantiles}: 2 and 8 are usual"
        )
    _check_stds(arguments)
    arguments["n_bins"] = _checked_bins(given["n_bins"], action_space)
    arguments["net_arch"] = _checked_architecture(given["net_arch"])
    for name in ("features_extractor_kwargs", "optimizer_kwargs", "critic_kwargs"):
        _check_kwargs(name, given[name])
    _check_class(
        "optimizer_class", given["optimizer_class"], th.optim.Optimizer, "torch.optim.Adam"
    )
    _check_class(
        "critic_class", given["critic_class"], nn.Module, "sb3_pmpo.critics.QuantileCritic"
    )
    _check_activation(given["activation_fn"])
    _check_extractor(
        given["features_extractor_class"],
        given["features_extractor_kwargs"] or {},
        observation_space,
        arguments["normalize_images"],
    )
    return arguments


def _check_stds(given: Mapping[str, Any]) -> None:
    lowest, first, highest = (given[f"std_{which}"] for which in ("min", "init", "max"))
    if not 0.0 < lowest < first < highest:
        raise ValueError(
            "std_min, std_init and std_max must satisfy 0 < std_min < std_init < std_max, got "
            f"std_min={lowest}, std_init={first}, std_max={highest}: 0.1, 0.6 and 1.0 are usual"
        )
    hint = "a narrower Gaussian's log-probabilities overflow; 0.1 is usual"
    check_number("std_min", lowest, _NARROWEST, 100.0, float, hint)


def _checked_bins(n_bins: Any, action_space: spaces.Space) -> int | None:
    if n_bins is None:
        return None
    if not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"n_bins={n_bins} discretises a Box, but the action space is {action_space}: leave "
            "n_bins out"
        )
    check_number("n_bins", n_bins, 2, 10_000, int, "it counts a dimension's actions; 11 is usual")
    return int(n_bins)


def _checked_architecture(net_arch: Any) -> list[int] | dict[str, list[int]]:
    hint = "a list of widths for both, or dict(pi=[...], qf=[...]); [128, 128] is usual"
    if net_arch is None:
        return [128, 128]
    if isinstance(net_arch, dict):
        if set(net_arch) != {"pi", "qf"}:
            raise ValueError(f"net_arch must have the keys 'pi' and 'qf', got {net_arch}: {hint}")
        parts = {f"net_arch[{key!r}]": widths for key, widths in net_arch.items()}
    else:
        parts = {"net_arch": net_arch}
    checked = []
    for name, widths in parts.items():
        if not isinstance(widths, (list, tuple)):
            raise ValueError(f"{name} must be a list of widths, got {widths!r}: {hint}")
        for width in widths:
            check_number(f"each width of {name}={widths}", width, 1, _WIDEST, int, hint)
        checked.append([int(width) for width in widths])
    return dict(zip(net_arch, checked, strict=True)) if isinstance(net_arch, dict) else checked[0]


def _check_kwargs(name: str, value: Any) -> None:
    if value is None or (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        return
    raise ValueError(
        f"{name} must be a dict of keyword arguments or None, got {value!r}: leave it out for none"
    )


def _check_class(name: str, value: Any, base: type, usual: str) -> None:
    if not (isinstance(value, type) and issubclass(value, base)):
        raise ValueError(
            f"{name} must be a subclass of {base.__module__}.{base.__qualname__}, got {value!r}: "
            f"give the class itself, such as {usual}, not its name or an object of it"
        )


def _check_activation(activation_fn: Any) -> None:
    """Try it: a class of modules, or a function that makes one, which keeps the shape."""
    hint = "give a class of modules, such as torch.nn.ReLU, not its name or an object of it"
    if not callable(activation_fn) or isinstance(activation_fn, nn.Module):
        raise ValueError(f"activation_fn must be a class, got {activation_fn!r}: {hint}")
    with blaming(f"activation_fn={activation_fn}", hint):
        made = activation_fn()
        if not isinstance(made, nn.Module):
            raise TypeError(f"it makes {made!r}, which is no torch module")
        tried = th.zeros(2, 3, 4)
        with th.no_grad():
            shape = made(tried).shape
        if shape != tried.shape:
            raise ValueError(f"it makes {tuple(shape)} of {tuple(tried.shape)}")


# ---------------------------------------------------------------------- the features extractor


def _check_extractor(
    extractor_class: Any, kwargs: dict[str, Any], space: spaces.Space, normalize_images: bool
) -> None:
    """Check that a features extractor and the observations belong together.

    :param extractor_class: what makes it.
    :param kwargs: its arguments.
    :param space: of the observations, images with their channels first.
    :param normalize_images: whether images are bytes that are divided by 255.
    :raises ValueError: naming the policy or the argument, the space and what to do.
    """
    usual = "stable_baselines3.common.torch_layers.FlattenExtractor"
    _check_class("features_extractor_class", extractor_class, BaseFeaturesExtractor, usual)
    is_dict = isinstance(space, spaces.Dict)
    if is_dict and issubclass(extractor_class, (FlattenExtractor, NatureCNN)):
        raise ValueError(
            f"features_extractor_class={extractor_class.__name__} takes one array, but the "
            f"observation space is {space}: use the policy 'MultiInputPolicy', or a "
            "features_extractor_class for a Dict"
        )
    if issubclass(extractor_class, CombinedExtractor) and not is_dict:
        raise ValueError(
            f"features_extractor_class={extractor_class.__name__} takes a Dict, but the "
            f"observation space is {space}: use the policy 'MlpPolicy', or 'CnnPolicy' for images"
        )
    # As SB3 does with them: what is not bytes is an image where normalize_images is False.
    normalised = kwargs.get("normalized_image", not normalize_images)
    if extractor_class is NatureCNN:
        _check_image("the observation space", space, normalised)
    if extractor_class is CombinedExtractor and isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            name = f"the observation space's key {key!r}"
            _check_key(name, key, space)
            if is_image_space(part, normalized_image=normalised):
                _check_image(name, part, normalised)


def _check_key(name: str, key: Any, space: spaces.Space) -> None:
    """Refuse what torch cannot name a module by."""
    try:
        nn.ModuleDict().add_module(key, nn.Identity())
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{name} cannot name a part of CombinedExtractor ({error.args[0]}), got {key!r} in "
            f"{space}: rename it in a wrapper, or use a features_extractor_class of your own"
        ) from error


def _check_image(name: str, space: spaces.Space, normalised: bool) -> None:
    if not is_image_space(space, normalized_image=normalised):
        remedy = "use the policy 'MlpPolicy'"
        if space.shape is not None and len(space.shape) == 2:
            remedy = (
                "give it an axis for channels (gymnasium.wrappers.ReshapeObservation with "
                f"{(1, *space.shape)}), or use the policy 'MlpPolicy'"
            )
        if is_image_space(space, normalized_image=True):
            remedy = (
                "give policy_kwargs={'normalize_images': False} if the pixels are scaled already "
                "(by VecNormalize too), or return bytes"
            )
        raise ValueError(
            f"{name} must be an image, uint8 from 0 to 255 with three axes, for the policy "
            f"'CnnPolicy' (features_extractor_class=NatureCNN), got {space}: {remedy}"
        )
    channels, *sides = space.shape or ()
    if min(sides) >= SMALLEST_IMAGE:
        return
    if sides[1] < channels:
        raise ValueError(
            f"{name} must have the channels of images first, got {space}: wrap the environment in "
            "stable_baselines3.common.vec_env.VecTransposeImage; where there is a VecNormalize, "
            "inside of it: VecNormalize(VecTransposeImage(env))"
        )
    raise ValueError(
        f"{name} must be an image of at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE} for NatureCNN, "
        f"got {space}: enlarge it, use a features_extractor_class of your own, or the policy "
        "'MlpPolicy'"
    )


# ---------------------------------------------------------------------- optimisers


def make_optimizer(
    kind: type[th.optim.Optimizer], given: dict[str, Any], parameters: list[Any], *, lr: float
) -> th.optim.Optimizer:
    """Make an optimiser, fused where torch's Adam can be, and try it on one weight.

    :param kind: its class, the argument ``optimizer_class``.
    :param given: its arguments besides the learning rate, ``optimizer_kwargs``.
    :param parameters: what it trains, or groups of them.
    :param lr: the learning rate.
    :raises ValueError: naming the class and its arguments, if it cannot be made or used.
    """
    kwargs: dict[str, Any] = {**given, "lr": lr}
    if kind in (th.optim.Adam, th.optim.AdamW) and not ({"fused", "foreach"} & given.keys()):
        kwargs["fused"] = True
    if not given and kind is th.optim.Adam:
        return kind(parameters, **kwargs)  # nothing that could be blamed
    with blaming(
        f"optimizer_class={kind.__name__} with optimizer_kwargs={given}",
        "give a first-order optimiser such as torch.optim.Adam and what it takes besides lr",
    ):
        if "lr" in given:
            raise TypeError("lr is learning_rate of the algorithm")
        weight = nn.Parameter(th.zeros(2, 2))
        weight.grad = th.zeros_like(weight)
        tried = kind([weight], **kwargs)
        step = inspect.signature(tried.step).parameters.get("closure")
        if step is not None and step.default is step.empty:
            raise TypeError(f"{kind.__name__}.step() wants a closure")
        tried.step()
        return kind(parameters, **kwargs)
