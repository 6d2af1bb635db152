"""The Control Suite: every task made, checked, stepped; equal by seed; in other processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from dm_control import suite
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_pmpo import PMPO
from sb3_pmpo.envs import action_repeat_of, control_suite, make_dmc_env, make_env
from sb3_pmpo.online.env_checks import remedy_for

ALL = [f"{domain}-{task}" for domain, task in suite.ALL_TASKS]
UNSUPPORTED = {"lqr-lqr_2_1", "lqr-lqr_6_2", "quadruped-escape"}
SUPPORTED = [task for task in ALL if task not in UNSUPPORTED]


def rollout(env: gym.Env, seed: int, n_steps: int) -> np.ndarray:
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    seen = [observation]
    for _ in range(n_steps):
        observation, reward, *_ = env.step(env.action_space.sample())
        seen.append(np.append(observation, reward)[: len(observation)])
    return np.stack(seen)


def call(program: str, backend: str) -> subprocess.CompletedProcess[str]:
    """Run a program with what draws."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MUJOCO_GL": backend},
        capture_output=True,
        text=True,
        timeout=120,
    )


# SB3 would rather have quadruped's box symmetric; it is dm_control's, and PMPO rescales it.
@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric")
@pytest.mark.parametrize("task", SUPPORTED)
def test_every_task_passes_the_check_and_two_instances_are_equal_by_seed(task: str) -> None:
    env, used = make_dmc_env(task, action_repeat=2), make_dmc_env(task, action_repeat=2)
    check_env(env)
    assert env.observation_space.dtype == env.action_space.dtype == np.float32
    assert len(env.observation_space.shape or ()) == 1
    rollout(used, seed=1, n_steps=10)  # what an instance did before must not show
    np.testing.assert_array_equal(rollout(env, 7, 20), rollout(used, 7, 20))
    seconds = used.unwrapped.control_timestep()  # type: ignore[attr-defined]
    assert env.metadata["render_fps"] == pytest.approx(0.5 / seconds)
    env.close()
    used.close()


def test_the_list_of_tasks_is_whole() -> None:
    assert len(SUPPORTED) == len(ALL) - 3 >= 48


def test_metadata_are_each_instance_s_own() -> None:
    walker, cartpole = make_dmc_env("walker-walk"), make_dmc_env("cartpole-swingup")
    assert walker.metadata["render_fps"] == pytest.approx(40)
    assert cartpole.metadata["render_fps"] == pytest.approx(100)


def test_episodes_end_by_truncation_after_1000_environment_steps() -> None:
    env = make_dmc_env("point_mass-easy", action_repeat=3)
    env.reset(seed=0)
    decisions, over = 0, False
    while not over:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        decisions, over = decisions + 1, terminated or truncated
    assert (decisions, terminated, truncated) == (334, False, True)


def test_quadruped_actions_keep_their_asymmetric_box_to_the_end() -> None:
    space = make_dmc_env("quadruped-walk").action_space
    assert isinstance(space, gym.spaces.Box)
    np.testing.assert_allclose(space.low[:3], [-1.0, -1.0, -0.8])
    np.testing.assert_allclose(space.high[:3], [1.0, 1.1, 0.8])
    model = PMPO("MlpPolicy", make_dmc_env("quadruped-walk"), policy_kwargs={"net_arch": [8]})
    observation = model.observation_space.sample().clip(-1, 1)
    drawn = np.stack([model.predict(observation)[0] for _ in range(200)])
    assert (drawn >= space.low).all()
    assert (drawn <= space.high).all()
    assert drawn[:, 1].max() == pytest.approx(1.1)


def test_lqr_and_an_id_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"lqr_2_1-v0 is not supported.*1e10.*TimeLimit"):
        make_dmc_env("lqr-lqr_2_1")
    with pytest.raises(ValueError, match=r"such as 'walker-walk', got 'dm_control/walker-walk-v0'"):
        make_dmc_env("dm_control/walker-walk-v0")


def test_escape_is_refused_without_opengl_and_works_with_it() -> None:
    program = (
        "from sb3_pmpo.envs import make_dmc_env\n"
        "from stable_baselines3.common.env_checker import check_env\n"
        "env = make_dmc_env('quadruped-escape')\n"
        "check_env(env)\n"
        "env.reset(seed=0)\n"
        "print(len(env.step(env.action_space.sample())[0]))\n"
    )
    refused = call(program, "disabled")
    assert "needs OpenGL" in refused.stderr
    assert "MUJOCO_GL=egl" in refused.stderr
    works = call(program, "egl")
    if works.returncode:
        pytest.skip(f"no EGL on this machine: {works.stderr[-200:]}")
    assert works.stdout.strip() == "101"


