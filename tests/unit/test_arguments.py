"""Signatures, documentation and errors list the same arguments."""

from __future__ import annotations

import copy
import inspect
import pydoc
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from toys import Guess, Toy, small

from sb3_pmpo import DPO, MPO, PMPO, bandit, objectives
from sb3_pmpo.core import e_step, labels, samples
from sb3_pmpo.critics import CriticLoss, QuantileCritic, StateActionFeatures
from sb3_pmpo.learner import Learner, Moves, Plan, policy_step
from sb3_pmpo.online.arguments import DEFAULTS, WITH_A_BOX, SharedArguments
from sb3_pmpo.policies import PMPOPolicy

CLASSES = [PMPO, MPO, DPO]

#: Of SAC's arguments those that are about its entropy, its own delay, and gSDE's details.
SACS_OWN = {"ent_coef", "target_entropy", "target_update_interval", "sde_sample_freq"}
SACS_OWN |= {"use_sde_at_warmup"}


def arguments(thing: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(thing).parameters)


@pytest.mark.parametrize("algorithm", CLASSES)
def test_the_signature_lists_every_argument_with_its_default(algorithm: type) -> None:
    listed = arguments(algorithm)
    assert list(listed)[:3] == ["policy", "env", "learning_rate"]
    assert list(listed)[-1] == "_init_setup_model"
    for number, (name, parameter) in enumerate(listed.items()):
        by_position = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        assert by_position == (number < 3), name
        assert by_position or parameter.kind is parameter.KEYWORD_ONLY, name
        assert parameter.annotation is not parameter.empty, name
        assert (parameter.default is parameter.empty) == (number < 2), name
    assert {name: listed[name].default for name in DEFAULTS} == {**DEFAULTS}
    assert arguments(SAC).keys() - SACS_OWN <= listed.keys()


@pytest.mark.parametrize("algorithm", CLASSES)
def test_the_listed_defaults_are_what_a_model_has(algorithm: type) -> None:
    model = algorithm("MlpPolicy", Toy(), buffer_size=10)
    renamed = {"stats_window_size": "_stats_window_size"}
    empty = {"policy_kwargs": {}, "replay_buffer_kwargs": {}}  # SB3's word for None
    for name, parameter in list(arguments(algorithm).items())[2:-1]:
        if name in ("buffer_size", "train_freq", "device"):
            continue  # given, made a TrainFreq, resolved
        value = getattr(model, renamed.get(name, name))
        expected = {**empty, **WITH_A_BOX}.get(name, parameter.default)
        assert value == expected, name


@pytest.mark.parametrize("algorithm", CLASSES)
def test_the_action_space_chooses_what_is_not_given(algorithm: type, tmp_path: Path) -> None:
    env = Guess(spaces.Discrete(3))
    chosen = algorithm("MlpPolicy", env, buffer_size=10)
    assert (chosen.n_steps, chosen.train_freq.frequency, chosen.pessimism) == (5, 8, 0.5)
    given = algorithm("MlpPolicy", env, buffer_size=10, n_steps=2, train_freq=(1, "episode"))
    assert (given.n_steps, tuple(given.train_freq)) == (2, (1, TrainFrequencyUnit.EPISODE))
    given.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")  # without an environment
    assert (loaded.n_steps, loaded.train_freq) == (given.n_steps, given.train_freq)


def test_every_shared_argument_has_one_type_and_one_default() -> None:
    assert list(get_type_hints(SharedArguments)) == list(DEFAULTS)


@pytest.mark.parametrize("algorithm", CLASSES)
def test_help_lists_every_argument_with_its_default(algorithm: type) -> None:
    text = pydoc.plain(pydoc.render_doc(algorithm)).replace(" |  ", " ")
    signature = " ".join(
        text.split(f" {algorithm.__name__}(policy")[1].split(" :param ")[0].split()
    )
    for name, parameter in list(arguments(algorithm).items())[1:]:
        assert re.search(rf"\b{name}: ", signature), name
        if isinstance(parameter.default, (bool, int, float, str)):
            shown = re.escape(repr(parameter.default))
            assert re.search(rf"\b{name}: [^=]+ = {shown}[,)]", signature), name
        assert f":param {name}:" in text, name


