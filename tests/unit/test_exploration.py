"""Exploration noise: variance, spectrum, episodes and seeds."""

from __future__ import annotations

import numpy as np
import pytest

from sb3_pmpo.online.exploration import ColouredNoise, pink_noise, pink_or_white_noise


def draw(noise: ColouredNoise, steps: int) -> np.ndarray:
    return np.stack([noise() for _ in range(steps)])


def lag_one(noise: np.ndarray) -> float:
    return float((noise[1:] * noise[:-1]).mean() / noise.var())


def test_unit_variance_and_no_mean_over_many_episodes() -> None:
    noise = draw(ColouredNoise(20, 3, seed=0, length=200), 2000)
    assert noise.shape == (2000, 20, 3)
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0.0, abs=0.05)
    # colorednoise's unit variance is that around a block's own mean; the mean adds about 0.1.
    assert noise.var() == pytest.approx(1.05, abs=0.1)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_spectrum_falls_as_a_power_of_the_frequency(exponent: float) -> None:
    length = 512
    noise = draw(ColouredNoise(100, 2, seed=1, exponents=(exponent,), length=length), length)
    power = (np.abs(np.fft.rfft(noise, axis=0)) ** 2).mean((1, 2))[1:-1]
    slope, _ = np.polyfit(np.log(np.arange(1, length // 2)), np.log(power), 1)
    assert slope == pytest.approx(-exponent, abs=0.05)


def test_components_and_environments_are_independent() -> None:
    noise = draw(pink_noise(2, 2, seed=0), 20_000).reshape(-1, 4)
    np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(4), atol=0.1)


def test_a_reset_starts_one_environment_anew_and_leaves_the_others() -> None:
    plain, reset = (ColouredNoise(2, 1, seed=0, exponents=(2.0,), length=50) for _ in range(2))
    np.testing.assert_array_equal(draw(plain, 10), draw(reset, 10))
    reset.reset(1)
    expected, got = draw(plain, 40), draw(reset, 40)
    np.testing.assert_array_equal(expected[:, 0], got[:, 0])
    assert not np.isclose(expected[:, 1], got[:, 1]).any()


def test_a_longer_episode_continues_with_a_new_block() -> None:
    noise = draw(ColouredNoise(1, 1, seed=0, length=7), 700)
    assert len(np.unique(noise)) == 700


def test_correlated_in_time_within_an_episode_only() -> None:
    assert lag_one(draw(pink_noise(50, 1, seed=0), 1000)) > 0.5
    each_step_reset = pink_noise(1, 1, seed=0)
    noise = []
    for _ in range(500):
        noise.append(each_step_reset())
        each_step_reset.reset(0)
    assert abs(lag_one(np.stack(noise))) < 0.15


def test_pink_in_half_of_the_episodes_and_white_in_the_others() -> None:
    source = pink_or_white_noise(1, 4, seed=0)
    correlations = []
    for _ in range(40):
        correlations.append(lag_one(draw(source, 500)))
        source.reset(0)
    pink = [value > 0.5 for value in correlations]
    assert 10 < sum(pink) < 30
    assert all(
        abs(value) < 0.15 for value, is_pink in zip(correlations, pink, strict=True) if not is_pink
    )


def test_seeded() -> None:
    first, same, other = (draw(pink_noise(2, 3, seed), 30) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, same)
    assert not np.isclose(first, other).any()