def test_what_draws_and_is_not_there_is_one_sentence() -> None:
    """dm_control fails as it is imported; who uses other environments does not notice."""
    program = """
import gymnasium, sb3_pmpo.envs as envs
envs.make_env("Pendulum-v1")
try:
    envs.make_dmc_env("walker-walk")
except ValueError as error:
    print(error)
"""
    done = call(program, "elg")
    assert done.returncode == 0, done.stderr
    assert "cannot be made with MUJOCO_GL='elg'" in done.stdout
    assert "apt install libegl1" in done.stdout


def test_a_task_of_the_suite_is_made_by_its_function() -> None:
    gym.registry.pop("dm_control/nobody-v0", None)
    with pytest.raises(ValueError, match=r'give make_dmc_env\("nobody", action_repeat=2\)'):
        PMPO("MlpPolicy", "dm_control/nobody-v0")


def test_box2d_is_an_extra_that_needs_no_compiler() -> None:
    assert "sb3_pmpo[box2d]" in remedy_for("LunarLander-v3")
    assert "a name that is registered" in remedy_for("CartPole-v1")


def test_bounds_are_set_as_the_message_says() -> None:
    class Unbounded(gym.Env):
        observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
        action_space = gym.spaces.Box(-np.inf, np.inf, (2,))

    env = Unbounded()
    with pytest.raises(ValueError, match="must have finite bounds") as refused:
        PMPO("MlpPolicy", env)
    remedy = str(refused.value).partition("set them with ")[2]
    bounded = eval(remedy, {"gymnasium": gym, "env": env})
    assert PMPO("MlpPolicy", bounded, buffer_size=1).action_space == gym.spaces.Box(-1, 1, (2,))


def test_unknown_tasks_name_their_neighbours() -> None:
    with pytest.raises(ValueError, match=r"'dm_control/walker-wolk-v0'.*walker-walk-v0"):
        make_dmc_env("walker-wolk")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_actions_that_are_not_finite_never_reach_mujoco(value: float) -> None:
    env = make_dmc_env("cartpole-swingup", action_repeat=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must be finite"):
        env.step(np.array([value], np.float32))
    env.step(np.array([0.5], np.float32))  # and the physics are as they were


def test_subprocesses_give_what_this_process_gives() -> None:
    make = partial(make_dmc_env, "cartpole-swingup", action_repeat=2)
    pickle.loads(pickle.dumps(make))
    here = make_vec_env(make, n_envs=2, seed=3)
    # Their server has imported SB3 and no suite, so each child finds the task by itself.
    there = make_vec_env(
        make,
        n_envs=2,
        seed=3,
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={"start_method": "forkserver"},
    )
    np.testing.assert_array_equal(here.reset(), there.reset())
    for action in ([[0.1], [0.2]], [[-1.0], [1.0]]):
        one, other = (env.step(np.array(action, np.float32)) for env in (here, there))
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1].astype(np.float32))
    there.close()


def test_rgb_array_renders_pixels_at_the_asked_size() -> None:
    program = (
        "import numpy as np, gymnasium as gym\n"
        "from sb3_pmpo.envs import make_dmc_env\n"
        "env = make_dmc_env('walker-walk', render_mode='rgb_array',\n"
        "                   render_kwargs={'height': 84, 'width': 96, 'camera_id': 0})\n"
        "env.reset(seed=0)\n"
        "frame = env.render()\n"
        "assert frame.shape == (84, 96, 3) and frame.dtype == np.uint8 and frame.std() > 5\n"
        "pixels = gym.wrappers.AddRenderObservation(env)\n"
        "assert pixels.reset(seed=0)[0].shape == (84, 96, 3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MUJOCO_GL": "egl"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "OpenGL" in done.stderr or "EGL" in done.stderr:
        pytest.skip(f"no EGL on this machine: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr


def test_wrappers_by_name_and_their_action_repeat() -> None:
    wrappers = [{"sb3_pmpo.envs.control_suite": {"action_repeat": 2}}]
    wrappers += [{"sb3_pmpo.envs.ActionRepeat": {"n_repeats": 3}}]
    assert action_repeat_of(wrappers) == 6
    env = make_env("dm_control/cartpole-swingup-v0", wrappers)
    assert env.metadata["render_fps"] == pytest.approx(100 / 6)
    with pytest.raises(ValueError, match="n_repeats must be at least 1"):
        control_suite(gym.make("dm_control/cartpole-swingup-v0"), action_repeat=2).__class__(env, 0)
