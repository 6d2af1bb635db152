"""Saving, loading with changed arguments, and resuming."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from toys import DictToy, Guess, Toy, assert_equal, parameters, sample, small

from sb3_pmpo import DPO, MPO, PMPO, top_k
from sb3_pmpo.actor import Actor
from sb3_pmpo.online import persistence
from sb3_pmpo.policies import MlpPolicy

OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
SMALL_DICT = {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 8}}


def trained(**kwargs: Any) -> PMPO:
    return small(Toy(), **kwargs).learn(60)


def act(predictor: Any) -> np.ndarray:
    return predictor.predict(OBSERVATIONS, deterministic=True)[0]


def moments(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """Adam's running averages."""
    states = optimizer.state_dict()["state"].values()
    return [state[key] for state in states for key in ("exp_avg", "exp_avg_sq", "step")]


def reload(model: PMPO, path: Path, **kwargs: Any) -> PMPO:
    model.save(path / "model")
    return PMPO.load(path / "model", env=Toy(), device="cpu", **kwargs)


def test_a_loaded_model_is_the_same_model(tmp_path: Path) -> None:
    model = trained(labeller=top_k(1), exploration_noise=None, beta=(1.5, 3.0))
    loaded = reload(model, tmp_path)
    assert_equal(parameters(model.policy), parameters(loaded.policy))
    np.testing.assert_array_equal(act(model), act(loaded))
    assert tuple(loaded.beta) == (1.5, 3.0)
    for name in ("alpha", "labeller", "n_samples", "exploration_noise", "reference_tau"):
        assert getattr(model, name) == getattr(loaded, name)
    for name in ("num_timesteps", "_n_updates", "_episode_num", "n_steps", "gamma"):
        assert getattr(model, name) == getattr(loaded, name)
    count = loaded.policy.normaliser.moments[0].count
    assert count.item() == 60  # the normaliser's statistics are part of it
    assert loaded.actor is loaded.policy.actor
    assert loaded.reference_actor is loaded.policy.reference_actor


def test_optimiser_state_is_in_the_file_and_restored(tmp_path: Path) -> None:
    model = trained()
    loaded = reload(model, tmp_path)
    _, saved, _ = load_from_zip_file(tmp_path / "model", device="cpu")
    assert saved.keys() == {"policy", "actor.optimizer", "critic.optimizer"}
    for name, part in (("actor", "actor.optimizer"), ("critic", "critic.optimizer")):
        before = moments(getattr(model, name).optimizer)
        after = moments(getattr(loaded, name).optimizer)
        assert len(before) == 3 * len(list(getattr(model, name).parameters()))
        assert len(saved[part]["state"]) * 3 == len(before)
        assert all(th.equal(old, new) for old, new in zip(before, after, strict=True))
        assert before[0].abs().sum() > 0


def test_training_continues_as_if_never_saved(tmp_path: Path) -> None:
    model = trained(gradient_steps=2)
    loaded = reload(model, tmp_path)
    model.save_replay_buffer(tmp_path / "buffer")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        each.set_random_seed(5)
        each.train(7, batch_size=16)
    assert_equal(parameters(model.policy), parameters(loaded.policy))


@pytest.mark.parametrize("normalise", [True, False])
def test_policy_and_actor_save_and_load_alone(tmp_path: Path, normalise: bool) -> None:
    arch = {"net_arch": [8], "normalize_observations": normalise, "std_init": 0.3}
    model = trained(policy_kwargs=arch)
    model.policy.save(tmp_path / "policy")
    model.actor.save(tmp_path / "actor")
    policy, actor = MlpPolicy.load(tmp_path / "policy"), Actor.load(tmp_path / "actor")
    np.testing.assert_array_equal(act(policy), act(model))
    np.testing.assert_array_equal(act(actor), act(model))
    assert_equal(parameters(model.policy), parameters(policy))
    th.testing.assert_close(
        actor.distribution(th.as_tensor(OBSERVATIONS)).std,
        model.actor.distribution(th.as_tensor(OBSERVATIONS)).std,
    )


