"""Learning from feedback: alone, beside the critic, while it grows."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from toys import Guess, Kept, Toy, parameters, small

from sb3_pmpo import PMPO
from sb3_pmpo.core.samples import mean_per_set
from sb3_pmpo.critics import QuantileCritic
from sb3_pmpo.feedback import FeedbackBuffer, FeedbackWrapper
from sb3_pmpo.offline import DatasetError, Rows
from sb3_pmpo.offline.learn import LabelLearner


def answered(kinds: tuple[int, ...] = (-1, 1), n: int = 600) -> FeedbackBuffer:
    """Toy's answer is the first number that is seen; accepted is what is near it."""
    env, rng = Toy(), np.random.default_rng(0)
    buffer = FeedbackBuffer(env.observation_space, env.action_space)
    seen = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (n, 1)).astype(np.float32)
    labels = np.where(np.abs(actions - seen[:, :1]) < 0.2, 1, -1)[:, 0]
    for row in range(n):
        if labels[row] in kinds:
            buffer.add(seen[row], actions[row], int(labels[row]), source="rule")
    return buffer


def everything(buffer: FeedbackBuffer) -> Rows:
    return buffer.rows(np.arange(len(buffer)))


def error(model: PMPO) -> float:
    seen = np.random.default_rng(2).uniform(-1, 1, (200, 2)).astype(np.float32)
    return float(np.abs(model.predict(seen, deterministic=True)[0] - seen[:, :1]).mean())


def test_acceptances_alone_are_enough() -> None:
    model = small(Toy(), batch_size=64, learning_rate=1e-2)
    before = error(model)
    model.learn_from_feedback(answered((1,)), 250)
    assert error(model) < 0.3 * before


def test_it_grows_while_a_policy_learns_from_it() -> None:
    buffer = answered((1,), 100)
    rows = answered((1,)).rows(np.arange(len(answered((1,)))))

    def grow() -> None:
        for row in range(len(rows.labels)):
            buffer.add(rows.observations[row], rows.actions[row], 1, source="thread")

    thread = threading.Thread(target=grow)
    model = small(Toy(), batch_size=64, learning_rate=3e-3)
    kept = Kept()
    model.set_logger(Logger(None, [kept]))
    model.learn_from_feedback(
        buffer, 200, callback=lambda *_: thread.is_alive() or thread.ident or thread.start() or True
    )
    thread.join()
    model.learn_from_feedback(buffer, 100, log_interval=50, reset_num_timesteps=False)
    assert model.num_timesteps == 300
    assert 0 < kept.values["feedback/share_thread"] < 1
    assert kept.values["train/accept_log_prob_mean"] > -5
    assert "train/kl_mean" in kept.values


