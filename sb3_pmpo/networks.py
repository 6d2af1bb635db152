"""Network parts: running moments, ensemble critics, heads of policies, lagged copies.

Axes: N critics, S samples, B states, F features, A action dimensions, K quantiles or bins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_pmpo.distributions import NO_BIN, Categorical, DiagGaussian

#: An outlier counts as if it were this far from the mean, in standard deviations of what came
#: before. One absurd reading then leaves the statistics as they are. Values that really are that
#: large soon widen the deviation, by a factor of up to this each.
OUTLIER = 30.0

#: So many widths of the middle half from the middle is no reading of a sensor.
ABSURD = 1e6

#: The deviation of fewer vectors may be off by any factor, and is no measure of an outlier.
ENOUGH_FOR_OUTLIERS = 10


class StatisticsError(ValueError, RuntimeError):
    """Saved statistics are not finite. A RuntimeError, too, which SB3's ``load`` lets through."""


class RunningMoments(nn.Module):
    """Mean and variance of all the vectors seen, in float buffers that save with the policy.

    :param shape: shape of one vector.
    :param believed: how many standard deviations from the mean a value may be and is no outlier.
    """

    mean: th.Tensor
    var: th.Tensor
    count: th.Tensor

    def __init__(self, shape: tuple[int, ...], believed: float = OUTLIER) -> None:
        super().__init__()
        self.believed = believed
        self.register_buffer("mean", th.zeros(shape))
        self.register_buffer("var", th.ones(shape))
        self.register_buffer("count", th.zeros(1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load as torch does.

        :raises StatisticsError: for some that are not finite, which would make all inputs so.
        """
        for name in ("mean", "var", "count"):
            value = state_dict.get(prefix + name)
            if isinstance(value, th.Tensor) and not bool(value.isfinite().all()):
                raise StatisticsError(
                    f"the saved statistics {prefix}{name} must be finite, got {value.tolist()}: "
                    "they have taken in a value that is not; load a file that was saved before"
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @th.no_grad()
    def update(self, batch: th.Tensor) -> None:
        """Take in a batch ``[B, *shape]`` (Chan et al., 1979, parallel moments).

        With numpy: this runs at every step of an environment, on vectors so short that torch's
        thirty calls would take longer than the policy.
        """
        new = batch.to(self.mean).cpu().numpy()
        mean, var, seen = self.mean.cpu().numpy(), self.var.cpu().numpy(), float(self.count)
        with np.errstate(all="ignore"):
            if seen >= ENOUGH_FOR_OUTLIERS:
                new = self._without_outliers(new, mean, var)
            batch_mean = np.add.reduce(new) / len(new)  # mean and var of numpy take twice as long
            batch_var = np.add.reduce(np.square(new - batch_mean)) / len(new)
            share = len(new) / (seen + len(new))  # the first batch's is 1, which discards var = 1
            shift = batch_mean - mean
            var = var + share * (batch_var - var) + share * (1.0 - share) * np.square(shift)
            self.mean.copy_(th.from_numpy(np.asarray(mean + share * shift)))
            self.var.copy_(th.from_numpy(np.asarray(var)))
        self.count += len(new)

    def _without_outliers(self, new: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        """Bring the outliers among ``[B, *shape]`` nearer."""
        distance, width = np.abs(new - mean), np.sqrt(var)
        if not (distance > self.believed * width).any():
            return new
        # What was constant so far has no deviation to be measured by: its first change is believed
        # unless it is absurd.
        constant = var == 0.0
        width = np.where(constant, 1.0 + np.abs(mean), width)
        believed = np.where(constant, self.believed * (ABSURD / OUTLIER), self.believed)
        outlying = distance > believed * width
        reach = OUTLIER * width
        return np.where(outlying, new.clip(mean - reach, mean + reach), new)

    @th.no_grad()
    def begin_anew(self, vectors: th.Tensor) -> None:
        """Forget what was seen and take the moments of all these vectors ``[T, *shape]``."""
        vectors = vectors.to(self.mean)
        middle, width = _middle_half(vectors, unit=self.believed / OUTLIER)
        reach = th.where(_is_absurd(vectors, middle, width), OUTLIER * width, th.inf)
        kept = vectors.clamp(middle - reach, middle + reach)
        var, mean = th.var_mean(kept, dim=0, correction=0)
        self.var.copy_(var)
        self.mean.copy_(mean)
        self.count.fill_(float(len(vectors)))

    def normalise(self, x: th.Tensor, *, clip: float) -> th.Tensor:
        """Shift and scale to zero mean and unit variance, then clip to ``+-clip``."""
        return ((x - self.mean) * (self.var + 1e-8).rsqrt()).clamp(-clip, clip)


def _middle_half(vectors: th.Tensor, unit: float = 1.0) -> tuple[th.Tensor, th.Tensor]:
    """Return the median of ``[T, *shape]`` and the distance between its quartiles.

    Where half of the readings are one value, as of a contact that is rare, the distance is that of
    a wider part; where nearly all are, ``unit`` times 1 and the size of that value.
    """

    def at(share: float) -> th.Tensor:
        return vectors.kthvalue(1 + int(share * (len(vectors) - 1)), dim=0).values

    middle = at(0.5)
    width = unit * (1.0 + middle.abs())
    for tail in (0.01, 0.05, 0.25):
        part = at(1.0 - tail) - at(tail)
        width = th.where(part > 0.0, part, width)
    return middle, width


def _is_absurd(vectors: th.Tensor, middle: th.Tensor, width: th.Tensor) -> th.Tensor:
    """Say of which features ``[*shape]`` some reading of ``[T, *shape]`` cannot be true."""
    return (vectors - middle).abs().amax(0) > ABSURD * width


def has_absurd_readings(vectors: th.Tensor) -> bool:
    """Say whether some of the readings ``[T, *shape]`` cannot be true."""
    vectors = vectors.float()
    return bool(_is_absurd(vectors, *_middle_half(vectors)).any())


class EnsembleLinear(nn.Module):
    """The weights of N linear layers for one batched product; initialised like ``nn.Linear``.

    :param n_critics: N.
    :param in_features: width of the input.
    :param out_features: width of the output.
    """

    def __init__(self, n_critics: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(max(in_features, 1))
        self.weight = nn.Parameter(
            th.empty(n_critics, in_features, out_features).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(th.empty(n_critics, 1, out_features).uniform_(-bound, bound))


class EnsembleQ(nn.Module):
    """N independent Q functions of one shape, evaluated together, each by K quantiles.

    Each hidden layer is linear, layer norm (without affine parameters: the next layer has them),
    activation. The state's share of the first layer is computed once for all S actions.

    :param features_dim: F.
    :param action_dim: A.
    :param net_arch: widths of the hidden layers; may be empty.
    :param n_critics: N.
    :param activation_fn: class of the activation.
    :param layer_norm: normalise each hidden layer before its activation.
    :param n_quantiles: K, of the return; their mean is Q.
    """

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: list[int],
        n_critics: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        layer_norm: bool = True,
        n_quantiles: int = 1,
    ) -> None:
        super().__init__()
        for name, number in (("n_critics", n_critics), ("n_quantiles", n_quantiles)):
            if number < 1 or int(number) != number:
                raise ValueError(f"{name} must be a whole number >= 1, got {number}")
        self.features_dim = features_dim
        self.layer_norm = layer_norm
        widths = [features_dim + action_dim, *net_arch, n_quantiles]
        *hidden, last = itertools.pairwise(widths)
        self.hidden = nn.ModuleList(EnsembleLinear(n_critics, *sizes) for sizes in hidden)
        self.output = EnsembleLinear(n_critics, *last)
        # Small first values: the scale of the returns is not known yet. ``[N, K, in]``, unlike the
        # hidden layers: with few outputs their products are fast then.
        self.output.weight = nn.Parameter(0.01 * self.output.weight.detach().mT.contiguous())
        with th.no_grad():
            self.output.bias.mul_(0.01)
        # In place, what is between two layers takes less of the cache.
        self.activation = nn.ReLU(inplace=True) if activation_fn is nn.ReLU else activation_fn()

    def forward(
        self,
        features: th.Tensor,
        actions: th.Tensor,
        dtype: th.dtype = th.float32,
        quantiles: bool = False,
    ) -> th.Tensor:
        """Evaluate every critic on S actions for each state.

        :param features: ``[B, F]``.
        :param actions: ``[S, B, A]`` in [-1, 1].
        :param dtype: of the hidden layers' products; the output layer is float32 always, as the
            differences between a state's actions are small beside the values.
        :param quantiles: return the quantiles, not their mean.
        :return: ``[N, S, B]`` in float32, or ``[N, S, B, K]``.
        """
        hidden = cast(Iterable[EnsembleLinear], self.hidden)
        weight, bias = cast(th.Tensor, self.output.weight), cast(th.Tensor, self.output.bias)
        if not quantiles:  # the mean of K linear functions is one linear function
            weight, bias = weight.mean(1, keepdim=True), bias.mean(-1, keepdim=True)
        layers = [
            *((layer.weight, layer.bias, dtype) for layer in hidden),
            (weight.mT, bias, th.float32),
        ]
        first, *rest = [(weight.to(to), bias.to(to), to) for weight, bias, to in layers]
        # One action at a time on the CPU: what is between two layers then stays in the cache.
        together = len(actions) if actions.is_cuda else 1
        values = []
        for x in self._first_layer(features, actions, *first, together):
            for weight, bias, to in rest:
                x = th.baddbmm(bias, self._activate(x, to), weight)
            values.append(x.unflatten(1, (-1, len(features))))
        joined = th.cat(values, dim=1)
        return joined if quantiles else joined.squeeze(-1)

    def _first_layer(
        self,
        features: th.Tensor,
        actions: th.Tensor,
        weight: th.Tensor,
        bias: th.Tensor,
        dtype: th.dtype,
        together: int,
    ) -> Iterator[th.Tensor]:
        """Yield ``[N, together * B, H]`` of as many actions, one lot after the other."""
        features, actions = features.to(dtype), actions.to(dtype)
        if len(actions) == 1:  # one product of both takes half the time of two
            both = th.cat([features, actions[0]], dim=-1)
            yield th.baddbmm(bias, both.expand(len(weight), -1, -1), weight)
            return
        of_state, of_action = weight.split(
            [self.features_dim, weight.shape[1] - self.features_dim], dim=1
        )
        state = th.baddbmm(bias, features.expand(len(weight), -1, -1), of_state)
        state = state if together == 1 else state.repeat(1, together, 1)
        for lot in actions.split(together):
            yield th.baddbmm(state, lot.flatten(0, 1).expand(len(weight), -1, -1), of_action)

    def _activate(self, x: th.Tensor, to: th.dtype) -> th.Tensor:
        # Where bfloat16 is no faster than two casts, what is between two products is float32.
        x = x.to(to if NORMALISES_BFLOAT16 else th.float32)
        if self.layer_norm:
            width = x.shape[-1]
            # torch's fast path on the CPU wants a weight and a bias, even of 1 and 0.
            affine = () if x.is_cuda else (x.new_ones(width), x.new_zeros(width))
            x = F.layer_norm(x, (width,), *affine)
        return self.activation(x).to(to)


class GaussianHead(nn.Module):
    """Mean in (-1, 1) by tanh and std in (std_min, std_max) by a sigmoid, state-dependent.

    :param in_features: width of the body's output.
    :param action_dim: A.
    :param std_init: std of every state at the start.
    :param std_min: lower bound of the std.
    :param std_max: upper bound of the std.
    """

    def __init__(
        self, in_features: int, action_dim: int, std_init: float, std_min: float, std_max: float
    ) -> None:
        super().__init__()
        if not 0.0 < std_min < std_init < std_max:
            raise ValueError(
                "std_min, std_init and std_max must satisfy 0 < std_min < std_init < std_max, got "
                f"std_min={std_min}, std_init={std_init}, std_max={std_max}"
            )
        self.parts = DiagGaussian.parts()
        self.linear = nn.Linear(in_features, 2 * action_dim)
        nn.init.orthogonal_(self.linear.weight, gain=0.01)
        nn.init.zeros_(self.linear.bias)
        self.std_min, self.std_max = std_min, std_max
        share = (std_init - std_min) / (std_max - std_min)
        self.offset = math.log(share / (1.0 - share))

    def forward(self, latent: th.Tensor) -> DiagGaussian:
        """Map ``[B, in]`` to a distribution over ``[B, A]``."""
        mean, spread = self.linear(latent).chunk(2, dim=-1)
        std = self.std_min + (self.std_max - self.std_min) * th.sigmoid(spread + self.offset)
        return DiagGaussian(th.tanh(mean), std)


class CategoricalHead(nn.Module):
    """Logits of independent dimensions, nearly uniform at the start.

    :param in_features: width of the body's output.
    :param sizes: number of bins of each of the A dimensions.
    :param low: action of the first bin.
    :param spacing: from one bin to the next.
    """

    exists: th.Tensor

    def __init__(
        self, in_features: int, sizes: tuple[int, ...], low: float = 0.0, spacing: float = 1.0
    ) -> None:
        super().__init__()
        self.parts = Categorical.parts()
        self.linear = nn.Linear(in_features, len(sizes) * max(sizes))
        nn.init.orthogonal_(self.linear.weight, gain=0.01)
        nn.init.zeros_(self.linear.bias)
        self.sizes, self.low, self.spacing = sizes, low, spacing
        exists = th.arange(max(sizes)) < th.tensor(sizes).unsqueeze(-1)  # [A, K]
        self.register_buffer("exists", exists, persistent=False)

    def forward(self, latent: th.Tensor) -> Categorical:
        """Map ``[B, in]`` to a distribution over ``[B, A]``."""
        logits = self.linear(latent).view(-1, *self.exists.shape)
        logits = logits.masked_fill(~self.exists, NO_BIN)
        return Categorical(logits, self.sizes, self.low, self.spacing)


#: What this CPU does faster in bfloat16 than in float32. Before it had this function torch does not
#: say, and float32 is right on every CPU.
_CPU: dict[str, bool] = getattr(th.cpu, "get_capabilities", dict)()
MULTIPLIES_BFLOAT16 = bool(_CPU.get("avx512_bf16") or _CPU.get("amx_bf16"))
NORMALISES_BFLOAT16 = bool(_CPU.get("amx_bf16"))


#: Narrower layers gain less by products in bfloat16 than the casts take (benchmarks/README.md).
WIDE = 256


def fastest_dtype(device: th.device, widths: Iterable[int]) -> th.dtype:
    """Return bfloat16 for wide layers on a CPU whose products are fast in it, else float32.

    On a GPU the casts cost more launches than the products of such networks gain.

    :param widths: of the hidden layers.
    """
    gains = MULTIPLIES_BFLOAT16 and min(widths, default=0) >= WIDE
    return th.bfloat16 if device.type == "cpu" and gains else th.float32


class LaggedCopy:
    """Moves a copy of a module towards it; the tensors are found once, as that costs more than it.

    :param online: the module that learns.
    :param lagged: its copy, of the same shape.
    """

    def __init__(self, online: nn.Module, lagged: nn.Module) -> None:
        self._online: list[th.Tensor] = list(online.parameters())
        self._lagged: list[th.Tensor] = list(lagged.parameters())
        pairs = zip(lagged.buffers(), online.buffers(), strict=True)
        # The normaliser is one object in both.
        self._buffers = [(old, new) for old, new in pairs if old is not new]

    @th.no_grad()
    def move(self, tau: float) -> None:
        """Move the parameters by the share ``tau``; copy batch-norm statistics (SB3 #996)."""
        th._foreach_lerp_(self._lagged, self._online, tau)
        for old, new in self._buffers:
            old.copy_(new)
