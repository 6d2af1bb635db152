"""Learning from labels: toys with a known answer, the identity with cloning, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import Kept, Toy, assert_equal, parameters

from sb3_pmpo import PMPO
from sb3_pmpo.core.samples import Candidates, mean_over_samples, mean_per_set
from sb3_pmpo.distributions import DiagGaussian
from sb3_pmpo.learner import policy_step
from sb3_pmpo.offline import DatasetError, LabelledDataset
from sb3_pmpo.offline.objective import LabelObjective, reference_kl
from sb3_pmpo.offline.run import StepBar
from sb3_pmpo.offline.sampling import LabelSampler
from sb3_pmpo.offline.weights import Labels, choose_weights

RNG = np.random.default_rng(0)
ARGUMENTS: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [16]},
    "learning_rate": 1e-2,
    "batch_size": 64,
    "seed": 0,
    "device": "cpu",
}


def model_for(data: LabelledDataset, policy: str = "MlpPolicy", **kwargs: Any) -> PMPO:
    arguments = ARGUMENTS | kwargs
    return PMPO.from_spaces(policy, data.observation_space, data.action_space, **arguments)


def two_arms(n: int = 400) -> LabelledDataset:
    """Arm 1 is good, and was pulled in 3 of 10 cases."""
    arms = (np.arange(n) % 10 < 3).astype(int)
    return LabelledDataset(
        np.zeros((n, 1), np.float32), arms, 2 * arms - 1, action_space=spaces.Discrete(2)
    )


def probability(model: PMPO) -> float:
    """Of arm 1."""
    with th.no_grad():
        distribution = model.actor.distribution(th.zeros(1, 1))
        return float(distribution.log_prob(th.ones(1, 1, 1)).exp())


# Weights by label give the arms' probabilities: e.g. R with beta = 2 leaves the rejected arm
# 0.7 * (2 - 1) of 0.3 * 2 + 0.7 * (2 - 1).
@pytest.mark.parametrize(
    ("kept", "arguments", "expected"),
    [
        ((-1, 0, 1), {"alpha": 0.5, "beta": 1.0}, 0.45 / (0.45 + 0.35)),
        ((-1, 0), {"beta": 2.0}, 0.6 / (0.6 + 0.7)),
        ((-1, 0), {"beta": 1.1}, 0.33 / (0.33 + 0.07)),
        ((0, 1), {"beta": 1.0}, 0.6 / (0.6 + 0.7)),
        ((0, 1), {}, 1.0),
        ((-1, 0, 1), {"normalise": mean_per_set, "beta": 1.0}, (0.3 + 0.5) / 1.0),
    ],
)
def test_two_arms_from_labels_of_some_kinds(
    kept: tuple[int, ...], arguments: dict[str, Any], expected: float
) -> None:
    data = two_arms()
    data = data.with_labels(np.where(np.isin(data.labels, kept), data.labels, 0))
    model = model_for(data, learning_rate=2e-2).learn_offline(data, 150, **arguments)
    assert probability(model) == pytest.approx(expected, abs=0.05)


def test_two_arms_against_a_cloned_reference() -> None:
    data = two_arms()
    rejected = data.with_labels(np.minimum(data.labels, 0))
    # min of 0.7 log q0 + 2 KL(p || q): q1 = 2 * 0.3 / (2 - 0.7).
    model = model_for(data, learning_rate=2e-2).learn_offline(
        rejected, 300, kl="reference", beta=2.0
    )
    assert probability(model) == pytest.approx(0.6 / 1.3, abs=0.05)


def bandit(share: float = 1.0, n: int = 4000) -> LabelledDataset:
    """Actions around 0 on a line; good are those above the state's own number."""
    rng = np.random.default_rng(0)
    seen = rng.uniform(-0.5, 0.5, (n, 1)).astype(np.float32)
    actions = np.clip(rng.normal(seen, 0.3), -1, 1).astype(np.float32)
    labels = np.sign(actions - seen)[:, 0]
    labels[rng.random(n) > share] = 0
    return LabelledDataset(seen, actions, labels, action_space=spaces.Box(-1, 1, (1,)))


def shift(model: PMPO, data: LabelledDataset) -> float:
    """How far the policy's mean lies above what the data did."""
    seen = data.rows(np.arange(500)).observations
    with th.no_grad():
        return float((model.actor.distribution(th.as_tensor(seen)).mode().numpy() - seen).mean())