def test_a_kind_of_label_that_comes_later_counts() -> None:
    """Rejected is what is right of 0; what is left of it is accepted from the second step on."""
    env = Toy()
    buffer = FeedbackBuffer(env.observation_space, env.action_space)
    for _ in range(20):
        buffer.add(np.zeros(2), np.array([0.5]), -1)

    def accept(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["number"] == 2:
            for _ in range(100):
                buffer.add(np.zeros(2), np.array([-0.9]), 1)
        return True

    model = small(env, batch_size=64, learning_rate=1e-2)
    model.learn_from_feedback(buffer, 100, callback=accept)
    assert model.predict(np.zeros(2, np.float32), deterministic=True)[0] < -0.2


def test_beta_follows_the_share_of_the_rejected() -> None:
    """With means per set the default holds a rejected row by half, however few they become."""
    model, buffer = small(Toy()), answered((-1,), 30)
    learner = LabelLearner(model, buffer, kl="reference", normalise=mean_per_set)
    learner.adapt()
    assert learner.objective.betas[0] == 2.0
    steps, n = learner.steps, len(buffer)
    for _ in range(9 * n):
        buffer.add(np.zeros(2), np.zeros(1), 0)
    learner.adapt()
    assert learner.objective.betas[0] == pytest.approx(20.0)
    assert learner.steps is steps


def test_labels_that_cannot_be_learned_from_end_no_run() -> None:
    """With beta=0 acceptances are cloned. Rejections that come later are left out, and said."""
    model, buffer = small(Toy(), batch_size=16), answered((1,), 30)

    def reject(local: dict[str, Any], _: dict[str, Any]) -> bool:
        buffer.add(np.zeros(2), np.ones(1), -1, 1000.0)
        return True

    with pytest.warns(UserWarning, match="another kind have come, and are left out") as said:
        model.learn_from_feedback(buffer, 20, beta=0.0, callback=reject)
    assert len(said) == 1
    assert model.n_updates == 20
    assert np.abs(model.predict(np.zeros(2, np.float32), deterministic=True)[0]) < 0.9


def test_rejections_hold_to_the_reference() -> None:
    buffer = answered((-1,))
    with pytest.raises(ValueError, match="reference_interval=1"):
        small(Toy()).learn_from_feedback(buffer, 10, reference_interval=1)
    model = small(Toy(), batch_size=64)
    start = parameters(model.actor)
    model.learn_from_feedback(buffer, 100, reference_interval=30)
    assert not th.equal(start["latent_pi.0.weight"], parameters(model.actor)["latent_pi.0.weight"])
    assert error(model) < 0.8


def judged_at_zero(model: PMPO, n: int, label: Callable[[], int]) -> FeedbackBuffer:
    """What the policy does in one state, with labels that do not look at it."""
    buffer, seen = FeedbackBuffer(model.observation_space, model.action_space), np.zeros(2)
    for _ in range(n):
        buffer.add(seen, model.predict(seen.astype(np.float32))[0], label())
    return buffer


@pytest.mark.parametrize(("rounds", "interval"), [(1, 10), (10, 10), (10, None)])
def test_rejections_by_chance_do_not_run_away_where_the_reference_follows(
    rounds: int, interval: int | None
) -> None:
    """Unweighted, each old row pushes on what has left it: to 0.97, the edge of the box.

    The reference follows within a round, or from one round to the next.
    """
    # The draws are those of these critics' stream: with five of six other seeds, and with either
    # kind of critics, the mean goes to 0.5 to 0.9 all the same.
    policy_kwargs = {"net_arch": [16], "critic_class": QuantileCritic}
    model = small(Toy(), batch_size=64, learning_rate=3e-3, policy_kwargs=policy_kwargs)
    rng = np.random.default_rng(0)
    buffer = judged_at_zero(model, 500, lambda: -int(rng.random() < 0.3))
    for _ in range(rounds):
        model.learn_from_feedback(buffer, 400 // rounds, clone_steps=0, reference_interval=interval)
    assert abs(model.predict(np.zeros(2, np.float32), deterministic=True)[0][0]) < 0.3
    assert copy.deepcopy(model).label_log_probs is not None


def test_a_rejection_counts_by_what_is_left_of_what_it_rejects() -> None:
    model = small(Toy(), batch_size=64, learning_rate=1e-2)
    buffer = judged_at_zero(model, 40, lambda: -1)
    buffer.merge(judged_at_zero(model, 20, lambda: 1))
    learner = LabelLearner(model, buffer, kl="reference")
    learner.adapt()
    reference = model.policy.reference_actor

    def log_probs() -> np.ndarray:
        with th.no_grad():
            actions = th.as_tensor(buffer.rows(np.arange(60)).actions)  # the box is from -1 to 1
            return reference.distribution(th.zeros(60, 2)).log_prob(actions[None])[0].numpy()

    first = log_probs()
    learner.steps.step(learner.objective)
    for parameter in reference.parameters():
        parameter.data += 0.05
    batch = learner.steps.batch()
    with th.no_grad():
        weighed = learner.steps.weigh(reference.distribution(batch.observations), batch)
    left = np.exp(np.minimum(log_probs() - first, np.log(2.0)))[batch.rows]
    expected = np.where(batch.candidates.scores.numpy() < 0, -left, 1.0)
    np.testing.assert_allclose(weighed.scores.numpy(), expected, rtol=1e-4)
    assert 0.0 < left.min() < 0.9
    # However little is left, it stays a rejection, which the mean over its set counts.
    model.label_log_probs[:] = 1e4
    with th.no_grad():
        weighed = learner.steps.weigh(reference.distribution(batch.observations), batch)
    assert th.equal(weighed.scores < 0, batch.candidates.scores < 0)
    # Other rows are new rows, of the same actions and places too.
    kept, other = everything(buffer), FeedbackBuffer(buffer.observation_space, buffer.action_space)
    for action, label in zip(kept.actions, kept.labels, strict=True):
        other.add(np.array([0.0, 1.0]), action, int(label))
    LabelLearner(model, buffer, kl="reference").adapt()
    assert model.label_log_probs is not None
    LabelLearner(model, other, kl="reference").adapt()
    assert model.label_log_probs is None


def test_nothing_to_learn_from() -> None:
    env = Toy()
    empty = FeedbackBuffer(env.observation_space, env.action_space)
    with pytest.raises(DatasetError, match="no feedback yet"):
        small(env).learn_from_feedback(empty, 1)
    empty.add(np.zeros(2), np.zeros(1), 0)
    with pytest.raises(DatasetError, match="all labels are 0"):
        small(env).learn_from_feedback(empty, 1)


def test_beside_the_critic(tmp_path: Path) -> None:
    """The rule says where an action is wrong; the buffer is empty at the start."""
    env = Toy()
    buffer = FeedbackBuffer(env.observation_space, env.action_space)

    def rule(seen: np.ndarray, action: np.ndarray, info: dict[str, Any]) -> int:
        return -1 if abs(action[0] - seen[0]) > 0.5 else 0

    class Save(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 80:
                self.model.save(tmp_path / "model")
            return True

    model = small(FeedbackWrapper(env, rule, buffer, "rule"))
    kept = Kept()
    model.set_logger(Logger(None, [kept]))
    model.learn(100, feedback=buffer, feedback_alpha=0.0, callback=Save(), log_interval=1)
    assert len(buffer) == 100
    assert kept.values["feedback/share_rule"] == 1.0
    assert "train/feedback_reject_log_prob_mean" in kept.values
    assert "train/critic_loss" in kept.values
    PMPO.load(tmp_path / "model", env=Toy()).learn(30)
    with pytest.raises(DatasetError, match="observations must be in the model's space"):
        model.learn(10, feedback=FeedbackBuffer(env.action_space, env.action_space))


class Indifferent(Guess):
    """Pays for the number that is seen and as much for the next one."""

    def step(self, action: Any) -> Any:
        good = (np.atleast_1d(action) - self.answer) % self.sizes < 2
        observation, _, *rest = super().step(action)
        return observation, float(good.mean()), *rest


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([3, 2])])
def test_of_choices_that_pay_alike_a_program_says_which(space: spaces.Space) -> None:
    sizes = Guess(space).sizes
    every = np.array(list(np.ndindex(*sizes)))
    seen = np.eye(max(sizes), dtype=np.float32)[every]

    def of_the_right(feedback: FeedbackBuffer | None) -> float:
        def rule(shown: np.ndarray, action: Any, info: dict[str, Any]) -> int:
            return 1 if (np.atleast_1d(action) == shown.argmax(-1)).all() else -1

        env: Any = Indifferent(space)
        if feedback is not None:
            env = FeedbackWrapper(env, rule, feedback, "rule")
        given: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 64, "policy_delay": 1}
        model = small(env, train_freq=1, reference_tau=0.05, **given).learn(120, feedback=feedback)
        with th.no_grad():
            distribution = model.actor.distribution(th.as_tensor(seen))
            log_prob = distribution.log_prob(th.as_tensor(every, dtype=th.float32)[None])
        return float(log_prob.exp().mean())

    feedback = FeedbackBuffer(Guess(space).observation_space, space)
    alone, beside = of_the_right(None), of_the_right(feedback)
    assert len(feedback) == 120
    assert beside > alone + 0.05


