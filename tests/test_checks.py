"""Bad arguments are refused before training, each by name, value and range."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from toys import Toy, small

from sb3_pmpo import (
    DPO,
    MPO,
    PAPER_A,
    PAPER_AR,
    PAPER_R,
    PMPO,
    Candidates,
    advantage,
    best_worst,
    top_k,
)
from sb3_pmpo.core.labels import Labeller
from sb3_pmpo.objectives import PMPOObjective
from sb3_pmpo.online.checks import check_finite

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("buffer_size", 0, ">= 1"),
        ("buffer_size", 10.5, ">= 1"),
        ("buffer_size", True, ">= 1"),
        ("learning_starts", -1, ">= 0"),
        ("batch_size", 0, ">= 1"),
        ("batch_size", "64", ">= 1"),
        ("tau", -0.1, ">= 0.0 and <= 1.0"),
        ("tau", 1.1, ">= 0.0 and <= 1.0"),
        ("tau", "fast", ">= 0.0 and <= 1.0"),
        ("pessimism", "low", ">= 0.0 and <= 1.0"),
        ("gamma", 1.01, ">= 0.0 and <= 1.0"),
        ("gamma", NAN, ">= 0.0 and <= 1.0"),
        ("train_freq", 0, ">= 1"),
        ("train_freq", -3, ">= 1"),
        ("train_freq", 1.5, ">= 1"),
        ("train_freq", (0, "episode"), ">= 1"),
        ("gradient_steps", -2, ">= -1"),
        ("gradient_steps", 0.5, ">= -1"),
        ("n_steps", 0, ">= 1"),
        ("n_steps", 2.5, ">= 1"),
        ("pessimism", -0.1, "<= 1"),
        ("pessimism", 1.1, "<= 1"),
        ("learning_rate", -1e-3, ">= 0.0"),
        ("learning_rate", "3e-4", ">= 0.0"),
        ("learning_rate", INF, ">= 0.0"),
        ("learning_rate", None, ">= 0.0"),
        ("actor_learning_rate", -1e-3, ">= 0.0"),
        ("actor_learning_rate", NAN, ">= 0.0"),
        ("stats_window_size", 0, ">= 1"),
        ("n_samples", 1, ">= 2"),
        ("n_samples", 4.5, ">= 2"),
        ("policy_delay", 0, ">= 1"),
        ("reference_update_interval", 0, ">= 1"),
        ("reference_tau", 1.5, ">= 0.0 and <= 1.0"),
        ("reference_tau", 0.0, "> 0"),
        ("alpha", 1.5, "1"),
        ("alpha", NAN, "1"),
        ("alpha", "half", "1"),
        ("beta", -0.5, ">= 0"),
        ("beta", NAN, ">= 0"),
        ("beta", "one", ">= 0"),
        ("beta", (1.0, -2.0), ">= 0"),
        ("beta", (1.0, INF), ">= 0"),
        ("beta", (1.0, 2.0, 3.0), "pair"),
        ("edge_barrier", -0.1, ">= 0"),
        ("labeller", 3, "top_k"),
        ("exploration_noise", "pink", "pink_noise"),
        ("action_noise", 0.1, "ActionNoise"),
    ],
)
def test_a_bad_argument_is_refused_by_name_value_and_range(
    name: str, value: Any, bounds: str
) -> None:
    with pytest.raises(ValueError, match=name) as refusal:
        small(Toy(), **{name: value})
    message = str(refusal.value)
    assert bounds in message
    shown = value if isinstance(value, tuple) else (value,)
    assert any(f"got {part}" in message or f"got {part!r}" in message for part in (value, *shown))


@pytest.mark.parametrize("unit", ["steps", "epoch"])
def test_unit_of_train_freq(unit: str) -> None:
    with pytest.raises(ValueError, match=f"train_freq.*{unit}"):
        small(Toy(), train_freq=(1, unit))


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"n_critics": 0}, "n_critics .* >= 1, got 0"),
        ({"std_init": 2.0}, "std_init=2.0"),
        ({"std_min": 0.0}, "std_min=0.0"),
    ],
)
def test_bad_policy_kwargs(policy_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(Toy(), policy_kwargs=policy_kwargs)


def test_too_few_samples_for_the_labeller() -> None:
    with pytest.raises(ValueError, match="k=3 with 4 sample"):
        small(Toy(), n_samples=4, labeller=top_k(3))


def constant(value: float, dtype: th.dtype = th.float32) -> Labeller:
    """Give every sample this weight on both sides."""
    return lambda candidates: 2 * (th.full(candidates.scores.shape, value, dtype=dtype),)


def only_accepted(candidates: Candidates) -> Any:
    return top_k(2)(candidates).accept


WRONG_LABELLERS = [
    (lambda _: None, r"a Preference \(accept, reject\), got None"),
    (only_accepted, r"a Preference \(accept, reject\), got tensor"),
    (lambda c: (*top_k(2)(c), c.scores), r"a Preference \(accept, reject\), got \("),
    (lambda _: (None, None), r"weights of the scores' shape \(6, 2\) for accept, got None"),
    (lambda c: (c.scores, c.scores[0]), r"weights of .* \(6, 2\) for reject, got \(2,\)"),
    (lambda c: 2 * (c.scores.mean(1),), r"weights of .* \(6, 2\) for accept, got \(6,\)"),
    (constant(1, th.int64), "floating-point weights for accept, got torch.int64"),
    (constant(1, th.bool), "floating-point weights for accept, got torch.bool"),
    (constant(-0.5), r"finite weights >= 0 for accept, got \[\[-0.5"),
    (constant(NAN), r"finite weights >= 0 for accept, got \[\[nan"),
    (constant(INF), r"finite weights >= 0 for accept, got \[\[inf"),
]


@pytest.mark.parametrize(("labeller", "message"), WRONG_LABELLERS)
def test_a_labeller_with_a_wrong_result_is_refused_at_construction(
    labeller: Labeller, message: str
) -> None:
    message = rf"(?s)labeller must return {message}.*: return from_masks"
    with pytest.raises(ValueError, match=message):
        small(Toy(), n_samples=6, labeller=labeller, beta=2.0)


def test_a_labeller_may_want_all_that_a_critic_offers() -> None:
    """The trial call offers actions, weights, distances and a value, as training will."""
    seen: list[Candidates] = []

    def labeller(candidates: Candidates) -> Any:
        seen.append(candidates)
        return top_k(2)(candidates)

    small(Toy(low=(-1.0,) * 3, high=(1.0,) * 3), n_samples=6, labeller=labeller, beta=2.0)
    (tried,) = seen
    assert tried.scores.shape == tried.weights.shape == tried.outside.shape == (6, 2)
    assert tried.actions.shape == (6, 2, 3)
    assert tried.value().shape == (2,)
    assert tried.n_samples == 6


def test_an_objective_checks_its_own_arguments() -> None:
    """The same rules for the bandit, for data and for language models."""
    for arguments, message in (
        ((7.0, 1.0, 1.0, top_k(2)), "alpha must be a number >= 0.0 and <= 1.0, got 7.0"),
        ((0.5, -1.0, 1.0, top_k(2)), "beta must be a number >= 0.0, got -1.0"),
        ((0.5, 1.0, NAN, top_k(2)), "beta must be a number >= 0.0, got nan"),
        ((0.5, 1e308, 1.0, top_k(2)), "beta must be a number >= 0.0 and <= 1000000000.0"),
        ((0.5, 1.0, 1.0, top_k(2), True, 10**30), "edge_barrier must be a number >= 0.0 and <= 1"),
        ((0.5, 1.0, 1.0, 3), "labeller must be callable, such as top_k"),
        ((0.5, 1.0, 1.0, top_k(2), "yes"), "decoupled must be True or False, got 'yes'"),
        ((0.5, 1.0, 1.0, top_k(2), True, -0.1), "edge_barrier must be a number >= 0.0, got -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            PMPOObjective(*arguments)
    with pytest.warns(UserWarning, match="policy may collapse"):
        PMPOObjective(0.5, 0.5, 0.5, top_k(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PMPOObjective(0.5, 0.2, 1.0, advantage())  # balanced: the mean is safe below 1


class Balanced:
    """A labeller of the user's own that says of itself that both sides weigh the same."""

    balanced = True

    def __call__(self, candidates: Candidates) -> Any:
        return top_k(3)(candidates)