def test_set_parameters_takes_any_parameters() -> None:
    model = trained()
    given = model.get_parameters()
    given["policy"] = {name: th.rand_like(value) for name, value in given["policy"].items()}
    shared = {name for name in given["policy"] if "normaliser" in name or "moments" in name}
    model.set_parameters(given)
    after = model.policy.state_dict()
    for name in given["policy"].keys() - shared:
        assert th.equal(after[name], given["policy"][name]), name
    assert np.isfinite(act(model)).all()
    other = trained(seed=9)
    other.set_parameters(model.get_parameters())
    np.testing.assert_array_equal(act(other), act(model))
    with pytest.raises(ValueError, match="nonsense"):
        model.set_parameters({"nonsense": {}}, exact_match=False)


# ------------------------------------------------------------------ changed arguments


def test_changed_arguments_take_effect(tmp_path: Path) -> None:
    model = trained(gamma=0.9, n_steps=3)
    loaded = reload(
        model,
        tmp_path,
        gamma=0.5,
        beta=(3.0, 4.0),
        alpha=0.75,
        labeller=top_k(1),
        learning_rate=0.5,
        actor_learning_rate=lambda _: 0.25,
        n_steps=5,
        tau=1.0,
        train_freq=(2, "episode"),
        exploration_noise=None,
    )
    assert (loaded.n_steps, loaded.gamma) == (5, 0.5)
    objective = loaded.objective
    assert (objective.alpha, objective.beta_mean, objective.beta_std) == (0.75, 3.0, 4.0)
    assert objective.labeller == top_k(1)
    loaded.learn(60)
    assert loaded.critic.optimizer.param_groups[0]["lr"] == 0.5
    assert loaded.actor.optimizer.param_groups[0]["lr"] == 0.25
    assert sample(loaded, 64).discounts.min() == 0.5**5
    assert (loaded.train_freq.frequency, loaded.train_freq.unit.value) == (2, "episode")
    assert_equal(parameters(loaded.critic), parameters(loaded.critic_target))  # tau = 1


def test_a_schedule_survives_saving(tmp_path: Path) -> None:
    model = trained(learning_rate=lambda progress: 0.1 * progress + 0.01)
    loaded = reload(model, tmp_path)
    assert [loaded.lr_schedule(p) for p in (1.0, 0.0)] == pytest.approx([0.11, 0.01])


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_loaded_buffer_takes_the_models_gamma_and_n_steps(
    tmp_path: Path, dictionary: bool
) -> None:
    def make(**kwargs: Any) -> PMPO:
        if dictionary:
            return small(DictToy(Toy()), "MultiInputPolicy", policy_kwargs=SMALL_DICT, **kwargs)
        return small(Toy(), **kwargs)

    make(gamma=0.9, n_steps=2).learn(25).save_replay_buffer(tmp_path / "buffer")
    model = make(gamma=0.5, n_steps=4)
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.size() == 25
    discounts = sample(model, 64).discounts
    assert discounts.min().item() == pytest.approx(0.5**4)


def test_a_buffers_own_arguments_go_first_after_loading_too(tmp_path: Path) -> None:
    kwargs = {"n_steps": 4, "gamma": 0.5}
    model = trained(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=kwargs)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (4, 0.5)


@pytest.mark.parametrize(("asked", "n_steps"), [({}, 3), ({"n_steps": 5}, 5)])
def test_a_users_n_step_class_keeps_its_default_unless_asked(
    tmp_path: Path, asked: dict[str, int], n_steps: int
) -> None:
    model = trained(replay_buffer_class=NStepReplayBuffer, **asked)
    assert model.replay_buffer.n_steps == n_steps  # 3 is SB3's, with SAC too
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.n_steps == n_steps


class OwnSamples(ReplayBuffer):
    """Samples in a way of its own, and takes no ``n_steps``."""

    def sample(self, batch_size: int, env: Any = None) -> Any:
        return super().sample(batch_size, env)


@pytest.mark.parametrize("buffer_class", [None, ReplayBuffer])
def test_any_storage_makes_n_step_returns(
    buffer_class: type[ReplayBuffer] | None, tmp_path: Path
) -> None:
    trained(n_steps=1).save_replay_buffer(tmp_path / "buffer")
    model = small(Toy(), n_steps=3, gamma=0.9, replay_buffer_class=buffer_class)
    model.load_replay_buffer(tmp_path / "buffer")
    assert sample(model, 64).discounts.min().item() == pytest.approx(0.9**3)


