"""The bandit: known optima, what it must not depend on, and its interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_pmpo.bandit import Bandit, OptimizeResult, minimize, mpo_objective
from sb3_pmpo.core.labels import top_k
from sb3_pmpo.core.losses import dpo_loss, ipo_loss
from sb3_pmpo.objectives import DPOObjective, PMPOObjective

OBJECTIVES = {
    "AR": PMPOObjective(0.5, 1.0, 1.0, top_k(2)),
    "A": PMPOObjective(1.0, 0.0, 0.0, top_k(2)),
    "R": PMPOObjective(0.0, 2.0, 2.0, top_k(2)),
    "DPO": DPOObjective(5.0, dpo_loss),
}
BOX = [(-5.0, 5.0)] * 2
START = (3.0, -4.0)


def sphere(x: np.ndarray) -> float:
    return float((x**2).sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_finds_the_minimum(name: str) -> None:
    result = minimize(sphere, BOX, x0=START, objective=OBJECTIVES[name], maxfev=4000, seed=0)
    assert sphere(result.mean) < 5e-3
    assert result.fun == sphere(result.x) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("objective", [mpo_objective(1), DPOObjective(0.5, ipo_loss)])
def test_mpo_and_ipo_come_near_it(objective: Any) -> None:
    result = minimize(sphere, BOX, x0=START, objective=objective, maxfev=6000, seed=0)
    assert sphere(result.mean) < 1e-2


@pytest.mark.slow
def test_a_full_covariance_follows_a_valley_that_a_diagonal_one_cannot() -> None:
    """A narrow ellipse along the diagonal of the box, with its minimum at (1, 1)."""

    def valley(x: np.ndarray) -> float:
        return float(300.0 * (x[0] - x[1]) ** 2 + (x[0] + x[1] - 2.0) ** 2)

    full, diagonal = (
        minimize(valley, BOX, x0=START, full_covariance=full, maxfev=6000, seed=0)
        for full in (True, False)
    )
    assert valley(full.mean) < 1e-2 < valley(diagonal.mean)


def test_a_discretised_policy_finds_the_best_bin() -> None:
    result = minimize(
        lambda x: sphere(x - np.array([2.0, -1.0])), BOX, n_bins=11, maxfev=4000, seed=0
    )
    assert result.mean == pytest.approx([2.0, -1.0])


def test_only_the_order_of_the_values_counts() -> None:
    one = minimize(sphere, BOX, x0=START, maxfev=800, seed=3)
    other = minimize(lambda x: 5.0 * np.log(sphere(x)) - 7.0, BOX, x0=START, maxfev=800, seed=3)
    assert np.array_equal(one.mean, other.mean)


def test_it_does_not_depend_on_the_unit_of_the_box() -> None:
    one = minimize(sphere, BOX, x0=START, maxfev=800, seed=3)
    scale = np.array([1000.0, 1e-3])
    other = minimize(
        lambda x: sphere(x / scale), [(-5000.0, 5000.0), (-0.005, 0.005)],
        x0=START * scale, maxfev=800, seed=3,
    )  # fmt: skip
    assert other.mean / scale == pytest.approx(one.mean, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("full_covariance", [True, False])
def test_the_barrier_holds_the_mean_in_the_box(full_covariance: bool) -> None:
    """What is best is in the corner: without a barrier the mean, which has no bounds, leaves."""
    ends = []
    for weight in (0.0, 0.1):
        objective = PMPOObjective(0.5, 1.0, 1.0, top_k(2), edge_barrier=weight)
        low, high = th.full((2,), -5.0).double(), th.full((2,), 5.0).double()
        search = Bandit(
            low, high, th.zeros(2).double(), objective=objective,
            full_covariance=full_covariance, reference_update_interval=25,
        )  # fmt: skip
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            for _ in range(200):
                search.tell(-search.ask().sum(-1))
        ends.append(search.reference.mean)
        assert search.reference.mean.isfinite().all()
    assert (ends[0] > 1.0).any()
    assert (ends[1].abs() < ends[0].abs()).all()


def test_runs_in_step_are_the_runs_alone() -> None:
    """Each of several runs has the gradient that it would have alone."""
    low, high = -5.0 * th.ones(2, dtype=th.float64), 5.0 * th.ones(2, dtype=th.float64)
    starts = th.tensor([[1.0, 2.0], [-3.0, 4.0]], dtype=th.float64)
    searches = [Bandit(low, high, start) for start in (starts, starts[0], starts[1])]
    generator = th.Generator().manual_seed(0)
    for _ in range(150):
        noise = th.randn(4, 2, 2, generator=generator, dtype=th.float64)
        for search, own in zip(searches, (noise, noise[:, 0], noise[:, 1]), strict=True):
            search.ask()
            reference = search.reference
            search._samples = reference.mean + (reference.scale_tril @ own.unsqueeze(-1))[..., 0]
            search.tell(search._to_box(search._samples).square().sum(-1))
    th.testing.assert_close(searches[0].mode(), th.stack([s.mode() for s in searches[1:]]))


def test_the_first_step_is_the_analytic_gradient() -> None:
    """AR on a Gaussian: the relative mean moves by Adam's first step towards the accepted."""
    search = Bandit(
        -th.ones(1, dtype=th.float64), th.ones(1, dtype=th.float64), th.zeros(1, dtype=th.float64),
        learning_rate=0.05,
    )  # fmt: skip
    search.ask()
    search._samples = th.tensor([[0.4], [0.2], [-0.1], [-0.3]], dtype=th.float64)
    search.tell(-search._samples.squeeze(-1))  # the highest is the best
    z = search._samples / 0.5
    accepted, rejected = z[:2].mean(), z[2:].mean()
    assert search.parameters[0].grad.item() == pytest.approx(-0.5 * float(accepted - rejected))
    assert search.parameters[0].item() == pytest.approx(0.05, rel=1e-4)