# The rare labels are to have their full weight.
@pytest.mark.filterwarnings("ignore:.*share of rejected rows")
# Half of a Gaussian has its mean 0.8 std from the middle: 0.24. Accepts alone give that; the
# others push in its direction.
@pytest.mark.parametrize(
    ("kept", "share", "arguments", "low", "high"),
    [
        ((1,), 1.0, {}, 0.19, 0.29),
        ((-1,), 1.0, {"beta": 2.0}, 0.04, 0.14),
        ((-1,), 1.0, {"beta": 2.0, "kl": "reference"}, 0.04, 0.3),
        ((-1, 1), 1.0, {}, 0.09, 0.3),
        ((-1, 1), 0.01, {"normalise": mean_per_set}, 0.09, 0.35),
        ((-1, 1), 0.01, {"normalise": mean_per_set, "kl": "reference"}, 0.05, 0.35),
    ],
)
def test_a_continuous_bandit(
    kept: tuple[int, ...], share: float, arguments: dict[str, Any], low: float, high: float
) -> None:
    data = bandit(share)
    data = data.with_labels(np.where(np.isin(data.labels, kept), data.labels, 0))
    model = model_for(data, learning_rate=1e-2, edge_barrier=0.0)
    model.learn_offline(data, 200, **arguments)
    assert low < shift(model, data) < high


def test_means_over_the_data_are_weighted_cloning() -> None:
    """The identity: weights beta + alpha, beta, beta - (1 - alpha), to 1e-6 and its gradient."""
    alpha, beta = 0.3, 0.9
    labels = th.tensor([1.0, 0.0, -1.0, -1.0, 1.0, 0.0], dtype=th.float64)
    actions = th.randn(6, 2, dtype=th.float64)
    mean = th.randn(6, 2, dtype=th.float64, requires_grad=True)
    std = th.rand(6, 2, dtype=th.float64).add(0.5).requires_grad_()
    policy = DiagGaussian(mean, std)
    objective = LabelObjective(alpha, (beta, beta), normalise=mean_over_samples)
    loss, _ = objective(policy, policy.detach(), Candidates(labels, actions))
    by_label = {1.0: beta + alpha, 0.0: beta, -1.0: beta - (1 - alpha)}
    weights = th.tensor([by_label[label] for label in labels.tolist()], dtype=th.float64)
    cloning = -(weights * policy.log_prob(actions.unsqueeze(0))[0]).mean()
    th.testing.assert_close(loss, cloning, atol=1e-6, rtol=0.0)
    for one, other in zip(
        th.autograd.grad(loss, (mean, std)), th.autograd.grad(cloning, (mean, std)), strict=True
    ):
        th.testing.assert_close(one, other, atol=1e-6, rtol=0.0)


def test_the_sampler_changes_no_mean() -> None:
    labels = np.zeros(1000, np.int8)
    labels[:10], labels[10:15] = 1, -1
    values, row_weights = RNG.normal(size=1000), RNG.uniform(0, 1, 1000)
    sampler = LabelSampler(labels, row_weights, accepted=True, rejected=True, all_rows=True)
    drawn = sampler.draw(400_000, RNG)
    assert (labels[drawn.rows] == -1).mean() == pytest.approx(0.25, abs=0.01)
    for member in (np.ones(1000, bool), labels == 1, labels == -1):
        of_drawn = (drawn.weights * values[drawn.rows] * member[drawn.rows]).sum()
        expected = (row_weights * values * member).mean() / row_weights.mean()
        assert of_drawn == pytest.approx(expected, abs=0.01)


def test_a_step_moves_the_policy_and_not_the_critics() -> None:
    data = bandit()
    model = model_for(data)
    critics, actor = parameters(model.critic.ensemble), parameters(model.actor.latent_pi)
    model.learn_offline(data, 3)
    assert_equal(critics, parameters(model.critic.ensemble))
    assert not th.equal(actor["0.weight"], parameters(model.actor.latent_pi)["0.weight"])
    assert float(model.policy.normaliser.moments[0].count) == len(data)
    assert_equal(parameters(model.actor), parameters(model.reference_actor))


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (0, {}, "all labels are 0"),
        (-1, {"beta": 1.0}, r"beta=1 is not above 1 - alpha = 1.*this is refused"),
        (-1, {"beta": 0.5}, "this is refused"),
        (-1, {"beta": 1.0, "normalise": mean_per_set}, r"rejected rows\) = 1.*this is refused"),
        (1, {"alpha": 0.0}, "learns from rejected rows alone, and there are none"),
        (-1, {"alpha": 1.0}, "learns from accepted rows alone, and there are none"),
        (1, {"kl": "prior"}, r"kl must be one of \['data', 'reference'\]"),
        (1, {"normalise": "mean_per_set"}, "normalise must be .* got 'mean_per_set'"),
        (1, {"alpha": 1.5}, "alpha must be"),
        (1, {"beta": -1.0}, "beta must be"),
        (1, {"beta": (1.0, 2.0, 3.0)}, "a number or a pair"),
    ],
)
def test_what_is_refused(labels: int, arguments: dict[str, Any], message: str) -> None:
    data = bandit(n=50)
    data = data.with_labels(np.full(50, labels))
    model = model_for(data)
    before = parameters(model.policy)
    with pytest.raises(ValueError, match=message):
        model.learn_offline(data, 10, **arguments)
    assert model.num_timesteps == 0
    assert_equal(before, parameters(model.policy))


