"""What print says of a model and of its policy; what an argument may be written as."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sb3_pmpo import (
    DPO,
    MPO,
    PMPO,
    best_worst,
    boltzmann,
    ipo_loss,
    mean_score,
    threshold,
    top_k,
)
from sb3_pmpo.core.losses import instability


def make(cls: Any = PMPO, env: str = "Pendulum-v1", **kwargs: Any) -> Any:
    return cls("MlpPolicy", env, buffer_size=10, policy_kwargs={"net_arch": [8, 4]}, **kwargs)


def test_print_says_what_is_in_a_model() -> None:
    text = str(make(labeller=top_k(2)))
    assert "PMPO on cpu: 0 steps (decisions, or gradient steps on data), 0 updates" in text
    assert "0 updates of the critics, 0 of 10" in text
    assert "labeller=top_k(2)," in text  # no default, no address
    assert "PMPOPolicy: Box(3,) -> Box(1,)" in text
    assert "3 features -> 8 -> 4 -> Gaussian of 1 (std from 0.1 to 1)" in text
    assert "2 x EmbeddingCritic: 8 -> 4 -> 8 quantiles" in text
    assert "2 x QuantileCritic: 8 -> 4 -> 8 quantiles" in str(make(env="CartPole-v1"))
    assert "objective: MPOObjective(epsilon=0.1" in str(make(MPO))
    assert "categorical of 1 with 2 choices" in str(make(DPO, "CartPole-v1"))
    # What a categorical policy has no use for is not said of it, nor what is no datum.
    of_choices = "alpha=0.5, beta_mean=5.0, labeller=advantage(), edge_barrier=0.02)"
    assert of_choices in str(make(env="CartPole-v1"))
    assert "duals" not in str(make(MPO))
    assert repr(top_k(2)) == "top_k(2)"
    assert not re.search(r"0x[0-9a-f]{6}", str(make(MPO)) + text)
    assert len(text.splitlines()) < 10


def test_objects_may_be_written_as_text(tmp_path: Path) -> None:
    model = make(labeller="top_k(2)", exploration_noise="pink_noise")
    assert model.objective.labeller == top_k(2)
    assert model.labeller == "top_k(2)"  # what was given stays
    model.save(tmp_path / "model.zip")
    loaded = PMPO.load(tmp_path / "model.zip")
    assert loaded.objective.labeller == top_k(2)
    assert make(DPO, loss="ipo_loss").objective.loss is ipo_loss


@pytest.mark.parametrize(
    ("labeller", "message"),
    [
        (top_k, r"labeller must be made by a call, got top_k itself: write top_k\(2\)"),
        (best_worst, r"write best_worst\(\)"),
        (boltzmann, r"write boltzmann\(1.0\)"),
        ("top_k", r"top_k is called with arguments, top_k\(2\)"),
        ("topk(2)", "did you mean top_k?"),
        ("__import__('os')", "is not known here"),
    ],
)
def test_a_labeller_that_is_none_gets_a_sentence(labeller: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(labeller=labeller)


@pytest.mark.parametrize("labeller", [None, "top_k(2)"])
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_alpha_alone_takes_a_beta_that_fits(alpha: float, env: str, labeller: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make(env=env, alpha=alpha, labeller=labeller)
    # With rejected samples alone the gradient is that of both kinds at a KL weight of one less.
    ranks = labeller or ("top_k(3)" if alpha < 0.5 else None)  # in the place of advantage()
    both = make(env=env, labeller=ranks).objective
    assert model.objective.labeller == both.labeller
    more = max(0.0, 1.0 - 2.0 * alpha)
    assert model.objective.beta_mean == pytest.approx(both.beta_mean + more)
    assert model.objective.beta_std == pytest.approx(both.beta_std + more)
    assert model.beta is None


def test_a_warning_names_the_part() -> None:
    with pytest.warns(UserWarning, match=r"the mean's beta=0.2 is below .*the mean's beta or"):
        make(alpha=0.0, beta=(0.2, 100.0))
    with pytest.warns(UserWarning, match=r"alpha=0.25 is below 0.5 with advantage.*use top_k"):
        make(alpha=0.25, labeller="advantage()")
    with pytest.warns(UserWarning, match=r"the std's beta=0.5 is below"):
        make(alpha=0.0, beta=(2.0, 0.5))
    with pytest.warns(UserWarning, match=r"^beta=0.5 is below"):
        make(alpha=0.0, beta=0.5, decoupled=False)
    assert instability(0.0, 2.0) is None


class Grumpy:
    """A labeller without a way to write it."""

    def __call__(self, candidates: Any) -> None:
        raise RuntimeError("never")


def breaks(*given: Any, **named: Any) -> None:
    raise RuntimeError("never")


@pytest.mark.parametrize(
    ("cls", "argument", "value", "shown"),
    [
        (PMPO, "labeller", "top_k(5)", "labeller=top_k(5) with n_samples="),
        (PMPO, "labeller", top_k(5), "labeller=top_k(5) with n_samples="),
        (PMPO, "labeller", top_k(2, normalise=breaks), "labeller=top_k(2, normalise=breaks) with"),
        (PMPO, "labeller", threshold(breaks), "labeller=threshold(breaks) with"),
        (
            PMPO,
            "labeller",
            threshold(mean_score, breaks),
            "threshold(mean_score, normalise=breaks)",
        ),
        (PMPO, "labeller", breaks, "labeller=breaks with"),
        (PMPO, "labeller", Grumpy(), "Grumpy object> with"),
        (PMPO, "labeller", partial(breaks, 1), "partial(<function breaks>, 1) with"),
        (PMPO, "exploration_noise", breaks, "exploration_noise=breaks failed"),
        (PMPO, "learning_rate", breaks, "learning_rate=breaks failed"),
        (DPO, "loss", breaks, "loss=breaks failed"),
    ],
)
def test_a_refusal_shows_a_function_as_it_was_written(
    cls: Any, argument: str, value: Any, shown: str
) -> None:
    with pytest.raises(ValueError, match="failed with") as refused:
        make(cls, **({"n_samples": 6} if cls is PMPO else {}), **{argument: value})
    assert shown in str(refused.value)
    assert "0x" not in str(refused.value)