def test_without_feedback_learning_is_as_it_was() -> None:
    one = small(Toy()).learn(60)
    other = small(Toy())
    other.learn(60, feedback=FeedbackBuffer(other.observation_space, other.action_space))
    for name, value in parameters(one.policy).items():
        th.testing.assert_close(value, parameters(other.policy)[name], rtol=0, atol=0)


@pytest.mark.parametrize(("alpha", "label"), [(1.0, -1), (0.0, 1)])
def test_a_label_of_the_kind_that_does_not_count_is_no_end(alpha: float, label: int) -> None:
    env = Toy()
    buffer = FeedbackBuffer(env.observation_space, env.action_space)

    class Late(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 15:
                buffer.add([0.0, 0.0], [0.5], label)
            return True

    model = small(env).learn(30, callback=Late(), feedback=buffer, feedback_alpha=alpha)
    assert model.num_timesteps == 30


def test_what_is_no_feedback_is_refused_before_it_learns() -> None:
    model, buffer = small(Toy()), answered(n=20)
    with pytest.raises(TypeError, match="feedback must be a FeedbackBuffer, got LabelledDataset"):
        model.learn(5, feedback=buffer.to_dataset())  # type: ignore[arg-type]
    for alpha in (2.0, -1.0, "x", np.nan):
        with pytest.raises(ValueError, match="feedback_alpha must be a number >= 0"):
            model.learn(5, feedback=buffer, feedback_alpha=alpha)  # type: ignore[arg-type]
    assert model.num_timesteps == 0


def test_what_acted_before_goes_on_acting_without_a_warm_up() -> None:
    model = small(Toy(), learning_starts=20).learn(25)
    model.learn_from_feedback(answered(n=20), 5, clone_steps=0)
    assert model.num_timesteps == 30
    draws = []
    model.action_space.sample = lambda: draws.append(1)  # type: ignore[method-assign]
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 40
    assert not draws


def test_an_annotator_of_booleans_is_refused() -> None:
    env = Toy()
    feedback = FeedbackBuffer(env.observation_space, env.action_space)
    wrapped = FeedbackWrapper(env, lambda *_: False, feedback)
    wrapped.reset(seed=0)
    with pytest.raises(ValueError, match="must return 1, 0 or -1, got False"):
        wrapped.step(np.zeros(1, np.float32))


def test_what_float32_cannot_hold_is_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    buffer = answered(n=20)
    with pytest.raises(DatasetError, match="must be finite in float32"):
        buffer.add(np.full(2, 1e39), [0.5], 1)
    n = len(buffer)
    buffer.save(tmp_path / "kept.npz")
    assert len(FeedbackBuffer.load(tmp_path / "kept.npz")) == n


def test_sources_with_long_names_are_logged_apart() -> None:
    """SB3's console cuts a key, and fails on two that are then one."""
    buffer = answered((1,))
    for number in range(2):
        name = f"annotator_of_the_company_shift_{number}"
        buffer.add(np.zeros(2), np.array([0.5]), 1, source=name)
    small(Toy(), verbose=1).learn_from_feedback(buffer, 3)


def test_a_copy_of_a_model_learns_from_the_same_labels() -> None:
    buffer = answered((1,), 100)
    model = small(Toy()).learn(30, feedback=buffer)
    again = copy.deepcopy(model)
    assert again.given_labels is buffer
    again.learn(10, feedback=buffer, reset_num_timesteps=False)


def test_ctrl_c_leaves_the_steps_that_were_taken() -> None:
    model = small(Toy()).learn(30)

    def interrupt(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["number"] == 4:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn_from_feedback(answered((1,)), 10, callback=interrupt)
    assert model.num_timesteps == model.stored_steps == 34
    with pytest.raises(ValueError, match="kl must be one of"):
        model.learn_from_feedback(answered((1,)), 10, kl="other")
    assert model.num_timesteps == 34