def test_unsafe_weights_of_both_kinds_are_warned_about() -> None:
    data = bandit(n=50)
    with pytest.warns(UserWarning, match="not above 1 - alpha = 0.5"):
        model_for(data).learn_offline(data, 1, beta=0.2)


@pytest.mark.parametrize("kl", ["data", "reference"])
@pytest.mark.parametrize(
    ("rejected", "arguments", "message"),
    [
        # The weights of all rows: beta + alpha * accepted - (1 - alpha) * rejected.
        (
            0.5,
            {"normalise": mean_per_set, "beta": 0.0},
            r"1 - 2 \* alpha = 0, with means over each",
        ),
        (0.2, {"normalise": mean_per_set, "alpha": 0.3, "beta": 0.4}, r"1 - 2 \* alpha = 0.4"),
        (0.5, {"beta": 0.0}, r"\(share of accepted rows\) = 0, with means over all rows"),
        (0.8, {"alpha": 0.3, "beta": 0.5}, r"\(share of accepted rows\) = 0.5"),
        (1.0, {"normalise": mean_per_set, "alpha": 0.3, "beta": 0.7}, r"rejected rows\) = 0.7"),
    ],
)
def test_a_loss_that_one_gaussian_lowers_without_end_is_refused(
    rejected: float, arguments: dict[str, Any], message: str, kl: str
) -> None:
    data = bandit(n=50)
    data = data.with_labels(np.where(np.arange(50) < 50 * rejected, -1, 1))
    model = model_for(data)
    with pytest.raises(ValueError, match=f"{message}.*this is refused"):
        model.learn_offline(data, 1, kl=kl, **arguments)
    assert model.num_timesteps == 0


def test_of_one_gaussian_the_sum_of_the_weights_decides() -> None:
    """Just above the bound the loss has a minimum in the std, just below it has none."""
    labels = th.where(th.arange(50) < 40, -1.0, 1.0)
    actions = th.linspace(-1.0, 1.0, 50).unsqueeze(-1)
    losses = {}
    for beta in (0.48, 0.52):  # 0.7 * 0.8 - 0.3 * 0.2 = 0.5
        objective = LabelObjective(0.3, (beta, beta))
        for std in (1e3, 1e6):
            policy = DiagGaussian(th.zeros(50, 1), th.full((50, 1), std))
            losses[beta, std] = float(objective(policy, policy, Candidates(labels, actions)).loss)
    assert losses[0.48, 1e6] < losses[0.48, 1e3]
    assert losses[0.52, 1e6] > losses[0.52, 1e3]


def test_other_spaces_are_refused() -> None:
    data = bandit(n=50)
    other = PMPO.from_spaces("MlpPolicy", spaces.Box(-1, 1, (2,)), data.action_space)
    with pytest.raises(DatasetError, match="from_spaces"):
        other.learn_offline(data, 1)
    wider = PMPO.from_spaces("MlpPolicy", data.observation_space, spaces.Box(-2, 2, (1,)))
    with pytest.raises(DatasetError, match="actions must be in the model's space"):
        wider.learn_offline(data, 1)
    with pytest.raises(ValueError, match="gradient_steps must be a whole number >= 1"):
        model_for(data).learn_offline(data, 0)
    with pytest.raises(ValueError, match="set_env"):
        model_for(data).learn(10)