def test_a_labeller_says_for_itself_whether_it_is_balanced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(Toy(), labeller=Balanced(), beta=(0.2, 1.0))
    assert small(Toy(), labeller=Balanced()).objective.beta_mean == 0.2


def test_bad_arguments_of_load_are_refused_too(tmp_path: Any) -> None:
    small(Toy()).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"gamma .* got 2"):
        PMPO.load(tmp_path / "model", gamma=2)


def test_gsde_is_refused_with_an_alternative() -> None:
    with pytest.raises(ValueError, match=r"use_sde=True is not supported.*exploration_noise"):
        small(Toy(), use_sde=True)


def test_an_unbounded_or_binary_action_space_is_refused() -> None:
    env = Toy()
    env.action_space = spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises((AssertionError, ValueError), match=r"finite|bounded"):
        small(env)
    env = Toy()
    env.action_space = spaces.MultiBinary(2)
    with pytest.raises(ValueError, match="MultiBinary"):
        small(env)


@pytest.mark.parametrize(("interval", "delay"), [(1, 1), (2, 2), (1, 2)])
def test_a_reference_that_always_equals_the_policy_is_refused(interval: int, delay: int) -> None:
    with pytest.raises(ValueError, match=f"reference_update_interval={interval} is refused"):
        small(Toy(), reference_tau=1.0, reference_update_interval=interval, policy_delay=delay)
    small(Toy(), reference_tau=1.0, reference_update_interval=2 * delay, policy_delay=delay)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"alpha": 0.5, "beta": 0.5},
        {"alpha": 0.0, "beta": 1.0, "labeller": top_k(2)},
        {"alpha": 0.5, "beta": (1.0, 0.5)},
        {"alpha": 0.5, "beta": (0.2, 0.5), "labeller": advantage()},
        {"alpha": 0.5, "beta": 0.2, "labeller": advantage(), "decoupled": False},
        PAPER_AR,
    ],
)
def test_a_beta_that_is_too_small_warns_once_with_the_reason(kwargs: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=r"2 \* \(1 - alpha\)") as caught:
        small(Toy(), **kwargs)
    assert len(caught) == 1
    assert "policy may collapse" in str(caught[0].message)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"alpha": 0.5, "beta": 1.0},
        {"alpha": 0.5, "beta": (1.0, 0.0), "decoupled": False},
        {"alpha": 1.0, "beta": 0.0},
        {"alpha": 0.0, "beta": 2.0},
        {"labeller": advantage(), "beta": (0.2, 1.0)},
        PAPER_A,
        PAPER_R,
    ],
)
def test_a_safe_beta_is_silent(kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(Toy(), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "labeller", "beta_mean"),
    [
        ({}, advantage(), 0.2),
        ({"n_samples": 6, "labeller": top_k(2)}, top_k(2), 1.0),
        ({"n_samples": 6, "decoupled": False}, top_k(3), 1.0),
        ({"n_samples": 6, "policy_kwargs": {"n_bins": 5}}, top_k(3), 5.0),
        ({"beta": (0.7, 20.0)}, advantage(), 0.7),
    ],
)
def test_labels_and_their_kl_weight_belong_together(
    kwargs: dict[str, Any], labeller: Labeller, beta_mean: float
) -> None:
    objective = small(Toy(), **kwargs).objective
    assert isinstance(objective, PMPOObjective)
    assert (objective.labeller, objective.beta_mean) == (labeller, beta_mean)