def test_a_search_says_what_it_cannot_begin_with() -> None:
    one = th.ones(1)
    with pytest.raises(ValueError, match=r"low must be finite and below high .* low=\[1.0\]"):
        Bandit(one, -one, 0 * one)
    search = Bandit(-one, one, 0 * one)
    with pytest.raises(ValueError, match=r"of one ask\(\), no of them"):
        search.tell(th.zeros(4))
    search.ask()
    with pytest.raises(ValueError, match=r"\(4,\) of them, got \(3,\)"):
        search.tell(th.zeros(3))


def test_the_reference_is_refreshed_every_interval() -> None:
    ones = th.ones(2, dtype=th.float64)
    search = Bandit(-ones, ones, 0.3 * ones, reference_update_interval=10)
    first = search.reference
    for step in range(1, 21):
        search.tell(search.ask().sum(-1))
        assert (search.reference is first) == (step < 10)
    assert search.n_iterations == 20


def test_the_result_and_the_callback() -> None:
    seen: list[OptimizeResult] = []
    evaluated: list[np.ndarray] = []

    def function(x: np.ndarray) -> float:
        evaluated.append(x)
        return sphere(x)

    result = minimize(function, BOX, maxfev=42, callback=seen.append, seed=1)
    assert (result.nfev, result.nit, len(seen)) == (40, 10, 10) == (len(evaluated), 10, 10)
    assert result.success
    assert result.message == "maxfev=42 evaluations are used up"
    assert result.fun == min(map(sphere, evaluated))
    assert np.array_equal(seen[-1].mean, result.mean)
    points = np.array(evaluated)
    assert (np.abs(points) <= 5.0).all()


def test_it_stops_at_the_target_or_when_told() -> None:
    result = minimize(sphere, BOX, target=0.5, seed=0)
    assert result.success
    assert result.fun <= 0.5
    assert result.nfev < 20_000
    missed = minimize(sphere, BOX, target=-1.0, maxfev=40, seed=0)
    assert not missed.success

    def stop(_: OptimizeResult) -> None:
        raise StopIteration

    assert minimize(sphere, BOX, callback=stop, seed=0).nit == 1


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    th.manual_seed(5)
    before = th.get_rng_state()
    one, other, third = (minimize(sphere, BOX, maxfev=80, seed=seed) for seed in (0, 0, 1))
    assert th.equal(before, th.get_rng_state())
    assert np.array_equal(one.mean, other.mean)
    assert not np.array_equal(one.mean, third.mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bounds": [(0.0, 0.0)]}, r"each low below its high, got \[\(0.0, 0.0\)\]"),
        ({"bounds": [(0.0, np.inf)]}, "bounds must be finite"),
        ({"bounds": [1.0, 2.0]}, "a .low, high. pair for each dimension"),
        ({"x0": (6.0, 0.0)}, "x0 must be a point in bounds"),
        ({"maxfev": 3}, "maxfev must be a whole number >= 4, got 3"),
        ({"maxfev": 41.5}, "maxfev must be a whole number >= 4, got 41.5"),
        ({"n_samples": 1}, "n_samples must be a whole number >= 2 .*, got 1"),
        ({"n_bins": 1}, "n_bins must be a whole number >= 2 .*, got 1"),
        ({"n_bins": 2.5}, "n_bins must be a whole number >= 2 .*, got 2.5"),
        ({"reference_update_interval": 2.5}, "must be a whole number >= 2 .*, got 2.5"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0, got 0.0"),
        ({"learning_rate": "a"}, "learning_rate must be a number .*, got 'a'"),
        ({"std_init": -1.0}, "std_init must be a number >= 0.0, got -1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minimize(sphere, **{"bounds": BOX} | arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_point(value: float) -> None:
    with pytest.raises(ValueError, match=r"must be finite, got (nan|inf) at \["):
        minimize(lambda x: value, BOX)


def test_the_seed_of_a_search_is_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded = []
    monkeypatch.setattr(th.cuda, "manual_seed_all", seeded.append)
    minimize(sphere, BOX, maxfev=8, seed=7)
    assert not seeded