def toy_data(n: int = 1500) -> LabelledDataset:
    """Toy's own answer: the action is to be the first number that is seen."""
    rng = np.random.default_rng(1)
    seen = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (n, 1)).astype(np.float32)
    labels = np.where(np.abs(actions - seen[:, :1]) < 0.2, 1, -1)[:, 0]
    env = Toy()
    spaces_ = {"observation_space": env.observation_space, "action_space": env.action_space}
    return LabelledDataset(seen, actions, labels, **spaces_)


def test_callbacks_evaluation_and_logs(tmp_path: Path) -> None:
    data = toy_data()
    model = model_for(data, tensorboard_log=str(tmp_path / "tb"), learning_rate=1e-2)
    evaluate = EvalCallback(
        Monitor(Toy()), eval_freq=100, n_eval_episodes=5, verbose=0, log_path=str(tmp_path)
    )
    checkpoint = CheckpointCallback(100, str(tmp_path), "at")
    model.learn_offline(
        data, 300, beta=0.0, alpha=1.0, callback=[evaluate, checkpoint], log_interval=100
    )
    returns = np.load(tmp_path / "evaluations.npz")["results"].mean(1)
    assert returns[-1] > 8.0  # of 10; the actions in the data have about 4.5
    assert (tmp_path / "at_300_steps.zip").exists()
    assert list((tmp_path / "tb" / "PMPO-offline_1").iterdir())
    assert model.num_timesteps == model.n_updates == 300
    PMPO.load(tmp_path / "at_300_steps").learn_offline(
        data, 3, reset_num_timesteps=False, log_interval=None
    )


def test_a_callback_ends_it() -> None:
    data = bandit(n=50)
    model = model_for(data).learn_offline(data, 10, callback=lambda *_: False)
    assert model.num_timesteps == 1


@pytest.mark.parametrize("kl", ["data", "reference"])
def test_it_goes_on_in_the_middle(tmp_path: Path, kl: str) -> None:
    data = bandit(n=200)
    model = model_for(data).learn_offline(data, 5, kl=kl, log_interval=1)
    model.save(tmp_path / "model")
    loaded = PMPO.load(tmp_path / "model", device="cpu")
    assert_equal(parameters(model.policy), parameters(loaded.policy))
    reference = parameters(model.reference_actor)
    results = []
    for one in (model, loaded):
        one.set_random_seed(3)
        one.learn_offline(data, 5, kl=kl, reset_num_timesteps=False)
        assert one.num_timesteps == 10
        results.append(parameters(one.policy))
    assert_equal(*results)
    if kl == "reference":
        assert_equal(reference, parameters(model.reference_actor))