def test_check_finite_reads_integers_and_dicts() -> None:
    reward = np.zeros(2)
    images = np.zeros((2, 4), np.uint8)
    check_finite({"image": images, "vector": np.zeros((2, 3))}, reward, [{}, {}], 1)
    with pytest.raises(ValueError, match=r"environment 1 .*'vector'.* step 9"):
        check_finite({"vector": np.array([[0.0], [INF]]), "image": images}, reward, [{}, {}], 9)
    infos: list[dict[str, Any]] = [{}, {"terminal_observation": {"vector": np.array([NAN])}}]
    with pytest.raises(ValueError, match=r"environment 1 .*terminal observation \('vector'\)"):
        check_finite({"vector": np.zeros((2, 1))}, reward, infos, 9)
    with pytest.raises(ValueError, match=r"environment 0 .*reward .*: -inf"):
        check_finite(images, np.array([-INF, 0.0]), [{}, {}], 9)


@pytest.mark.parametrize(
    ("arguments", "warns"),
    [
        ({"labeller": best_worst(), "n_samples": 6, "decoupled": False, "beta": 2.0}, "below .* 3"),
        ({"labeller": best_worst(), "n_samples": 6, "beta": (2.0, 2.0)}, "the std's beta=2.0"),
        ({"labeller": best_worst(), "n_samples": 6, "beta": (2.0, 3.0)}, None),
        ({"labeller": best_worst(), "n_samples": 6, "decoupled": False}, None),  # it fits
        ({"n_samples": 3, "alpha": 0.0, "decoupled": False}, None),
    ],
)
def test_few_rejections_need_a_larger_kl(arguments: dict[str, Any], warns: str | None) -> None:
    """A share p that is rejected is safe from ``(1 - alpha) / p`` on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = small(Toy(), **arguments)
    said = [str(each.message) for each in caught]
    assert any(re.search(warns, text) for text in said) if warns else not said, said
    if arguments.get("alpha") == 0.0:
        assert model.objective.beta_mean == 3.0


def test_a_reference_that_often_is_the_policy_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="equals the policy at 80% of the policy's updates"):
        small(Toy(), reference_tau=1.0, reference_update_interval=5, policy_delay=4)


HALF = Fraction(1, 2)


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (PMPO, {"alpha": HALF, "beta": (HALF * 4, HALF * 4), "edge_barrier": HALF}),
        (PMPO, {"gamma": HALF, "tau": HALF, "pessimism": HALF, "reference_tau": HALF}),
        (
            MPO,
            {"epsilon": HALF, "epsilon_mean": HALF, "epsilon_std": HALF, "epsilon_penalty": HALF},
        ),
        (DPO, {"beta": HALF}),
    ],
)
def test_numbers_of_other_types_are_numbers(algorithm: type, arguments: dict[str, Any]) -> None:
    assert small(Toy(), algorithm=algorithm, **arguments).learn(24).n_updates > 0