def test_n_steps_with_a_class_that_samples_for_itself_warns(tmp_path: Path) -> None:
    own = trained(replay_buffer_class=OwnSamples)
    assert sample(own, 8).discounts == own.gamma
    own.save_replay_buffer(tmp_path / "buffer")
    with pytest.warns(UserWarning, match="`n_steps=3` is ignored: OwnSamples samples"):
        small(Toy(), n_steps=3, replay_buffer_class=OwnSamples)
    model = small(Toy(), n_steps=3)
    with pytest.warns(UserWarning, match="`n_steps=3` is ignored: OwnSamples samples"):
        model.load_replay_buffer(tmp_path / "buffer")


@pytest.mark.parametrize("buffer_class", [None, ReplayBuffer, OwnSamples])
@pytest.mark.parametrize("name", ["n_steps", "gamma"])
def test_arguments_that_the_buffer_does_not_take_are_refused_by_name(
    name: str, buffer_class: type[ReplayBuffer] | None
) -> None:
    kwargs = {"replay_buffer_class": buffer_class, "replay_buffer_kwargs": {name: 3}}
    with pytest.raises(ValueError, match=f"has {name}=3, which .* use {name}=3 of the algorithm"):
        small(Toy(), **kwargs)


# ------------------------------------------------------------------ resuming


def test_resuming_continues_counters_and_schedules(tmp_path: Path) -> None:
    seen: list[float] = []

    def schedule(progress: float) -> float:
        seen.append(progress)
        return 1e-3

    model = trained(learning_rate=schedule)
    model.save_replay_buffer(tmp_path / "buffer")
    updates = model._n_updates
    loaded = reload(model, tmp_path)
    loaded.load_replay_buffer(tmp_path / "buffer")
    progress: list[float] = []
    loaded.lr_schedule = lambda p: progress.append(p) or 1e-3
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 100
    assert loaded._n_updates == updates + 40  # from the first step: no second warm-up
    assert loaded._episode_num == 10
    assert progress == pytest.approx([1 - step / 100 for step in range(61, 101)])
    assert loaded.replay_buffer.size() == 100
    assert loaded.policy.normaliser.moments[0].count.item() == 100


def test_reference_schedule_and_age_continue(tmp_path: Path) -> None:
    model = small(Toy(), reference_tau=1.0, reference_update_interval=50, policy_delay=1)
    model.learn(60)
    updates = model._n_updates
    assert 0 < updates < 50
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = reload(model, tmp_path)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded._reference_age == updates
    loaded.set_logger(model.logger)
    before = parameters(loaded.reference_actor)
    loaded.train(49 - updates, batch_size=16)
    assert_equal(before, parameters(loaded.reference_actor))
    loaded.train(1, batch_size=16)
    assert_equal(parameters(loaded.actor), parameters(loaded.reference_actor))
    assert loaded._reference_age == 0


def test_resuming_without_a_buffer_warns(tmp_path: Path) -> None:
    loaded = reload(trained(), tmp_path)
    with pytest.warns(UserWarning, match="step 60 with an empty replay buffer"):
        loaded.learn(5, reset_num_timesteps=False)