class Pictures(gym.Env):
    """A grey picture; its brightness is the action to take."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Box(-1, 1, (1,))


@pytest.mark.parametrize("n_bins", [None, 5])
def test_pictures_and_bins(n_bins: int | None) -> None:
    level = np.random.default_rng(0).uniform(-1, 1, 80)
    grey = (127 * (1 + level)).astype(np.uint8)[:, None, None, None]
    pictures = np.ones((80, 36, 36, 1), np.uint8) * grey
    env = Pictures()
    data = LabelledDataset(
        pictures, level[:, None], np.ones(80), observation_space=env.observation_space,
        action_space=env.action_space,
    )  # fmt: skip
    kwargs = {"net_arch": [16], "n_bins": n_bins}
    model = model_for(data, "CnnPolicy", policy_kwargs=kwargs, learning_rate=1e-3, batch_size=32)
    model.learn_offline(data, 120)
    answers = model.predict(np.moveaxis(pictures[:20], -1, 1), deterministic=True)[0][:, 0]
    assert np.abs(answers - level[:20]).mean() < 0.3


def test_dictionaries_and_weights() -> None:
    seen = {"a": RNG.normal(size=(60, 2)).astype(np.float32), "b": RNG.integers(0, 3, 60)}
    seen["b"][:3] = 0, 1, 2
    actions = np.where(np.arange(60) % 2, 0.5, -0.5)[:, None]
    weights = (np.arange(60) % 2).astype(float)  # those at 0.5 alone
    data = LabelledDataset(
        seen, actions, np.ones(60), weights=weights, action_space=spaces.Box(-1, 1, (1,))
    )
    model = model_for(data, "MultiInputPolicy").learn_offline(data, 150)
    answer = model.predict({"a": seen["a"][:5], "b": seen["b"][:5]}, deterministic=True)[0]
    assert np.abs(answer - 0.5).max() < 0.15


def test_a_larger_file_than_the_batch_is_read_in_rows(tmp_path: Path) -> None:
    folder = bandit(n=300).save(tmp_path / "data")
    data = LabelledDataset.load(folder)
    model = model_for(data).learn_offline(data, 5)
    assert model.num_timesteps == 5


def test_every_step_is_the_one_policy_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return policy_step(*args, **kwargs)

    monkeypatch.setattr("sb3_pmpo.offline.run.policy_step", counted)
    data = bandit(n=50)
    model_for(data).learn_offline(data, 7, kl="reference", clone_steps=4)
    assert len(calls) == 11


def test_a_short_run_logs_and_shows_its_progress(capfd: pytest.CaptureFixture[str]) -> None:
    model = model_for(two_arms())
    model.set_logger(Logger(None, [kept := Kept()]))
    model.learn_offline(two_arms(), 3, progress_bar=True)
    assert "train/accept_log_prob_data" in kept.values
    assert kept.values["train/reject_log_prob_data"] < 0.0
    assert "3/3" in "".join(capfd.readouterr())
    with pytest.raises(ValueError, match="log_interval must be a whole number >= 1"):
        model.learn_offline(two_arms(), 3, log_interval=0)


@pytest.mark.parametrize("kl", ["data", "reference"])
def test_a_kind_of_label_that_there_is_none_of_has_no_log_prob(kl: str) -> None:
    data = two_arms()
    model = model_for(data)
    model.set_logger(Logger(None, [kept := Kept()]))
    model.learn_offline(data.with_labels(np.minimum(data.labels, 0)), 3, kl=kl)
    assert any(name.startswith("train/reject_log_prob") for name in kept.values)
    assert not any(name.startswith("train/accept_log_prob") for name in kept.values)


@pytest.mark.filterwarnings("error")
def test_rare_rejections_with_means_per_set() -> None:
    """By default a rejected row has half of the weight of others; a small beta is refused.

    Beside acceptances it is warned of: they say where else to go.
    """
    data = two_arms().with_labels(np.where(np.arange(400) < 8, -1, 0))  # 2%
    model = model_for(data)
    model.learn_offline(data, 1, normalise=mean_per_set)
    labels = Labels(0.0, 8.0, 400.0)
    chosen = choose_weights(labels, None, None, otherwise=0.5, normalise=mean_per_set)
    assert chosen.betas[0] == 2 * 400 / 8
    before = parameters(model.policy)
    for kl in ("data", "reference"):
        for beta in (2.0, 50.0):  # at 50 a rejected row weighs nothing
            with pytest.raises(ValueError, match=r"rejected rows\) = 50.*100 is usual.*refused"):
                model.learn_offline(data, 1, kl=kl, beta=beta, normalise=mean_per_set)
    assert_equal(before, parameters(model.policy))
    with pytest.warns(UserWarning, match=r"share of rejected rows\) = 25"):
        LabelObjective(0.5, (1.0, 20.0), normalise=mean_per_set, labels=Labels(8.0, 8.0, 400.0))
    # A number is the mean's: the std has its 20 times, as by default.
    assert choose_weights(Labels(0.0, 8.0, 8.0), None, 2.0, otherwise=0.5,
                          normalise=mean_over_samples).betas == (2.0, 40.0)  # fmt: skip
    # Of a pair the data's KL uses the first alone.
    LabelObjective(0.0, (2.0, 0.1), labels=labels)
    with pytest.raises(ValueError, match=r"beta=0\.1 is not above"):
        LabelObjective(0.0, (2.0, 0.1), reference_kl(), labels=labels)
    with pytest.raises(ValueError, match="beta=0 is not above"):
        LabelObjective(0.5, (0.0, 0.0), labels=Labels(0.0, 8.0, 8.0))


def test_data_of_other_types_and_starts_are_refused() -> None:
    shape, low = (36, 36, 1), spaces.Box(-1, 1, (1,))
    pictures = PMPO.from_spaces("CnnPolicy", spaces.Box(0, 255, shape, np.uint8), low)
    floats = LabelledDataset(
        np.zeros((4, *shape), np.float32), np.zeros((4, 1)), np.ones(4),
        observation_space=spaces.Box(0, 1, shape),
    )  # fmt: skip
    with pytest.raises(DatasetError, match="observations must be in the model's space"):
        pictures.learn_offline(floats, 1)
    seen = spaces.Box(-1, 1, (2,))
    model = PMPO.from_spaces("MlpPolicy", seen, spaces.Discrete(3))
    moved = LabelledDataset(
        np.zeros((4, 2)), np.full(4, 6), np.ones(4), action_space=spaces.Discrete(3, start=5),
        observation_space=seen,
    )  # fmt: skip
    with pytest.raises(DatasetError, match="actions must be in the model's space"):
        model.learn_offline(moved, 1)


# ---------------------------------------------------------------------- what callbacks see


def test_what_a_callback_saves_has_the_reference_that_acts_from_there_on(tmp_path: Path) -> None:
    data = two_arms()
    model = model_for(data)
    model.learn_offline(data, 20, callback=CheckpointCallback(20, str(tmp_path)))
    policy = PMPO.load(tmp_path / "rl_model_20_steps.zip", device="cpu").policy
    assert_equal(parameters(policy.actor), parameters(policy.reference_actor))


def test_the_progress_bar_counts_gradient_steps() -> None:
    data = two_arms()
    model = PMPO("MlpPolicy", make_vec_env(Arms, n_envs=4), buffer_size=4, **ARGUMENTS)
    bars = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            if not bars:
                _, bar = self.locals["callback"].callbacks
                bars.append(bar)
            return True

    model.learn_offline(data, 15, callback=Look(), progress_bar=True)
    assert isinstance(bars[0], StepBar)
    assert (bars[0].pbar.n, bars[0].pbar.total) == (15, 15)


class Arms(gym.Env):
    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return np.zeros(1, np.float32), {}


def test_a_model_from_spaces_says_that_its_buffer_is_none() -> None:
    model = model_for(two_arms())
    model.set_env(DummyVecEnv([Arms]))
    with (
        pytest.warns(UserWarning, match="holds one transition.*buffer_size"),
        pytest.raises(NotImplementedError),
    ):
        model.learn(5)  # Arms cannot be stepped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 2.0}, "alpha must be a number >= 0.0 and <= 1.0, got 2.0"),
        ({"alpha": "x"}, "alpha must be a number"),
        ({"beta": -1.0}, "beta must be a number >= 0.0, got -1.0"),
        ({"beta": (1.0, "x")}, "beta must be a number"),
        ({"kl": "reference", "clone_steps": -5}, "clone_steps must be a whole number >= 0"),
        ({"kl": "reference", "clone_steps": 2.5}, "clone_steps must be a whole number"),
        ({"kl": "reference", "reference_interval": 2.5}, "reference_interval must be a whole"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    data = two_arms()
    with pytest.raises(ValueError, match=message):
        model_for(data).learn_offline(data, 5, **arguments)


def test_light_rows_have_their_full_weight_in_their_set() -> None:
    """Means per set do not depend on the unit of the rows' weights."""
    labels = np.zeros(1000, np.int8)
    labels[:5] = 1
    weights = np.where(labels, 0.01, 1.0)
    sampler = LabelSampler(labels, weights, accepted=True, rejected=False, all_rows=True)
    drawn = sampler.draw(512, np.random.default_rng(0))
    accepted = th.as_tensor(np.where(labels[drawn.rows] > 0, drawn.weights, 0.0))
    assert mean_per_set(accepted, sampler.n_samples).sum().item() == pytest.approx(1.0)