DOCUMENTED = [
    *CLASSES,
    PMPOPolicy,
    bandit.Bandit,
    bandit.OptimizeResult,
    bandit.minimize,
    bandit.mpo_objective,
    objectives.PMPOObjective,
    objectives.DPOObjective,
    objectives.MPOObjective,
    e_step.Duals,
    labels.top_k,
    labels.threshold,
    labels.quantile,
    labels.boltzmann,
    samples.Candidates,
    samples.from_labels,
    samples.from_masks,
    CriticLoss,
    StateActionFeatures,
    Learner,
    Moves,
    Plan,
    policy_step,
]


@pytest.mark.parametrize("thing", DOCUMENTED, ids=lambda thing: thing.__name__)
def test_the_documented_arguments_are_the_real_ones(thing: Any) -> None:
    documented = re.findall(r"^\s*:param (\w+):", thing.__doc__, flags=re.MULTILINE)
    assert documented == list(dict.fromkeys(documented))  # none twice
    assert set(documented) == arguments(thing).keys()


def test_the_quantile_critic_documents_what_it_adds() -> None:
    added = {"n_critics", "n_quantiles", "layer_norm", "embedding_class", "parts"}
    assert arguments(QuantileCritic).keys() == added
    assert set(re.findall(r":param (\w+):", QuantileCritic.__doc__ or "")) == added


@pytest.mark.parametrize(
    ("algorithm", "name", "hint"),
    [
        (PMPO, "bufer_size", "did you mean 'buffer_size'"),
        (PMPO, "labeler", "did you mean 'labeller'"),
        (MPO, "epsilon_means", "did you mean 'epsilon_mean'"),
        (DPO, "los", "did you mean 'loss'"),
        (DPO, "labeller", "it has policy, env, learning_rate, beta, loss"),
        (PMPO, "a_word", "it has policy, env, learning_rate, alpha"),
        # What does the work of SAC's and TD3's arguments, not what is spelled nearly so.
        (PMPO, "ent_coef", "there is no entropy bonus"),
        (MPO, "target_update_interval", "the critic target moves by tau at each update"),
        (DPO, "target_policy_noise", "the target bootstraps from the reference"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_closest(
    algorithm: type, name: str, hint: str
) -> None:
    with pytest.raises(TypeError, match=f"{algorithm.__name__} has no argument '{name}': {hint}"):
        small(Toy(), algorithm=algorithm, **{name: 1})


def test_policy_env_and_learning_rate_go_by_position_and_nothing_else() -> None:
    model = PMPO("MlpPolicy", Toy(), 0.125, buffer_size=10)
    assert model.learning_rate == 0.125
    with pytest.raises(TypeError, match="positional"):
        PMPO("MlpPolicy", Toy(), 0.125, 0.5)


@pytest.mark.parametrize("algorithm", CLASSES)
@pytest.mark.parametrize("make_env", [Toy, lambda: Guess(spaces.Discrete(3))])
def test_setting_up_reassigns_no_argument(algorithm: type, make_env: Any) -> None:
    model = algorithm("MlpPolicy", make_env(), buffer_size=10, _init_setup_model=False)
    names = arguments(algorithm).keys() & vars(model).keys() - {"policy", "env"}
    assert {"n_steps", "tau", "policy_kwargs", "replay_buffer_class"} <= names
    given = {name: copy.copy(vars(model)[name]) for name in names}
    train_freq = given.pop("train_freq")
    for _ in range(2):
        model._setup_model()
        assert {name: vars(model)[name] for name in given} == given
        assert model.train_freq == (train_freq, TrainFrequencyUnit.STEP)  # SB3's form of it
