"""Network parts against NumPy, separate networks and their bounds.

Axes: N critics, S samples, B states, F features, A action dimensions.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_pmpo.networks import EnsembleQ, GaussianHead, RunningMoments


@pytest.mark.parametrize("sizes", [[1], [7], [3, 1, 50, 2], [1] * 40])
def test_moments_are_those_of_all_the_batches_together(sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    moments = RunningMoments((2, 3))
    batches = [rng.normal(5.0, 3.0, (size, 2, 3)) for size in sizes]
    for batch in batches:
        moments.update(th.as_tensor(batch))  # float64
    everything = np.concatenate(batches)
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.var, everything.var(0), rtol=1e-4, atol=1e-5)
    assert moments.count.item() == len(everything)
    assert all(value.dtype == th.float32 for value in moments.state_dict().values())


def test_an_absurd_reading_counts_as_an_outlier_and_leaves_the_moments() -> None:
    """A constant so far has no deviation to measure by, and neither have a few values."""
    values = np.random.default_rng(0).normal(size=(200, 1))
    moments = RunningMoments((1,))
    moments.update(th.as_tensor(values[:100]))
    moments.update(th.tensor([[1e30]]))
    moments.update(th.as_tensor(values[100:]))
    assert abs(moments.mean.item()) < 0.5
    assert moments.var.item() < 10.0
    for first in ([[4.0]] * 50, [[0.0], [1e-6], [2e-6]]):
        fresh = RunningMoments((1,))
        fresh.update(th.tensor(first))
        fresh.update(th.tensor([[1000.0]]))
        assert fresh.mean.item() == pytest.approx(np.mean([*np.ravel(first), 1000.0]))


def test_moments_of_small_differences_on_a_large_offset() -> None:
    values = 1000.0 + np.random.default_rng(0).normal(size=(2000, 1))
    moments = RunningMoments((1,))
    for value in values:
        moments.update(th.as_tensor(value[None]))
    assert moments.var.item() == pytest.approx(values.var(), rel=0.01)


def test_normalise_shifts_scales_and_clips() -> None:
    moments = RunningMoments((1,))
    assert th.equal(moments.normalise(th.tensor([[3.0]]), clip=10.0), th.tensor([[3.0]]))
    moments.update(th.tensor([[1.0], [5.0]]))  # mean 3, std 2
    x = th.tensor([[3.0], [7.0], [1000.0], [-1000.0]])
    expected = th.tensor([[0.0], [2.0], [10.0], [-10.0]])
    th.testing.assert_close(moments.normalise(x, clip=10.0), expected)
    moments.update(th.full((5, 1), th.nan).nan_to_num(3.0))
    constant = RunningMoments((1,))
    constant.update(th.full((5, 1), 4.0))
    assert constant.normalise(th.tensor([[4.0]]), clip=10.0).item() == 0.0


def separate(
    ensemble: EnsembleQ, n: int, layer_norm: bool, activation: type[nn.Module]
) -> nn.Module:
    """Build the nth critic from torch's own layers."""
    layers: list[nn.Module] = []
    parts = [(part.weight.mT, part.bias) for part in ensemble.hidden]
    for weight, bias in [*parts, (ensemble.output.weight, ensemble.output.bias)]:
        linear = nn.Linear(weight.shape[2], weight.shape[1])
        linear.weight.data = weight[n].detach().clone()
        linear.bias.data = bias[n, 0].detach().clone()
        norm = [nn.LayerNorm(linear.out_features)] if layer_norm else []
        layers += [linear, *norm, activation()]
    return nn.Sequential(*layers[: -2 if layer_norm else -1])