def test_columns_of_another_byte_order_are_learned_from() -> None:
    seen = np.zeros((50, 1), ">f4")
    data = LabelledDataset(seen, np.ones(50, ">i8"), np.ones(50), action_space=spaces.Discrete(2))
    model_for(data).learn_offline(data, 5)


@pytest.mark.parametrize("given", [None, {}, [1]])
def test_what_is_no_data_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="learn from a LabelledDataset or a FeedbackBuffer, got"):
        model_for(two_arms()).learn_offline(given, 5)


def test_a_new_model_makes_its_reference_where_it_counts_on_too() -> None:
    data = bandit()
    model = model_for(data).learn_offline(
        data, 1, kl="reference", clone_steps=300, reset_num_timesteps=False
    )
    seen = th.zeros(1, 1)
    reference = model.reference_actor.distribution(seen).mean.item()
    cloned = model_for(data).learn_offline(data, 1, kl="reference", clone_steps=300)
    assert reference == cloned.reference_actor.distribution(seen).mean.item()


def test_weights_that_were_given_are_the_reference() -> None:
    """No step was taken with them here, and yet they are no first weights to be cloned over."""
    data = bandit()
    learned = model_for(data).learn_offline(data, 200)
    given = model_for(data)
    given.set_parameters(learned.get_parameters())
    before = parameters(given.actor)
    given.learn_offline(data, 1, kl="reference")
    assert_equal(parameters(given.reference_actor), before)