def test_learn_save_and_load_are_silent(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = trained(n_steps=3)
        loaded = reload(model, tmp_path)
        model.save_replay_buffer(tmp_path / "buffer")
        loaded.load_replay_buffer(tmp_path / "buffer")
        loaded.learn(10, reset_num_timesteps=False)
        reload(loaded, tmp_path).learn(30)
        PMPO.load(tmp_path / "model")


# ------------------------------------------------------------------ arguments stay the user's


def test_arguments_are_not_reassigned_and_dicts_not_mutated(tmp_path: Path) -> None:
    buffer_kwargs: dict[str, Any] = {"handle_timeout_termination": True}
    extractor_kwargs: dict[str, Any] = {"cnn_output_dim": 8}
    optimizer_kwargs: dict[str, Any] = {"eps": 1e-5}
    policy_kwargs: dict[str, Any] = {
        "net_arch": {"pi": [8], "qf": [8]},
        "features_extractor_kwargs": extractor_kwargs,
        "optimizer_kwargs": optimizer_kwargs,
    }
    model = small(
        DictToy(Toy()),
        "MultiInputPolicy",
        replay_buffer_kwargs=buffer_kwargs,
        policy_kwargs=policy_kwargs,
        n_steps=3,
        beta=2,
        actor_learning_rate=None,
        learning_rate=1e-3,
    )
    model.learn(30)
    model.save(tmp_path / "model")
    for each in (model, PMPO.load(tmp_path / "model")):
        assert each.n_steps == 3
        assert each.replay_buffer_class is None
        assert each.beta == 2
        assert each.actor_learning_rate is None
        assert each.learning_rate == 1e-3
        assert each.replay_buffer_kwargs == {"handle_timeout_termination": True}
    assert buffer_kwargs == {"handle_timeout_termination": True}
    assert extractor_kwargs == {"cnn_output_dim": 8}
    assert optimizer_kwargs == {"eps": 1e-5}
    assert policy_kwargs == {
        "net_arch": {"pi": [8], "qf": [8]},
        "features_extractor_kwargs": extractor_kwargs,
        "optimizer_kwargs": optimizer_kwargs,
    }


def test_setup_model_can_run_twice() -> None:
    once = small(Toy())
    before = parameters(once.policy)
    once._setup_model()
    assert_equal(before, parameters(once.policy))
    twice = small(Toy(), _init_setup_model=False)
    twice._setup_model()
    assert_equal(before, parameters(twice.policy))
    for each in (once, twice):
        each.set_random_seed(1)
        each.learn(40)
    assert_equal(parameters(once.policy), parameters(twice.policy))


def test_hindsight_replay_saves_and_resumes(tmp_path: Path) -> None:
    def make() -> BitFlippingEnv:
        return BitFlippingEnv(n_bits=3, continuous=True)

    model = small(
        make(),
        "MultiInputPolicy",
        replay_buffer_class=HerReplayBuffer,
        train_freq=(1, "episode"),  # SB3 warns of a buffer that ends within an episode
    )
    model.learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = PMPO.load(tmp_path / "model", env=make())
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert isinstance(loaded.replay_buffer, HerReplayBuffer)
    assert loaded.replay_buffer.size() == model.replay_buffer.size()
    before = parameters(loaded.actor.head)
    loaded.learn(20, reset_num_timesteps=False)
    assert 20 <= loaded.num_timesteps - model.num_timesteps < 20 + 3  # to the end of an episode
    assert not th.equal(before["linear.weight"], loaded.actor.head.linear.weight)
    assert set(sample(model, 16).observations) == {
        "observation",
        "achieved_goal",
        "desired_goal",
    }


# SB3's save_to_zip_file leaves the file open then.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("what", ["model", "buffer"])
def test_an_unfinished_save_does_not_touch_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    model = trained()
    save = model.save if what == "model" else model.save_replay_buffer
    save(tmp_path / what)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()

    def broken(*args: Any, **kwargs: Any) -> None:
        (target,) = (each for each in args if isinstance(each, io.IOBase))
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(persistence, f"save_{what}", broken)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / what)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_model_saves_to_an_open_file(tmp_path: Path) -> None:
    file = io.BytesIO()
    model = trained()
    model.save(file)
    np.testing.assert_array_equal(act(PMPO.load(file)), act(model))