@pytest.mark.parametrize("net_arch", [[], [8], [8, 5, 6]])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize(("n_critics", "n_samples"), [(1, 1), (3, 4)])
@pytest.mark.parametrize(("n_quantiles", "activation"), [(1, nn.Tanh), (7, nn.Tanh), (7, nn.ReLU)])
def test_ensemble_equals_separate_networks(
    net_arch: list[int],
    layer_norm: bool,
    n_critics: int,
    n_samples: int,
    n_quantiles: int,
    activation: type[nn.Module],
) -> None:
    th.manual_seed(0)
    ensemble = EnsembleQ(4, 2, net_arch, n_critics, activation, layer_norm, n_quantiles)
    features = th.randn(6, 4, requires_grad=True)
    actions = th.randn(n_samples, 6, 2)
    got = ensemble(features, actions)
    assert got.shape == (n_critics, n_samples, 6)
    got.square().sum().backward()
    gradient, features.grad = features.grad, None
    joined = th.cat([features.expand(n_samples, -1, -1), actions], -1)
    for n in range(n_critics):
        critic = separate(ensemble, n, layer_norm, activation)
        expected = critic(joined).mean(-1)  # over the quantiles
        th.testing.assert_close(got[n], expected)
        expected.square().sum().backward()
        first = ensemble.hidden[0].weight.grad.mT if net_arch else ensemble.output.weight.grad
        th.testing.assert_close(first[n], critic[0].weight.grad)
    th.testing.assert_close(gradient, features.grad)


@pytest.mark.parametrize("net_arch", [[], [8, 5]])
def test_values_are_the_means_of_the_quantiles(net_arch: list[int]) -> None:
    th.manual_seed(0)
    ensemble = EnsembleQ(4, 2, net_arch, 3, n_quantiles=5)
    features, actions = th.randn(6, 4), th.randn(2, 6, 2)
    quantiles = ensemble(features, actions, quantiles=True)
    assert quantiles.shape == (3, 2, 6, 5)
    assert quantiles.std(-1).min() > 0.0
    th.testing.assert_close(ensemble(features, actions), quantiles.mean(-1))


def test_critics_start_apart() -> None:
    values = EnsembleQ(4, 2, [16], 2)(th.randn(8, 4), th.randn(1, 8, 2))
    assert not th.isclose(values[0], values[1]).any()


@pytest.mark.parametrize("net_arch", [[], [256, 256]])
def test_bfloat16_ranks_almost_as_float32_does(net_arch: list[int]) -> None:
    th.manual_seed(0)
    ensemble = EnsembleQ(10, 3, net_arch, 2)
    features, actions = th.randn(256, 10), th.rand(8, 256, 3) * 2 - 1
    exact = ensemble(features, actions).mean(0)
    rough = ensemble(features, actions, th.bfloat16).mean(0)
    assert rough.dtype == th.float32
    pairs = th.triu_indices(8, 8, offset=1)
    order, other = ((q[pairs[0]] > q[pairs[1]]) for q in (exact, rough))
    assert (order == other).float().mean() > 0.95
    assert th.equal(exact, rough) == (not net_arch)  # the output layer is float32 always


@pytest.mark.parametrize("std_init", [0.02, 0.6, 0.99])
def test_std_starts_at_std_init_and_stays_between_its_bounds(std_init: float) -> None:
    th.manual_seed(0)
    head = GaussianHead(5, 3, std_init, 0.01, 1.0)
    mean, std = head(th.randn(100, 5))
    th.testing.assert_close(std, th.full_like(std, std_init), atol=0.02, rtol=0.0)
    assert mean.abs().max() < 0.1
    for size in (1e4, -1e4):
        with th.no_grad():
            head.linear.bias.fill_(size)
        mean, std = head(th.zeros(1, 5))
        assert std.unique().item() == pytest.approx(1.0 if size > 0 else 0.01)
        assert mean.unique().item() == pytest.approx(np.sign(size))


@pytest.mark.parametrize(
    "stds", [(2.0, 0.01, 1.0), (0.5, -1.0, 1.0), (0.5, 0.0, 1.0), (0.1, 0.2, 1.0)]
)
def test_std_bounds_are_checked(stds: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=f"std_init={stds[0]}"):
        GaussianHead(5, 3, *stds)


@pytest.mark.parametrize("number", [0, -1, 1.5])
@pytest.mark.parametrize("name", ["n_critics", "n_quantiles"])
def test_numbers_of_critics_and_quantiles_are_checked(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"{name} .* >= 1, got {number}"):
        EnsembleQ(4, 2, [8], **{"n_critics": 2, name: number})