def test_set_random_seed_after_loading_decides_what_follows(tmp_path: Path) -> None:
    small(Toy(), seed=None).learn(30).save(tmp_path / "model")
    weights = []
    for seed in (3, 3, 4):
        model = PMPO.load(tmp_path / "model", env=Toy(), device="cpu")
        model.set_random_seed(seed)
        weights.append(parameters(model.learn(40).policy))
    assert_equal(*weights[:2])
    assert not all(th.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_a_folder_in_the_way_loses_no_model(tmp_path: Path) -> None:
    (tmp_path / "run.v1").mkdir()
    model = trained()
    with pytest.warns(UserWarning, match="run.v1_2"):
        model.save(tmp_path / "run.v1")
    np.testing.assert_array_equal(act(PMPO.load(tmp_path / "run.v1_2")), act(model))


def test_saving_follows_a_link_and_keeps_the_mode(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "m.zip", tmp_path / "m.zip"
    real.touch(mode=0o600)
    real.chmod(0o664)
    link.symlink_to(real)
    model = trained()
    model.save(tmp_path / "m")
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o664
    np.testing.assert_array_equal(act(PMPO.load(real)), act(model))
    assert [path.name for path in real.parent.iterdir()] == ["m.zip"]


def test_a_her_model_loaded_without_an_environment_learns_once_it_has_one(tmp_path: Path) -> None:
    def make_env() -> BitFlippingEnv:
        return BitFlippingEnv(n_bits=3, continuous=True)

    model = PMPO(
        "MultiInputPolicy", make_env(), replay_buffer_class=HerReplayBuffer, learning_starts=10,
        buffer_size=200, policy_kwargs={"net_arch": [8]},
    )  # fmt: skip
    model.learn(20).save(tmp_path / "her")
    loaded = PMPO.load(tmp_path / "her")
    loaded.set_env(make_env())
    loaded.learn(20)
    assert loaded.num_timesteps == 20


@pytest.mark.parametrize(
    ("make_env", "n_steps", "train_freq"),
    [(Toy, 1, 1), (lambda: Guess(spaces.Discrete(3)), 5, 8)],
)
def test_none_asks_for_the_measured_best_in_load_too(
    make_env: Any, n_steps: int, train_freq: int, tmp_path: Path
) -> None:
    small(make_env(), n_steps=2, train_freq=3).save(tmp_path / "m.zip")
    model = PMPO.load(tmp_path / "m.zip", make_env(), n_steps=None, train_freq=None)
    assert (model.n_steps, model.train_freq.frequency) == (n_steps, train_freq)
    assert PMPO.load(tmp_path / "m.zip", n_steps=None).train_freq.frequency == 3


@pytest.mark.parametrize("saved", [PMPO, MPO, DPO])
def test_a_file_of_another_algorithm_is_refused(saved: type, tmp_path: Path) -> None:
    class Mine(saved):
        pass

    model = small(Toy(), algorithm=saved)
    model.save(tmp_path / "model")
    for other in (PMPO, MPO, DPO):
        if other is not saved:
            message = f"is a model of {saved.__name__}, not of {other.__name__}"
            with pytest.raises(ValueError, match=message):
                other.load(tmp_path / "model", device="cpu")
    mine = Mine.load(tmp_path / "model", device="cpu")
    assert vars(mine).keys() == vars(saved.load(tmp_path / "model", device="cpu")).keys()
    assert "algorithm" not in vars(mine)
    mine.save(tmp_path / "mine")
    assert isinstance(saved.load(tmp_path / "mine", device="cpu"), saved)


@pytest.mark.parametrize(
    ("kind", "given", "error", "message"),
    [
        (PMPO, {"aplha": 0.9}, TypeError, "PMPO has no argument 'aplha': did you mean 'alpha'"),
        (MPO, {"n_sample": 4}, TypeError, "MPO has no argument 'n_sample': did you mean"),
        (PMPO, {"use_sde": True}, ValueError, "use_sde"),
    ],
)
def test_load_refuses_what_the_constructor_refuses(
    kind: type, given: dict[str, Any], error: type, message: str, tmp_path: Path
) -> None:
    kind("MlpPolicy", Toy(), buffer_size=10).save(tmp_path / "model.zip")
    with pytest.raises(error, match=message):
        kind.load(tmp_path / "model.zip", **given)
    loaded = kind.load(tmp_path / "model.zip", stats_window_size=5)
    with pytest.raises(ValueError, match=r"no environment to learn in: call set_env\(env\)"):
        loaded.learn(10)
    loaded.set_env(Toy())
    assert loaded.learn(10).ep_info_buffer.maxlen == 5


def test_another_environment_begins_its_own_returns() -> None:
    """The unit of the critic is of its rewards, not of what the first one's episode had earned."""
    model = PMPO("MlpPolicy", Toy(), buffer_size=100, learning_starts=1000)
    model.learn(3)
    model.discounted_returns[:] = 1e6
    model.set_env(Toy())
    model.learn(1, reset_num_timesteps=False)
    assert model.discounted_returns < 1e3


def test_dropout_leaves_the_targets_alone() -> None:
    """``train()`` of torch reaches the lagged copies too; SB3's switch puts them back."""
    policy = PMPO("MlpPolicy", Toy(), buffer_size=10).policy
    policy.train()
    policy.set_training_mode(False)
    policy.set_training_mode(True)
    assert policy.actor.training
    assert not policy.reference_actor.training
    assert not policy.critic_target.training
